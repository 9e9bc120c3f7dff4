"""Cache files that rot, shrink, vanish or are written by others."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.cache import disk
from luxfuse.cache.cached import CachedObject
from tests.posix.calls import tick
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes

pytestmark = pytest.mark.expected_logs("damaged page", "is gone; fetching it again")
SIZE = pages(3) + 1000


def acquire(mount: Mount, key: str) -> CachedObject:
    data, version, _, _ = mount.driver.objects[key]
    return mount.cache.acquire(key, version, len(data))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))


async def fill(mount: Mount, key: str) -> CachedObject:
    obj = acquire(mount, key)
    await mount.cache.fetch_whole(obj)
    assert obj.whole
    return obj


async def check(mount: Mount, obj: CachedObject, data: bytes) -> None:
    for offset in range(0, len(data), 123_457):
        assert bytes(await mount.cache.read(obj, offset, 123_457)) == data[offset : offset + 123_457]


async def test_a_file_that_vanished_is_no_sick_disk_however_many_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two flights find that it is gone; the second one finds the object without pages, as the first one has told."""
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        await m.cache.read(obj, 0, 100)
        m.directory.file_of(obj.oid).unlink()
        both, stored = threading.Barrier(2), disk.store_run

        def store_run(*arguments: Any, **named: Any) -> disk.Stored:
            both.wait(60)
            return stored(*arguments, **named)

        monkeypatch.setattr(disk, "store_run", store_run)
        async with trio.open_nursery() as nursery:
            for page in (1, 3):
                nursery.start_soon(m.cache.read, obj, pages(page), 100)
        assert m.space.degraded is None
        monkeypatch.setattr(disk, "store_run", stored)
        await check(m, obj, data)


@pytest.mark.parametrize("where", [0, 4096, pages(1), pages(2) - 1, SIZE - 1])
async def test_a_flipped_byte_is_mended_when_read(tmp_path: Path, where: int) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = await fill(m, "k")
        gets = driver.counts["get"]
        flip(m.directory.file_of(obj.oid), where)
        await check(m, obj, data)
        assert m.cache.counters.checksum_failures == 1
        assert driver.counts["get"] == gets + 1
        await m.cache.fetch_whole(obj)
        assert m.directory.file_of(obj.oid).read_bytes() == data
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes()


