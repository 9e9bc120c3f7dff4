"""Copies of what is cached on other nodes: real caches, servers and clients, and what eviction makes of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest
import trio

from luxfuse.cache.placing import Placing
from luxfuse.cluster import replica_rules, replicating
from luxfuse.cluster.copies import CleanReplicas
from luxfuse.cluster.holding import COMING, HELD, MOST_WAITING, NO, CacheShelf, Holding, HoldRequest
from luxfuse.cluster.replica_rules import RulesRefused, RuleStore
from luxfuse.core.members import RANGE_PAGES, Member, MemberState, NodeInfo, Want
from luxfuse.core.rendezvous import ranked
from luxfuse.core.replication import PATH_MAX_BYTES
from luxfuse.daemon.service import PathsRefused, Service
from luxfuse.errors import PeerRefused
from tests.support.clustered import ClusterNode, clustered
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until
from tests.support.peer_nodes import SOURCE

NAMES = [f"d/{number}" for number in range(4)]


def store(size: int = pages(2) + 7) -> FakeStore:
    driver = FakeStore()
    for number, name in enumerate(NAMES):
        driver.place(name, random_bytes(size, number))
    return driver


class Gossip:
    """The membership of one node: tells all others at once."""

    def __init__(self, node: ClusterNode, replicas: list[CleanReplicas]) -> None:
        self._node = node
        self._replicas = replicas
        self.info = node.everyone.info
        self.member = node.everyone.others.get
        self.alive = node.everyone.alive

    def broadcast(self, payload: bytes) -> None:
        for replicas in self._replicas:
            replicas.heard(self.info.name, payload)


class Truth:
    """Who really holds what."""

    def __init__(self, nodes: list[ClusterNode], own: ClusterNode) -> None:
        self._others = [node for node in nodes if node is not own]

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        found = []
        for node in self._others:
            record = node.mount.objects.record(oid)
            if record is not None and range_number in node.mount.objects.ranges(oid, record):
                found.append(node.name)
        return found


@asynccontextmanager
async def replicated(
    path: Path, driver: FakeStore, count: int, **options: object
) -> AsyncIterator[tuple[list[ClusterNode], list[CleanReplicas]]]:
    """Nodes with one volume each, on which all of `CleanReplicas` runs."""
    async with clustered(path, driver, count, cooperative=False, **options) as nodes, trio.open_nursery() as nursery:
        replicas: list[CleanReplicas] = []
        for node in nodes:
            truth = Truth(nodes, node)
            node.everyone.holders = truth.holders  # type: ignore[method-assign]
            gossip = Gossip(node, replicas)
            each = CleanReplicas(gossip, node.client, truth, random.Random(1), node.mount.clock)  # type: ignore[arg-type]
            each.register(node.server)
            each.add(SOURCE, node.mount)  # type: ignore[arg-type]
            node.mount.hierarchy.shared.copies = each.copies_of(SOURCE)
            node.mount.inventory._nodes = each.nodes_for(SOURCE)
            replicas.append(each)
            nursery.start_soon(each.run)
        yield nodes, replicas
        nursery.cancel_scope.cancel()


async def order(node: ClusterNode, replicas: CleanReplicas, least: int, most: int | None = None, path: str = "d") -> None:
    assert (await replicas.order(node.mount, [path], least, most))[0] == []  # type: ignore[arg-type]


async def look(replicas: CleanReplicas) -> None:
    """What is done once a minute."""
    await replicas._volumes[SOURCE].replicating.look()


def holding(nodes: list[ClusterNode], name: str) -> list[ClusterNode]:
    version, size = nodes[0].mount.driver.objects[name][1], len(nodes[0].mount.driver.objects[name][0])
    want = Want(SOURCE, name, version, size, 0, -(-size // pages(1)))
    return [node for node in nodes if CacheShelf(node.mount.cache).holds(want)]


async def agreed(replicas: list[CleanReplicas]) -> None:
    await until(lambda: len({each._stores[SOURCE].rules.digest() for each in replicas}) == 1)


async def test_what_one_node_holds_others_come_to_hold_from_it_and_give_up_again(tmp_path: Path) -> None:
    driver = store()
    async with replicated(tmp_path, driver, 4) as (nodes, replicas):
        for name in NAMES:
            await nodes[1].mount.read_all(name)
        got = sum(driver.reads.values())
        await order(nodes[3], replicas[3], 3)
        await agreed(replicas)
        assert all(len(each._stores[SOURCE].rules) == 1 for each in replicas)
        for each in replicas:
            await look(each)
        await until(lambda: all(len(holding(nodes, name)) == 3 for name in NAMES))
        assert sum(driver.reads.values()) == got, "copies come from a peer"
        assert replicas[1].statistics()["copies_ordered"] == 2 * len(NAMES)
        (found,) = await nodes[1].mount.inventory.locate(["d/0"])
        others = sorted(node.name for node in holding(nodes, "d/0") if node is not nodes[1])
        assert [(each["node"], each["ranges"], each["of"]) for each in found["nodes"]] == [(n, 1, 1) for n in others]  # type: ignore[attr-defined]

        for node in nodes:
            for name in NAMES:
                assert await node.mount.read_all(name) == driver.objects[name][0]
        handle = await nodes[0].mount.open("d/0")
        await order(nodes[0], replicas[0], 1, 2)
        await agreed(replicas)
        for each in replicas:
            await look(each)
        for name in NAMES:
            oid = nodes[0].mount.cache.object_id(name, driver.objects[name][1])
            first = ranked(oid, 0, [(node.name, 1) for node in nodes])[:2]
            held = {node.name for node in holding(nodes, name)}
            assert held - {nodes[0].name} == set(first) - {nodes[0].name}
        assert nodes[0] in holding(nodes, "d/0"), "it is open there"
        await nodes[0].mount.kernel.release(nodes[0].mount.fs, handle)
        await order(nodes[2], replicas[2], 0)
        await agreed(replicas)
        assert all(each.statistics()["rules"] == 0 for each in replicas)


async def test_what_is_pinned_or_replaced_or_not_confirmed_stays_as_it_is(tmp_path: Path) -> None:
    driver = store()
    async with replicated(tmp_path, driver, 3) as (nodes, replicas):
        for node in nodes:
            await node.mount.read_all("d/0")
            await node.mount.retention.pin(["d/0"])
        await nodes[0].mount.read_all("d/1")
        driver.place("d/1", random_bytes(100, 77))
        await nodes[0].mount.fs.refresh("d/1")
        await nodes[0].mount.entries("d")
        await nodes[0].mount.read_all("d/2")
        await order(nodes[0], replicas[0], 1, 1)
        await agreed(replicas)
        for each in replicas:
            await look(each)
        assert len(holding(nodes, "d/0")) == 3, "pinned"
        await order(nodes[0], replicas[0], 3)
        await look(replicas[0])
        await until(lambda: len(holding(nodes, "d/2")) == 3)
        assert replicas[0].statistics()["copies_ordered"] == 2, "not of the version that is replaced"
        # Others are wrongly believed to hold it.
        await nodes[0].mount.read_all("d/3")
        everyone = [node.name for node in nodes]
        replicas[0]._holders.holders = lambda _oid, _range: everyone[1:]  # type: ignore[method-assign]
        await order(nodes[0], replicas[0], 1, 1)
        await look(replicas[0])
        assert nodes[0] in holding(nodes, "d/3")


async def test_a_node_that_is_full_or_busy_refuses(tmp_path: Path) -> None:
    driver = store(pages(2))
    async with mounted(tmp_path, driver, capacity_bytes=pages(4)) as m:
        holding_ = Holding({SOURCE: CacheShelf(m.cache)}.get)

        async def ask(*wants: Want, fetch: bool = True) -> list[int]:
            return list(await holding_.answer("n", msgspec.msgpack.encode(HoldRequest(fetch, wants))))

        def want(key: str, size: int = pages(2)) -> Want:
            return Want(SOURCE, key, driver.objects[key][1], size, 0, -(-size // pages(1)))

        assert await ask(want("d/0"), msgspec.structs.replace(want("d/1"), source=b"x" * 8), fetch=False) == [NO, NO]
        assert await ask(*map(want, NAMES)) == [COMING, COMING, NO, NO], "only two fit"
        assert await ask(want("d/0")) == [COMING]
        assert holding_.accepted == 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holding_.run)
            await until(lambda: holding_.fetched == 2)
            nursery.cancel_scope.cancel()
        assert await ask(*map(want, NAMES), fetch=False) == [HELD, HELD, NO, NO]
        assert await ask(want("d/2")) == [NO]
        await m.inventory.drop(m.cache.object_id("d/0", driver.objects["d/0"][1]))
        m.hierarchy.shared.rules.placing = lambda _key: Placing(keep=False)
        assert await ask(want("d/2")) == [NO], "a rule of the configuration keeps it from being cached"
        m.hierarchy.shared.rules.placing = lambda _key: Placing()
        gone = msgspec.structs.replace(want("d/2"), version="gone")
        assert await ask(gone) == [COMING]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holding_.run)
            await until(lambda: not holding_._waiting.bytes)
            assert await ask(want("d/2")) == [COMING], "it goes on after a failure"
            await until(lambda: holding_.fetched == 3)
            nursery.cancel_scope.cancel()
        for wrong in (
            [Want(SOURCE, "k", "v", pages(100), 1, 2)], [Want(SOURCE, "k", "v", pages(100), 0, RANGE_PAGES - 1)],
            [Want(SOURCE, "k", "v", 5, RANGE_PAGES, 0)], [Want(SOURCE, "k", "v", -5, 0, 1)], [want("d/0")] * 65,
        ):  # fmt: skip
            with pytest.raises(PeerRefused):
                await ask(*wrong)
        with pytest.raises(PeerRefused):
            await holding_.answer("n", b"garbage")


async def test_so_many_copies_are_on_their_way_and_no_more() -> None:
    class Roomy:
        def holds(self, _want: Want) -> bool:
            return False

        def has_room(self, _want: Want, _size_bytes: int) -> bool:
            return True

        async def fetch(self, _want: Want) -> None:
            raise AssertionError("nothing runs")

    asked = Holding(lambda _source: Roomy())
    for number in range(MOST_WAITING + 1):
        want = Want(SOURCE, f"{number}", "v", 1, 0, 1)
        (answer,) = await asked.answer("n", msgspec.msgpack.encode(HoldRequest(True, (want,))))
        assert answer == (COMING if number < MOST_WAITING else NO)


async def test_rules_survive_a_restart_and_wrong_orders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with mounted(tmp_path, store()) as m:
        rules = RuleStore(m.objects, m.clock)
        assert await rules.order(["d", ""], 2, 3, "me") == []
        failures = await rules.order(["x" * (PATH_MAX_BYTES + 1), "\udcff", "d/1"], 0, None, "me")
        assert [line.rpartition(": ")[2] for line in failures] == [
            f"the path is longer than {PATH_MAX_BYTES} bytes", "is not in UTF-8", "has no rule of replicas",
        ]  # fmt: skip
        assert await rules.order([f"{number}" for number in range(999)], 2, None, "me") == [
            "998: 1,000 rules are the most; end some with --off, or name directories further up"
        ]
    async with mounted(tmp_path, store()) as m:
        rules = RuleStore(m.objects, m.clock)
        assert len(rules.rules) == 1000
        assert rules.rules.of("d/1").most == 3  # type: ignore[union-attr]
        await m.objects.keep_replica_rules(b"garbage")
        assert len(RuleStore(m.objects, m.clock).rules) == 0
        assert "cannot be read" in caplog.text
        caplog.clear()


async def test_without_a_cluster_there_is_one_line(tmp_path: Path) -> None:
    alone: Any = SimpleNamespace(replicas=None, volumes=list)
    service = Service(alone, reread=AsyncMock(), upgrades=Mock(), systemd=Mock())
    with pytest.raises(PathsRefused, match=r"^the mount is in no cluster; mount it with --cluster-key-file"):
        await service.replicate(["a"], 2, None)
    async with replicated(tmp_path, store(), 1) as (nodes, replicas):
        with pytest.raises(RulesRefused, match="does not take part"):
            await replicas[0].order(object(), ["d"], 2, None)  # type: ignore[arg-type]
        assert (await replicas[0].order(nodes[0].mount, ["d"], 2, None))[1] == [  # type: ignore[arg-type]
            "only 1 node of the cluster can hold it now; what is missing comes later"
        ]


@pytest.mark.parametrize("policy", ["tinylfu", "lru", "lrfu"])
async def test_eviction_takes_what_others_hold_first_and_what_they_count_on_last(tmp_path: Path, policy: str) -> None:
    driver = FakeStore()
    for number in range(12):
        driver.place(f"d/{number:02}", random_bytes(pages(1), number))

    def named(m: Mount, name: str) -> bytes:
        return m.cache.object_id(name, driver.objects[name][1])

    small = {"capacity_bytes": pages(8), "eviction_policy": policy, "passthrough": False, "readahead_bytes": 0}
    async with mounted(tmp_path, driver, **small) as m:
        for number in range(6):
            await m.read_all(f"d/{number:02}")
        last = {named(m, "d/00"), named(m, "d/01")}
        easy = {named(m, "d/04"), named(m, "d/05")}
        m.hierarchy.shared.copies = SimpleNamespace(counted_on=last.__contains__, held_elsewhere=easy.__contains__)
        assert set(await m.space.standings.coldest(pages(2))) == easy
        assert not last & set(await m.space.standings.coldest(pages(4)))
        assert set(await m.space.standings.coldest(pages(6))) >= last, "they go where nothing else is left"
        for number in range(6, 12):
            await m.read_all(f"d/{number:02}")
        assert all(m.objects.known(oid) for oid in last)
        assert m.objects.used_bytes == m.space.ledger.used_bytes <= pages(8)


async def test_members_that_stay_are_waited_for_and_gossip_that_is_no_digest_is_let_pass(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    looks: list[float] = []

    class Counting(replicating.Replicating):
        async def look(self) -> None:
            await trio.lowlevel.checkpoint()
            looks.append(trio.current_time())

    class Still:
        info = NodeInfo("a" * 16, "h", 1, sources=(SOURCE,))
        others: tuple[Member, ...] = ()
        any_rule = True

        def alive(self) -> list[Member]:
            return list(self.others)

    still = Still()
    member = Member(NodeInfo("b" * 16, "h", 2, sources=(SOURCE,)), MemberState.ALIVE, 1, 0.0)
    counting = Counting(SOURCE, still, still, still, still)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counting.run)
        await trio.sleep(100)
        assert not looks, "alone"
        began_s = trio.current_time()
        for number in range(60):  # it comes and goes
            still.others = (member,) * (number % 2)
            counting.members_changed()
            await trio.sleep(10)
        assert looks, "it is not put off for ever"
        assert looks[0] >= began_s + replicating.SETTLE_MOST_S
        looks.clear()
        while not looks:
            await trio.sleep(1)
        looks.clear()
        counting.rules_changed()
        await trio.sleep(replicating.SPREAD_S)
        assert len(looks) == 1, "soon after a new rule"
        nursery.cancel_scope.cancel()
    replicas = CleanReplicas(still, still, still, random.Random(1), lambda: 0.0)  # type: ignore[arg-type]
    for payload in (b"N", b"R", b"R" + b"x" * 100, replica_rules.DIGEST + b"s" * 16):
        replicas.heard("n", payload)
