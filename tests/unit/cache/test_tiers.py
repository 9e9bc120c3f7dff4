"""Several cache directories: where objects go, how they move, and that no reader notices."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.cache import disk, mover
from luxfuse.cache.budget import RecentPages
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.sweep import sweep
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.index.names import ROOT_INODE
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted, pages, random_bytes, until
from tests.support.tiers import acquire, consistent, space, store, tier

MEM = CacheSetting("mem", pages(4), "mem", high_watermark=1.0, low_watermark=0.5)
HDD = CacheSetting("hdd", pages(16), "hdd", high_watermark=1.0, low_watermark=1.0)


@pytest.fixture(autouse=True)
def _at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "BYTES_PER_S", 1 << 60)


def options(**changes: object) -> Options:
    given = {"capacity_bytes": pages(8), "more_caches": (MEM, HDD), "whole_file_bytes": pages(4), **changes}
    return Options(**given)  # type: ignore[arg-type]


async def read_all(m: Mount, count: int) -> None:
    for number in range(count):
        assert await m.read_all(f"k{number:02}") == m.driver.objects[f"k{number:02}"][0]


async def test_new_objects_go_to_the_highest_tier_with_room_for_all_of_them(tmp_path: Path) -> None:
    driver = store(14)
    driver.place("large", random_bytes(pages(3), 99))
    async with mounted(tmp_path, driver, options()) as m:
        assert [s.tier for s in m.hierarchy] == ["mem", "ssd", "hdd"]
        await read_all(m, 2)
        assert await m.read_all("large") == driver.objects["large"][0]
        await read_all(m, 14)
        assert Counter(tier(m, f"k{n:02}") for n in range(14)) == {"mem": 4, "ssd": 5, "hdd": 5}
        assert tier(m, "large") == "ssd"
        consistent(m)
        assert driver.counts["get"] == 16
        await read_all(m, 14)
        assert driver.counts["get"] == 16


async def test_the_lowest_tier_makes_room_when_all_are_full(tmp_path: Path) -> None:
    driver = store(40)
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 40)
        assert {tier(m, f"k{n:02}") for n in range(4)} == {"mem"}, "nobody moved or dropped them"
        assert space(m, "hdd").evictions > 0
        assert space(m, "mem").evictions == space(m, "ssd").evictions == 0
        for s in m.hierarchy:
            assert s.capacity_bytes is not None
            assert s.ledger.used_bytes <= s.capacity_bytes
        consistent(m)


async def test_what_is_above_the_high_watermark_moves_down_the_coldest_first(tmp_path: Path) -> None:
    driver = store(8)
    cold = CacheSetting("mem", pages(4), "mem", high_watermark=0.75, low_watermark=0.5)
    async with mounted(tmp_path, driver, options(more_caches=(cold, HDD))) as m:
        await read_all(m, 4)
        m.files.backings.note_touched()
        assert await m.read_all("k00") == driver.objects["k00"][0]
        await m.mover.round()
        assert [tier(m, f"k{n:02}") for n in range(4)] == ["mem", "ssd", "ssd", "mem"]
        assert m.mover.moved_down == 2
        consistent(m)
        await read_all(m, 4)
        assert driver.counts["get"] == 4, "everything is still cached"


async def test_the_lowest_tier_is_freed_ahead_of_need(tmp_path: Path) -> None:
    driver = store(8)
    lowest = CacheSetting("hdd", pages(4), "hdd", high_watermark=0.75, low_watermark=0.5)
    async with mounted(tmp_path, driver, options(more_caches=(lowest,), capacity_bytes=pages(4))) as m:
        await read_all(m, 8)
        assert space(m, "hdd").evictions == 0
        await m.mover.round()
        assert space(m, "hdd").ledger.used_bytes == pages(2)
        assert space(m, "hdd").evictions == 2
        consistent(m)


async def test_whoever_has_a_file_open_keeps_it_while_it_moves(tmp_path: Path) -> None:
    driver = store(1)
    data = driver.objects["k00"][0]
    async with mounted(tmp_path, driver, options()) as m:
        handle = await m.open("k00")
        obj = acquire(m, "k00")
        backing = m.kernel.backing_of[await m.inode("k00")]
        assert await m.mover.move(obj.oid, space(m, "hdd"))
        assert tier(m, "k00") == "mem", "it waits for the last close"
        beside = await m.open("k00")
        assert m.kernel.backing_of[await m.inode("k00")] == backing, "the same file"
        assert await m.kernel.read_all(m.fs, beside) == data
        await m.mover.round()
        assert tier(m, "k00") == "mem"
        await m.kernel.release(m.fs, handle)
        await m.kernel.release(m.fs, beside)
        await m.mover.round()
        assert tier(m, "k00") == "hdd"
        assert await m.read_all("k00") == data
        again = await m.open("k00")
        assert m.kernel.backing_of[await m.inode("k00")] != backing
        await m.kernel.release(m.fs, again)
        assert driver.counts["get"] == 1
        consistent(m)


async def test_copying_readers_go_on_while_an_object_moves(tmp_path: Path) -> None:
    driver = store(1, pages(4))
    data = driver.objects["k00"][0]
    async with mounted(tmp_path, driver, options(passthrough=False, memory_bytes=pages(1))) as m:
        handle = await m.open("k00")
        obj = acquire(m, "k00")
        m.cache.acquire("k00", driver.objects["k00"][1], pages(4))
        await m.cache.fetch_whole(obj)
        gets = driver.counts["get"]
        done = trio.Event()
        rounds = 0

        async def reader() -> None:
            nonlocal rounds
            rng = random.Random(3)
            while not done.is_set():
                offset = rng.randrange(len(data))
                assert bytes(await m.cache.read(obj, offset, 3000)) == data[offset : offset + 3000]
                rounds += 1

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(reader)
            for number in range(12):
                assert await m.mover.move(obj.oid, space(m, ("ssd", "hdd", "mem")[number % 3]))
                await m.mover.round()
                await trio.sleep(0.01)
            done.set()
        assert rounds > 20
        m.cache.release(obj)
        await m.kernel.release(m.fs, handle)
        assert driver.counts["get"] == gets, "nothing was fetched again"
        consistent(m)


@pytest.mark.expected_logs("damaged page")
async def test_a_damaged_page_does_not_move(tmp_path: Path) -> None:
    driver = store(1)
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 1)
        path = m.file_of("k00")
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        with path.open("r+b") as f:
            f.write(b"\0\0\0\0")
        os.utime(path, ns=times)
        assert not await m.mover.move(acquire(m, "k00").oid, space(m, "hdd"))
        assert tier(m, "k00") == "mem"
        consistent(m)
        os.utime(path)
        assert await m.read_all("k00") == driver.objects["k00"][0]


async def test_a_move_is_given_up_when_the_object_changes(tmp_path: Path) -> None:
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        obj = m.cache.acquire("k00", driver.objects["k00"][1], pages(3))
        await m.cache.read(obj, 0, 100)
        move = m.mover.move
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, obj.oid, space(m, "hdd"))
            await trio.lowlevel.checkpoint()
            m.cache.start(obj, range(1, 2))
        await until(lambda: not obj.flights)
        m.cache.release(obj)
        assert tier(m, "k00") == "mem"
        consistent(m)


async def test_directories_that_are_away_lose_nothing(tmp_path: Path) -> None:
    driver = store(8)
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 8)
        assert [tier(m, f"k{n:02}") for n in range(8)] == ["mem"] * 4 + ["ssd"] * 4
    async with mounted(tmp_path, driver, options(more_caches=())) as m:
        assert [tier(m, f"k{n:02}") for n in range(8)] == [None] * 4 + ["ssd"] * 4
        assert await m.read_all("k00") == driver.objects["k00"][0]
        assert tier(m, "k00") == "ssd"
    async with mounted(tmp_path, driver, options()) as m:
        assert [tier(m, f"k{n:02}") for n in range(8)] == ["ssd"] + ["mem"] * 3 + ["ssd"] * 4
        await sweep(m.cache.contents, space(m, "mem"))
        consistent(m)
        await read_all(m, 8)
        assert driver.counts["get"] == 9


@pytest.mark.expected_logs("reading from the under-store until it recovers", "is gone; fetching it again")
async def test_a_directory_that_is_lost_is_done_without(tmp_path: Path) -> None:
    driver = store(6)
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 6)
        shutil.rmtree(space(m, "mem").directory.path)
        space(m, "mem").fail(OSError(5, "made up"))
        for inode in [await m.inode(f"k{n:02}") for n in range(6)]:
            m.files.backings.retire(inode)
        await read_all(m, 6)
        assert [tier(m, f"k{n:02}") for n in range(6)] == ["ssd"] * 6
        assert m.hierarchy.usable


async def test_what_is_written_goes_to_a_disk(tmp_path: Path) -> None:
    driver = store(1)
    data = driver.objects["k00"][0]
    async with mounted(tmp_path, driver, options(write_mode="async-through")) as m:
        await read_all(m, 1)
        assert tier(m, "k00") == "mem"
        handle = await m.kernel.open(m.fs, await m.inode("k00"), os.O_RDWR)
        inode = await m.inode("k00")
        await m.kernel.write(m.fs, handle, 5, b"new")
        assert m.writing.room.tier_of(m.dirty.get(inode)) == "ssd"
        await m.kernel.close(m.fs, handle)
        assert m.journal.files, "it is promised by the journal"
        assert driver.counts["put"] == 0
        await m.drain()
        assert driver.objects["k00"][0] == data[:5] + b"new" + data[8:]
        consistent(m)


async def test_a_file_that_is_read_in_memory_is_written_there_and_promised_by_the_store(tmp_path: Path) -> None:
    driver = store(1)
    data = driver.objects["k00"][0]
    async with mounted(tmp_path, driver, options(write_mode="async-through")) as m:
        reader = await m.open("k00")
        handle = await m.kernel.open(m.fs, await m.inode("k00"), os.O_RDWR)
        inode = await m.inode("k00")
        await m.kernel.write(m.fs, handle, 5, b"new")
        assert m.writing.room.tier_of(m.dirty.get(inode)) == "mem"
        assert (await m.kernel.read_all(m.fs, reader))[:9] == data[:5] + b"new" + data[8:9]
        await m.kernel.close(m.fs, handle)
        assert driver.objects["k00"][0] == data[:5] + b"new" + data[8:], "memory does not outlive a power cut"
        await m.kernel.release(m.fs, reader)
        await m.drain()
        consistent(m)


async def test_a_new_file_is_staged_at_home(tmp_path: Path) -> None:
    async with mounted(tmp_path, FakeStore(), options()) as m:
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"new")
        await m.kernel.write(m.fs, handle, 0, b"data")
        assert list((space(m, "ssd").directory.path / "staging").glob("0*"))
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert tier(m, "new") == "ssd"


async def test_what_is_used_more_often_moves_up(tmp_path: Path) -> None:
    driver = store(6)
    async with mounted(tmp_path, driver, options(more_caches=(MEM,), passthrough=False)) as m:
        await read_all(m, 6)
        assert [tier(m, f"k{n:02}") for n in range(6)] == ["mem"] * 4 + ["ssd"] * 2
        for _ in range(2):  # as in two epochs: no reason to change anything
            await read_all(m, 6)
            await m.mover.round()
        assert [tier(m, f"k{n:02}") for n in range(6)] == ["mem"] * 4 + ["ssd"] * 2
        for _ in range(3):
            assert await m.read_all("k05") == driver.objects["k05"][0]
        await m.mover.round()
        assert tier(m, "k05") == "mem"
        assert (m.mover.moved_up, m.mover.moved_down) == (1, 1)
        assert Counter(tier(m, f"k{n:02}") for n in range(6)) == {"mem": 4, "ssd": 2}
        assert driver.counts["get"] == 6
        consistent(m)


async def test_cache_promote_brings_up_what_is_read(tmp_path: Path) -> None:
    driver = store(6)
    changes = {"more_caches": (MEM,), "passthrough": False, "read_mode": "cache-promote"}
    async with mounted(tmp_path, driver, options(**changes)) as m:
        await read_all(m, 6)
        await m.mover.round()
        await m.read_all("k04")
        await m.mover.round()
        assert tier(m, "k04") == "mem"
        consistent(m)


async def use(m: Mount, key: str) -> None:
    data, version, _, _ = m.driver.objects[key]
    obj = m.cache.acquire(key, version, len(data))
    m.cache.touch(obj)
    await m.cache.fetch_whole(obj)
    m.cache.release(obj)


async def test_what_policies_have_learnt_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files are read often; then, after a restart, others are, but less often: the former are still there."""
    monkeypatch.setattr("luxfuse.cache.space.EVICT_AHEAD_BYTES", 0)
    driver = store(200, 40_960)
    small = options(more_caches=(), capacity_bytes=50 * 40_960)
    hot = [f"k{n:02}" for n in range(40)]
    async with mounted(tmp_path, driver, small) as m:
        for _ in range(6):
            for key in hot:
                await use(m, key)
    async with mounted(tmp_path, driver, small) as m:
        for _ in range(3):
            for number in range(40, 200):
                await use(m, f"k{number:02}")
        assert [tier(m, key) for key in hot].count("ssd") >= 38