async def test_a_flipped_byte_is_mended_before_the_kernel_gets_the_file(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = await fill(m, "k")
        flip(m.directory.file_of(obj.oid), 5)
        assert await m.read_all("k") == data
        assert m.cache.counters.checksum_failures == 1
        assert m.kernel.registered == 1
        # Nothing wrong since: the next hand-over reads nothing.
        m.files.backings.forget_all()
        verified = m.cache.counters.verified_bytes
        assert await m.read_all("k") == data
        assert m.cache.counters.verified_bytes == verified


async def test_damage_found_late_does_not_hide_behind_our_own_writes(tmp_path: Path) -> None:
    """Somebody writes to a part of the file, another part is fetched, then the whole goes to the kernel."""
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        for page in range(3):
            await m.cache.read(obj, pages(page), pages(1))
        flip(m.directory.file_of(obj.oid), pages(2))
        await m.cache.read(obj, 0, 10)  # looks at the file, not at the damage
        await m.cache.fetch_whole(obj)
        assert await m.read_all("k") == data


@pytest.mark.parametrize("length", [0, 10, pages(1), SIZE - 1])
async def test_a_truncated_file_is_mended(tmp_path: Path, length: int) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = await fill(m, "k")
        os.truncate(m.directory.file_of(obj.oid), length)
        await check(m, obj, data)
        assert await m.read_all("k") == data
        assert m.directory.file_of(obj.oid).stat().st_size == SIZE


async def test_a_longer_file_is_cut_before_the_kernel_gets_it(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = await fill(m, "k")
        with m.directory.file_of(obj.oid).open("ab") as f:
            f.write(b"more")
        assert await m.read_all("k") == data


async def test_a_removed_file_is_fetched_again(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = await fill(m, "k")
        m.directory.file_of(obj.oid).unlink()
        await check(m, obj, data)
        assert await m.read_all("k") == data
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes()


async def test_a_file_removed_while_it_is_filled_leaves_no_holes(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(8), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        for page in range(3):
            await m.cache.read(obj, pages(page), pages(1))
        m.directory.file_of(obj.oid).unlink()
        await m.cache.read(obj, pages(5), pages(1))
        await check(m, obj, data)
        await m.cache.fetch_whole(obj)
        assert await m.read_all("k") == data
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes()


async def test_all_cache_files_removed_while_they_are_read(tmp_path: Path) -> None:
    driver = FakeStore()
    contents = {f"k{number}": random_bytes(SIZE, number) for number in range(6)}
    for key, data in contents.items():
        driver.place(key, data)
    async with mounted(tmp_path, driver) as m:
        for key in contents:
            await m.cache.read(acquire(m, key), 0, pages(2))
        for group in (m.directory.path / "objects").iterdir():
            shutil.rmtree(group)
        for key, data in contents.items():
            assert await m.read_all(key) == data
        assert m.space.degraded is None


async def test_a_file_that_somebody_else_wrote_is_verified_by_its_time(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = await fill(m, "k")
        await check(m, obj, data)
        trusted = m.cache.counters.verified_bytes
        await check(m, obj, data)
        assert m.cache.counters.verified_bytes == trusted, "pages of our own are not checked again"
        os.utime(m.directory.file_of(obj.oid), ns=(1, 1))
        await check(m, obj, data)
        assert m.cache.counters.verified_bytes > trusted
        assert m.cache.counters.checksum_failures == 0


@pytest.mark.parametrize("damaged", [False, True])
async def test_after_an_unclean_stop_everything_is_verified_once(tmp_path: Path, damaged: bool) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    driver.place("part", data)
    async with mounted(tmp_path, driver, clean_end=False) as m:
        obj = await fill(m, "k")
        part = acquire(m, "part")
        await m.cache.read(part, 0, pages(2))
        await m.index.flush()
        paths = [m.directory.file_of(obj.oid), m.directory.file_of(part.oid)]
    if damaged:
        for path in paths:
            st = path.stat()
            flip(path, pages(1) + 3)
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))  # bits rot without a trace
    driver.counts.clear()
    async with mounted(tmp_path, driver) as m:
        assert not m.beginning.clean
        await check(m, acquire(m, "part"), data)
        assert await m.read_all("k") == data
        assert m.cache.counters.checksum_failures == (2 if damaged else 0)
        assert driver.counts["get"] == (4 if damaged else 2)
        verified = m.cache.counters.verified_bytes
        assert verified >= SIZE
    async with mounted(tmp_path, driver) as m:
        assert m.beginning.clean
        assert await m.read_all("k") == data
        assert m.cache.counters.verified_bytes == 0, "after a clean stop nothing is"
        assert driver.counts["get"] == (4 if damaged else 2)


async def test_a_page_changed_between_our_own_writes_is_not_trusted(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        for page in range(2):
            await m.cache.read(obj, pages(page), pages(1))
        tick()
        flip(m.directory.file_of(obj.oid), 5)
        await m.cache.read(obj, pages(2), pages(1))
        assert bytes(await m.cache.read(obj, 0, pages(1))) == data[: pages(1)]
        assert m.cache.counters.checksum_failures == 1
        assert obj.trusted >= {2}, "pages written since need no check"


@pytest.mark.parametrize("restart", [False, True])
async def test_a_page_changed_between_our_own_writes_is_found_before_the_kernel_gets_the_file(
    tmp_path: Path, restart: bool
) -> None:
    driver = FakeStore()
    data = random_bytes(SIZE, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        for page in range(2):
            await m.cache.read(obj, pages(page), pages(1))
        path = m.directory.file_of(obj.oid)
        if not restart:
            tick()
            flip(path, 5)
            await m.cache.fetch_whole(obj)
            assert await m.read_all("k") == data
    if restart:
        flip(path, 5)
        async with mounted(tmp_path, driver) as m:
            assert m.beginning.clean
            await m.cache.fetch_whole(acquire(m, "k"))
            assert await m.read_all("k") == data


async def test_our_own_writes_do_not_pass_for_those_of_others(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(20), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(32), capacity_bytes=pages(40)) as m:
        obj = acquire(m, "k")
        await m.cache.read(obj, pages(3), 10)
    async with mounted(tmp_path, driver, whole_file_bytes=pages(32), capacity_bytes=pages(40)) as m:
        await m.cache.fetch_whole(acquire(m, "k"))
        assert await m.read_all("k") == data
        assert m.kernel.registered == 1
        assert m.cache.counters.verified_bytes == 0
