"""Large objects lose their coldest pages; the rest stays, and nobody ever reads a hole."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.cache import disk, trim
from luxfuse.cache.budget import RecentPages
from luxfuse.cache.cached import CachedObject
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.tiers import directory
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until
from tests.support.tiers import acquire, consistent, store


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luxfuse.cache.space.STUCK_S", 0)


@pytest.fixture
def merciless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the last page that is there, also of what is in use."""

    def last(obj: CachedObject, _wanted_bytes: int) -> list[int]:
        return [page for page in range(obj.pages.total) if obj.pages.has(page)][-1:]

    monkeypatch.setattr(trim, "_coldest", last)


def one(size: int) -> FakeStore:
    driver = FakeStore()
    driver.place("large", random_bytes(size, 7))
    return driver


def kept(m: Mount, key: str = "large") -> set[int]:
    obj = acquire(m, key)
    return {page for page in range(obj.pages.total) if obj.pages.has(page)}


async def read_pages(m: Mount, handle: int, wanted: range) -> None:
    data = m.driver.objects["large"][0]
    for page in wanted:
        found = await m.kernel.read(m.fs, handle, pages(page), pages(1))
        assert found == data[pages(page) : pages(page + 1)]


async def test_an_object_larger_than_the_cache_keeps_its_hot_part(tmp_path: Path) -> None:
    driver = one(pages(64))
    o = {"capacity_bytes": pages(32), "whole_file_bytes": pages(1), "readahead_bytes": 0, "memory_bytes": pages(4)}
    async with mounted(tmp_path, driver, **o) as m:
        m.cache.fetching.recent = RecentPages(0)  # what memory has is not asked of the disk
        handle = await m.open("large")
        for _ in range(2):
            await read_pages(m, handle, range(64))
        assert kept(m) <= set(range(33)), "reading on replaces nothing"
        assert len(kept(m)) >= 30
        hot = range(48, 56)
        for _ in range(8):
            await read_pages(m, handle, hot)
        before = driver.counts["get"]
        await read_pages(m, handle, hot)
        assert driver.counts["get"] == before
        assert set(hot) <= kept(m)
        assert m.space.ledger.used_bytes <= pages(32)
        await m.kernel.release(m.fs, handle)
        assert m.disk_bytes() <= pages(32)
        consistent(m)
        assert await m.read_all("large") == driver.objects["large"][0]
        consistent(m)


async def test_an_idle_large_object_loses_a_part_only(tmp_path: Path) -> None:
    driver = store(2, pages(2))
    driver.place("large", random_bytes(pages(20) + 5000, 7))
    o = {"capacity_bytes": pages(22), "whole_file_bytes": pages(32), "passthrough": False, "memory_bytes": pages(4)}
    async with mounted(tmp_path, driver, **o) as m:
        assert await m.read_all("large") == driver.objects["large"][0]
        await until(lambda: not acquire(m, "large").users)
        obj = m.cache.acquire("large", driver.objects["large"][1], pages(20) + 5000)
        for _ in range(10):
            await m.cache.read(obj, pages(18), 100)
        m.cache.release(obj)
        for key in ("k00", "k01"):
            assert await m.read_all(key) == driver.objects[key][0]
        await until(lambda: len(kept(m)) < 20)  # what makes room runs beside the readers
        assert m.space.evictions == 0
        assert len(kept(m)) >= 14
        assert {18, 16, 20} <= kept(m), "the stretch that was read most"
        consistent(m)
        m.cache.fetching.recent = RecentPages(0)
        gets = driver.counts["get"]
        assert await m.read_all("large") == driver.objects["large"][0]
        assert driver.counts["get"] > gets
        consistent(m)
    async with mounted(tmp_path, driver, **o) as m:
        assert await m.read_all("large") == driver.objects["large"][0]
        consistent(m)


