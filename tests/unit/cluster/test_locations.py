"""Nodes that tell each other what they hold, with tasks and threads, over calls instead of a network."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.cluster import locations as module
from luxfuse.cluster.locations import PATH, Locations
from luxfuse.core.holding_messages import Buckets, encode
from luxfuse.core.members import Address, Member, MemberState, NodeInfo
from luxfuse.errors import PeerFailed, PeerRefused
from luxfuse.index.locations import LocationTable


def oid(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


class Node:
    """One node: what is there of others is what the world says."""

    def __init__(self, world: World, path: Path, number: int) -> None:
        self.world = world
        self.info = NodeInfo(f"n{number}", "host", number)
        self.path = path
        self.open()

    def open(self) -> None:
        self.table = LocationTable(self.path / self.info.name)
        self.locations = Locations(self.table, self, self, os.urandom(8))
        self.scope = trio.CancelScope()

    @property
    def name(self) -> str:
        return self.info.name

    def alive(self) -> list[Member]:
        if self in self.world.alone:
            return []
        return [
            Member(node.info, MemberState.ALIVE, 1, 0)
            for node in self.world.nodes
            if node is not self and node not in self.world.down
        ]

    def broadcast(self, payload: bytes) -> None:
        self.world.told[self.name] += 1
        if self in self.world.alone:
            return
        for node in self.world.nodes:
            if node is not self:
                node.locations.heard(self.name, payload)

    async def request(
        self, address: Address, path: str, body: bytes, *, name: str | None = None, timeout_s: float = 5
    ) -> bytes:
        node = next(node for node in self.world.nodes if node.name == name)
        assert (path, address) == (PATH, node.info.address)
        self.world.asked += 1
        if node in self.world.down or node in self.world.mute:
            raise PeerFailed("no answer")
        return await node.locations.answer(self.name, body)

    async def send_file(self, *_args: object, **_more: object) -> bytes:
        raise NotImplementedError

    async def run(self) -> None:
        self.ended = trio.Event()
        try:
            with self.scope:
                await self.locations.run()
        finally:
            self.ended.set()

    async def close(self) -> None:
        self.scope.cancel()
        await self.ended.wait()
        await self.locations.close()


class World:
    """All nodes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.down: set[Node] = set()
        self.mute: set[Node] = set()
        self.alone: set[Node] = set()
        """Those that have found no others yet, though these may know them."""
        self.told: Counter[str] = Counter()
        self.asked = 0


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "COMMIT_S", 0.01)
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr("luxfuse.core.pulls.SHORTEST_S", 0.02)
    monkeypatch.setattr("luxfuse.core.pulls.QUIET_S", 0.2)
    monkeypatch.setattr(module, "TIDY_S", 0.02)
    world = World()
    world.nodes += [Node(world, tmp_path, number) for number in range(3)]
    for node in world.nodes:
        nursery.start_soon(node.run)
    yield world
    for node in world.nodes:
        await node.close()


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not true():
            await trio.sleep(0.005)


async def test_others_learn_what_a_node_takes_in_and_drops(world: World) -> None:
    a, b, c = (node.locations for node in world.nodes)
    for number in range(700):
        a.held(oid(number), 0)
    b.held(oid(5), 0)
    b.held(oid(5), 9)
    await until(lambda: c.counts() == {"n0": 700, "n1": 2})
    assert sorted(c.holders(oid(5), 0)) == ["n0", "n1"]
    assert (c.holders(oid(5), 9), c.holders(oid(5), 8)) == (["n1"], [])
    await until(lambda: a.holders(oid(5), 0) == ["n1"])  # oneself is not another one
    for _ in range(3):
        a.dropped(oid(5), 0)
    await until(lambda: c.holders(oid(5), 0) == ["n1"])
    assert (a.statistics().own, c.statistics().others, c.statistics().lost) == (699, 701, 0)


async def test_a_node_that_changes_nothing_says_nothing(world: World) -> None:
    await until(lambda: all(len(node.locations._pulls._peers) == 2 for node in world.nodes) and len(world.told) == 3)
    world.nodes[0].locations.held(oid(1), 0)
    await until(lambda: world.nodes[1].locations.holders(oid(1), 0) == ["n0"])
    told = world.told.copy()
    world.nodes[0].locations.held(oid(1), 0)
    await trio.sleep(0.1)
    assert world.told == told


async def test_a_dead_node_is_ignored_until_it_was_asked_again(world: World) -> None:
    a, b = world.nodes[:2]
    a.locations.held(oid(1), 0)
    await until(lambda: b.locations.holders(oid(1), 0) == ["n0"])
    world.down.add(a)
    await until(lambda: b.locations.holders(oid(1), 0) == [])
    world.mute.add(a)
    world.down.clear()
    await until(lambda: b.locations.statistics().failures > 0)
    assert b.locations.holders(oid(1), 0) == []
    world.mute.clear()
    await until(lambda: b.locations.holders(oid(1), 0) == ["n0"])


