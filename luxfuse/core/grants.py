"""How much room on disk the lanes may fill on their own, without asking."""

from __future__ import annotations

from luxfuse.core.ledger import BLOCK_BYTES

MOST_BYTES = 64 << 20
"""Of one file: enough that few writes have to ask."""
FILE_SHARE, FIRST_SHARE, ALL_SHARE = 64, 16, 4
"""One file is granted a 64th of the directory at most, a 16th of that when it is opened; all together a quarter of it."""


def grant_bytes(full_bytes: int, granted_bytes: int, *, first: bool) -> int:
    """Return what one more file may be granted; 0: nothing, so that each write asks.

    ``full_bytes`` is what the directory may hold, ``granted_bytes`` what is granted in it already.
    """
    wanted = min(MOST_BYTES, full_bytes // FILE_SHARE)
    if first:
        wanted //= FIRST_SHARE
    wanted -= wanted % BLOCK_BYTES
    return wanted if granted_bytes + wanted <= full_bytes // ALL_SHARE else 0


def is_tight(full_bytes: int, granted_bytes: int) -> bool:
    """Whether so much is granted that files which are not written to should give theirs back."""
    return granted_bytes > full_bytes // (2 * ALL_SHARE)
