"""One membership machine alone, or two or three face to face: what it answers, believes and refuses."""

from __future__ import annotations

import random
from typing import Any

import pytest

from luxfuse.core.members import MemberState, NodeInfo
from luxfuse.core.swim import messages
from luxfuse.core.swim.messages import Ack, Alive, Ask, Claim, Gossip, Nack, News, Ping, Tell
from luxfuse.core.swim.swim import Changed, Heard, PushPull, Send, Swim, SwimConfig

ALIVE, SUSPECT, DEAD, LEFT = MemberState
CONFIG = SwimConfig()


def info(number: int, **changes: Any) -> NodeInfo:
    return NodeInfo(**({"name": f"{number:016x}", "host": f"10.0.0.{number}", "port": 7400} | changes))


def name(number: int) -> str:
    return info(number).name


def machine(number: int = 0, now_s: float = 0.0, incarnation: int = 100, **settings: Any) -> Swim:
    config = SwimConfig(**settings)
    return Swim(info(number), incarnation=incarnation, config=config, rng=random.Random(number), now_s=now_s)


def datagram(body: Any = Gossip(), *updates: Any) -> bytes:  # noqa: B008
    return messages.join(messages.encode(body), [messages.encode(update) for update in updates])


def tell(swim: Swim, *updates: Any, now_s: float = 0.0) -> None:
    swim.receive(datagram(Gossip(), *updates), info(9).address, now_s)


def acquainted(*others: int, **settings: Any) -> Swim:
    """Machine 0, which knows these others, and has told all there was to tell."""
    swim = machine(0, **settings)
    tell(swim, *(Alive(100, info(number)) for number in others))
    for _ in range(40):
        swim.notify(name(others[0]), b"")  # all that is to be told rides on these
    swim.take()
    return swim


def run(swim: Swim, until_s: float) -> list[tuple[float, Any]]:
    """Call it whenever it is due; what it wanted, and when."""
    wanted = [(0.0, effect) for effect in swim.take()]
    while swim.next_s <= until_s:
        now_s = swim.next_s
        swim.tick(now_s)
        wanted += [(now_s, effect) for effect in swim.take()]
    return wanted


def sent(effects: list[Any], kind: type) -> list[tuple[Any, Any]]:
    """Datagrams of one kind among effects: address and body."""
    opened = [(e.address, messages.read_datagram(e.payload).body) for e in effects if isinstance(e, Send)]
    return [(address, body) for address, body in opened if isinstance(body, kind)]


def updates_in(effects: list[Any]) -> list[Any]:
    return [u for e in effects if isinstance(e, Send) for u in messages.read_datagram(e.payload).updates]


def state_of(swim: Swim, number: int) -> MemberState | None:
    member = swim.member(name(number))
    return None if member is None else member.state


# Bad input.


DEEP = b"\x01\x95\x91\x04\x90" + b"\x91" * 1190


@pytest.mark.parametrize("garbage", [b"", b"\x01", DEEP, b"\x01\x92\x00", b"\x01" + b"\xff" * 50, datagram()[:-1]])
def test_garbage_is_counted(garbage: bytes) -> None:
    swim = acquainted(1)
    swim.receive(garbage, info(1).address, 0)
    assert swim.statistics().garbage == 1
    assert not swim.take()


def test_random_bytes_never_raise() -> None:
    rng = random.Random(1)
    swim = acquainted(1, 2)
    good = datagram(Ping(1, name(0), name(1)), Alive(7, info(3)), Claim(name(2), 100, SUSPECT, name(1)))
    for _ in range(3000):
        spoilt = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(1, len(spoilt))] = rng.randrange(256)
        swim.receive(bytes(spoilt), info(1).address, 0)
    assert swim.statistics().garbage > 1000


def test_another_version_is_counted() -> None:
    swim = acquainted(1)
    swim.receive(b"\x02" + datagram()[1:], info(1).address, 0)
    assert (swim.statistics().old_version, swim.statistics().garbage) == (1, 0)


def test_an_exchange_of_garbage_raises() -> None:
    swim = machine()
    for garbage in (b"", b"\x01nonsense", b"\x02" + machine(1).push_pull()[1:]):
        with pytest.raises(ValueError, match=r".+"):
            swim.merge(garbage, 0)


