"""Which node is asked for a page that several have."""

from __future__ import annotations

import random
from collections import Counter

from luxfuse.core import choice
from luxfuse.core.choice import PeerChoice
from luxfuse.core.members import Member, MemberState, NodeInfo


def member(name: str, round_trip_s: float | None = 0.001, rack: str = "", state=MemberState.ALIVE) -> Member:
    return Member(NodeInfo(name, "h", 1, rack=rack), state, 0, 0.0, round_trip_s)


def names(members: list[Member]) -> list[str]:
    return [each.info.name for each in members]


def chooser(rack: str = "") -> PeerChoice:
    return PeerChoice(rack, random.Random(1))


def test_near_nodes_come_first_and_far_ones_by_distance() -> None:
    members = [member("far", 0.05), member("farther", 0.09), member("near", 0.001), member("unknown", None)]
    assert names(chooser().order(members, 0)) == ["near", "far", "unknown", "farther"]


def test_own_rack_comes_first() -> None:
    members = [member("other", 0.0001, "b"), member("own", 0.002, "a"), member("none", 0.0001)]
    assert names(chooser("a").order(members, 0))[0] == "own"
    assert names(chooser("").order(members, 0))[2] == "own"


def test_load_is_spread_over_near_nodes() -> None:
    chosen = chooser()
    members = [member(str(number)) for number in range(4)]
    counts: Counter[str] = Counter()
    for _ in range(400):
        first = chosen.order(members, 0)[0].info.name
        counts[first] += 1
        chosen.began(first)
    assert max(counts.values()) - min(counts.values()) <= 6  # two choices keep to this; one would not
    assert [chosen.outstanding(str(number)) for number in range(4)] == [counts[str(number)] for number in range(4)]


def test_failures_ban_for_longer_and_longer_and_an_answer_ends_it() -> None:
    chosen = chooser()
    only = [member("a")]
    now_s, bans = 0.0, []
    for _ in range(10):
        assert names(chosen.order(only, now_s)) == ["a"]
        chosen.began("a")
        chosen.failed("a", now_s)
        began_s = now_s
        while not chosen.order(only, now_s):
            now_s += 0.25
        bans.append(now_s - began_s)
    assert bans == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0] + [choice.LONGEST_BAN_S] * 4
    chosen.began("a")
    chosen.answered("a", 0.1)
    chosen.failed("a", now_s)
    assert names(chosen.order(only, now_s + choice.FIRST_BAN_S)) == ["a"]


def test_busy_node_is_asked_again_when_it_says() -> None:
    chosen = chooser()
    chosen.failed("a", 0.0, retry_after_s=1.0)
    assert chosen.order([member("a")], 0.9) == []
    assert names(chosen.order([member("a")], 1.0)) == ["a"]


def test_dead_nodes_are_left_out_at_once_and_suspects_come_last() -> None:
    chosen = chooser()
    members = [
        member("dead", state=MemberState.DEAD),
        member("left", state=MemberState.LEFT),
        member("suspect", 0.0001, state=MemberState.SUSPECT),
        member("slow", 0.05),
    ]
    assert names(chosen.order(members, 0)) == ["slow", "suspect"]
    assert chosen.order([], 0) == []


def test_what_is_known_is_forgotten_with_the_node() -> None:
    chosen = chooser()
    chosen.began("a")
    chosen.answered("a", 2.0)
    assert chosen.quantile_s("a", 0.5) == 2.0
    chosen.began("a")
    chosen.forget("a")
    assert chosen.quantile_s("a", 0.5) is None
    chosen.gave_up("a")
    assert chosen.outstanding("a") == 0


def test_a_slow_node_is_left_out_while_its_request_goes_on() -> None:
    choice = PeerChoice("", random.Random(1))
    choice.began("a")
    choice.slow("a", 10.0)
    assert choice.outstanding("a") == 1
    assert choice.order([member("a"), member("b")], 10.1) == [member("b")]
    choice.answered("a", 3.0)
    assert len(choice.order([member("a"), member("b")], 10.1)) == 2
