from __future__ import annotations

import heapq

import pytest

from luxfuse.core.large_runs import FIRST_BYTES, MOST_BYTES, LargeRuns
from luxfuse.types import PAGE_BYTES

MIB = 1 << 20
TIMEOUT_S = 30.0


def load(
    pages: int, bytes_s: float, latency_s: float, most: int = 64, timeout_s: float = TIMEOUT_S
) -> tuple[float, int, float]:
    """Load pages over a line that the requests share; returns the seconds, the requests, and the longest of these."""
    runs = LargeRuns(timeout_s)
    now_s, line_free_s, left, requests, longest_s = 0.0, 0.0, pages, 0, 0.0
    ends: list[tuple[float, float, int]] = []
    while left or ends:
        while left and len(ends) < most and runs.has_room((size := min(left, runs.pages)) * PAGE_BYTES):
            left -= size
            requests += 1
            runs.began(size * PAGE_BYTES)
            line_free_s = max(line_free_s, now_s + latency_s) + size * PAGE_BYTES / bytes_s
            heapq.heappush(ends, (line_free_s, now_s, size))
        now_s, began_s, size = heapq.heappop(ends)
        longest_s = max(longest_s, now_s - began_s)
        runs.ended(size * PAGE_BYTES, began_s, now_s)
    assert runs.under_way_bytes == 0
    return now_s, requests, longest_s


@pytest.mark.parametrize("latency_s", [0.001, 0.02, 0.2])
@pytest.mark.parametrize("kib_s", [100, 200, 500, 1_000, 3_000, 10_000])
def test_no_request_comes_near_its_time_out_on_a_slow_line(kib_s: int, latency_s: float) -> None:
    seconds, _, longest_s = load(300, kib_s * 1024, latency_s)
    assert longest_s < 0.8 * TIMEOUT_S
    assert seconds < 1.1 * 300 * 1024 / kib_s + 300 * latency_s, "and the line is busy"


@pytest.mark.parametrize("mb_s", [200, 2_000])
def test_a_fast_line_is_asked_for_large_parts_soon(mb_s: int) -> None:
    seconds, requests, _ = load(1024, mb_s * 1e6, 0.02)
    assert requests < 1024 / 4 + 12
    assert seconds < 1.2 * (1 << 30) / (mb_s * 1e6) + 0.2


@pytest.mark.parametrize(("latency_s", "timeout_s"), [(0.2, 30), (1.5, 30), (3, 30), (4, 30), (0.1, 2), (0.3, 2)])
def test_a_store_that_takes_its_time_is_no_slow_line(latency_s: float, timeout_s: float) -> None:
    seconds, requests, longest_s = load(1024, 200e6, latency_s, timeout_s=timeout_s)
    assert requests < 1024 / 4 + 12
    assert longest_s < 0.8 * timeout_s
    assert seconds < 2 * (1 << 30) / 200e6 + 20 * latency_s


def test_a_line_that_becomes_slow_is_asked_for_less() -> None:
    runs = LargeRuns(TIMEOUT_S)
    for _ in range(62):
        runs.began(MIB)
        runs.ended(MIB, 0, 0.1)
    assert (runs.limit_bytes, runs.pages) == (64 * MIB, 4)
    for _ in range(16):
        runs.began(4 * MIB)
    for number in range(16):
        runs.ended(4 * MIB, 1, 20 + number, failed=number == 15)
    assert runs.limit_bytes == 32 * MIB, "once for all that were on their way"
    for number in range(10):
        runs.began(MIB)
        runs.ended(MIB, 100 + 10 * number, 108 + 10 * number)
    assert (runs.limit_bytes, runs.pages, runs.has_room(MIB)) == (MIB, 1, True)
    runs.began(MIB)
    assert not runs.has_room(1)


def test_a_request_that_fails_at_once_tells_nothing() -> None:
    runs = LargeRuns(TIMEOUT_S)
    runs.began(MIB)
    runs.ended(MIB, 0, 0.01, failed=True)
    assert runs.limit_bytes == FIRST_BYTES


def test_the_limit_is_bounded() -> None:
    runs = LargeRuns(TIMEOUT_S)
    for _ in range(1100):
        runs.began(MIB)
        runs.ended(MIB, 0, 0)
    assert runs.limit_bytes == MOST_BYTES
