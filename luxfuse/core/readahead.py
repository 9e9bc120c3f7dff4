"""How far to fetch ahead of a reader of one file.

The window starts with the pages that were asked for, doubles while reads go on where the last ones ended, and is
nothing for reads elsewhere (the scheme of the kernel's own read-ahead, mm/readahead.c, over larger distances). The
kernel sends several READs of a stream at once and out of order, so "where the last ones ended" is a neighbourhood.
"""

from __future__ import annotations

NEIGHBOURHOOD_BYTES = 16 << 20
"""READs of one stream come this far apart, given 8 MiB of read-ahead in the kernel (two windows)."""

FIRST_WINDOW_BYTES = 2 << 20


class Sequence:
    """The pattern of one open file. All offsets and sizes are bytes."""

    __slots__ = ("_max_bytes", "_next", "_planned", "_window")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._next = 0
        self._planned = 0
        self._window = 0

    @property
    def window_bytes(self) -> int:
        """How far ahead the last read let us fetch."""
        return self._window

    def advance(self, offset: int, length: int, size_bytes: int) -> range:
        """Record a read and return the bytes to fetch ahead now: a range after it, empty when there is nothing to do.

        A range is returned once only: it is not planned again while the stream goes on.
        """
        end = offset + length
        if abs(offset - self._next) > NEIGHBOURHOOD_BYTES or (self._window == 0 and offset != self._next):
            self._next, self._planned, self._window = end, end, 0
            return range(0)
        self._next = max(self._next, end)
        self._window = min(max(2 * self._window, FIRST_WINDOW_BYTES), self._max_bytes)
        start = max(self._planned, end)
        stop = min(self._next + self._window, size_bytes)
        # Plan in steps of a quarter window: small steps would mean many small requests.
        if stop <= start or (stop < size_bytes and stop - start < self._window // 4):
            return range(0)
        self._planned = stop
        return range(start, stop)
