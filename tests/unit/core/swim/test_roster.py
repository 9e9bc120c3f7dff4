"""Who is drawn, who is probed next, and the digest of a view."""

from __future__ import annotations

import random

from luxfuse.core.members import MemberState, NodeInfo
from luxfuse.core.swim.roster import Peer, Roster


def peer(number: int) -> Peer:
    return Peer(NodeInfo(f"{number:016x}", "10.0.0.1", 1 + number), 1, 0)


def roster(count: int) -> tuple[Roster, list[Peer]]:
    peers = [peer(number) for number in range(count)]
    made = Roster(100, random.Random(1))
    for one in peers:
        made.add(one)
    return made, peers


def test_each_is_probed_once_in_a_round() -> None:
    made, peers = roster(10)
    [made.next() for _ in range(10)]  # the round in which they came
    for _ in range(5):
        assert {made.next() for _ in range(10)} == set(peers)


def test_the_dead_are_neither_probed_nor_drawn() -> None:
    made, peers = roster(10)
    for one in peers[:9]:
        made.change(one, MemberState.DEAD, 5)
    assert {made.next() for _ in range(20)} == {peers[9]}
    assert made.draw(3) == [peers[9]]
    assert made.live == 1
    made.change(peers[9], MemberState.LEFT, 5)
    assert made.next() is None
    assert made.draw(3) == []
    made.change(peers[0], MemberState.ALIVE, 6)
    assert made.next() is peers[0]


def test_a_draw_has_no_one_twice_nor_whom_it_must_not_have() -> None:
    for count in (3, 4, 5, 30):
        made, peers = roster(count)
        for _ in range(50):
            drawn = made.draw(3, but=peers[0])
            assert len(set(drawn)) == len(drawn) == min(3, count - 1)
            assert peers[0] not in drawn


def test_a_round_holds_each_once_whoever_comes_and_goes() -> None:
    made, peers = roster(3)
    for number in range(1001):
        made.change(peers[0], MemberState.DEAD if number % 2 else MemberState.ALIVE, number)
        made.next()
    assert sorted(map(id, made._round)) == sorted(map(id, peers))


def test_equal_views_have_an_equal_digest_however_they_came_about() -> None:
    one, peers = roster(5)
    assert one.view != 0
    for gone in peers[3:]:
        one.change(gone, MemberState.DEAD, 1)
    other, _ = roster(3)
    assert one.view == other.view
    one.renew(peers[0], peers[0].info, 2)
    assert one.view != other.view
    for gone in peers[:3]:
        one.remove(gone)
    assert one.view == 0