def test_an_exchange_of_too_many_nodes_raises() -> None:
    crowd = machine(1)
    for number in range(2, 12):
        tell(crowd, Alive(1, info(number)))
    with pytest.raises(ValueError, match="11 nodes"):
        machine(members=4).merge(crowd.push_pull(), 0)


def test_a_node_that_says_nonsense_of_itself_is_refused() -> None:
    swim = acquainted(1)
    tell(swim, Alive(1, info(2, name="")), Alive(1, info(2, port=0)), Alive(1, info(2, label="x" * 600)))
    assert swim.statistics().refused == 3
    assert len(swim.members()) == 1


def test_own_info_must_be_acceptable() -> None:
    with pytest.raises(ValueError, match="512 bytes"):
        Swim(info(1, label="x" * 600), incarnation=1, config=CONFIG, rng=random.Random(1), now_s=0)
    swim = machine()
    for bad in (info(0, label="x" * 600), info(1)):
        with pytest.raises(ValueError, match="keeps its name"):
            swim.update(bad, 0)


# Probes.


def test_a_ping_is_answered_to_where_it_came_from() -> None:
    swim = acquainted(1)
    swim.receive(datagram(Ping(77, name(0), name(1))), ("192.0.2.1", 9), 0)
    ((address, ack),) = sent(swim.take(), Ack)
    assert (address, ack.number, ack.source) == (("192.0.2.1", 9), 77, name(0))


def test_a_ping_for_another_node_is_not_answered() -> None:
    swim = acquainted(1)
    swim.receive(datagram(Ping(77, name(5), name(1))), info(1).address, 0)
    assert not swim.take()
    assert swim.statistics().misdirected == 1


def test_who_pings_and_is_unknown_is_asked_for_everything_but_not_too_often() -> None:
    swim = acquainted(1)
    for _ in range(5):
        swim.receive(datagram(Ping(77, name(0), name(6))), info(6).address, 0.1)
    assert [e for e in swim.take() if isinstance(e, PushPull)] == [PushPull(info(6).address)]


def test_who_pings_and_is_dead_hears_it() -> None:
    swim = acquainted(1, 2)
    tell(swim, Claim(name(1), 100, LEFT, name(1)))
    swim.take()
    swim.receive(datagram(Ping(1, name(0), name(1))), info(1).address, 0)
    assert updates_in(swim.take())[0] == Claim(name(1), 100, LEFT, name(0))


def test_a_silent_node_is_pinged_twice_then_by_others_then_suspect() -> None:
    swim = acquainted(1, 2, 3, 4)
    wanted = run(swim, 3.0)
    first_s, (address, ping) = next((s, sent([e], Ping)[0]) for s, e in wanted if sent([e], Ping))
    pings = [s - first_s for s, e in wanted if (address, ping.number) in [(a, p.number) for a, p in sent([e], Ping)]]
    assert pings == pytest.approx([0, 0.25])
    asks = [(s - first_s, a) for s, e in wanted for a, ask in sent([e], Ask) if ask.number == ping.number]
    assert [s for s, _ in asks] == pytest.approx([0.5] * 3)
    assert len({a for _, a in asks} - {address}) == 3
    suspected = [s - first_s for s, e in wanted if isinstance(e, Changed) and e.member.state == SUSPECT]
    assert suspected[0] == pytest.approx(1.0)


def answer(swim: Swim, address: Any, ping: Ping, now_s: float) -> None:
    source = next(member.info.name for member in swim.members() if member.info.address == address)
    swim.receive(datagram(Ack(ping.number, source)), address, now_s)


def test_answers_are_timed_and_smoothed() -> None:
    swim = acquainted(1)
    for took_s in (0.008, 0.016):
        now_s = swim.next_s
        while not (pings := sent(swim.take(), Ping)):
            now_s = swim.next_s
            swim.tick(now_s)
        answer(swim, *pings[0], now_s + took_s)
    assert swim.member(name(1)).round_trip_s == pytest.approx(0.009)


def test_nobody_can_answer_for_another() -> None:
    swim = acquainted(1, 2)
    run(swim, 0.9)
    for number in range(10):
        swim.receive(datagram(Ack(number, name(7))), info(7).address, 0.91)
    run(swim, 4)
    assert SUSPECT in (state_of(swim, 1), state_of(swim, 2))


