"""Nodes that read one store: each page is fetched from it once, and no peer can make a read fail or wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from luxfuse.core.hedging import Hedging
from luxfuse.core.members import RANGE_PAGES, Member, MemberState
from luxfuse.core.names import path_of
from luxfuse.core.rendezvous import home
from luxfuse.core.rules import PathPolicies, PathPolicy, PathRule
from luxfuse.daemon.leaving import fall_silent
from luxfuse.errors import PeerRefused, Refusal
from luxfuse.peers.provider import Provided
from luxfuse.types import PAGE_BYTES, WriteMode
from luxfuse.vfs.errors import Stale
from tests.support.clustered import ClusterNode, clustered
from tests.support.fake_store import FakeStore
from tests.support.harness import pages, random_bytes, until


def store_of(**sizes: int) -> FakeStore:
    driver = FakeStore()
    for seed, (key, size) in enumerate(sizes.items()):
        driver.place(key, random_bytes(size, seed))
    return driver


def bytes_got(driver: FakeStore) -> int:
    return sum(times * (end - start) for (_, (start, end)), times in driver.reads.items())


async def read_everywhere(nodes: list[ClusterNode], driver: FakeStore, keys: list[str]) -> None:
    async def read(node: ClusterNode) -> None:
        for key in keys:
            assert await node.mount.read_all(key) == driver.objects[key][0]

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(read, node)


async def test_nodes_that_start_together_fetch_each_page_once(tmp_path: Path) -> None:
    driver = store_of(large=pages(7) + 5, medium=pages(2), **{f"small{n}": 30_000 + n for n in range(40)})
    keys = list(driver.objects)
    async with clustered(tmp_path, driver, 3) as nodes:
        await read_everywhere(nodes, driver, keys)
        assert bytes_got(driver) == sum(len(data) for data, *_ in driver.objects.values())
        assert sum(node.mount.cache.counters.peer_bytes for node in nodes) == 2 * bytes_got(driver)
        assert all(node.mount.cache.counters.understore_bytes for node in nodes), "each is the home of something"
        assert all(node.peers.failed == 0 for node in nodes)


async def test_a_holder_is_asked_rather_than_the_home(tmp_path: Path) -> None:
    driver = store_of(key=pages(3))
    async with clustered(tmp_path, driver, 3) as (a, b, c):
        a.source.taking_part = False
        assert await a.mount.read_all("key") == driver.objects["key"][0]
        oid = a.mount.cache.object_id("key", driver.objects["key"][1])
        for node in (b, c):
            node.everyone.holding[oid, 0] = [a.name]
            assert await node.mount.read_all("key") == driver.objects["key"][0]
        assert bytes_got(driver) == pages(3)
        assert a.serving.provided_bytes == 2 * pages(3)


async def test_a_wrong_entry_of_the_directory_costs_one_refusal(tmp_path: Path) -> None:
    driver = store_of(key=100_000)
    async with clustered(tmp_path, driver, 2) as (a, b):
        b.everyone.holding[b.mount.cache.object_id("key", driver.objects["key"][1]), 0] = [a.name]
        assert await b.mount.read_all("key") == driver.objects["key"][0]
        assert a.serving.refused == 1
        assert bytes_got(driver) == 100_000


async def test_a_slow_home_is_hedged_by_the_store(tmp_path: Path) -> None:
    driver = store_of(**{f"k{n}": 40_000 for n in range(10)})
    async with clustered(tmp_path, driver, 2) as (a, b):
        provide, stuck = b.serving.provide, trio.Event()

        async def slowly(want, *, fetch: bool) -> Provided:
            await stuck.wait()
            return await provide(want, fetch=fetch)

        b.serving.provide = slowly  # type: ignore[method-assign]
        a.peers._hedging[True] = Hedging(floor_s=0.1, unknown_s=0.3)  # a home is given seconds
        for key in driver.objects:
            assert await a.mount.read_all(key) == driver.objects[key][0]
        assert a.peers.hedges > 0
        stuck.set()
        await until(lambda: not a.peers._asked)
        assert all(driver.reads[key, (0, 40_000)] <= 2 for key in driver.objects)


async def test_a_node_that_is_always_slow_costs_little_though_no_hedge_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luxfuse.cluster.peer_source.HOME_PATIENCE_S", 0.3)
    driver = store_of(**{f"k{n:02}": 40_000 for n in range(30)})
    async with clustered(tmp_path, driver, 2) as (a, b):
        stuck = trio.Event()
        hedging = a.peers._hedging[True] = Hedging(floor_s=0.05, unknown_s=0.05)
        hedging._saved = 0.0

        async def never(want, *, fetch: bool) -> Provided:
            await stuck.wait()
            raise PeerRefused(Refusal.BUSY)

        b.serving.provide = never  # type: ignore[method-assign]
        with trio.fail_after(60):
            for key in driver.objects:
                assert await a.mount.read_all(key) == driver.objects[key][0]
        assert a.peers.asked < 15, "it is asked less and less often"
        stuck.set()


async def test_the_death_of_a_node_ends_the_wait_for_it(tmp_path: Path) -> None:
    driver = store_of(**{f"k{n}": 40_000 for n in range(6)})
    async with clustered(tmp_path, driver, 2) as (a, b):
        stuck = trio.Event()

        async def never(want, *, fetch: bool) -> Provided:
            await stuck.wait()
            raise PeerRefused(Refusal.BUSY)

        b.serving.provide = never  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            for key in driver.objects:
                nursery.start_soon(a.mount.read_all, key)
            await until(lambda: bool(a.peers._asked))
            a.everyone.others.clear()
            a.peers.changed(Member(b.everyone.info, MemberState.DEAD, 1, 0.0))
        stuck.set()


async def test_a_volume_that_is_detached_waits_for_peers_that_are_asked(tmp_path: Path) -> None:
    driver = store_of(**{f"k{n}": 40_000 for n in range(6)})
    async with clustered(tmp_path, driver, 2) as (a, b):
        provide, stuck, ended = b.serving.provide, trio.Event(), trio.Event()

        async def slowly(want, *, fetch: bool) -> Provided:
            await stuck.wait()
            return await provide(want, fetch=fetch)

        b.serving.provide = slowly  # type: ignore[method-assign]
        parts = SimpleNamespace(
            loads=SimpleNamespace(stop=list), schedules=SimpleNamespace(stop=list), cache=a.mount.cache, store=a.mount.store
        )

        async def detach() -> None:
            await fall_silent(parts, 5.0)  # type: ignore[arg-type]
            ended.set()

        async with trio.open_nursery() as nursery:
            for key in driver.objects:
                nursery.start_soon(a.mount.read_all, key)
            await until(lambda: bool(a.peers._asked) and a.mount.store.idle)
            nursery.start_soon(detach)
            with trio.move_on_after(0.1):
                await ended.wait()
            assert not ended.is_set()
            stuck.set()
        assert a.mount.cache.attempts.asking_peers == 0


async def test_without_cooperation_nobody_fetches_for_others(tmp_path: Path) -> None:
    driver = store_of(key=100_000)
    async with clustered(tmp_path, driver, 2, cooperative=False) as nodes:
        await read_everywhere(nodes, driver, ["key"])
        assert bytes_got(driver) == 200_000


async def test_a_dead_home_makes_nothing_fail(tmp_path: Path) -> None:
    driver = store_of(later=50_000, **{f"k{n}": 50_000 for n in range(12)})
    async with clustered(tmp_path, driver, 2) as (a, b):
        b.scope.cancel()
        for key in list(driver.objects)[1:]:
            assert await a.mount.read_all(key) == driver.objects[key][0]
        assert a.peers.failed > 0
        a.forget(b)
        failed = a.peers.failed
        assert await a.mount.read_all("later") == driver.objects["later"][0]
        assert a.peers.failed == failed


@pytest.mark.parametrize("kind", ["corrupt", "refusing"])
async def test_a_bad_peer_makes_nothing_fail_or_wrong(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    driver = store_of(**{f"k{n}": pages(1) + n for n in range(6)})
    async with clustered(tmp_path, driver, 2) as (a, b):
        provide = b.serving.provide

        async def badly(want, *, fetch: bool) -> Provided:
            if kind == "refusing":
                raise PeerRefused(Refusal.BUSY)
            provided = await provide(want, fetch=fetch)
            provided.checksums = tuple(value ^ 1 for value in provided.checksums)
            return provided

        b.serving.provide = badly  # type: ignore[method-assign]
        for key in driver.objects:
            assert await a.mount.read_all(key) == driver.objects[key][0]
        assert a.mount.cache.counters.peer_bytes == 0
        assert a.peers.failed > 0
        assert bool(a.peers.corrupt) == (kind == "corrupt")
    caplog.clear()


async def test_a_changed_object_is_found_out_through_the_home(tmp_path: Path) -> None:
    driver = store_of(**{f"k{n}": 50_000 for n in range(8)})
    async with clustered(tmp_path, driver, 2) as (a, _b):
        for key in driver.objects:
            await a.mount.inode(key)
        for n, key in enumerate(list(driver.objects)):
            driver.place(key, random_bytes(60_000, 100 + n))
        for key in driver.objects:
            with pytest.raises(Stale, match="changed"):
                await a.mount.kernel.open(a.mount.fs, await a.mount.inode(key))
            # The kernel looks the name up again and repeats the open.
            assert await a.mount.read_all(key) == driver.objects[key][0]


async def test_two_nodes_that_take_each_other_for_the_home_do_not_wait_for_each_other(tmp_path: Path) -> None:
    driver = store_of(key=pages(2))
    async with clustered(tmp_path, driver, 2) as nodes:
        for node, other in zip(nodes, reversed(nodes), strict=True):
            node.peers.route = lambda *_, info=other.everyone.info: (info, True)  # type: ignore[method-assign]
        with trio.fail_after(120):
            await read_everywhere(nodes, driver, ["key"])


async def test_two_nodes_that_take_each_other_for_holders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    driver = store_of(key=pages(2))
    async with clustered(tmp_path, driver, 2) as nodes:
        for node, other in zip(nodes, reversed(nodes), strict=True):
            node.everyone.holding[node.mount.cache.object_id("key", driver.objects["key"][1]), 0] = [other.name]
        with trio.fail_after(120):
            await read_everywhere(nodes, driver, ["key"])


async def test_ranges_of_a_large_object_have_homes_of_their_own(tmp_path: Path) -> None:
    size = 3 * RANGE_PAGES * PAGE_BYTES
    nodes = [(f"{n:016x}", 1) for n in range(3)]
    assert len({home(bytes([n]) * 16, r, nodes) for n in range(8) for r in range(size // PAGE_BYTES // RANGE_PAGES)}) == 3


async def test_the_bandwidth_limit_of_a_rule_is_for_what_the_store_is_asked(tmp_path: Path) -> None:
    driver = store_of(near=pages(6), far=pages(6))
    default = PathPolicy(WriteMode.CACHE_THROUGH, "cache")
    async with clustered(tmp_path, driver, 2) as (a, b):
        a.source.taking_part = False
        assert await a.mount.read_all("near") == driver.objects["near"][0]
        b.everyone.holding[b.mount.cache.object_id("near", driver.objects["near"][1]), 0] = [a.name]
        b.mount.store.follow_rules(PathPolicies([PathRule("**", bandwidth_limit_bytes_s=64 << 10)], default), path_of)
        with trio.fail_after(60):
            assert await b.mount.read_all("near") == driver.objects["near"][0]
        assert b.mount.cache.counters.understore_bytes == 0

        async def refuse(want, *, fetch: bool) -> Provided:
            raise PeerRefused(Refusal.BUSY)

        a.serving.provide = refuse  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.mount.read_all, "far")
            await until(lambda: b.mount.store.held_back("get") == 2)
            assert bytes_got(driver) == pages(6) + pages(2)
            b.mount.store.follow_rules(PathPolicies([], default), path_of)
        assert bytes_got(driver) == pages(12)
