"""Rules of replicas on 30 nodes that come, go and lose sight of each other, in virtual time, with simulated caches."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable

import msgspec
import pytest
import trio
import trio.testing

from luxfuse.cluster.holding import HOLD_PATH, Holding
from luxfuse.cluster.replica_rules import RULES_PATH, RuleExchange
from luxfuse.cluster.replicating import HeldObject, Replicating
from luxfuse.core.members import Member, MemberState, NodeInfo, Want
from luxfuse.core.replication import ReplicaRule, ReplicaRules
from luxfuse.errors import PeerFailed

SOURCE = b"s" * 8
NODES = 30
OBJECTS = [b"%016d" % number for number in range(24)]
SIZE = 1 << 20
BELIEF_S = 8.0
"""What others hold, and that they are gone, is known so late."""
FETCH_S = 0.5


class World:
    """All nodes, the network between them, and what is asked of whom."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.nodes: dict[str, Node] = {}
        self.orders = 0
        self.broadcasts = 0
        self._views: dict[tuple[int, int], tuple[list[Node], dict[bytes, list[str]]]] = {}

    def reaches(self, one: Node, other: Node) -> bool:
        return one.up and other.up and one.group == other.group

    def views(self, group: int) -> tuple[list[Node], dict[bytes, list[str]]]:
        """Return who is there on one side, and who holds what, as of about now."""
        now = int(trio.current_time())
        if (group, now) not in self._views:
            some = [node for node in self.nodes.values() if node.up and node.group == group]
            held = {oid: [node.info.name for node in some if oid in node.held] for oid in OBJECTS}
            self._views[group, now] = some, held
        return self._views[group, now]

    def held_by(self, oid: bytes) -> list[Node]:
        return [node for node in self.nodes.values() if node.up and oid in node.held]


