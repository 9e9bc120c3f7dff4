"""When a slow request is hedged, and how often."""

from __future__ import annotations

from luxfuse.core import hedging
from luxfuse.core.hedging import Hedging
from luxfuse.core.recent import KEPT, Recent

SMALL, LARGE = 100 << 10, 4 << 20


def test_delay_follows_the_slowest_twentieth_of_its_size_class() -> None:
    hedges = Hedging()
    assert hedges.delay_s(SMALL) == hedging.UNKNOWN_S
    for number in range(100):
        hedges.observe(SMALL, 0.02 + 0.001 * number)
        hedges.observe(LARGE, 1.0)
    assert 0.105 < hedges.delay_s(SMALL) < 0.125
    assert hedges.delay_s(LARGE) == 1.0
    assert hedges.delay_s(1 << 20) == hedging.UNKNOWN_S


def test_delay_has_a_floor() -> None:
    hedges = Hedging()
    for _ in range(100):
        hedges.observe(SMALL, 0.0001)
    assert hedges.delay_s(SMALL) == hedging.FLOOR_S


def test_hedges_are_a_twentieth_of_all_requests_and_a_burst_when_all_are_slow() -> None:
    hedges = Hedging()
    for _ in range(10_000):
        hedges.began()
        hedges.take()
    assert 500 <= hedges.hedges <= 500 + hedging.MOST_SAVED
    assert hedges.forgone == 10_000 - hedges.hedges


def test_old_durations_are_forgotten() -> None:
    recent = Recent()
    assert recent.quantile(0.5) is None
    for _ in range(KEPT):
        recent.observe(9.0)
    for _ in range(KEPT):
        recent.observe(1.0)
    assert recent.quantile(0.0) == recent.quantile(1.0) == 1.0
