"""How far to fetch ahead of a reader of one file.

The further a stream has come, the further ahead of it is fetched: a program that reads only the beginning of a file
costs little, and one that goes on soon has the whole window. Reads elsewhere are no stream, and nothing is fetched for
them. The kernel sends several READs of a stream at once and out of order, so "where the last ones ended" is a
neighbourhood. How much of the window is asked for at once is another question (`core.flow`), but for what a READ waits
for already: the kernel, which reads ahead, too, may have overtaken us.
"""

from __future__ import annotations

from luxfuse.types import PAGE_BYTES

NEIGHBOURHOOD_BYTES = 16 << 20
"""READs of one stream come this far apart, given 8 MiB of read-ahead in the kernel (two windows)."""

FIRST_WINDOW_BYTES = 2 << 20

RAMP = 8
"""The window is so many times what the stream has read. Its first READ of 1 MiB opens 8 MiB: at 20 ms that keeps a link of
400 MB/s busy until the kernel, which doubles its own window, asks for more."""


SKIP_BYTES = 4 << 20
"""A READ so far beyond what was asked for leaves something out, or others come that were sent before it."""


class Sequence:
    """The pattern of one open file. All offsets and sizes are bytes."""

    __slots__ = ("_begun", "_max_bytes", "_next", "_read", "_size", "_window")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._next = 0
        self._read = 0
        self._begun = 0
        self._window = 0
        self._size = 0

    @property
    def window_bytes(self) -> int:
        """How far ahead the last read let us fetch."""
        return self._window

    @property
    def streams(self) -> bool:
        """Whether the last READs were those of a stream, which is not at its end."""
        return self._window > 0 and self._next < self._size

    @property
    def behind(self) -> bool:
        """Whether a READ waits for something that was not taken: `take` it now, in requests as large as the others."""
        return self._window > 0 and self._begun < min(self._next, self._size)

    def advance(self, offset: int, length: int, size_bytes: int) -> None:
        """Record a read of a file of so many bytes; then `take` what is to be fetched ahead.

        What it reads itself is not taken if it is no stream yet.
        """
        end = offset + length
        self._size = size_bytes
        if abs(offset - self._next) > NEIGHBOURHOOD_BYTES or (self._window == 0 and offset != self._next):
            self._next = self._begun = end
            self._window = self._read = 0
            return
        self._read += length
        self._next = max(self._next, end)
        if self._window == 0:
            self._begun = max(self._begun, end)
        elif offset > self._begun + SKIP_BYTES:
            self._begun = offset // PAGE_BYTES * PAGE_BYTES
        self._window = min(max(RAMP * self._read, FIRST_WINDOW_BYTES), self._max_bytes)

    def take(self, run_bytes: int) -> range:
        """Return the bytes to fetch next, about ``run_bytes`` of them; empty when there is nothing to do.

        What was returned once is not returned again while the stream goes on. Small windows are cut into smaller runs, and
        runs end with pages; the kernel moves on by less than a run, and small runs would mean many small requests.
        """
        if self._window == 0:
            return range(0)
        run_bytes = min(run_bytes, max(self._window // 2, PAGE_BYTES))
        start = self._begun
        stop = min((start + run_bytes) // PAGE_BYTES * PAGE_BYTES, self._size)
        if stop <= start or stop > self._next + self._window:
            return range(0)
        self._begun = stop
        return range(start, stop)
