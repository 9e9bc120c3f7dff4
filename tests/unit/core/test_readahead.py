from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.readahead import FIRST_WINDOW_BYTES, NEIGHBOURHOOD_BYTES, Sequence

MIB = 1 << 20
MAX = 64 * MIB


def stream(size: int, step: int = MIB, max_bytes: int = MAX, start: int = 0) -> tuple[Sequence, list[tuple[int, range]]]:
    sequence = Sequence(max_bytes)
    plans = [(offset, sequence.advance(offset, step, size)) for offset in range(start, size, step)]
    return sequence, plans


def test_the_window_doubles_up_to_the_maximum() -> None:
    sequence = Sequence(16 * MIB)
    windows = []
    for number in range(6):
        sequence.advance(number * MIB, MIB, 1 << 40)
        windows.append(sequence.window_bytes)
    assert windows == [FIRST_WINDOW_BYTES, 4 * MIB, 8 * MIB, 16 * MIB, 16 * MIB, 16 * MIB]


def test_a_stream_plans_every_byte_once_and_well_ahead() -> None:
    size = 1000 * MIB + 123
    _, plans = stream(size)
    planned = [plan for _, plan in plans if plan]
    assert planned[0].start == MIB  # right after the first read
    assert planned[-1].stop == size
    assert all(one.stop == other.start for one, other in pairwise(planned))
    reached = 0
    for offset, plan in plans:
        reached = max(reached, plan.stop if plan else 0)
        if offset > 2 * MAX:
            assert min(size, offset + MIB + MAX * 3 // 4) <= reached <= offset + MIB + MAX


def test_plans_are_few_and_large() -> None:
    _, plans = stream(1000 * MIB, step=128 << 10)
    assert sum(1 for _, plan in plans if plan) < 100


def test_random_reads_plan_nothing() -> None:
    rng = random.Random(1)
    sequence = Sequence(MAX)
    size = 1 << 40
    planned = [sequence.advance(rng.randrange(NEIGHBOURHOOD_BYTES + 1, size), 4096, size) for _ in range(2000)]
    assert not any(planned)
    assert sequence.window_bytes == 0


def test_a_stream_that_starts_in_the_middle_is_found_at_its_second_read() -> None:
    sequence = Sequence(MAX)
    assert not sequence.advance(500 * MIB, MIB, 1000 * MIB)
    assert sequence.advance(501 * MIB, MIB, 1000 * MIB) == range(502 * MIB, 504 * MIB)


def test_a_jump_ends_the_stream() -> None:
    sequence = Sequence(MAX)
    for number in range(10):
        sequence.advance(number * MIB, MIB, 1 << 40)
    assert not sequence.advance(1 << 38, MIB, 1 << 40)
    assert sequence.window_bytes == 0


@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_parallel_reads_out_of_order_are_one_stream(rng: random.Random, depth: int) -> None:
    """The kernel has several READs of a stream on their way and they arrive in any order."""
    size = 300 * MIB
    sequence = Sequence(MAX)
    waiting = list(range(0, size, MIB))
    planned: list[range] = []
    sequence.advance(waiting.pop(0), MIB, size)
    while waiting:
        on_their_way = [offset for offset in waiting[:depth] if offset < waiting[0] + NEIGHBOURHOOD_BYTES - MIB]
        offset = waiting.pop(rng.randrange(len(on_their_way)))
        plan = sequence.advance(offset, MIB, size)
        assert sequence.window_bytes > 0
        if plan:
            planned.append(plan)
    assert planned[-1].stop == size
    assert all(one.stop <= other.start for one, other in pairwise(planned))


@given(
    st.lists(st.tuples(st.integers(0, 40 * MIB), st.integers(0, 4 * MIB)), max_size=60),
    st.integers(1, 40 * MIB),
    st.sampled_from([MIB, 3 * MIB, MAX]),
)
def test_no_plan_reaches_beyond_the_object_or_the_window(reads: list, size: int, max_bytes: int) -> None:
    sequence = Sequence(max_bytes)
    for offset, length in reads:
        plan = sequence.advance(offset, length, size)
        assert sequence.window_bytes <= max(max_bytes, 0)
        assert len(plan) <= max_bytes + NEIGHBOURHOOD_BYTES
        if plan:
            assert offset + length <= plan.start < plan.stop <= size