def at_step(monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], object]) -> None:
    """Do something, once, at a step of a move."""
    done = False

    def hook(reached: str) -> None:
        nonlocal done
        if reached == step and not done:
            done = True
            act()

    monkeypatch.setattr(mover, "reached", hook)


async def cache_pages(m: Mount, key: str, *wanted: int) -> CachedObject:
    """Fetch some pages; returns the object, in use."""
    data, version, _, _ = m.driver.objects[key]
    obj = m.cache.acquire(key, version, len(data))
    for page in wanted:
        await m.cache.read(obj, pages(page), 1)
    return obj


async def check_content(m: Mount, key: str) -> None:
    m.cache.fetching.recent = type(m.cache.recent)(0)
    assert await m.read_all(key) == m.driver.objects[key][0]


async def test_an_object_that_is_renamed_on_its_way_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy goes by the old name: the rest would come to another file, whose beginning were holes."""
    monkeypatch.setattr(mover, "SLICE_PAGES", 1)
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 1)
        old, version, _, _ = driver.objects["k00"]
        oid = acquire(m, "k00").oid
        driver.objects["new"] = driver.objects["k00"]
        at_step(monkeypatch, "relocate.copied", lambda: m.cache.rename("k00", version, len(old), "new", version))
        assert not await m.mover.move(oid, space(m, "hdd"))
        assert tier(m, "new") == "mem"
        await check_content(m, "new")
        consistent(m)


async def test_other_pages_of_the_same_number_are_not_what_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "SLICE_PAGES", 1)
    driver = store(1, pages(4))
    async with mounted(tmp_path, driver, options()) as m:
        obj = await cache_pages(m, "k00", 0, 1)
        first = obj.pages.checksums[0]

        def change() -> None:
            """As if a damaged page were dropped and another one fetched, all between two slices."""
            obj.pages.remove(0)
            obj.pages.add(3, 1)

        at_step(monkeypatch, "relocate.copied", change)
        assert not await m.mover.move(obj.oid, space(m, "hdd"))
        obj.pages.remove(3)
        obj.pages.add(0, first)
        m.cache.release(obj)
        await check_content(m, "k00")
        consistent(m)


async def test_an_object_is_in_one_move_at_a_time(tmp_path: Path) -> None:
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 1)
        oid = acquire(m, "k00").oid
        handle = await m.open("k00")
        assert await m.mover.move(oid, space(m, "hdd")), "waits for the last close"
        assert not await m.mover.move(oid, space(m, "hdd"))
        assert not await m.mover.move(oid, space(m, "ssd"))
        await m.kernel.release(m.fs, handle)
        await m.mover.round()
        assert tier(m, "k00") == "hdd"
        results: list[bool] = []

        async def move(name: str) -> None:
            results.append(await m.mover.move(oid, space(m, name)))

        async with trio.open_nursery() as nursery:
            for name in ("ssd", "ssd", "mem"):
                nursery.start_soon(move, name)
        assert sorted(results) == [False, False, True]
        await check_content(m, "k00")
        consistent(m)


@pytest.mark.expected_logs("reading from the under-store until it recovers")
async def test_a_copy_that_is_lost_on_its_way_does_not_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory was lost and made again in the middle of the copy: the rest alone is not the object."""
    monkeypatch.setattr(mover, "SLICE_PAGES", 1)
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 1)
        obj, hdd = acquire(m, "k00"), space(m, "hdd")

        def lose() -> None:
            shutil.rmtree(hdd.directory.path)
            hdd.directory.probe()

        at_step(monkeypatch, "relocate.copied", lose)
        assert not await m.mover.move(obj.oid, hdd)
        assert hdd.degraded
        assert tier(m, "k00") == "mem"
        await check_content(m, "k00")
        consistent(m)


