"""What is passed on first, how often, and which broadcasts were heard."""

from __future__ import annotations

import random

from luxfuse.core.swim.dissemination import ORIGINS, WINDOW, Outbox, Repeats
from luxfuse.core.swim.messages import LIFE_BITS


def fill(outbox: Outbox, room: int = 1000, limit: int = 5) -> list[bytes]:
    updates: list[bytes] = []
    outbox.fill(room, limit, updates)
    return updates


def test_each_is_sent_as_often_as_the_limit_says() -> None:
    outbox = Outbox(10)
    outbox.alive("a", b"a" * 20)
    assert sum(len(fill(outbox, limit=5)) for _ in range(9)) == 5
    assert len(outbox) == 0


def test_what_was_sent_least_goes_first() -> None:
    outbox = Outbox(10)
    outbox.alive("a", b"a" * 20)
    fill(outbox)
    outbox.alive("b", b"b" * 20)
    assert fill(outbox, room=30) == [b"b" * 20]


def test_what_does_not_fit_waits_and_smaller_ones_go() -> None:
    outbox = Outbox(10)
    outbox.alive("a", b"a" * 200)
    outbox.alive("b", b"b" * 20)
    assert fill(outbox, room=100) == [b"b" * 20]
    assert fill(outbox, room=210) == [b"a" * 200]


def test_a_round_holds_each_once_and_counts_all_who_get_it() -> None:
    outbox = Outbox(100)
    for number in range(30):
        outbox.news("o", number, bytes([number]) * 100)
    rounds = outbox.round(room=350, limit=6, nodes=3, most=4)
    assert [len(updates) for updates in rounds] == [3, 3, 3, 3]
    assert len({update for updates in rounds for update in updates}) == 12
    for _ in range(4):
        outbox.round(room=350, limit=6, nodes=3, most=4)
    assert len(outbox) == 0


def test_a_newer_word_takes_the_place_of_the_older_one() -> None:
    outbox = Outbox(10)
    outbox.claim("a", b"suspect" * 3, final=False)
    outbox.alive("a", b"alive" * 5)
    assert fill(outbox) == [b"alive" * 5]
    outbox.claim("a", b"dead" * 6, final=True)
    assert fill(outbox) == [b"dead" * 6]
    outbox.forget("a")
    assert fill(outbox) == []


def test_members_and_broadcasts_go_first_in_turn() -> None:
    outbox = Outbox(10)
    outbox.alive("a", b"a" * 60)
    outbox.news("o", 1, b"n" * 60)
    assert {tuple(fill(outbox, room=100)) for _ in range(2)} == {(b"a" * 60,), (b"n" * 60,)}


def test_the_most_sent_broadcast_is_dropped_first() -> None:
    outbox = Outbox(2)
    outbox.news("o", 1, b"1" * 20)
    fill(outbox)
    outbox.news("o", 2, b"2" * 20)
    outbox.news("o", 3, b"3" * 20)
    assert outbox.dropped == 1
    assert set(fill(outbox)) == {b"2" * 20, b"3" * 20}


def test_broadcasts_are_first_once_in_any_order() -> None:
    repeats, rng = Repeats(), random.Random(1)
    numbers = [number for number in range(WINDOW // 2) for _ in range(2)]
    rng.shuffle(numbers)
    firsts = [number for number in numbers if repeats.first("o", number)]
    assert sorted(firsts) == list(range(WINDOW // 2))


def test_what_is_older_than_the_window_is_no_news() -> None:
    repeats = Repeats()
    assert repeats.first("o", WINDOW + 10)
    assert repeats.first("o", 11)
    assert not repeats.first("o", 10)
    assert repeats.first("o", 5 * WINDOW)
    assert not repeats.first("o", WINDOW + 10)


def test_two_lives_of_a_node_do_not_hide_each_other() -> None:
    repeats = Repeats()
    assert repeats.first("o", (7 << LIFE_BITS) + 1)
    assert repeats.first("o", (9 << LIFE_BITS) + 1)
    assert repeats.first("o", (7 << LIFE_BITS) + 2)


def test_origins_are_bounded() -> None:
    repeats = Repeats()
    for number in range(ORIGINS + 1):
        assert repeats.first(str(number), 1)
    assert not repeats.first("1", 1)
    assert repeats.first("0", 1)  # the one that was silent longest
