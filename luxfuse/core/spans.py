"""Arithmetic on pages: which ones a byte range touches, and how missing ones are grouped into requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from luxfuse.core.members import RANGE_PAGES
from luxfuse.types import PAGE_BYTES


def page_count(size_bytes: int) -> int:
    """Return the number of pages of an object of ``size_bytes``."""
    return -(-size_bytes // PAGE_BYTES)


def pages_of(offset: int, length: int) -> range:
    """Return the pages that bytes [offset, offset + length) touch; empty for length 0."""
    if length <= 0:
        return range(0)
    return range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1)


def page_bytes(page: int, size_bytes: int) -> int:
    """Return the length of a page of an object of ``size_bytes``: PAGE_BYTES but for the last one."""
    return min(PAGE_BYTES, size_bytes - page * PAGE_BYTES)


def ranges_text(pages: Iterable[int]) -> str:
    """Write ascending numbers as ``0-15,20``."""
    parts: list[str] = []
    first = last = -2
    for page in pages:
        if page == last + 1:
            last = page
            parts[-1] = f"{first}-{last}"
        else:
            first = last = page
            parts.append(str(page))
    return ",".join(parts)


def missing_runs(pages: range, have: Callable[[int], bool], max_pages: int) -> Iterator[range]:
    """Group the pages of ``pages`` for which ``have`` is false into runs of neighbours, of ``max_pages`` at most.

    No run reaches across the end of a range of `RANGE_PAGES`, because different nodes may have the two.
    """
    start = None
    for page in pages:
        if have(page):
            if start is not None:
                yield range(start, page)
                start = None
        elif start is None:
            start = page
        elif page - start >= max_pages or page % RANGE_PAGES == 0:
            yield range(start, page)
            start = page
    if start is not None:
        yield range(start, pages.stop)
