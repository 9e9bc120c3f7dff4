"""The number of requests follows the store's latency, not our own load."""

from __future__ import annotations

from luxfuse.core.concurrency import WINDOW, Concurrency

MIB = 1 << 20


def test_a_store_nearby_gets_few_requests() -> None:
    concurrency = Concurrency(8, 64)
    for _ in range(WINDOW):
        concurrency.observe(0.001, 100_000)
    assert concurrency.limit == 8


def test_a_store_far_away_gets_many() -> None:
    concurrency = Concurrency(8, 64)
    concurrency.observe(0.02, 100_000)
    assert concurrency.limit == 64
    concurrency.observe(1.0, 100_000)
    assert concurrency.limit == 64


def test_our_own_load_adds_none() -> None:
    concurrency = Concurrency(8, 64)
    for n in range(WINDOW):
        concurrency.observe(0.001 if n == 0 else 0.5, 100_000)
    assert concurrency.limit == 8
    concurrency.observe(0.5, 100_000)  # the quick one is out of the window
    assert concurrency.limit == 64


def test_large_requests_count_by_their_size() -> None:
    concurrency = Concurrency(8, 64)
    concurrency.observe(0.024, 4 * MIB)
    assert concurrency.limit == 19


def test_the_limit_may_be_below_the_usual_fewest() -> None:
    concurrency = Concurrency(8, 3)
    concurrency.observe(5.0, 0)
    assert concurrency.limit == 3
