"""Homes of ranges: in proportion to the weights, and only what must move moves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.rendezvous import home, ranked

KEYS = [(number.to_bytes(10, "big"), number % 7) for number in range(6000)]
NODES = [("alpha", 1), ("beta", 2), ("gamma", 3), ("delta", 4)]
KNOWN = ["delta", "gamma", "beta", "beta", "beta", "delta"]
KNOWN_RANKING = ["delta", "gamma", "beta", "alpha"]


def test_shares_follow_the_weights() -> None:
    counts = Counter(home(*key, NODES) for key in KEYS)
    for name, weight in NODES:
        # Five standard deviations of a binomial of these.
        assert abs(counts[name] - 600 * weight) < 5 * (6000 * 0.24) ** 0.5


def test_only_what_a_node_has_moves_when_it_goes() -> None:
    fewer = NODES[:-1]
    for key in KEYS[:1000]:
        before, after = home(*key, NODES), home(*key, fewer)
        assert before in (after, "delta")


def test_a_heavier_node_only_gains() -> None:
    heavier = [("alpha", 5), *NODES[1:]]
    moved = {home(*key, heavier) for key in KEYS[:1000] if home(*key, heavier) != home(*key, NODES)}
    assert moved == {"alpha"}


def test_known_homes_do_not_change() -> None:
    assert [home(*key, NODES) for key in KEYS[:6]] == KNOWN
    assert ranked(*KEYS[0], NODES) == KNOWN_RANKING


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 1 << 20), min_size=1, max_size=8), st.binary(max_size=16))
def test_ranking_is_the_order_of_inheritance(weights, oid) -> None:
    nodes = list(weights.items())
    order = ranked(oid, 3, nodes)
    assert sorted(order) == sorted(weights)
    for position, name in enumerate(order):
        left = [node for node in nodes if node[0] not in order[:position]]
        assert home(oid, 3, left[::-1]) == name
