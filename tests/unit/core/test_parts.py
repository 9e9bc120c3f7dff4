"""How files are cut into parts: everything exactly once, in sizes that S3 takes, copied only where nothing changed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luxfuse.core.parts import (
    LEAST_PART_BYTES,
    MOST_COPY_BYTES,
    MOST_PARTS,
    PART_BYTES,
    SINGLE_BYTES,
    Part,
    part_bytes,
    plan_parts,
)
from luxfuse.types import PAGE_BYTES

MOST_PART_BYTES = 5 << 30
MOST_OBJECT_BYTES = 5 << 40
TAIL = 4096


def pages_of(size: int) -> int:
    return -(-size // PAGE_BYTES)


def check(parts: list[Part], size: int) -> None:
    """What S3 asks of parts, and what makes them one object."""
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert len(parts) <= MOST_PARTS
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == size
    assert all(LEAST_PART_BYTES <= part.end - part.start <= MOST_PART_BYTES for part in parts[:-1])
    assert 0 < parts[-1].end - parts[-1].start <= MOST_PART_BYTES
    assert all(part.start % PAGE_BYTES == 0 for part in parts)


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[bool]]:
    """A size, and of each page whether it is unchanged: in runs, as changes come."""
    runs = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=12))
    unchanged = [same for same, length in runs for _ in range(length)]
    return len(unchanged) * PAGE_BYTES - draw(st.integers(0, PAGE_BYTES - 1)), unchanged


@given(files())
@example((PAGE_BYTES, [True]))
@example((PAGE_BYTES + 1, [False, True]))
@example((20 * PAGE_BYTES + 1, [True] * 5 + [False] + [True] * 15))
def test_parts_cover_the_file_and_copy_only_what_is_unchanged(file: tuple[int, list[bool]]) -> None:
    size, unchanged = file
    parts = plan_parts(size, lambda page: unchanged[page], can_copy=True)
    check(parts, size)
    for part in parts:
        if part.copied:
            assert all(unchanged[page] for page in range(part.start // PAGE_BYTES, pages_of(part.end)))


@given(files())
def test_little_goes_up_that_is_unchanged(file: tuple[int, list[bool]]) -> None:
    """At most what a short run beside each change costs: to fill a part, or because it is too short for one."""
    size, unchanged = file
    parts = plan_parts(size, lambda page: unchanged[page], can_copy=True)
    sent = sum(pages_of(part.end - part.start) for part in parts if not part.copied)
    changed = unchanged.count(False)
    runs = sum(1 for page, same in enumerate(unchanged) if not same and (page == 0 or unchanged[page - 1]))
    short = LEAST_PART_BYTES // PAGE_BYTES
    assert sent <= changed + (runs + 1) * 2 * short
    if not changed and len(unchanged) >= short:
        assert sent == 0


@given(st.integers(1, 200 * PAGE_BYTES))
def test_nothing_is_copied_where_the_store_cannot(size: int) -> None:
    parts = plan_parts(size, lambda _page: True, can_copy=False)
    check(parts, size)
    assert not any(part.copied for part in parts)
    assert all(part.end - part.start == PART_BYTES for part in parts[:-1])


@given(st.integers(SINGLE_BYTES + 1, MOST_OBJECT_BYTES))
@example(MOST_OBJECT_BYTES)
@example((MOST_PARTS - 2) * PART_BYTES + 1)
def test_any_size_fits_into_the_number_of_parts(size: int) -> None:
    each = part_bytes(size)
    assert PART_BYTES <= each <= MOST_PART_BYTES
    assert each % PAGE_BYTES == 0
    assert -(-size // each) <= MOST_PARTS


def test_an_append() -> None:
    """1 MiB more behind 100 MiB: all but the end is copied."""
    size = 101 * PAGE_BYTES
    parts = plan_parts(size, lambda page: page < 100, can_copy=True)
    assert parts == [Part(1, 0, 100 * PAGE_BYTES, True), Part(2, 100 * PAGE_BYTES, size, False)]


def test_an_append_within_a_page() -> None:
    old = 100 * PAGE_BYTES + TAIL
    parts = plan_parts(old + TAIL, lambda page: page < 100, can_copy=True)
    assert parts == [Part(1, 0, 100 * PAGE_BYTES, True), Part(2, 100 * PAGE_BYTES, old + TAIL, False)]


@pytest.mark.parametrize("page", [5, 50, 90])
def test_a_change_in_the_middle(page: int) -> None:
    size = 100 * PAGE_BYTES
    parts = plan_parts(size, lambda p: p != page, can_copy=True)
    check(parts, size)
    assert [part.copied for part in parts] == [True, False, True]
    (sent,) = (part for part in parts if not part.copied)
    assert sent.start <= page * PAGE_BYTES < sent.end
    assert sent.end - sent.start == LEAST_PART_BYTES


@pytest.mark.parametrize("page", [0, 1, 4, 91, 99])
def test_a_change_near_an_end(page: int) -> None:
    size = 100 * PAGE_BYTES - TAIL
    parts = plan_parts(size, lambda p: p != page, can_copy=True)
    check(parts, size)
    assert sum(part.end - part.start for part in parts if part.copied) >= 88 * PAGE_BYTES


def test_large_copies_are_cut() -> None:
    size = 2 * MOST_COPY_BYTES + 3 * PAGE_BYTES
    parts = plan_parts(size, lambda _page: True, can_copy=True)
    check(parts, size)
    assert all(part.copied for part in parts)
    assert max(part.end - part.start for part in parts) <= MOST_COPY_BYTES + LEAST_PART_BYTES
