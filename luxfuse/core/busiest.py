"""Which files are used most now: opens and bytes of the last few minutes, for a bounded number of files."""

from __future__ import annotations

from typing import NamedTuple

MOST = 2048
"""Files that are counted at once; of more, those that were used least are forgotten."""
_OPEN_BYTES = 1 << 16
"""An open counts as much as so many bytes that are read."""


class Use(NamedTuple):
    """What was done with a file: opens, and bytes that were read of it."""

    opens: int
    read_bytes: int

    @property
    def weight(self) -> int:
        """How busy it is."""
        return self.opens * _OPEN_BYTES + self.read_bytes


class Busiest:
    """Counts uses of files by number, in two windows: that of now, and the one before."""

    def __init__(self) -> None:
        self._now: dict[int, Use] = {}
        self._before: dict[int, Use] = {}

    def add(self, inode: int, opens: int, read_bytes: int) -> None:
        """Count a use."""
        old = self._now.get(inode)
        self._now[inode] = Use(opens, read_bytes) if old is None else Use(old.opens + opens, old.read_bytes + read_bytes)
        if len(self._now) > 2 * MOST:
            kept = sorted(self._now, key=lambda each: self._now[each].weight, reverse=True)[:MOST]
            self._now = {each: self._now[each] for each in kept}

    def turn(self) -> None:
        """Begin a new window, and forget the one before the last."""
        self._before, self._now = self._now, {}

    def top(self, most: int) -> list[tuple[int, Use]]:
        """Return the files that are used most, the busiest first, with what both windows have."""
        nothing = Use(0, 0)
        both = {}
        for inode in {*self._now, *self._before}:
            now, before = self._now.get(inode, nothing), self._before.get(inode, nothing)
            both[inode] = Use(now.opens + before.opens, now.read_bytes + before.read_bytes)
        return sorted(both.items(), key=lambda item: (-item[1].weight, item[0]))[:most]
