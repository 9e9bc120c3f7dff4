"""The number of requests follows the store's latency, not our own load."""

from __future__ import annotations

from luxfuse.core.concurrency import WINDOW, Concurrency, in_a_turn

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


def test_the_limit_may_become_another_one() -> None:
    concurrency = Concurrency(8, 64)
    concurrency.observe(0.01, 0)
    assert concurrency.limit == 32
    concurrency.bound(9)
    assert concurrency.limit == 9
    concurrency.observe(0.01, 0)
    assert concurrency.limit == 9
    concurrency.bound(64)
    concurrency.observe(0.01, 0)
    assert concurrency.limit == 32


def test_small_files_are_spread_over_as_many_turns_as_keep_the_store_busy() -> None:
    far, near = 64, 8
    assert in_a_turn(31, far, 8, 32) == 8, "a turn of 31 would take four times as long as one of 8"
    assert in_a_turn(256, far, 8, 32) == 32
    assert in_a_turn(31, near, 8, 32) == 31, "more turns would only cost more"
    assert in_a_turn(256, near, 8, 32) == 32
    assert in_a_turn(31, far, 1, 8) == 1
    assert in_a_turn(31, near, 1, 8) == 4
    assert in_a_turn(0, far, 8, 32) == 8
