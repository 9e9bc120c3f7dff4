"""Which parts of a large object were read more than others.

A *stretch* is `STRETCH_PAGES` pages. Reads of each are counted, up to 255, when all counts are halved: what was hot once
cools down. Counts live only as long as the object is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

STRETCH_PAGES = 8
_MOST = 255


class Heat:
    """Reads of the stretches of one object: one byte for `STRETCH_PAGES` pages."""

    __slots__ = ("_reads",)

    def __init__(self, pages: int) -> None:
        self._reads = bytearray(-(-pages // STRETCH_PAGES))

    def add(self, pages: range) -> None:
        """Count one read of ``pages``."""
        for stretch in range(pages.start // STRETCH_PAGES, (pages.stop - 1) // STRETCH_PAGES + 1):
            self._reads[stretch] += 1
            if self._reads[stretch] == _MOST:
                self._reads = bytearray(reads // 2 for reads in self._reads)

    def of(self, pages: Iterable[int]) -> int:
        """Return the most reads that a stretch with one of ``pages`` has."""
        return max((self._reads[page // STRETCH_PAGES] for page in pages), default=0)

    def coldest(self, has: Callable[[int], bool], total: int, wanted: int | None) -> Iterator[int]:
        """Give the pages that ``has`` tells, those of the least read stretches first; of equal ones, the last.

        ``wanted``: they give way to pages that were read so often. That has to be more than twice as often, so that
        reading on through an object, or all over it, replaces nothing: what is there is as good as what would come.
        """
        order = sorted(range(len(self._reads)), key=lambda stretch: (self._reads[stretch], -stretch))
        for stretch in order:
            if wanted is not None and 2 * self._reads[stretch] + 1 >= wanted:
                return
            first = stretch * STRETCH_PAGES
            yield from (page for page in reversed(range(first, min(total, first + STRETCH_PAGES))) if has(page))