def test_a_helper_passes_the_answer_on() -> None:
    swim = acquainted(1, 2)
    swim.receive(datagram(Ask(5, name(2), name(1))), info(1).address, 0)
    ((address, ping),) = sent(swim.take(), Ping)
    assert address == info(2).address
    swim.receive(datagram(Ack(ping.number, name(2))), address, 0.01)
    ((back, ack),) = sent(swim.take(), Ack)
    assert (back, ack.number, ack.source) == (info(1).address, 5, name(2))


def test_a_helper_says_when_it_hears_nothing() -> None:
    swim = acquainted(1, 2)
    swim.receive(datagram(Ask(5, name(2), name(1))), info(1).address, 0)
    nacks = [(s, a, n) for s, e in run(swim, 2.0) for a, n in sent([e], Nack)]
    assert nacks == [(pytest.approx(0.4), info(1).address, Nack(5))]


def test_a_helper_does_not_help_without_end() -> None:
    swim = acquainted(1, 2)
    for number in range(300):
        swim.receive(datagram(Ask(number, name(2), name(1))), info(1).address, 0)
    effects = swim.take()
    assert len(sent(effects, Ping)) == 256
    assert len(sent(effects, Nack)) == 44


def test_health_suffers_when_helpers_are_silent_too_and_not_when_they_nack() -> None:
    def health(nacking: bool) -> int:
        swim = acquainted(1, 2, 3, 4)
        while True:
            swim.tick(swim.next_s)
            effects = swim.take()
            for address, ask in sent(effects, Ask):
                if nacking:
                    swim.receive(datagram(Nack(ask.number)), address, swim.next_s - 0.1)
            if any(isinstance(e, Changed) for e in effects):
                return swim.statistics().health

    assert health(nacking=True) == 0
    assert health(nacking=False) == 3


def test_bad_health_makes_periods_longer() -> None:
    swim = acquainted(1, 2)
    tell(swim, *(Claim(name(0), 100 + n, SUSPECT, name(1)) for n in range(20)))
    assert swim.statistics().health == CONFIG.health_limit - 1
    starts = sorted({s for s, e in run(swim, 30) for _ in sent([e], Ping)})
    assert starts[2] - starts[0] >= CONFIG.health_limit * 0.5


# What is believed.


def test_of_two_things_the_higher_incarnation_counts_then_the_worse() -> None:
    said = [
        Alive(100, info(1)),
        Claim(name(1), 100, SUSPECT, name(2)),
        Claim(name(1), 100, LEFT, name(1)),
        Alive(101, info(1, label="new")),
        Claim(name(1), 101, SUSPECT, name(2)),
    ]
    rng = random.Random(3)
    for _ in range(30):
        swim = acquainted(1, 2)
        rng.shuffle(said)
        tell(swim, *said)
        member = swim.member(name(1))
        assert (member.state, member.incarnation, member.info.label) == (SUSPECT, 101, "new")


def test_what_is_new_is_passed_on_a_bounded_number_of_times_and_once_to_each() -> None:
    swim = acquainted(*range(1, 9))
    tell(swim, Claim(name(1), 100, SUSPECT, name(2)))
    tell(swim, Claim(name(1), 100, SUSPECT, name(2)))
    copies = [(s, e.address) for s, e in run(swim, 3) for u in updates_in([e]) if getattr(u, "by", "") == name(2)]
    assert CONFIG.transmissions(9) <= len(copies) <= CONFIG.transmissions(9) + CONFIG.fanout
    assert len(copies) == len(set(copies))


def test_a_suspect_is_dead_when_its_time_is_over_and_alive_if_it_says_so() -> None:
    for refuted in (False, True):
        swim = acquainted(1, 2, 3)
        tell(swim, Claim(name(1), 100, SUSPECT, name(2)))
        tell(swim, Claim(name(1), 100, SUSPECT, name(3)))
        tell(swim, Claim(name(1), 100, SUSPECT, name(9)))
        if refuted:
            tell(swim, Alive(101, info(1)))
        wanted = run(swim, 4.4)
        changes = [e.member for _, e in wanted if isinstance(e, Changed) and e.member.info.name == name(1)]
        assert (DEAD in [member.state for member in changes]) is not refuted


def test_who_is_called_dead_has_the_shortest_time_to_say_that_it_lives() -> None:
    swim = acquainted(1, 2, 3)
    tell(swim, Claim(name(1), 100, DEAD, name(2)))
    assert state_of(swim, 1) == SUSPECT
    run(swim, 3.9)
    assert state_of(swim, 1) == SUSPECT
    run(swim, 4.1)
    assert state_of(swim, 1) == DEAD


