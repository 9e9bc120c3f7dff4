"""When which node is asked for what changed there."""

from __future__ import annotations

from luxfuse.core.holdings import Mark
from luxfuse.core.pulls import LONGEST_S, PULLS_A_SECOND, QUIET_S, SHORTEST_S, Pulls, head_interval_s

ID = b"12345678"


def settled(names: list[str]) -> Pulls:
    """Nodes that were pulled from at 10."""
    pulls = Pulls(0)
    pulls.members(names, 0)
    for name in pulls.take(10, len(names)):
        pulls.pulled(name, Mark(ID, 5), 10, more=False)
    return pulls


def test_a_new_node_is_pulled_from_at_once_and_once_at_a_time() -> None:
    pulls = Pulls(0)
    pulls.members(["a"], 1)
    assert pulls.take(1, 9) == ["a"]
    assert pulls.take(99, 9) == []


def test_a_node_without_news_is_left_alone_for_long() -> None:
    pulls = settled(["a"])
    pulls.heard("a", Mark(ID, 5))
    assert pulls.take(10 + QUIET_S - 0.1, 9) == []
    assert pulls.take(10 + QUIET_S, 9) == ["a"]


def test_news_are_pulled_once_a_second_at_most() -> None:
    pulls = settled(["a", "b"])
    pulls.heard("a", Mark(ID, 6))
    assert pulls.take(10 + SHORTEST_S - 0.1, 9) == []
    assert pulls.take(10 + SHORTEST_S, 9) == ["a"]
    pulls.heard("a", Mark(ID, 8))
    pulls.pulled("a", Mark(ID, 6), 11, more=False)
    assert pulls.take(11 + SHORTEST_S, 9) == ["a"], "it was heard of while it was asked"


def test_a_log_that_begins_anew_is_news() -> None:
    pulls = settled(["a"])
    pulls.heard("a", Mark(b"87654321", 0))
    assert pulls.take(10 + SHORTEST_S, 9) == ["a"]


def test_a_log_that_begins_anew_during_a_pull_is_news() -> None:
    pulls = settled(["a"])
    pulls.heard("a", Mark(ID, 6))
    assert pulls.take(11, 9) == ["a"]
    pulls.heard("a", Mark(b"87654321", 0))
    pulls.pulled("a", Mark(ID, 6), 11.2, more=False)
    assert pulls.take(12, 9) == ["a"]
    pulls.pulled("a", Mark(b"87654321", 0), 12, more=False)
    assert pulls.take(12 + QUIET_S - 0.1, 9) == [], "what was heard before a pull says nothing after it"


def test_a_failing_node_that_has_started_again_is_asked_soon() -> None:
    pulls = settled(["a"])
    now_s = 50.0
    for _ in range(6):
        assert pulls.take(now_s, 1) == ["a"]
        pulls.failed("a", now_s)
        now_s += LONGEST_S
    assert pulls.take(now_s, 1) == ["a"]
    pulls.failed("a", now_s)
    pulls.heard("a", Mark(ID, 9))
    assert pulls.take(now_s + 10, 1) == [], "it can be heard of by others, and not be reached"
    pulls.heard("a", Mark(b"87654321", 0))
    assert pulls.take(now_s + 10, 1) == ["a"]
    pulls.heard("a", Mark(b"abcdefgh", 0))
    pulls.failed("a", now_s + 11)
    assert pulls.take(now_s + 11 + SHORTEST_S, 1) == ["a"]


def test_all_nodes_together_are_asked_so_often_at_most() -> None:
    pulls = Pulls(0)
    pulls.members([str(number) for number in range(1000)], 0)
    taken = 0
    for step in range(1, 21):
        for name in pulls.take(step / 10, 1000):
            taken += 1
            pulls.pulled(name, Mark(ID, 1), step / 10, more=True)
    assert 0.9 * 2 * PULLS_A_SECOND <= taken <= 2 * PULLS_A_SECOND


def test_a_failing_node_is_asked_ever_less_often() -> None:
    pulls = settled(["a"])
    pulls.heard("a", Mark(ID, 6))
    now_s = 11.0
    waits = []
    for _ in range(9):
        assert pulls.take(now_s, 1) == ["a"]
        pulls.failed("a", now_s)
        pulls.heard("a", Mark(ID, 7))
        began_s = now_s
        while not pulls.take(now_s, 0) and not any(p.next_s <= now_s for p in pulls._peers.values()):
            now_s += 1
        waits.append(now_s - began_s)
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2 * SHORTEST_S, LONGEST_S)


def test_nodes_that_are_gone_are_not_asked() -> None:
    pulls = settled(["a", "b"])
    pulls.members(["b"], 11)
    pulls.heard("a", Mark(ID, 9))
    pulls.failed("a", 12)
    pulls.pulled("a", Mark(), 12, more=True)
    assert pulls.take(10 + QUIET_S, 9) == ["b"]


def test_heads_are_told_less_often_the_more_nodes_there_are() -> None:
    assert head_interval_s(3) == SHORTEST_S
    assert 1000 / head_interval_s(1000) <= 20
