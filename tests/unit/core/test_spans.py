from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.spans import missing_runs, page_bytes, page_count, pages_of, ranges_text
from luxfuse.types import PAGE_BYTES

sizes = st.integers(0, 500 * PAGE_BYTES)


@given(sizes)
def test_pages_cover_an_object_exactly(size: int) -> None:
    count = page_count(size)
    assert sum(page_bytes(page, size) for page in range(count)) == size
    assert all(0 < page_bytes(page, size) <= PAGE_BYTES for page in range(count))


@given(sizes, st.integers(0, 5 * PAGE_BYTES))
def test_the_pages_of_a_range_are_the_ones_it_touches(offset: int, length: int) -> None:
    pages = pages_of(offset, length)
    if length == 0:
        assert not pages
    else:
        assert pages.start * PAGE_BYTES <= offset < (pages.start + 1) * PAGE_BYTES
        assert (pages.stop - 1) * PAGE_BYTES < offset + length <= pages.stop * PAGE_BYTES


def test_a_negative_length_touches_nothing() -> None:
    assert not pages_of(10, -5)


@given(st.sets(st.integers(0, 60)), st.integers(0, 30), st.integers(0, 30), st.integers(1, 8))
def test_runs_are_the_missing_pages_in_order(have: set[int], start: int, count: int, longest: int) -> None:
    runs = list(missing_runs(range(start, start + count), have.__contains__, longest))
    assert [page for run in runs for page in run] == [p for p in range(start, start + count) if p not in have]
    assert all(0 < len(run) <= longest for run in runs)
    for one, next_one in pairwise(runs):
        # Neighbours are together unless the run is full.
        assert one.stop < next_one.start or len(one) == longest


def test_ranges_are_written_short() -> None:
    assert ranges_text([]) == ""
    assert ranges_text([0]) == "0"
    assert ranges_text([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
