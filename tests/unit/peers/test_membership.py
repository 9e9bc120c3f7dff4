"""Nodes that find and lose each other, over real datagrams."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest
import trio

from luxfuse.core.members import Member, MemberState, NodeInfo
from luxfuse.peers import membership as module
from luxfuse.peers.identity import Identity
from luxfuse.peers.membership import Membership
from tests.unit.peers.nodes import HASTY, MISSING, Calls, node, states, until

ALIVE, DEAD, LEFT = MemberState.ALIVE, MemberState.DEAD, MemberState.LEFT


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALONE_S", "TOGETHER_S", "WATCH_S"):
        monkeypatch.setattr(module, name, 0.05)


def count_alive(*nodes: Membership) -> list[int]:
    return [len(each.alive()) for each in nodes]


async def test_nodes_find_each_other_and_measure_the_way(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address) as two:
        changes: list[Member] = []
        one.on_change.append(changes.append)
        async with node(calls, 3, two.info.address) as three:
            await until(lambda: count_alive(one, two, three) == [2, 2, 2])
            # On a busy machine a node is suspect for a moment.
            await until(lambda: all((m.state, m.round_trip_s is None) == (ALIVE, False) for m in one.alive()))
            assert {member.info.label for member in changes} == {"node-2", "node-3"}
            found = one.member(three.info.name)
            assert found is not None
            assert found.info == three.info
            assert one.member("f" * 16) is None
            first, second = one.describe({three.info.name: 7})
            assert first["label"] == "node-2"
            assert second.pop("round_trip_s") > 0
            assert second == {
                "name": three.info.name, "label": "node-3", "address": f"127.0.0.1:{three.info.port}", "state": "alive",
                "version": "1.0", "rack": "rack-1", "weight": 31, "sources": ["7373737373737373"], "entries": 7,
            }  # fmt: skip
            assert one.describe_self()["label"] == "node-1"
            figures = one.statistics()
            assert figures.sent > 0 < figures.received
            assert (figures.unsent, figures.rejected) == (0, {})


async def test_what_is_told_to_all_or_to_one(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address) as two, node(calls, 3, one.info.address) as three:
        await until(lambda: count_alive(one, two, three) == [2, 2, 2])
        heard: dict[str, list[tuple[str, bytes]]] = {each.info.label: [] for each in (one, two, three)}
        for each in (one, two, three):
            each.on_heard.append(lambda name, payload, label=each.info.label: heard[label].append((name, payload)))
        one.broadcast(b"to all")
        await until(lambda: len(heard["node-2"]) == len(heard["node-3"]) == 1)
        two.notify(one.info.name, b"to one")
        two.notify("f" * 16, b"to nobody")
        await until(lambda: heard["node-1"])
        await trio.sleep(0.2)
        assert heard == {
            "node-1": [(two.info.name, b"to one")],
            "node-2": [(one.info.name, b"to all")],
            "node-3": [(one.info.name, b"to all")],
        }
        for tell in (one.broadcast, lambda payload: one.notify(two.info.name, payload)):
            with pytest.raises(ValueError, match="the most is 1000"):
                tell(bytes(1001))


async def test_a_change_of_what_a_node_says_of_itself_arrives(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address) as two:
        await until(lambda: count_alive(one, two) == [1, 1])
        i = two.info
        two.update(NodeInfo(i.name, i.host, i.port, "renamed", i.rack, 99))
        await until(lambda: states(one) == {"renamed": ALIVE})
        assert two.describe_self()["weight"] == 99


async def test_a_node_that_falls_silent_is_dead(calls: Calls) -> None:
    async with node(calls, 1, config=HASTY) as one:
        changes: list[MemberState] = []
        async with node(calls, 2, one.info.address) as two:
            await until(lambda: count_alive(one, two) == [1, 1])
            one.on_change.append(lambda member: changes.append(member.state))
        await until(lambda: states(one) == {"node-2": DEAD})
        assert changes[-2:] == [MemberState.SUSPECT, DEAD]
        assert count_alive(one) == [0]


async def test_a_node_that_says_so_has_left(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address) as two:
        await until(lambda: count_alive(one, two) == [1, 1])
        await two.leave()
        await until(lambda: states(one) == {"node-2": LEFT})
        assert count_alive(one) == [0]


@pytest.mark.expected_logs("sealed with a key that is not in our key file")
async def test_a_node_with_another_key_stays_outside(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address, key=b"o" * 32) as two:
        await until(lambda: two.statistics().failed_push_pulls)
        # Its datagrams are no better.
        two._send(one.info.address, b"\1")
        await until(lambda: one.statistics().rejected == {"key": 1})
        assert count_alive(one, two) == [0, 0]


@pytest.mark.expected_logs("another format")
async def test_garbage_from_the_network_changes_nothing(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address) as two:
        await until(lambda: count_alive(one, two) == [1, 1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for content in (b"", b"x" * 100, b"LXF" + bytes(100), bytes(60_000)):
                stranger.sendto(content, one.info.address)
        two._send(one.info.address, b"sealed nonsense")
        await until(lambda: sum(one.statistics().rejected.values()) == 4)
        assert one.statistics().rejected == {"garbage": 3, "version": 1}
        received = one.statistics().received
        await until(lambda: one.statistics().received > received + 3)
        await until(lambda: states(one) == {"node-2": ALIVE})
        with pytest.raises(ValueError, match="version"):
            await one.handle_push_pull(two.info.name, b"nonsense")


async def test_a_callback_may_tell_something(calls: Calls) -> None:
    async with node(calls, 1) as one, node(calls, 2, one.info.address) as two:
        heard: list[bytes] = []
        two.on_heard.append(lambda name, payload: heard.append(payload))
        one.on_change.append(lambda member: one.broadcast(member.info.label.encode()))
        await until(lambda: heard)
        assert set(heard) == {b"node-2"}  # once for each change of its state: on a busy machine it is suspect for a moment


async def test_nodes_that_appear_where_we_look_are_found_later(calls: Calls, tmp_path: Path) -> None:
    """Two clusters that do not know of each other, until a file that was given to one of them names the other."""
    file = tmp_path / "nodes"
    file.write_text("")
    async with node(calls, 1, f"file:{file}") as one, node(calls, 2, one.info.address) as two, node(calls, 3) as three:
        await until(lambda: count_alive(one, two, three) == [1, 1, 0])
        file.write_text(f"127.0.0.1:{three.info.port}\n127.0.0.1:{one.info.port}\n")
        await until(lambda: count_alive(one, two, three) == [2, 2, 2])
        # A node that is known is not asked again, once all believe the same: each would be six times in this time.
        with trio.fail_after(60):
            while calls.asked:
                del calls.asked[:]
                await trio.sleep(0.3)


async def test_a_silent_address_is_said_once(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    async with node(calls, 1, ("127.0.0.1", 9)) as one:
        await until(lambda: one.statistics().failed_push_pulls > 3)
    assert [record.getMessage() for record in caplog.records] == ["node at 127.0.0.1:9: nobody answers"]


async def test_the_incarnation_is_kept(calls: Calls, tmp_path: Path) -> None:
    identity = Identity.open(tmp_path)
    began = identity.incarnation
    async with node(calls, 1, name=identity.name, identity=identity, incarnation=began) as one:
        one.update(NodeInfo(one.info.name, one.info.host, one.info.port, "other"))
        await until(lambda: identity.incarnation > began)
    assert Identity.open(tmp_path, lambda: 0).incarnation > identity.incarnation


async def test_ourselves_by_another_address_is_nobody(calls: Calls) -> None:
    async with node(calls, 1) as one:
        state = await one.handle_push_pull(one.info.name, b"is not even looked at")
        assert state == await one.handle_push_pull(one.info.name, state)
        assert one.members() == []


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.expected_logs("is a namesake", "copy of our state directory")
async def test_two_nodes_with_one_name_are_told(
    calls: Calls, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """Once datagrams of the later one have come, those of the other are of an earlier life, and get no answer: so it
    misses the first node, and is told when it asks that for all it knows. Before, it may hear the news of its name."""
    async with (
        node(calls, 1) as one,
        node(calls, 2, one.info.address, name="a" * 16, config=MISSING) as two,
    ):
        if deaf:
            monkeypatch.setattr(two, "_take_in", lambda *_: None)
            await until(lambda: two.statistics().push_pulls > 1)  # what follows from meeting is over
        async with node(calls, 3, one.info.address, name="a" * 16, incarnation=2) as three:
            await until(lambda: "is a namesake" in caplog.text)
            assert one.member(two.info.name) is not None
            assert two.info.name == three.info.name