async def test_a_sick_directory_that_recovers_keeps_the_copies_that_wait(tmp_path: Path) -> None:
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        handle = await m.open("k00")
        oid, hdd = acquire(m, "k00").oid, space(m, "hdd")
        assert await m.mover.move(oid, hdd)
        assert hdd.directory.probe()
        await sweep(m.cache.contents, hdd)
        await m.kernel.release(m.fs, handle)
        await m.mover.round()
        assert tier(m, "k00") == "hdd"
        await check_content(m, "k00")
        consistent(m)


@pytest.mark.expected_logs("reading from the under-store until it recovers")
@pytest.mark.parametrize("failing", ["arrive", "open_arrival", "put_aside", "remove_aside", "forget_arrival"])
async def test_a_directory_that_fails_in_a_move_ends_nothing_but_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 1)
        oid = acquire(m, "k00").oid

        def fail(*_: object) -> None:
            raise OSError(5, "made up")

        with monkeypatch.context() as patch:
            at_step(patch, "relocate.copied", lambda: None)
            patch.setattr(f"luxfuse.tiers.directory.CacheDirectory.{failing}", fail)
            if failing == "forget_arrival":
                at_step(patch, "relocate.copied", lambda: acquire(m, "k00").pages.remove(0))
            moved = await m.mover.move(oid, space(m, "hdd"))
        assert moved == (failing in ("put_aside", "remove_aside"))
        sick = space(m, "mem" if moved else "hdd")
        assert sick.degraded
        assert await m.read_all("k00") == driver.objects["k00"][0]
        await sick._probe()
        for s in m.hierarchy:
            await sweep(m.cache.contents, s)
        if failing != "forget_arrival":
            consistent(m)
        assert not [path for s in m.hierarchy for path in (s.directory.path / "moving").iterdir()]


