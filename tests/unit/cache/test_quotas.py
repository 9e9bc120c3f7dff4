"""Quotas of paths: a hard limit within the cache, counted exactly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from luxfuse.cache import quotas
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until


def store() -> FakeStore:
    driver = FakeStore()
    for number in range(24):
        driver.place(f"a/{number:02}", random_bytes(random.Random(number).randrange(1, pages(2)), number))
        driver.place(f"b/{number:02}", random_bytes(pages(0.5), 100 + number))
    return driver


async def limit(m: Mount, *limits: int) -> None:
    """A quota for each of the directories a, b."""
    directories = "ab"[: len(limits)]
    await m.cache.quotas.replace(limits, lambda key: directories.index(key[0]) if key[0] in directories else None)


async def used(m: Mount, prefix: str) -> int:
    return sum([r.allocated_bytes async for _, r in m.inventory.scan() if r.key.startswith(prefix)])


def counted(m: Mount) -> list[int]:
    return [ledger.used_bytes for ledger in m.cache.quotas._ledgers]


async def test_a_quota_holds_at_every_instant_under_sixteen_readers(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver, capacity_bytes=pages(40), memory_bytes=pages(8)) as m:
        await limit(m, pages(6), pages(3))
        done = trio.Event()

        async def watch() -> None:
            while not done.is_set():
                a, b = counted(m)
                assert a <= pages(6)
                assert b <= pages(3)
                await trio.sleep(0.001)

        async def reader(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(12):
                key = f"{rng.choice('ab')}/{rng.randrange(24):02}"
                assert await m.read_all(key) == driver.objects[key][0]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as readers:
                for seed in range(16):
                    readers.start_soon(reader, seed)
            done.set()
        await until(lambda: m.cache.budget.idle and not m.hierarchy.removing)
        assert counted(m) == [await used(m, "a/"), await used(m, "b/")]
        assert all(ledger.reserved_bytes == 0 for ledger in m.cache.quotas._ledgers)
        assert m.space.evictions
        assert m.space.ledger.used_bytes == m.objects.used_bytes == sum(counted(m))


async def test_what_is_there_is_counted_while_it_changes_and_cut_to_the_limit(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver, capacity_bytes=pages(40)) as m:
        for key in driver.objects:
            await m.read_all(key)
        assert await used(m, "a/") > pages(9)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limit, m, pages(9))
            await m.retention.restand([])
            async for _ in m.inventory.free(["a/00", "b"]):
                pass
        assert counted(m) == [await used(m, "a/")]
        assert counted(m)[0] <= pages(9)
        await limit(m)
        assert m.objects.on_change == []
        await m.read_all("a/00")


async def test_what_goes_to_keep_a_quota_is_evicted_and_what_is_freed_is_not(tmp_path: Path) -> None:
    driver = FakeStore()
    for number in range(4):
        driver.place(f"a/{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver) as m:
        await limit(m, pages(3))
        for number in range(4):
            await m.read_all(f"a/{number}")
            await until(lambda: m.cache.budget.idle)
        assert (m.space.evictions, m.space.evicted_bytes) == (1, pages(1))
        async for _ in m.inventory.free(["a"]):
            pass
        assert counted(m) == [0]
        assert (m.space.evictions, m.space.evicted_bytes) == (1, pages(1))


async def test_an_object_larger_than_its_quota_is_read_without_being_kept_whole(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a/large", random_bytes(pages(8), 1))
    async with mounted(tmp_path, driver, whole_file_bytes=pages(2)) as m:
        await limit(m, pages(3))
        assert await m.read_all("a/large") == driver.objects["a/large"][0]
        await until(lambda: m.cache.budget.idle)
        assert counted(m)[0] <= pages(3)


@pytest.mark.parametrize("flusher", [True, False])
async def test_what_comes_and_goes_while_all_is_counted_is_counted_once(
    tmp_path: Path, flusher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "SCAN_OBJECTS", 1)
    driver = store()
    async with mounted(tmp_path, driver, capacity_bytes=pages(60), flusher=flusher) as m:
        for key in sorted(driver.objects)[::2]:
            await m.read_all(key)

        async def change() -> None:
            for key in sorted(driver.objects):
                await m.read_all(key)
                if key.endswith("5"):
                    async for _ in m.inventory.free([key, key[:-1] + "4"]):
                        pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await limit(m, pages(60), pages(60))
            for _ in range(20):
                assert not await m.cache.quotas.recount()
        assert counted(m) == [await used(m, "a/"), await used(m, "b/")]
        first, second = m.cache.quotas._ledgers
        first.used_bytes += 8192
        second.used_bytes -= 4096
        assert await m.cache.quotas.recount() == {(first, -8192), (second, 4096)}


async def test_what_is_forgotten_with_its_directory_counts_no_more(tmp_path: Path) -> None:
    driver = store()
    async with mounted(tmp_path, driver, capacity_bytes=pages(60)) as m:
        await limit(m, pages(60))
        for key in sorted(driver.objects)[:6]:
            await m.read_all(key)
        await m.index.flush()
        assert counted(m)[0] > 0
        await m.objects.clear(m.space.number)
        assert counted(m) == [0]
        assert not await m.cache.quotas.recount()
