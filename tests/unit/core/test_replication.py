"""How many nodes are to hold what."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.rendezvous import ranked
from luxfuse.core.replication import (
    ENDED_S,
    ENTRIES_BOUND,
    PATH_MAX_BYTES,
    RULES_BOUND,
    ReplicaRule,
    ReplicaRules,
    TooManyRules,
    missing_copies,
    witnesses,
)

OID = b"o" * 16
NODES = [f"{number:02}" for number in range(10)]


def rank(names: object) -> list[str]:
    return ranked(OID, 0, [(name, 1) for name in sorted(names)])  # type: ignore[call-overload]


ORDER = rank(NODES)


def rules(*paths: str, least: int = 2, most: int | None = None) -> ReplicaRules:
    made = ReplicaRules()
    for path in paths:
        made.set(path, least, most, now_us=1, node="a")
    return made


def test_the_deepest_path_counts_and_an_ended_rule_says_nothing() -> None:
    made = rules("", "a/b")
    made.set("a/b", 5, 7, now_us=2, node="a")
    assert [made.of(path).least for path in ("x", "a/bc", "a/b", "a/b/c/d")] == [2, 2, 5, 5]  # type: ignore[union-attr]
    made.set("a/b", 0, 9, now_us=3, node="a")
    assert made.entries["a/b"] == ReplicaRule(0, None, 3, "a")
    assert made.of("a/b/c").least == 2  # type: ignore[union-attr]
    assert len(made) == 1
    assert ReplicaRules().of("a") is None


def test_a_new_order_counts_even_if_the_clock_that_made_the_last_one_is_ahead() -> None:
    made = ReplicaRules({"a": ReplicaRule(2, None, 1000, "z")})
    made.set("a", 3, None, now_us=5, node="a")
    other = ReplicaRules({"a": ReplicaRule(2, None, 1000, "z")})
    assert other.merge(made.entries, now_us=5)
    assert other.of("a").least == 3  # type: ignore[union-attr]


ENTRIES = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(ReplicaRule, st.integers(0, 3), st.none() | st.just(3), st.integers(0, 3), st.sampled_from("xy")),
)


@given(st.lists(ENTRIES, max_size=4), st.randoms())
def test_nodes_agree_in_whatever_order_they_hear(found: list[dict[str, ReplicaRule]], rng: random.Random) -> None:
    one, other = ReplicaRules(), ReplicaRules()
    for entries in found:
        one.merge(entries, now_us=0)
    for entries in rng.sample(found, len(found)):
        other.merge(entries, now_us=0)
    assert one.entries == other.entries
    assert one.digest() == other.digest()
    assert not one.merge(other.entries, now_us=0)


def test_nonsense_is_not_taken_over() -> None:
    made = ReplicaRules()
    nonsense = {
        "a": ReplicaRule(-1, None, 1, "n"), "b": ReplicaRule(3, 2, 1, "n"), "c": ReplicaRule(1, None, -1, "n"),
        "x" * (PATH_MAX_BYTES + 1): ReplicaRule(1, None, 1, "n"),
    }  # fmt: skip
    assert not made.merge(nonsense, now_us=1)
    assert not made.entries


def test_there_are_only_so_many_rules() -> None:
    made = rules(*[f"{number}" for number in range(RULES_BOUND)])
    made.set("7", 3, None, now_us=2, node="a")
    with pytest.raises(TooManyRules, match="1,000 rules are the most"):
        made.set("one more", 2, None, now_us=2, node="a")
    made.set("7", 0, None, now_us=3, node="a")
    made.set("one more", 2, None, now_us=4, node="a")


def test_of_too_many_entries_all_nodes_forget_the_same() -> None:
    found = {f"{number}": ReplicaRule(2, None, 7 * number % 3001, "n") for number in range(ENTRIES_BOUND + 50)}
    one, other = ReplicaRules(), ReplicaRules()
    one.merge(found, now_us=0)
    names = list(found)
    random.Random(1).shuffle(names)
    for start in range(0, len(names), 500):
        other.merge({name: found[name] for name in names[start : start + 500]}, now_us=0)
    assert len(one.entries) == ENTRIES_BOUND
    assert one.entries == other.entries


def test_ended_rules_are_forgotten_in_the_end_and_do_not_come_back() -> None:
    made = rules("a", "b")
    made.set("a", 0, None, now_us=10, node="a")
    kept = ReplicaRules(made.entries)
    late_us = 10 + int(ENDED_S * 1e6) + 1
    assert made.expire(now_us=late_us)
    assert not made.expire(now_us=late_us)
    assert set(made.entries) == {"b"}
    assert not made.merge(kept.entries, now_us=late_us)


def test_the_first_holder_orders_what_is_missing_and_nobody_else() -> None:
    rule = ReplicaRule(4, None, 1, "n")
    holders = {ORDER[2], ORDER[5]}
    order = missing_copies(rule, ORDER[2], holders, NODES, rank)
    assert order is not None
    assert (order.missing, order.candidates[:3]) == (2, [ORDER[0], ORDER[1], ORDER[3]])
    assert not holders & set(order.candidates)
    assert missing_copies(rule, ORDER[5], holders, NODES, rank) is None
    assert missing_copies(rule, ORDER[2], set(ORDER[2:6]), NODES, rank) is None
    dead = {ORDER[0], *holders}
    alive = [name for name in NODES if name != ORDER[0]]
    assert missing_copies(rule, ORDER[2], dead, alive, rank) is not None
    two = [ORDER[2], ORDER[5]]
    assert missing_copies(rule, ORDER[2], two, two, rank) is None, "there are no more nodes"


def test_those_with_enough_others_before_them_give_their_copy_up() -> None:
    rule = ReplicaRule(2, 3, 1, "n")
    holders = set(ORDER[1:6])
    assert [witnesses(rule, name, {0: holders}, NODES, rank) is not None for name in ORDER[1:6]] == [False] * 3 + [True] * 2
    more = {0: holders, 7: {*ORDER[2:6]}}
    assert witnesses(rule, ORDER[5], more, NODES, rank) == {ORDER[1]: [0], ORDER[2]: [0, 7], ORDER[3]: [7]}
    assert witnesses(rule, ORDER[5], {0: holders, 7: ORDER[4:6]}, NODES, rank) is None, "one of its ranges is needed"
    assert witnesses(ReplicaRule(2, None, 1, "n"), ORDER[5], {0: holders}, NODES, rank) is None
    assert witnesses(rule, ORDER[5], {0: holders}, [ORDER[5], *ORDER[1:3]], rank) is None, "the others are dead"
    assert witnesses(rule, ORDER[5], {}, NODES, rank) is None, "it holds nothing"


@given(st.sets(st.sampled_from(NODES), min_size=1), st.integers(1, 4), st.integers(0, 3), st.data())
def test_a_witnessed_copy_is_never_one_of_the_last(held: set[str], least: int, more: int, data: st.DataObject) -> None:
    """Whatever nodes believe: those that give their copies up at once leave ``least``, as far as there were so many."""
    rule = ReplicaRule(least, least + more, 1, "n")
    leaving = set()
    for name in held:
        believed = data.draw(st.sets(st.sampled_from(NODES)))
        asked = witnesses(rule, name, {0: believed}, NODES, rank)
        if asked is not None and held.issuperset(asked):
            leaving.add(name)
    assert len(held - leaving) >= min(least, len(held))