async def test_what_the_kernel_has_open_is_never_punched(tmp_path: Path) -> None:
    driver = store(3, pages(2))
    driver.place("large", random_bytes(pages(20), 7))
    o = {"capacity_bytes": pages(22), "whole_file_bytes": pages(32), "memory_bytes": pages(4)}
    async with mounted(tmp_path, driver, **o) as m:
        handle = await m.open("large")
        assert m.kernel.is_passthrough(handle)
        taken = m.file_of("large").stat().st_blocks
        for key in ("k00", "k01", "k02"):
            assert await m.read_all(key) == driver.objects[key][0]
        assert len(kept(m)) == 20
        assert m.file_of("large").stat().st_blocks == taken
        assert not await m.space.trimmer.trim(acquire(m, "large").oid, m.space, pages(1))
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["large"][0]
        await m.kernel.release(m.fs, handle)
        assert await m.space.trimmer.trim(acquire(m, "large").oid, m.space, pages(1)) == pages(1)
        assert len(kept(m)) == 19
        handle = await m.open("large")
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["large"][0]
        await m.kernel.release(m.fs, handle)
        consistent(m)


@pytest.mark.parametrize("passthrough", [True, False])
async def test_readers_never_see_a_hole(tmp_path: Path, passthrough: bool, merciless: None) -> None:
    driver = one(pages(6) + 100)
    data = driver.objects["large"][0]
    async with mounted(tmp_path, driver, memory_bytes=pages(8), passthrough=passthrough) as m:
        await m.read_all("large")
        done = trio.Event()
        rng = random.Random(5)

        async def copying() -> None:
            obj = m.cache.acquire("large", driver.objects["large"][1], len(data))
            while not done.is_set():
                offset = rng.randrange(len(data))
                assert bytes(await m.cache.read(obj, offset, 70_000)) == data[offset : offset + 70_000]
            m.cache.release(obj)

        async def opening() -> None:
            while not done.is_set():
                assert await m.read_all("large") == data
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(copying)
            nursery.start_soon(opening)
            trimmed = 0
            while trimmed < 40:
                m.cache.fetching.recent = RecentPages(pages(1))
                trimmed += bool(await m.space.trimmer.trim(acquire(m, "large").oid, m.space, pages(1)))
                await trio.sleep(0.002)
            done.set()
        consistent(m)


async def test_a_file_system_that_punches_no_holes_drops_whole_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store(2, pages(2))
    driver.place("large", random_bytes(pages(20), 7))

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(directory, "fallocate", refuse)
    async with mounted(tmp_path, driver, capacity_bytes=pages(22), whole_file_bytes=pages(32), passthrough=False) as m:
        await m.read_all("large")
        await until(lambda: not acquire(m, "large").users)
        assert not await m.space.trimmer.trim(acquire(m, "large").oid, m.space, pages(1))
        assert len(kept(m)) == 20, "all is as it was"
        assert not m.directory.can_punch
        consistent(m)
        for key in ("k00", "k01"):
            assert await m.read_all(key) == driver.objects[key][0]
        assert m.space.evictions == 1
        consistent(m)


async def test_pages_stay_where_the_index_cannot_do_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = one(pages(8))
    async with mounted(tmp_path, driver, passthrough=False) as m:
        await m.read_all("large")
        await until(lambda: not acquire(m, "large").users)

        async def fail() -> None:
            raise OSError(errno.ENOSPC, "made up")

        with monkeypatch.context() as patch:
            patch.setattr(m.objects, "commit", fail)
            assert not await m.space.trimmer.trim(acquire(m, "large").oid, m.space, pages(1))
        assert len(kept(m)) == 8
        consistent(m)
        assert await m.space.trimmer.trim(acquire(m, "large").oid, m.space, pages(1)) == pages(1)
        consistent(m)


@pytest.mark.parametrize("function", ["load", "open_verified"])
async def test_whoever_went_for_a_file_before_it_got_a_hole_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, merciless: None
) -> None:
    driver = one(pages(6))
    data = driver.objects["large"][0]
    async with mounted(tmp_path, driver, memory_bytes=pages(8), passthrough=function == "open_verified") as m:
        await m.read_all("large")
        m.files.backings.retire(await m.inode("large"))
        m.cache.fetching.recent = RecentPages(0)
        oid, real, overtaken = acquire(m, "large").oid, getattr(disk, function), 0

        def overtake(*arguments: object) -> object:
            nonlocal overtaken
            if not overtaken:
                overtaken = trio.from_thread.run(m.space.trimmer.trim, oid, m.space, pages(1))
            return real(*arguments)

        monkeypatch.setattr(disk, function, overtake)
        handle = await m.open("large")
        assert await m.kernel.read(m.fs, handle, pages(5), pages(1)) == data[pages(5) :]
        assert overtaken == pages(1)
        assert await m.kernel.read_all(m.fs, handle) == data
        await m.kernel.release(m.fs, handle)
        consistent(m)


