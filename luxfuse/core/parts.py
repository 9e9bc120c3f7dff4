"""How a file is uploaded: in one request, or in parts of which some are copied inside the store.

S3 allows 10,000 parts of 5 MiB (but the last) to 5 GiB each (Amazon S3 user guide, "Multipart upload limits"); the
other stores' limits are wider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from luxfuse.types import PAGE_BYTES

SINGLE_BYTES = 16 << 20
"""Up to this size one request."""
PART_BYTES = 8 << 20
LEAST_PART_BYTES = 5 << 20
MOST_PARTS = 10_000
MOST_COPY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, end) of the new object; ``copied``: they are the same bytes of the old one."""

    number: int
    start: int
    end: int
    copied: bool


def part_bytes(size: int) -> int:
    """Return the size of the parts of a file of ``size`` bytes, whole pages."""
    least = -(-size // (MOST_PARTS - 2))
    return max(PART_BYTES, -(-least // PAGE_BYTES) * PAGE_BYTES)


def plan_parts(size: int, unchanged: Callable[[int], bool], *, can_copy: bool) -> list[Part]:
    """Cut a file into parts. ``unchanged(page)``: the page is the same in the old object.

    Runs of unchanged pages of at least `LEAST_PART_BYTES` are copied where the store ``can_copy``; what lies between
    them is grown over its neighbours until it is large enough for a part.
    """
    pages = -(-size // PAGE_BYTES)
    spans: list[tuple[int, int, bool]] = []
    start = 0
    while start < pages:
        copied = can_copy and unchanged(start)
        end = start + 1
        while end < pages and (can_copy and unchanged(end)) == copied:
            end += 1
        spans.append((start, end, copied))
        start = end
    return _number(_merge_short(spans, size), size)


def _merge_short(spans: list[tuple[int, int, bool]], size: int) -> list[tuple[int, int, bool]]:
    """Make every span long enough: short copies become data, short data takes pages from the copy that follows."""
    least = LEAST_PART_BYTES // PAGE_BYTES
    merged: list[tuple[int, int, bool]] = []
    for start, end, copied in spans:
        if merged and not merged[-1][2]:
            before_start, before_end, _ = merged[-1]
            if copied:
                taken = min(max(0, least - (before_end - before_start)), end - start)
                if end - (start + taken) >= least:
                    if taken:
                        merged[-1] = (before_start, start + taken, False)
                    merged.append((start + taken, end, True))
                    continue
            merged[-1] = (before_start, end, False)
        else:
            merged.append((start, end, copied and (end - start) >= least))
    return merged


def _number(spans: list[tuple[int, int, bool]], size: int) -> list[Part]:
    parts: list[Part] = []
    for first, last, copied in spans:
        step = MOST_COPY_BYTES if copied else part_bytes(size)
        start, end = first * PAGE_BYTES, min(last * PAGE_BYTES, size)
        while start < end:
            stop = min(start + step, end)
            if 0 < end - stop < LEAST_PART_BYTES and end != size:
                stop = end  # the rest would be too small for a part
            parts.append(Part(len(parts) + 1, start, stop, copied))
            start = stop
    return parts