class Node:
    """One node: as `Stock`, `Shelf`, `Members`, `Holders`, `Rpc` and store of rules to its parts."""

    def __init__(self, world: World, number: int, room: int = 10_000) -> None:
        self.world = world
        self.info = NodeInfo(f"{number:016x}", "h", number, sources=(SOURCE,))
        self.as_member = Member(self.info, MemberState.ALIVE, 1, 0.0)
        self.up = True
        self.group = 0
        self.room = room
        self.held: dict[bytes, None] = {}
        self.fetches = 0
        self.rules = ReplicaRules()
        self.believed: dict[bytes, list[str]] = {}
        self.sighted: list[Member] = []
        self.scope = trio.CancelScope()
        self.exchange = RuleExchange({SOURCE: self}, self, self, world.rng, lambda _: self.replicating.rules_changed())  # type: ignore[dict-item]
        self.holding = Holding(lambda _source: self)
        self.replicating = Replicating(SOURCE, self, self, self, self)
        world.nodes[self.info.name] = self

    async def run(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                for task in (self.exchange.run, self.holding.run, self.replicating.run, self._believe):
                    nursery.start_soon(task)

    async def _believe(self) -> None:
        """Learn, some seconds late, who is there and holds what."""
        while True:
            others, self.believed = self.world.views(self.group) if self.up else ([], {})
            self.sighted = [node.as_member for node in others if node is not self]
            self.replicating.members_changed()
            await trio.sleep(BELIEF_S * self.world.rng.uniform(0.5, 1))

    # as the membership, the locations and the network

    def alive(self) -> list[Member]:
        return self.sighted

    def member(self, name: str) -> Member | None:
        return next((member for member in self.sighted if member.info.name == name), None)

    def broadcast(self, payload: bytes) -> None:
        self.world.broadcasts += 1
        for node in self.world.nodes.values():
            if node is not self and self.world.reaches(self, node) and self.world.rng.random() < 0.8:
                node.exchange.heard(self.info.name, payload)

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        assert range_number == 0
        return [name for name in self.believed.get(oid, []) if name != self.info.name]

    async def request(self, _address: object, path: str, body: bytes, *, name: str, **_: float) -> bytes:
        other = self.world.nodes[name]
        await trio.sleep(self.world.rng.uniform(0, 0.01))
        if not self.world.reaches(self, other):
            raise PeerFailed("not reached")
        if path == HOLD_PATH:
            request = msgspec.msgpack.decode(body)
            self.world.orders += len(request[1]) * request[0]
        return await {HOLD_PATH: other.holding.answer, RULES_PATH: other.exchange.answer}[path](self.info.name, body)

    # as the store of rules

    async def merge(self, entries: dict[str, ReplicaRule]) -> bool:
        await trio.lowlevel.checkpoint()
        return self.rules.merge(entries, now_us=0)

    def order(self, path: str, least: int, most: int | None, stamp: int) -> None:
        self.rules.set(path, least, most, now_us=stamp, node=self.info.name)
        self.exchange.changed(SOURCE)

    # as the cache

    @property
    def any_rule(self) -> bool:
        return len(self.rules) > 0

    def rule_of(self, key: str) -> ReplicaRule | None:
        return self.rules.of(key)

    async def objects(self) -> AsyncGenerator[HeldObject, None]:
        for oid in list(self.held):
            await trio.lowlevel.checkpoint()
            yield HeldObject(oid, f"d/{oid.decode()}", "v", SIZE, (0,))

    async def drop(self, oid: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        self.held.pop(oid, None)
        return True

    def holds(self, want: Want) -> bool:
        return want.key.encode()[2:] in self.held

    def has_room(self, _want: Want, size_bytes: int) -> bool:
        return len(self.held) * SIZE + size_bytes <= self.room * SIZE

    async def fetch(self, want: Want) -> None:
        await trio.sleep(FETCH_S)
        self.fetches += 1
        self.held[want.key.encode()[2:]] = None


def simulated(scenario: Callable[[World, trio.Nursery], object], seed: int) -> World:
    world = World(seed)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(NODES):
                nursery.start_soon(Node(world, number).run)
            await scenario(world, nursery)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


def nodes_of(world: World) -> list[Node]:
    return [node for node in world.nodes.values() if node.up]


def hold(world: World, most: int) -> None:
    """Let each object be held by some node, and popular ones by many."""
    for number, oid in enumerate(OBJECTS):
        for node in world.rng.sample(nodes_of(world), most if number % 4 == 0 else 1):
            node.held[oid] = None


def check(world: World, least: int, most: int) -> None:
    digests = {node.rules.digest() for node in nodes_of(world)}
    assert len(digests) == 1, "all have the same rules"
    counts = [len(world.held_by(oid)) for oid in OBJECTS]
    assert all(least <= count <= most for count in counts), counts


@pytest.mark.parametrize("seed", range(2))
def test_copies_are_made_and_given_up_until_the_rule_is_kept(seed: int) -> None:
    async def scenario(world: World, _nursery: trio.Nursery) -> None:
        hold(world, 20)
        missing = sum(max(0, 3 - len(world.held_by(oid))) for oid in OBJECTS)
        await trio.sleep(20)
        nodes_of(world)[5].order("d", 3, 4, 1)
        await trio.sleep(240)
        check(world, 3, 4)
        assert missing <= world.orders <= 1.5 * missing
        assert sum(node.fetches for node in nodes_of(world)) == missing
        before = world.orders
        await trio.sleep(600)
        assert world.orders == before, "what is as it should be stays as it is"

    simulated(scenario, seed)


@pytest.mark.parametrize("seed", range(2))
def test_the_dead_are_replaced_and_those_who_come_back_make_no_storm(seed: int) -> None:
    async def scenario(world: World, nursery: trio.Nursery) -> None:
        hold(world, 1)
        nodes_of(world)[0].order("", 3, 5, 1)
        await trio.sleep(240)
        check(world, 3, 5)
        before = world.orders
        flapping = world.rng.sample(nodes_of(world), 6)
        for _ in range(5):
            for node in flapping:
                node.up = not node.up
            await trio.sleep(12)
        for node in flapping:
            node.up = True
        await trio.sleep(20)
        assert world.orders == before, "nothing is done while nodes come and go"
        await trio.sleep(120)
        assert world.orders == before
        dead = world.rng.sample(nodes_of(world), 2)
        lost = 0
        for node in dead:
            lost += len(node.held)
            node.up = False
            node.scope.cancel()
        for number in range(NODES, NODES + 3):
            nursery.start_soon(Node(world, number).run)
        await trio.sleep(300)
        check(world, 3, 5)
        assert world.orders - before <= 2 * lost

    simulated(scenario, seed)


@pytest.mark.parametrize("seed", range(1))
def test_halves_of_a_parted_network_agree_again(seed: int) -> None:
    async def scenario(world: World, _nursery: trio.Nursery) -> None:
        hold(world, 6)
        nodes_of(world)[0].order("d", 3, 5, 1)
        await trio.sleep(240)
        check(world, 3, 5)
        for number, node in enumerate(nodes_of(world)):
            node.group = number % 2
        await trio.sleep(60)
        nodes_of(world)[0].order("d", 2, 4, 10)
        nodes_of(world)[1].order("d", 4, 6, 11)
        nodes_of(world)[0].order("x", 2, None, 12)
        await trio.sleep(240)
        one_side = [node for node in nodes_of(world) if node.group == 1]
        for oid in OBJECTS:
            count = sum(oid in node.held for node in one_side)
            assert count == 0 or 4 <= count <= 6, "each side keeps to its rule, with what it has"
        for node in nodes_of(world):
            node.group = 0
        await trio.sleep(400)
        check(world, 4, 6)
        assert nodes_of(world)[3].rules.of("d/o").stamp_us == 11  # type: ignore[union-attr]
        assert set(nodes_of(world)[3].rules.entries) == {"d", "x"}
        nodes_of(world)[9].order("d", 0, None, 20)
        await trio.sleep(100)
        assert {node.rules.of("d/o") for node in nodes_of(world)} == {None}

    simulated(scenario, seed)


def test_the_next_in_rank_is_asked_where_nodes_are_full() -> None:
    async def scenario(world: World, _nursery: trio.Nursery) -> None:
        for node in nodes_of(world)[:20]:
            node.room = 0
        hold(world, 1)
        nodes_of(world)[0].order("d", 3, None, 1)
        await trio.sleep(300)
        check(world, 3, NODES)
        assert all(node.fetches == 0 for node in nodes_of(world)[:20])

    simulated(scenario, 1)


def test_thousands_of_rules_made_at_once_everywhere_reach_all_without_a_storm_of_gossip() -> None:
    async def scenario(world: World, _nursery: trio.Nursery) -> None:
        await trio.sleep(20)
        for number, node in enumerate(nodes_of(world)):
            for each in range(20):
                node.order(f"{number}/{each}", 2, None, each)
        told = world.broadcasts
        await trio.sleep(300)
        check(world, 0, 0)
        assert len(nodes_of(world)[0].rules) == 20 * NODES
        assert world.broadcasts - told <= 20 * NODES

    simulated(scenario, 2)
