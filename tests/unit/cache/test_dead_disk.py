"""A cache disk that gives nothing of what it holds: its files are not used, and are again once it is back."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import trio

from luxfuse.cache import mover
from luxfuse.cache import space as spaces
from luxfuse.core.cache_directory import CacheSetting
from tests.support.failing_directory import FailingDirectory
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted, pages, random_bytes
from tests.support.tiers import acquire, consistent, space, store, tier

pytestmark = pytest.mark.expected_logs("cache directory", "damaged page")
COUNT = 6


def names() -> list[str]:
    return [f"k{number:02}" for number in range(COUNT)]


async def read_all(m: Mount) -> None:
    for name in names():
        assert await m.read_all(name) == m.driver.objects[name][0], name


def failing(m: Mount) -> FailingDirectory:
    directory = m.hierarchy.home.directory
    assert isinstance(directory, FailingDirectory)
    return directory


async def test_it_is_as_warm_as_it_was_and_verified_when_it_is_back(tmp_path: Path) -> None:
    driver = store(COUNT, pages(2))
    async with mounted(tmp_path, driver, directory=FailingDirectory, readahead_bytes=0) as m:
        await read_all(m)
        held = await m.open("k00")
        epoch = m.cache.contents.epoch
        failing(m).dead = True
        await m.space._observe()
        assert m.space.unreadable
        assert m.space.degraded
        gets = driver.counts["get"]
        await read_all(m)
        assert driver.counts["get"] > gets
        assert all(tier(m, name) is None for name in names())
        await m.space._probe()
        assert m.space.unreadable
        # Back, but it has lost a page that it had said it had, without a trace in the file's times.
        damaged = m.directory.file_of(acquire(m, "k03").oid)
        stamp = damaged.stat().st_mtime_ns
        with damaged.open("r+b") as file:
            file.write(bytes(4096))
        os.utime(damaged, ns=(stamp, stamp))
        failing(m).dead = False
        await m.space._probe()
        assert not m.space.unreadable
        assert m.space.degraded is None
        assert m.cache.contents.epoch == epoch + 1
        for name in names():
            for page in range(2):
                m.cache.recent.discard(acquire(m, name).oid, page)
        gets = driver.counts["get"]
        await read_all(m)
        assert driver.counts["get"] == gets + 1
        assert m.cache.counters.checksum_failures == 1
        await m.kernel.release(m.fs, held)
        consistent(m)
    async with mounted(tmp_path, driver) as m:
        assert m.cache.contents.epoch == epoch + 1


async def test_what_is_open_in_the_kernel_keeps_its_inode_and_the_name_gets_another(tmp_path: Path) -> None:
    driver = store(COUNT)
    async with mounted(tmp_path, driver, directory=FailingDirectory) as m:
        await read_all(m)
        held = await m.open("k00")
        before = {name: await m.inode(name) for name in names()}
        assert m.kernel.is_registered(before["k00"])
        failing(m).dead = True
        await m.space._observe()
        after = {name: await m.inode(name) for name in names()}
        assert {name for name in names() if before[name] != after[name]} == {"k00"}
        assert not any(m.kernel.is_registered(inode) for inode in after.values())
        again = await m.open("k00")
        assert bytes(await m.kernel.read(m.fs, again, 0, 10)) == driver.objects["k00"][0][:10]
        await m.kernel.release(m.fs, again)
        await m.kernel.release(m.fs, held)
        assert m.files.backings.get(before["k00"]) is None


async def test_another_tier_takes_its_place_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "BYTES_PER_S", 1 << 60)
    driver = store(COUNT, pages(2))
    hdd = CacheSetting("hdd", pages(20), "hdd", high_watermark=1.0, low_watermark=1.0)
    options = Options(capacity_bytes=pages(20), more_caches=(hdd,), readahead_bytes=0)
    async with mounted(tmp_path, driver, options, directory=FailingDirectory) as m:
        await read_all(m)
        assert {tier(m, name) for name in names()} == {"ssd"}
        failing(m).dead = True
        await m.space._observe()
        for name in names()[:4]:
            assert await m.read_all(name) == driver.objects[name][0]
        assert {tier(m, name) for name in names()[:4]} == {"hdd"}
        for name in names()[:4]:
            found = m.objects.load(acquire(m, name).oid)
            assert found is not None
            assert found[1].whole
        failing(m).dead = False
        await m.space._probe()
        assert [tier(m, name) for name in names()] == ["hdd"] * 4 + ["ssd"] * 2
        gets = driver.counts["get"]
        await read_all(m)
        assert driver.counts["get"] == gets
        assert space(m, "ssd").ledger.used_bytes == m.objects.used_bytes_in(space(m, "ssd").number)


async def test_a_disk_that_is_slow_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads wait for it: a second for each is no death."""
    driver = FakeStore()
    driver.place("k00", random_bytes(pages(1), 1))
    async with mounted(tmp_path, driver) as m:
        assert await m.read_all("k00") == driver.objects["k00"][0]
        look = m.directory._read_past_memory
        looked = []

        def slow() -> None:
            time.sleep(1.0)
            looked.append(look())

        monkeypatch.setattr(m.directory, "_read_past_memory", slow)
        await m.space._observe()
        assert looked
        assert not m.space.unreadable
        assert not m.space.degraded
        gets = driver.counts["get"]
        assert await m.read_all("k00") == driver.objects["k00"][0]
        assert driver.counts["get"] == gets


async def test_a_disk_that_hangs_is_one_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "LOOK_DEADLINE_S", 0.05)
    driver = FakeStore()
    driver.place("k00", random_bytes(pages(1), 1))
    async with mounted(tmp_path, driver) as m:
        go_on, looks = threading.Event(), []

        def hang() -> None:
            looks.append(1)
            go_on.wait(120)

        assert await m.read_all("k00") == driver.objects["k00"][0]
        with monkeypatch.context() as patch:
            patch.setattr(m.directory, "_read_past_memory", hang)
            with trio.fail_after(60):
                await m.space._observe()
                await m.space._probe()
                await m.space._probe()
            assert m.space.unreadable
            assert len(looks) == 1, "one thread waits for the disk"
        go_on.set()
        while m.space.unreadable:
            await m.space._probe()