@pytest.mark.parametrize("step", ["relocate.begun", "relocate.copied", "relocate.arrived", "relocate.recorded"])
async def test_a_move_can_be_cancelled_at_any_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        await read_all(m, 1)
        with trio.CancelScope() as scope:
            at_step(monkeypatch, step, scope.cancel)
            await m.mover.move(acquire(m, "k00").oid, space(m, "hdd"))
        assert tier(m, "k00") == ("mem" if step in ("relocate.begun", "relocate.copied") else "hdd")
        await check_content(m, "k00")
        consistent(m)


async def test_moves_that_wait_end_with_the_daemon(tmp_path: Path) -> None:
    driver = store(1, pages(3))
    async with mounted(tmp_path, driver, options()) as m:
        handle = await m.open("k00")
        assert await m.mover.move(acquire(m, "k00").oid, space(m, "hdd"))
        with trio.move_on_after(0):
            await m.mover.run()
        assert tier(m, "k00") == "mem"
        consistent(m)
        await m.kernel.release(m.fs, handle)


async def test_a_file_that_moved_away_and_back_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = store(1)
    async with mounted(tmp_path, driver, options()) as m:
        assert await m.read_all("k00") == driver.objects["k00"][0]
        m.files.backings.retire(await m.inode("k00"))
        oid, real = acquire(m, "k00").oid, disk.open_verified

        def overtaken(*arguments: Any) -> disk.Opened:
            opened = real(*arguments)
            monkeypatch.setattr(disk, "open_verified", real)
            for name in ("hdd", "mem"):
                assert trio.from_thread.run(m.mover.move, oid, space(m, name))
            return opened

        monkeypatch.setattr(disk, "open_verified", overtaken)
        handle = await m.open("k00")
        assert m.kernel.is_passthrough(handle)
        assert os.fstat(m.kernel.table[await m.inode("k00")].fd).st_ino == m.file_of("k00").stat().st_ino
        await m.kernel.release(m.fs, handle)
        consistent(m)