def test_the_dead_are_forgotten_and_not_brought_back_before() -> None:
    swim = acquainted(1, 2, forget_s=100)
    stale = machine(5)
    tell(stale, Alive(100, info(1)))
    tell(swim, Claim(name(1), 100, LEFT, name(1)))
    swim.merge(stale.push_pull(), 0)
    assert state_of(swim, 1) == LEFT
    wanted = run(swim, 220)
    assert state_of(swim, 1) is None
    assert [s > 100 for s, e in wanted if isinstance(e, Changed) and e.member.info.name == name(1)] == [False, True]


def test_the_dead_are_not_taken_over_by_who_does_not_know_them() -> None:
    swim, other = machine(0), acquainted(1, 2)
    tell(other, Claim(name(1), 100, LEFT, name(1)))
    tell(swim, Claim(name(1), 100, DEAD, name(2)))
    swim.merge(other.push_pull(), 0)
    assert state_of(swim, 1) is None
    assert state_of(swim, 2) == ALIVE


def test_the_number_of_members_is_bounded_and_the_dead_make_room() -> None:
    swim = acquainted(1, 2, 3, members=3)
    tell(swim, Alive(1, info(4)))
    assert (state_of(swim, 4), swim.statistics().refused) == (None, 1)
    tell(swim, Claim(name(2), 100, LEFT, name(2)))
    tell(swim, Alive(1, info(4)))
    assert [state_of(swim, n) for n in (1, 2, 3, 4)] == [ALIVE, None, ALIVE, ALIVE]


def test_another_address_counts_in_a_higher_incarnation_only() -> None:
    swim = acquainted(1, 2)
    tell(swim, Alive(100, info(1, host="10.9.9.9")))
    assert (swim.member(name(1)).info.host, swim.statistics().conflicts) == ("10.0.0.1", 1)
    tell(swim, Alive(101, info(1, host="10.9.9.9")))
    assert swim.member(name(1)).info.host == "10.9.9.9"


# Ourselves.


def test_what_is_said_of_us_is_refuted() -> None:
    swim = acquainted(1, 2)
    tell(swim, Claim(name(0), 105, SUSPECT, name(1)))
    assert swim.statistics().incarnation == 106
    assert Alive(106, info(0)) in updates_in([e for _, e in run(swim, 0.2)])


def test_who_believes_an_old_word_against_us_hears_the_new_one_again() -> None:
    swim = acquainted(1, 2)
    tell(swim, Claim(name(0), 50, DEAD, name(1)))
    assert swim.statistics().incarnation == 100
    assert Alive(100, info(0)) in updates_in([e for _, e in run(swim, 0.2)])


def test_an_update_of_ours_is_told_in_a_new_incarnation() -> None:
    swim = acquainted(1, 2)
    swim.update(info(0, label="changed"), 0)
    assert Alive(101, info(0, label="changed")) in updates_in([e for _, e in run(swim, 0.2)])


def test_a_late_tick_judges_nobody() -> None:
    swim = acquainted(1, 2, 3)
    tell(swim, Claim(name(1), 100, DEAD, name(2)))
    run(swim, 2.0)
    due_s = swim.next_s
    swim.tick(60)
    assert swim.statistics().late == 1
    assert swim.statistics().health > 0
    swim.take()
    assert state_of(swim, 1) == SUSPECT
    wanted = run(swim, 63)
    (died_s,) = [s for s, e in wanted if isinstance(e, Changed) and e.member.info.name == name(1)]
    assert died_s == pytest.approx(4 + 60 - due_s)
    assert swim.statistics().late == 1  # counted once


def test_who_leaves_says_so_and_is_silent() -> None:
    swim = acquainted(1, 2, 3)
    swim.leave(0)
    effects = swim.take()
    assert {e.address for e in effects} == {info(n).address for n in (1, 2, 3)}
    assert set(updates_in(effects)) == {Claim(name(0), 100, LEFT, name(0))}
    swim.receive(datagram(Ping(1, name(0), name(1))), info(1).address, 1)
    swim.tick(2)
    assert not swim.take()
    assert swim.next_s == float("inf")


# Joining, exchanges.


