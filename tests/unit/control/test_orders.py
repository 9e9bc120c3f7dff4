"""The table of orders against the daemon that carries them out and the client that gives them."""

from __future__ import annotations

import inspect

import pytest

from luxfuse.control.client import ControlClient
from luxfuse.control.orders import ORDERS, BadRequest, Replicate, order_in
from luxfuse.daemon.service import Service


@pytest.mark.parametrize("name", ORDERS)
def test_each_order_is_carried_out_and_can_be_given(name: str) -> None:
    fields = set(ORDERS[name].body.__struct_fields__)
    for there in (Service, ControlClient):
        method = getattr(there, name)
        assert inspect.signature(method).parameters.keys() - {"self"} == fields
    assert inspect.isasyncgenfunction(getattr(Service, name)) == (ORDERS[name].answer == "lines")


def test_no_two_orders_share_a_path() -> None:
    assert len({endpoint.path for endpoint in ORDERS.values()}) == len(ORDERS)


def test_a_rule_has_no_less_than_its_least() -> None:
    order = order_in(b'{"paths": ["a"], "min": 2, "max": 3}', Replicate)
    assert (order.least, order.most) == (2, 3)
    with pytest.raises(BadRequest, match="max: is smaller than min"):
        order_in(b'{"paths": ["a"], "min": 2, "max": 1}', Replicate)
