from __future__ import annotations

import random
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.histogram import BOUNDS_S, Histogram


def test_nothing_has_no_percentiles() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram().count == 0


@pytest.mark.parametrize("scale_s", [0.0002, 0.02, 3.0])
def test_percentiles_are_about_right(scale_s: float) -> None:
    rng = random.Random(1)
    values = [rng.lognormvariate(0, 0.7) * scale_s for _ in range(5000)]
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    exact = quantiles(values, n=100)
    for percent in (50, 95, 99):
        assert histogram.quantile(percent / 100) == pytest.approx(exact[percent - 1], rel=0.2)
    assert histogram.sum_s == pytest.approx(sum(values))


@given(st.lists(st.floats(0, 1000), max_size=50), st.floats(0.01, 1))
def test_percentiles_rise_and_are_bounded(values: list[float], fraction: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert histogram.count == len(values)
    if values:
        low, high = histogram.quantile(fraction / 2), histogram.quantile(fraction)
        assert low is not None
        assert high is not None
        assert 0 <= low <= high <= BOUNDS_S[-1]


def test_what_came_since() -> None:
    histogram = Histogram()
    for _ in range(100):
        histogram.observe(10.0)
    before = Histogram(histogram.counts, histogram.sum_s)
    for _ in range(10):
        histogram.observe(0.001)
    since = histogram.since(before)
    assert since.count == 10
    assert since.sum_s == pytest.approx(0.01)
    quantile = since.quantile(0.99)
    assert quantile is not None
    assert quantile < 0.002
    assert before.since(histogram).count == 0