async def test_an_object_is_read_while_a_second_file_of_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = store(1)
    data = driver.objects["k00"][0]
    async with mounted(tmp_path, driver, options(passthrough=False)) as m:
        assert await m.read_all("k00") == data
        oid, hdd = acquire(m, "k00").oid, space(m, "hdd")
        stray = hdd.directory.file_of(oid)
        stray.parent.mkdir()
        stray.write_bytes(bytes(len(data)))
        m.cache.contents._idle.clear()
        m.cache.fetching.recent = RecentPages(0)
        real, begun, go_on = hdd.directory.remove, threading.Event(), threading.Event()

        def slowly(oid: bytes) -> None:
            begun.set()
            go_on.wait(120)
            real(oid)

        monkeypatch.setattr(hdd.directory, "remove", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sweep, m.cache.contents, hdd)
            await until(begun.is_set)
            obj = m.cache.acquire("k00", driver.objects["k00"][1], len(data))
            assert bytes(await m.cache.read(obj, 0, 5000)) == data[:5000]
            m.cache.release(obj)
            go_on.set()
        assert driver.counts["get"] == 1
        assert not stray.exists()
        consistent(m)


async def test_pages_that_are_on_their_way_are_not_those_of_a_file_that_could_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: list
) -> None:
    expected_logs.append("reading from the under-store until it recovers")
    driver = store(1)
    data = driver.objects["k00"][0]
    async with mounted(tmp_path, driver, options(passthrough=False)) as m:
        assert await m.read_all("k00") == data
        oid, mem = acquire(m, "k00").oid, space(m, "mem")
        assert m.cache.contents.let_go(oid)
        m.cache.fetching.recent = RecentPages(0)
        begun, go_on = threading.Event(), threading.Event()

        def fail(_oid: bytes) -> None:
            begun.set()
            go_on.wait(120)
            raise OSError(5, "made up")

        monkeypatch.setattr(mem.directory, "remove", fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mem.remove, oid)
            await until(begun.is_set)
            obj = m.cache.acquire("k00", driver.objects["k00"][1], len(data))
            (flight,) = m.cache.start(obj, range(1), keep_in_memory=False)
            go_on.set()
        assert not obj.pages.count, "they come"
        await flight.done.wait()
        assert obj.whole
        assert obj.space is not mem
        assert bytes(await m.cache.read(obj, 0, len(data))) == data
        m.cache.release(obj)
        assert mem.ledger.used_bytes == m.objects.used_bytes_in(mem.number) == 0
