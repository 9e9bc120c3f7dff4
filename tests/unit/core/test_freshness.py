from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.freshness import is_fresh, remaining_s

NOW = 1_700_000_000.0
times = st.floats(NOW - 1e6, NOW + 1e6)


def test_an_answer_holds_until_its_time_is_up() -> None:
    assert remaining_s(NOW, NOW, 60) == 60
    assert remaining_s(NOW - 59, NOW, 60) == pytest.approx(1)
    assert not is_fresh(NOW - 60, NOW, 60)
    assert not is_fresh(NOW - 1000, NOW, 60)


def test_an_answer_from_the_future_does_not_hold() -> None:
    assert not is_fresh(NOW + 3600, NOW, 60)
    assert not is_fresh(NOW + 3600, NOW, math.inf)


def test_a_slightly_wrong_clock_is_borne() -> None:
    assert remaining_s(NOW + 0.5, NOW, 60) == 60


def test_infinite_and_zero() -> None:
    assert remaining_s(0.0, NOW, math.inf) == math.inf
    assert not is_fresh(NOW, NOW, 0)
    assert not is_fresh(NOW + 0.5, NOW, 0)


@given(times, times, st.floats(0, 1e5))
def test_nothing_holds_longer_than_its_ttl(checked: float, now: float, ttl: float) -> None:
    left = remaining_s(checked, now, ttl)
    assert 0 <= left <= ttl + 1e-3
    assert is_fresh(checked, now, ttl) == (left > 0)
    if left:
        assert now - checked < ttl + 1e-3
