"""The kinds of moves in the journal, and the flags of rename(2)."""

from __future__ import annotations

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
MOVE, MOVE_DIRECTORY, SWAP = "move", "move-directory", "exchange"

Place = tuple[int, bytes]
"""(parent inode, name)."""