async def test_a_node_that_does_not_come_back_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = world.nodes[:2]
    a.locations.held(oid(1), 0)
    await until(lambda: b.locations.counts().get("n0") == 1)
    world.down.add(a)
    monkeypatch.setattr(module, "FORGET_S", 0.0)
    await until(lambda: "n0" not in b.locations.counts() and not b.table.retired)
    world.down.clear()
    await until(lambda: b.locations.holders(oid(1), 0) == ["n0"])


async def test_what_is_forgotten_by_name_is_ignored_at_once(world: World) -> None:
    a, b = world.nodes[:2]
    a.locations.held(oid(1), 0)
    await until(lambda: b.locations.holders(oid(1), 0) == ["n0"])
    world.mute.add(a)
    b.locations.forget_node("n0")
    assert b.locations.holders(oid(1), 0) == []
    await until(lambda: "n0" not in b.locations.counts())


async def test_a_node_that_starts_again_tells_what_it_has_then(world: World, nursery: trio.Nursery) -> None:
    a, b = world.nodes[:2]
    for number in range(300):
        a.locations.held(oid(number), 0)
    await until(lambda: b.locations.counts().get("n0") == 300)
    world.mute.add(a)
    await a.close()
    a.open()
    assert not a.locations.doubtful
    a.locations.dropped(oid(7), 0)
    world.mute.clear()
    nursery.start_soon(a.run)
    await until(lambda: b.locations.counts().get("n0") == 299)
    assert b.locations.holders(oid(7), 0) == []


async def test_a_node_that_starts_again_tells_it_when_it_has_found_others(
    world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broadcast that nobody can hear is lost, and those that never missed the node would ask only much later."""
    a, b = world.nodes[:2]
    monkeypatch.setattr("luxfuse.core.pulls.QUIET_S", 1_000.0)
    far_s = trio.current_time() + 100
    await until(lambda: all(  # those that were planned before are over
        len(node.locations._pulls._peers) == 2 and all(
            each.next_s > far_s and not each.under_way for each in node.locations._pulls._peers.values())
        for node in world.nodes))  # fmt: skip
    await a.close()
    a.open()
    world.alone.add(a)
    for number in range(3):
        a.locations.held(oid(number), 0)
    await a.locations.flush()
    nursery.start_soon(a.run)
    await trio.sleep(0.1)
    assert b.locations.counts().get("n0", 0) == 0
    world.alone.clear()
    await until(lambda: b.locations.counts().get("n0") == 3)


async def test_after_an_unclean_end_our_own_are_set_right(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 7)
    a, b = world.nodes[:2]
    for number in range(100):
        a.locations.held(oid(number), 0)

    async def really() -> AsyncGenerator[tuple[bytes, int], None]:
        for number in [*range(50, 90), *range(200, 230)]:
            if number == 60:
                a.locations.held(oid(300), 0)
                a.locations.dropped(oid(80), 0)
                await a.locations.flush()
            if number != 80:
                yield oid(number), 0

    assert await a.locations.reconcile(really()) == 50 + 10 + 30
    assert not a.locations.doubtful
    await until(lambda: b.locations.counts().get("n0") == 39 + 30 + 1 and b.locations.holders(oid(229), 0) == ["n0"])
    assert b.locations.holders(oid(80), 0) == b.locations.holders(oid(49), 0) == []
    assert b.locations.holders(oid(300), 0) == ["n0"]


async def test_what_comes_out_of_order_is_refused(world: World) -> None:
    async def really() -> AsyncGenerator[tuple[bytes, int], None]:
        yield oid(2), 0
        yield oid(1), 0

    with pytest.raises(ValueError, match="in order"):
        await world.nodes[0].locations.reconcile(really())
    assert world.nodes[0].locations.doubtful


async def test_beyond_the_bound_changes_are_lost_and_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_BOUND", 3)
    locations = world.nodes[0].locations
    for number in range(5):
        locations.held(oid(number), 0)
    assert (locations.statistics().lost, locations.doubtful) == (2, True)
    locations.dropped(oid(0), 0)
    await locations.flush()
    assert locations.statistics().own == 2


async def test_a_table_that_cannot_be_written_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    a, b = world.nodes[:2]
    apply = a.table.apply_own

    def full(_changes: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(a.table, "apply_own", full)
    a.locations.held(oid(1), 0)
    await until(lambda: a.locations.statistics().failures > 1)
    monkeypatch.setattr(a.table, "apply_own", apply)
    await until(lambda: b.locations.holders(oid(1), 0) == ["n0"])


async def test_too_many_that_ask_at_a_time_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ANSWERS", 0)
    with pytest.raises(PeerRefused, match="busy"):
        await world.nodes[0].locations.answer("n1", encode(Buckets([1], b"")))
    with pytest.raises(ValueError, match="version"):
        await world.nodes[0].locations.answer("n1", b"garbage")