async def test_what_is_in_use_gives_nothing_to_others(tmp_path: Path) -> None:
    driver = store(2, pages(2))
    driver.place("large", random_bytes(pages(20), 7))
    async with mounted(tmp_path, driver, capacity_bytes=pages(22), whole_file_bytes=pages(32), passthrough=False) as m:
        handle = await m.open("large")
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["large"][0]
        for key in ("k00", "k01"):
            assert await m.read_all(key) == driver.objects[key][0]
        assert len(kept(m)) == 20
        await m.kernel.release(m.fs, handle)
        consistent(m)


async def test_a_page_that_is_written_but_not_recorded_yet_survives_the_loss_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merciless: None
) -> None:
    driver = one(pages(2))
    data = driver.objects["large"][0]
    async with mounted(tmp_path, driver, memory_bytes=pages(8), passthrough=False) as m:
        obj = m.cache.acquire("large", driver.objects["large"][1], len(data))
        await m.cache.fetch_whole(obj)  # by one run
        assert await m.space.trimmer.trim(obj.oid, m.space, 4096) == pages(1)
        real, token = disk.store_run, trio.lowlevel.current_trio_token()

        async def lose_and_fetch_the_other() -> None:
            assert await m.space.trimmer.trim(obj.oid, m.space, 4096) == pages(1)
            assert not obj.pages.count
            (other,) = m.cache.start(obj, range(1), keep_in_memory=False)
            await other.done.wait()

        def overtake(*arguments: Any, **named: Any) -> disk.Stored:
            stored = real(*arguments, **named)
            monkeypatch.setattr(disk, "store_run", real)
            trio.from_thread.run(lose_and_fetch_the_other, trio_token=token)
            return stored

        monkeypatch.setattr(disk, "store_run", overtake)
        assert bytes(await m.cache.read(obj, pages(1), pages(1))) == data[pages(1) :]
        assert obj.whole
        m.cache.fetching.recent = RecentPages(0)
        assert bytes(await m.cache.read(obj, 0, pages(2))) == data
        m.cache.release(obj)
        consistent(m)


async def test_a_file_that_has_lost_all_pages_is_not_left_behind(tmp_path: Path, merciless: None) -> None:
    driver = one(pages(2))
    data = driver.objects["large"][0]
    more = (CacheSetting("hdd", pages(12), "hdd"),)
    async with mounted(tmp_path, driver, memory_bytes=pages(8), passthrough=False, more_caches=more) as m:
        obj = m.cache.acquire("large", driver.objects["large"][1], len(data))
        await m.cache.fetch_whole(obj)
        assert await m.space.trimmer.trim(obj.oid, m.space, 4096) == pages(1)
        m.space.draining = True  # so that what comes now is not stored
        driver.hold()
        (flight,) = m.cache.start(obj, range(1, 2), keep_in_memory=False)
        assert await m.space.trimmer.trim(obj.oid, m.space, 4096) == pages(1)
        driver.release()
        await flight.done.wait()
        assert not obj.pages.count
        m.cache.fetching.recent = RecentPages(0)
        assert bytes(await m.cache.read(obj, 0, pages(2))) == data
        consistent(m)
        m.space.draining = False
        m.cache.fetching.recent = RecentPages(0)
        await m.cache.fetch_whole(obj)
        m.cache.release(obj)
        consistent(m)


async def test_nothing_is_taken_out_of_what_is_protected(tmp_path: Path) -> None:
    async with mounted(tmp_path, one(pages(8))) as m:
        await m.read_all("large")
        await until(lambda: kept(m) == set(range(8)))
        m.cache.contents.protections.append(lambda _oid: True)
        await m.space.free_ahead(pages(1))
        assert kept(m) == set(range(8))
        del m.cache.contents.protections[-1]
        await m.space.free_ahead(pages(1))
        assert len(kept(m)) == 7
