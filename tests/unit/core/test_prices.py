from __future__ import annotations

import pytest

from luxfuse.core.prices import Prices, cost_text


def test_each_price_counts() -> None:
    prices = Prices(get=1, put=10, list=100, head=1000, delete=10_000, get_gb=2, put_gb=3)
    requests = {"get": 1, "put": 2, "list": 3, "head": 4, "delete": 5}
    assert prices.cost(requests, 10**9, 2 * 10**9) == pytest.approx(0.001 + 0.02 + 0.3 + 4 + 50 + 2 + 6)
    assert Prices().cost(requests, 10**9, 10**9) == 0


@pytest.mark.parametrize(
    ("cost", "text"), [(0, "0.00"), (12.345, "12.35"), (0.5, "0.500"), (0.0123456, "0.0123"), (0.00000123456, "0.00000123")]
)
def test_costs_are_written_with_the_digits_that_tell(cost: float, text: str) -> None:
    assert cost_text(cost, "USD") == f"about {text} USD since the mount"