def test_joining_asks_all_seeds_but_ourselves_and_again_while_alone() -> None:
    swim = machine(0)
    swim.join([info(0).address, info(1).address, info(2).address, info(1).address], 0)
    assert swim.take() == [PushPull(info(1).address), PushPull(info(2).address)]
    later = [e.address for s, e in run(swim, 60) if isinstance(e, PushPull)]
    assert 8 <= len(later) <= 16
    assert set(later) == {info(1).address, info(2).address}


def test_two_that_exchange_know_each_other() -> None:
    one, two = machine(1), acquainted(2, 3)
    two.merge(one.push_pull(), 0)
    one.merge(two.push_pull(), 0)
    assert {m.info.name for m in one.alive()} == {name(0), name(2), name(3)}
    assert one.push_pull()[0] == messages.VERSION


def test_an_exchange_with_ourselves_changes_nothing() -> None:
    swim = acquainted(1)
    before = swim.statistics()
    swim.merge(swim.push_pull(), 0)
    assert swim.statistics() == before
    assert not swim.take()


def test_views_that_agree_are_not_exchanged_and_others_are() -> None:
    for view_differs in (False, True):
        swim, twin = machine(0), machine(1)
        swim.merge(twin.push_pull(), 0)
        twin.merge(swim.push_pull(), 0)
        exchanges = 0
        while swim.next_s < 100:
            swim.tick(swim.next_s)
            for effect in swim.take():
                exchanges += isinstance(effect, PushPull) and swim.next_s > 5
                for address, ping in sent([effect], Ping):
                    swim.receive(datagram(Ack(ping.number, name(1), ping.view + view_differs)), address, swim.next_s - 0.2)
        assert (exchanges > 0) is view_differs


# Broadcasts and words.


def test_a_broadcast_is_heard_once_and_passed_on() -> None:
    swim = acquainted(1, 2)
    news = News(name(1), 5, b"hello")
    tell(swim, news)
    tell(swim, news)
    assert [e for e in swim.take() if isinstance(e, Heard)] == [Heard(name(1), b"hello")]
    assert (swim.statistics().heard, swim.statistics().repeated) == (1, 1)
    assert news in updates_in([e for _, e in run(swim, 0.2)])


def test_our_own_broadcast_is_not_heard_by_us() -> None:
    swim = acquainted(1, 2)
    swim.broadcast(b"hello", 0)
    (news,) = {u for u in updates_in([e for _, e in run(swim, 0.2)]) if isinstance(u, News)}
    tell(swim, news, now_s=0.2)
    assert not [e for e in swim.take() if isinstance(e, Heard)]


def test_broadcasts_of_any_length_fit_and_too_long_ones_are_refused() -> None:
    swim = acquainted(*range(1, 9))
    for length in (0, 1, 500, 990, 1000):
        swim.broadcast(b"x" * length, 0)
        swim.update(info(0, label="x" * 400), 0)
    effects = [e for _, e in run(swim, 3)]
    assert {len(u.payload) for u in updates_in(effects) if isinstance(u, News)} == {0, 1, 500, 990, 1000}
    assert max(len(e.payload) for e in effects if isinstance(e, Send)) <= messages.PAYLOAD_BYTES
    for act in (lambda: swim.broadcast(b"x" * 1001, 0), lambda: swim.notify(name(1), b"x" * 1001)):
        with pytest.raises(ValueError, match="1001 bytes"):
            act()


def test_the_queue_of_broadcasts_is_bounded() -> None:
    swim = acquainted(1, broadcasts=10)
    for number in range(25):
        swim.broadcast(bytes([number]), 0)
    assert (swim.statistics().queued, swim.statistics().dropped) == (10, 15)
    news = {u.payload for u in updates_in([e for _, e in run(swim, 1)]) if isinstance(u, News)}
    assert news == {bytes([number]) for number in range(15, 25)}


def test_a_broadcast_with_nobody_there_is_not_kept() -> None:
    swim = machine()
    swim.broadcast(b"hello", 0)
    assert swim.statistics().queued == 0


def test_a_word_to_one_node() -> None:
    swim, other = acquainted(1), machine(1)
    assert swim.notify(name(1), b"psst")
    assert not swim.notify(name(7), b"psst")
    (send,) = [e for e in swim.take() if isinstance(e, Send)]
    assert isinstance(messages.read_datagram(send.payload).body, Tell)
    other.receive(send.payload, info(0).address, 0)
    assert [e for e in other.take() if isinstance(e, Heard)] == [Heard(name(0), b"psst")]
