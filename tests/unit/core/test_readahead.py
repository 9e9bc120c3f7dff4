from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.readahead import FIRST_WINDOW_BYTES, NEIGHBOURHOOD_BYTES, RAMP, Sequence
from luxfuse.types import PAGE_BYTES

MIB = 1 << 20
MAX = 64 * MIB
RUN = 4 * MIB


def taken(sequence: Sequence, run_bytes: int = RUN) -> list[range]:
    found = []
    while run := sequence.take(run_bytes):
        found.append(run)
    return found


def stream(size: int, step: int = MIB) -> list[tuple[int, list[range]]]:
    sequence = Sequence(MAX)
    plans = []
    for offset in range(0, size, step):
        sequence.advance(offset, step, size)
        plans.append((offset, taken(sequence)))
    return plans


def test_the_window_grows_with_what_was_read_up_to_the_maximum() -> None:
    sequence = Sequence(30 * MIB)
    windows = []
    for number in range(5):
        sequence.advance(number * MIB, MIB, 1 << 40)
        windows.append(sequence.window_bytes)
    assert windows == [RAMP * MIB, 2 * RAMP * MIB, 3 * RAMP * MIB, 30 * MIB, 30 * MIB]


def test_many_small_reads_open_the_window_no_further_than_one_of_the_same_bytes() -> None:
    sequence = Sequence(MAX)
    for number in range(16):
        sequence.advance(number << 14, 1 << 14, 1 << 40)
    assert sequence.window_bytes == FIRST_WINDOW_BYTES


def test_a_stream_takes_every_byte_once_and_well_ahead() -> None:
    size = 1000 * MIB + 123
    plans = stream(size)
    runs = [run for _, found in plans for run in found]
    assert runs[0].start == MIB  # right after the first read
    assert runs[-1].stop == size
    assert all(one.stop == other.start for one, other in pairwise(runs))
    reached = 0
    for offset, found in plans:
        reached = found[-1].stop if found else reached
        if offset > 2 * MAX:
            assert min(size, offset + MIB + MAX - RUN) <= reached <= offset + MIB + MAX


def test_runs_are_whole_pages_of_the_size_that_was_asked_for() -> None:
    runs = [run for _, found in stream(1000 * MIB, step=128 << 10) for run in found]
    assert all(run.stop % PAGE_BYTES == 0 for run in runs)
    assert sum(len(run) == RUN for run in runs) > len(runs) * 0.9
    assert len(runs) < 260


def test_random_reads_take_nothing() -> None:
    rng = random.Random(1)
    sequence = Sequence(MAX)
    size = 1 << 40
    for _ in range(2000):
        sequence.advance(rng.randrange(NEIGHBOURHOOD_BYTES + 1, size), 4096, size)
        assert not taken(sequence)
    assert sequence.window_bytes == 0


def test_a_stream_that_starts_in_the_middle_is_found_at_its_second_read() -> None:
    sequence = Sequence(MAX)
    sequence.advance(500 * MIB, MIB, 1000 * MIB)
    assert not taken(sequence)
    sequence.advance(501 * MIB, MIB, 1000 * MIB)
    assert taken(sequence)[0].start == 502 * MIB


def test_a_jump_ends_the_stream() -> None:
    sequence = Sequence(MAX)
    for number in range(10):
        sequence.advance(number * MIB, MIB, 1 << 40)
    sequence.advance(1 << 38, MIB, 1 << 40)
    assert not taken(sequence)
    assert sequence.window_bytes == 0


@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_parallel_reads_out_of_order_are_one_stream(rng: random.Random, depth: int) -> None:
    """The kernel has several READs of a stream on their way and they arrive in any order."""
    size = 300 * MIB
    sequence = Sequence(MAX)
    waiting = list(range(0, size, MIB))
    runs: list[range] = []
    sequence.advance(waiting.pop(0), MIB, size)
    while waiting:
        on_their_way = [offset for offset in waiting[:depth] if offset < waiting[0] + NEIGHBOURHOOD_BYTES - MIB]
        offset = waiting.pop(rng.randrange(len(on_their_way)))
        sequence.advance(offset, MIB, size)
        assert sequence.window_bytes > 0
        runs += taken(sequence)
    assert runs[-1].stop == size
    assert all(one.stop <= other.start for one, other in pairwise(runs))


@given(
    st.lists(st.tuples(st.integers(0, 40 * MIB), st.integers(0, 4 * MIB), st.integers(MIB, 8 * MIB)), max_size=60),
    st.integers(1, 40 * MIB),
    st.sampled_from([0, MIB, 3 * MIB, MAX]),
)
def test_nothing_is_taken_beyond_the_object_or_the_window(
    reads: list[tuple[int, int, int]], size: int, max_bytes: int
) -> None:
    sequence = Sequence(max_bytes)
    for offset, length, run_bytes in reads:
        sequence.advance(offset, length, size)
        assert sequence.window_bytes <= max_bytes
        for run in taken(sequence, run_bytes):
            assert 0 < len(run) <= run_bytes
            assert run.stop <= min(size, offset + length + max_bytes + NEIGHBOURHOOD_BYTES)


def test_what_the_kernel_asks_for_before_us_is_taken_as_a_run_and_not_twice() -> None:
    sequence = Sequence(MAX)
    sequence.advance(0, MIB, 1 << 40)
    assert not sequence.behind
    sequence.advance(MIB, MIB, 1 << 40)
    assert sequence.behind
    assert sequence.take(RUN) == range(MIB, MIB + RUN)
    assert not sequence.behind


def test_a_reader_that_leaves_something_out_does_not_have_it_fetched() -> None:
    sequence = Sequence(MAX)
    sequence.advance(0, MIB, 1 << 40)
    sequence.advance(8 * MIB + 5, MIB, 1 << 40)
    assert sequence.behind
    assert sequence.take(RUN).start == 8 * MIB


def test_nothing_is_behind_at_the_end_of_a_file() -> None:
    sequence = Sequence(MAX)
    sequence.advance(0, MIB, 3 * MIB + 7)
    sequence.advance(3 * MIB, MIB, 3 * MIB + 7)
    assert taken(sequence)[-1].stop == 3 * MIB + 7
    assert not sequence.behind
