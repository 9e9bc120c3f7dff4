"""Room on disk: the capacity is a hard limit, eviction is LRU and spares what is used, a sick disk is bypassed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from luxfuse.cache import descriptors, disk, space
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.sweep import Sweeper, forget_lost, sweep
from luxfuse.tiers.directory import FileSystemSpace
from tests.support.failing_directory import FailingDirectory
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until

METADATA_BYTES = 4096
"""What a file system may add to a sparse file for its map of extents."""


def acquire(mount: Mount, key: str) -> CachedObject:
    data, version, _, _ = mount.driver.objects[key]
    return mount.cache.acquire(key, version, len(data))


async def cache_whole(mount: Mount, key: str) -> bytes:
    obj = acquire(mount, key)
    mount.cache.touch(obj)
    await mount.cache.fetch_whole(obj)
    mount.cache.release(obj)
    return obj.oid


def cached(mount: Mount) -> set[str]:
    found = set()
    for key in mount.driver.objects:
        obj = acquire(mount, key)
        if obj.pages.count:
            found.add(key)
        mount.cache.release(obj)
    return found


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evict no more than is needed, and try again at once."""
    monkeypatch.setattr(space, "EVICT_AHEAD_BYTES", 0)
    monkeypatch.setattr(space, "STUCK_S", 0.0)


@pytest.mark.parametrize("capacity", [pages(5), pages(13) + 5000])
async def test_the_capacity_holds_at_every_instant_under_sixteen_readers(tmp_path: Path, capacity: int) -> None:
    driver = FakeStore()
    rng = random.Random(1)
    for number in range(24):
        driver.place(f"k{number}", random_bytes(rng.randrange(1, pages(4)), number))
    samples = 0
    async with mounted(tmp_path, driver, capacity_bytes=capacity, memory_bytes=pages(8)) as m:
        done = trio.Event()

        async def sample() -> None:
            nonlocal samples
            while not done.is_set():
                assert m.space.ledger.used_bytes + m.space.ledger.reserved_bytes <= capacity
                assert m.disk_bytes() <= capacity + 24 * METADATA_BYTES
                samples += 1
                await trio.sleep(0.001)

        async def reader(seed: int) -> None:
            order = random.Random(seed)
            for _ in range(12):
                key = f"k{order.randrange(24)}"
                if order.random() < 0.5:
                    assert await m.read_all(key) == driver.objects[key][0]
                else:
                    obj = acquire(m, key)
                    offset = order.randrange(obj.size)
                    got = bytes(await m.cache.read(obj, offset, 50_000))
                    assert got == driver.objects[key][0][offset : offset + 50_000]
                    m.cache.release(obj)

        await m.entries()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sample)
            async with trio.open_nursery() as readers:
                for seed in range(16):
                    readers.start_soon(reader, seed)
            done.set()
        await until(lambda: m.cache.budget.idle and not m.hierarchy.removing)
        assert samples > 10
        assert m.space.evictions
        assert m.space.ledger.used_bytes == m.objects.used_bytes
        assert abs(m.disk_bytes() - m.space.ledger.used_bytes) <= 24 * METADATA_BYTES
        assert m.space.ledger.reserved_bytes == 0


async def test_the_least_recently_used_goes_first(tmp_path: Path, tight: None) -> None:
    driver = FakeStore()
    for number in range(6):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, eviction_policy="lru", capacity_bytes=pages(4)) as m:
        for number in range(4):
            await cache_whole(m, f"k{number}")
        await cache_whole(m, "k0")  # used once more
        await cache_whole(m, "k4")
        assert cached(m) == {"k0", "k2", "k3", "k4"}
        await cache_whole(m, "k5")
        assert cached(m) == {"k0", "k3", "k4", "k5"}
        assert (m.space.evictions, m.space.evicted_bytes) == (2, pages(2))


async def test_opens_that_the_kernel_answers_alone_count_as_uses(tmp_path: Path, tight: None) -> None:
    driver = FakeStore()
    for number in range(4):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, eviction_policy="lru", capacity_bytes=pages(3), readahead_bytes=0) as m:
        for number in range(3):
            await m.read_all(f"k{number}")
        m.files.backings.note_touched()
        await m.read_all("k0")
        assert m.files.backings.opened == 3
        await m.read_all("k3")
        assert cached(m) == {"k0", "k2", "k3"}


async def test_what_is_used_stays_and_the_next_oldest_goes_instead(tmp_path: Path, tight: None) -> None:
    """A large object that has been open for long is the oldest, but cannot go; the others still can."""
    driver = FakeStore()
    driver.place("old", random_bytes(pages(8), 99))
    for number in range(10):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, eviction_policy="lru", capacity_bytes=pages(11)) as m:
        old = acquire(m, "old")
        m.cache.touch(old)
        await m.cache.fetch_whole(old)
        for number in range(10):
            await cache_whole(m, f"k{number}")
            assert f"k{number}" in cached(m), "the cache takes nothing new while an old object is in use"
        assert old.whole
        assert m.directory.file_of(old.oid).exists()
        assert cached(m) == {"old", "k7", "k8", "k9"}


async def test_a_file_that_the_kernel_has_open_stays(tmp_path: Path, tight: None) -> None:
    driver = FakeStore()
    driver.place("old", random_bytes(pages(2), 99))
    for number in range(6):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, eviction_policy="lru", capacity_bytes=pages(4), readahead_bytes=0) as m:
        handle = await m.open("old")
        assert m.kernel.is_passthrough(handle)
        for number in range(6):
            await m.read_all(f"k{number}")
        assert cached(m) == {"old", "k4", "k5"}
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["old"][0]
        await m.kernel.release(m.fs, handle)
        await m.read_all("k0")
        assert "old" not in cached(m)
        inodes = [inode for inode, backing in m.kernel.table.items() if not backing.retired]
        assert len(inodes) <= 4, "an evicted file keeps its backing"


async def test_an_object_larger_than_the_cache_is_served(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(20) + 3, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver, capacity_bytes=pages(6), whole_file_bytes=pages(32)) as m:
        assert await m.read_all("k") == data
        assert m.space.ledger.used_bytes <= pages(6)
        assert m.disk_bytes() <= pages(6) + METADATA_BYTES
        assert m.files.copied.opened == 1


async def test_the_free_space_floor_is_kept(tmp_path: Path, tight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    for number in range(6):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, eviction_policy="lru", capacity_bytes=None, free_space_ratio=0.5) as m:
        total, others = pages(10), [pages(1)]

        def look() -> FileSystemSpace:
            return FileSystemSpace(total - others[0] - m.disk_bytes(), total)

        monkeypatch.setattr(m.directory, "space", look)
        await m.space._observe()
        for number in range(6):
            await cache_whole(m, f"k{number}")
            assert m.disk_bytes() <= pages(4) + METADATA_BYTES
        assert cached(m) == {"k2", "k3", "k4", "k5"}
        others[0] = pages(3)  # somebody else writes
        await m.space._observe()
        assert cached(m) == {"k4", "k5"}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[FailingDirectory], None]:
    """Let writes to files that exist fail as well."""
    real = disk.write_all

    def install(directory: FailingDirectory) -> None:
        def write_all(fd: int, data: memoryview, offset: int) -> None:
            if directory.fail_writing:
                real(fd, data[: len(data) // 2], offset)
                raise OSError(directory.fail_writing, "the disk fails")
            real(fd, data, offset)

        monkeypatch.setattr(disk, "write_all", write_all)

    return install


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.expected_logs("reading from the under-store until it recovers")
async def test_a_disk_that_cannot_be_written_is_bypassed_until_it_can(
    tmp_path: Path, code: int, full_disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr(space, "OBSERVE_INTERVAL_S", 0.01)
    driver = FakeStore()
    contents = {f"k{number}": random_bytes(pages(3) + number, number) for number in range(4)}
    for key, data in contents.items():
        driver.place(key, data)
    async with mounted(tmp_path, driver, directory=FailingDirectory) as m:
        full_disk(m.directory)
        part = acquire(m, "k0")
        await m.cache.read(part, 0, 10)
        m.directory.fail_writing = code
        assert bytes(await m.cache.read(part, pages(2), 10)) == contents["k0"][pages(2) : pages(2) + 10]
        assert m.space.degraded
        assert "cache directory" in m.space.degraded
        for key, data in contents.items():
            assert await m.read_all(key) == data
        assert m.space.ledger.reserved_bytes == 0
        assert m.cache.budget.idle
        m.nursery.start_soon(m.space.watch)
        for _ in range(5):
            await trio.sleep(0.01)
            assert m.space.degraded
        m.directory.fail_writing = 0
        await until(lambda: m.space.degraded is None)
        for key, data in contents.items():
            assert await m.read_all(key) == data
            assert await m.read_all(key) == data
        m.cache.release(part)


@pytest.mark.expected_logs("reading from the under-store until it recovers")
async def test_a_disk_that_cannot_be_read_is_bypassed(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(3), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver, directory=FailingDirectory) as m:
        await cache_whole(m, "k")
        m.directory.fail_reading = errno.EIO
        assert await m.read_all("k") == data
        assert m.space.degraded


@pytest.mark.expected_logs("no descriptors are left")
@pytest.mark.parametrize("side", ["reading", "writing"])
async def test_a_lack_of_descriptors_is_no_sick_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    monkeypatch.setattr(descriptors, "SHORTAGE_WAITS_S", (0.001, 0.001))
    driver = FakeStore()
    data = random_bytes(pages(3), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver, directory=FailingDirectory) as m:
        if side == "reading":
            oid = await cache_whole(m, "k")
            m.directory.fail_reading = errno.EMFILE
            with pytest.raises(descriptors.NoDescriptors):
                await m.read_all("k")
            assert m.directory.file_of(oid).exists()
            gets = driver.counts["get"]
        else:
            m.directory.fail_writing = errno.EMFILE
            assert await m.read_all("k") == data
        assert m.space.degraded is None
        m.directory.fail_reading = m.directory.fail_writing = 0
        assert await m.read_all("k") == data
        assert side == "writing" or driver.counts["get"] == gets


@pytest.mark.expected_logs("no descriptors are left")
async def test_a_look_that_finds_no_descriptors_says_nothing_of_the_disk(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("k", b"content")
    async with mounted(tmp_path, driver, directory=FailingDirectory) as m:
        await cache_whole(m, "k")
        m.directory.fail_looking = errno.EMFILE
        await m.space._observe()
        assert (m.space.degraded, m.space.unreadable, m.space.write_failures) == (None, False, 0)
        assert await m.read_all("k") == b"content"
        assert driver.counts["get"] == 1


async def test_each_wait_for_descriptors_is_followed_by_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "SHORTAGE_WAITS_S", (0.001, 0.001))
    tries = 0

    async def third_time_lucky() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.EMFILE, "too many")
        return "open"

    assert await descriptors.patiently(third_time_lucky) == "open"


@pytest.mark.expected_logs("no descriptors are left")
def test_a_lack_of_descriptors_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    monkeypatch.setattr(descriptors.time, "monotonic", lambda: now_s)
    shortages = descriptors.Shortages()
    for _ in range(1000):
        shortages.note("a file")
    assert len(caplog.messages) == 1
    assert "more times" not in caplog.messages[0]
    now_s += descriptors.LOGGED_S
    shortages.note("a file")
    assert len(caplog.messages) == 2
    assert "; 999 more times" in caplog.messages[1]


@pytest.mark.expected_logs("no descriptors are left")
async def test_reads_that_meet_a_lack_of_descriptors_are_not_each_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(descriptors, "SHORTAGE_WAITS_S", (0.001,))

    async def fail() -> None:
        raise OSError(errno.EMFILE, "too many")

    for _ in range(10):
        with pytest.raises(descriptors.NoDescriptors):
            await descriptors.patiently(fail)
    assert len(caplog.messages) <= 1


@pytest.mark.expected_logs("is gone; fetching it again", "until it recovers")
async def test_a_cache_directory_that_vanished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "PROBE_INTERVAL_S", 0.01)
    driver = FakeStore()
    contents = {f"k{number}": random_bytes(pages(1), number) for number in range(4)}
    for key, data in contents.items():
        driver.place(key, data)
    async with mounted(tmp_path, driver) as m:
        for key in ("k0", "k1"):
            await m.read_all(key)
        handle = await m.open("k0")
        shutil.rmtree(m.directory.path)
        assert await m.read_all("k2") == contents["k2"]
        assert m.space.degraded
        assert await m.kernel.read_all(m.fs, handle) == contents["k0"]
        m.nursery.start_soon(m.space.watch)
        await until(lambda: m.space.degraded is None)
        assert m.space.ledger.used_bytes == 0
        await m.kernel.release(m.fs, handle)
        for key, data in contents.items():
            assert await m.read_all(key) == data
        assert cached(m) >= {"k0", "k1", "k3"}  # the other one may still be in memory
        assert m.disk_bytes() == m.space.ledger.used_bytes


@pytest.mark.expected_logs("until it recovers")
async def test_a_failing_index_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "PROBE_INTERVAL_S", 0.01)
    async with mounted(tmp_path, FakeStore()) as m:
        m.space.fail(OSError(errno.EIO, "made up"))
        failures = 2

        async def clear(_directory: int) -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(m.objects, "clear", clear)
        monkeypatch.setattr(m.directory, "probe", lambda: False)
        m.nursery.start_soon(m.space.watch)
        await until(lambda: m.space.degraded is None)


async def test_the_sweep_removes_unknown_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luxfuse.cache.sweep.PAUSE_S", 0.0)
    monkeypatch.setattr("luxfuse.cache.sweep.BATCH", 3)
    driver = FakeStore()
    for number in range(7):
        driver.place(f"k{number}", random_bytes(5000, number))
    async with mounted(tmp_path, driver, readahead_bytes=0) as m:
        for number in range(6):
            await m.read_all(f"k{number}")
        used = m.space.ledger.used_bytes
        strangers = [bytes([number]) * 16 for number in range(8)]
        for oid in strangers:
            path = m.directory.file_of(oid)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        (m.directory.path / "objects" / "note.txt").write_text("not ours")
        being_filled = acquire(m, "k6")
        driver.hold()
        m.cache.start(being_filled, range(1))
        path = m.directory.file_of(being_filled.oid)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
        await sweep(m.cache.contents, m.space)
        assert not any(m.directory.file_of(oid).exists() for oid in strangers)
        assert path.exists(), "a file that a fetch is writing was removed"
        assert len(cached(m)) == 6
        assert m.space.ledger.used_bytes == used
        driver.release()
        await until(lambda: being_filled.whole)


async def test_objects_whose_files_are_gone_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between the removal of a file and the commit of its record."""
    monkeypatch.setattr("luxfuse.cache.sweep.PAUSE_S", 0.0)
    monkeypatch.setattr("luxfuse.cache.sweep.BATCH", 3)
    driver = FakeStore()
    for number in range(7):
        driver.place(f"k{number}", random_bytes(5000, number))
    async with mounted(tmp_path, driver) as m:
        for number in range(7):
            await m.read_all(f"k{number}")
        used = m.space.ledger.used_bytes
        in_use = acquire(m, "k1")
        for number in (0, 1, 5):
            m.file_of(f"k{number}").unlink()
        await forget_lost(m.cache.contents, m.space)
        assert cached(m) == {f"k{number}" for number in (1, 2, 3, 4, 6)}
        assert m.space.ledger.used_bytes == used * 5 // 7
        m.cache.release(in_use)
        m.directory.path.joinpath("objects").rename(tmp_path / "elsewhere")
        await forget_lost(m.cache.contents, m.space)
        assert len(cached(m)) == 5, "a disk that is not there has lost nothing"
        (tmp_path / "elsewhere").rename(m.directory.path / "objects")
        await forget_lost(m.cache.contents, m.space)
        assert cached(m) == {f"k{number}" for number in (2, 3, 4, 6)}


@pytest.mark.expected_logs("reading from the under-store until it recovers")
async def test_a_disk_that_removes_nothing_costs_no_records(
    tmp_path: Path, tight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space.Space, "watch", lambda _self: trio.sleep_forever())  # which would make room, and probe, too
    driver = FakeStore()
    for number in range(8):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, capacity_bytes=pages(6), directory=FailingDirectory) as m:
        for number in range(6):
            await cache_whole(m, f"k{number}")
        attempts = []

        def refuse(oid: bytes) -> None:
            attempts.append(oid)
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(m.directory, "remove", refuse)
            assert await m.read_all("k6") == driver.objects["k6"][0]
            assert m.space.degraded
            assert len(attempts) == 1, "it tries them all"
        assert m.objects.count == 6
        assert m.space.evictions == 0
        assert cached(m) == {f"k{number}" for number in range(6)}
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes() == pages(6)
        m.space.ledger.used_bytes += 12345
        await m.space._probe()
        assert m.space.degraded is None
        assert m.space.ledger.used_bytes == pages(6)
        await cache_whole(m, "k7")
        assert "k7" in cached(m)
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes() == pages(6)


@pytest.mark.expected_logs("reading from the under-store until it recovers")
@pytest.mark.parametrize("fails", [False, True])
async def test_an_object_wanted_while_it_is_evicted(tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(3), 1))
    async with mounted(tmp_path, driver) as m:
        oid = await cache_whole(m, "k")
        begun, go_on = threading.Event(), threading.Event()
        real = m.directory.remove

        def remove(oid: bytes) -> None:
            begun.set()
            go_on.wait(120)
            if fails:
                raise OSError(errno.EIO, "Input/output error")
            real(oid)

        monkeypatch.setattr(m.directory, "remove", remove)
        assert m.cache.contents.let_go(oid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.space.remove, oid)
            await until(begun.is_set)
            obj = acquire(m, "k")
            assert obj.pages.count == 0
            m.cache.touch(obj)
            m.cache.touch_by_ids([oid])
            go_on.set()
        assert obj.pages.count == (3 if fails else 0)
        assert bytes(await m.cache.read(obj, 0, pages(3))) == driver.objects["k"][0]
        await until(lambda: m.cache.budget.idle)
        assert obj.whole
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes() == pages(3)


@pytest.mark.expected_logs("is not recorded", "index cannot be written", "until it recovers", "is gone", "damaged page")
async def test_an_index_that_takes_no_changes_fails_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    for number in range(6):
        driver.place(f"k{number}", random_bytes(pages(3), number))
    async with mounted(tmp_path, driver, readahead_bytes=0, flusher=False) as m:
        for number in range(4):
            await m.read_all(f"k{number}")
        await m.inode("k4")
        lost, part = acquire(m, "k3"), acquire(m, "k4")
        await m.cache.read(part, 0, 10)
        flip = m.directory.file_of(acquire(m, "k2").oid)

        def fail(*_args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(m.index, "_commit", fail)
            patch.setattr("luxfuse.index.store.PENDING_BOUND", 0)
            m.index.failing = "made up"
            handle = await m.open("k0")
            m.files.backings.note_touched()
            m.cache.touch_by_ids([b"unknown oid 1234"])
            await m.kernel.release(m.fs, handle)
            m.files.backings.forget_all()
            flip.write_bytes(bytes(pages(3)))
            m.directory.file_of(lost.oid).unlink()
            for number in range(5):
                assert await m.read_all(f"k{number}") == driver.objects[f"k{number}"][0]
            await m.space._observe()
            assert not await m.space._evict(1)
            assert m.objects.refused
            stored = set(m.directory.stored())
            obj = acquire(m, "k5")
            assert bytes(await m.cache.read(obj, 0, obj.size)) == driver.objects["k5"][0]
            assert set(m.directory.stored()) == stored, "something is stored that cannot be recorded"
        m.space.degraded = None
        await m.index.flush()
        for number in range(6):
            for page in range(3):
                m.cache.recent.discard(acquire(m, f"k{number}").oid, page)
            await cache_whole(m, f"k{number}")
            assert await m.read_all(f"k{number}") == driver.objects[f"k{number}"][0]
            found = m.objects.load(acquire(m, f"k{number}").oid)
            assert found is not None
            assert found[1].whole
        assert m.objects.used_bytes == m.disk_bytes()


def counts_agree(m: Mount) -> bool:
    return m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes()


@pytest.mark.expected_logs("until it recovers")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("size", [pages(1), pages(5)])
async def test_a_write_that_fails_half_way_leaves_nothing_on_disk(
    tmp_path: Path, code: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(size, 1))
    real = disk.write_all

    def write_half(fd: int, data: memoryview, offset: int) -> None:
        real(fd, data[: len(data) // 2], offset)
        raise OSError(code, "the disk fails")

    async with mounted(tmp_path, driver) as m:
        monkeypatch.setattr(disk, "write_all", write_half)
        assert await m.read_all("k") == driver.objects["k"][0]
        assert m.space.degraded
        await until(lambda: m.cache.budget.idle)
        assert m.disk_bytes() == 0
        assert counts_agree(m)


@pytest.mark.expected_logs("until it recovers")
async def test_a_write_that_lands_on_a_sick_disk_counts(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(5), 1))
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        await m.cache.read(obj, 0, 10)
        driver.hold()
        m.cache.start(obj, range(5))
        m.space.fail(OSError(errno.EIO, "made up"))
        driver.release()
        await until(lambda: not obj.flights)
        assert m.disk_bytes() == pages(5)
        assert counts_agree(m)


@pytest.mark.expected_logs("until it recovers")
async def test_a_file_that_cannot_be_read_is_removed(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(3), 1))
    async with mounted(tmp_path, driver, directory=FailingDirectory) as m:
        await cache_whole(m, "k")
        m.directory.fail_reading = errno.EIO
        assert await m.read_all("k") == driver.objects["k"][0]
        await until(lambda: m.disk_bytes() == 0)
        assert counts_agree(m)


@pytest.mark.expected_logs("until it recovers")
async def test_a_disk_that_recovered_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(1), 1))
    driver.place("left", random_bytes(pages(1), 2))
    async with mounted(tmp_path, driver) as m:
        sweeper = Sweeper(m.cache.contents)
        m.hierarchy.shared.on_left_files.append(sweeper.request)
        m.nursery.start_soon(sweeper.run)
        await cache_whole(m, "k")
        path = m.directory.file_of(acquire(m, "left").oid)  # in use, but nothing of it is known to be on disk
        path.parent.mkdir(exist_ok=True)
        for _ in range(2):
            path.write_bytes(b"x" * 4096)
            await trio.sleep(0.02)
            assert path.exists()
            m.space.fail(OSError(errno.EIO, "made up"))
            await m.space._probe()
            await until(lambda: not path.exists())
            assert cached(m) == {"k"}
            assert counts_agree(m)


async def test_what_an_earlier_run_gave_up_is_removed_at_the_start(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(1), 1))
    async with mounted(tmp_path, driver) as m:
        await cache_whole(m, "k")
        m.directory.doom_all()  # and the daemon dies
    async with mounted(tmp_path, driver) as m:
        assert list(m.directory.path.glob("doomed-*"))
        m.nursery.start_soon(Sweeper(m.cache.contents).run)
        await until(lambda: not list(m.directory.path.glob("doomed-*")))


@pytest.mark.expected_logs("No space left on device")
async def test_a_full_disk_is_told_of_unless_eviction_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    for number in range(2):
        driver.place(f"k{number}", random_bytes(pages(1), number))
    async with mounted(tmp_path, driver, capacity_bytes=None) as m:
        handle = await m.open("k0")
        await cache_whole(m, "k1")
        monkeypatch.setattr(m.directory, "space", lambda: FileSystemSpace(0, pages(100)))
        await m.space._observe()
        assert m.space.degraded is None
        assert cached(m) == {"k0"}
        await m.space._observe()
        assert m.space.degraded is not None
        assert "No space left" in m.space.degraded
        monkeypatch.undo()
        await m.space._probe()
        assert m.space.degraded is None
        await m.kernel.release(m.fs, handle)


async def test_many_files_are_evicted_in_one_turn_of_a_thread(tmp_path: Path, tight: None) -> None:
    driver = FakeStore()
    for number in range(40):
        driver.place(f"k{number:02}", random_bytes(8192, number))
    async with mounted(tmp_path, driver, capacity_bytes=40 * 8192, eviction_policy="lru") as m:
        for number in range(40):
            await cache_whole(m, f"k{number:02}")
        turns = 0
        run_sync = trio.to_thread.run_sync

        async def counted(*args: object, **kwargs: object) -> object:
            nonlocal turns
            turns += 1
            return await run_sync(*args, **kwargs)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", counted)
            assert await m.space.make_room(30 * 8192)
        assert turns < 10, "a commit, a look at the records, and the files"
        assert cached(m) == {f"k{number:02}" for number in range(30, 40)}
        assert m.space.ledger.used_bytes == 10 * 8192
        assert m.space.evictions == 30


async def test_files_that_cannot_be_removed_stay_and_those_before_are_gone(
    tmp_path: Path, tight: None, monkeypatch: pytest.MonkeyPatch, expected_logs: list[str]
) -> None:
    expected_logs.append("reading from the under-store until it recovers")
    driver = FakeStore()
    for number in range(8):
        driver.place(f"k{number}", random_bytes(8192, number))
    async with mounted(tmp_path, driver, capacity_bytes=8 * 8192, eviction_policy="lru") as m:
        oids = [await cache_whole(m, f"k{number}") for number in range(8)]
        remove = m.space.directory.remove

        def refuse(oid: bytes) -> None:
            if oid == oids[3]:
                raise OSError(errno.EIO, "broken")
            remove(oid)

        monkeypatch.setattr(m.space.directory, "remove", refuse)
        await m.space.make_room(6 * 8192)
        assert cached(m) == {f"k{number}" for number in range(3, 8)}
        assert (m.space.ledger.used_bytes, m.space.evictions) == (5 * 8192, 3)
        assert not m.space.shared.removing


async def test_what_is_evicted_later_is_not_waited_for(
    tmp_path: Path, tight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "AT_ONCE", 4)
    driver = FakeStore()
    for number in range(12):
        driver.place(f"k{number:02}", random_bytes(8192, number))
    async with mounted(tmp_path, driver, capacity_bytes=12 * 8192, eviction_policy="lru") as m:
        oids = [await cache_whole(m, f"k{number:02}") for number in range(12)]
        begun, go_on, remove = threading.Event(), threading.Event(), m.space.directory.remove

        def slow(oid: bytes) -> None:
            begun.set()
            go_on.wait(120)
            remove(oid)

        monkeypatch.setattr(m.space.directory, "remove", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.space.make_room, 10 * 8192)
            await until(begun.is_set)
            assert set(m.space.shared.removing) == set(oids[:4])
            reads = driver.counts["get"]
            obj = acquire(m, "k08")
            assert bytes(await m.cache.read(obj, 0, 8192)) == driver.objects["k08"][0]
            assert driver.counts["get"] == reads, "it is in the cache"
            go_on.set()
        assert obj.whole
        m.cache.release(obj)
        assert m.space.evictions >= 10
        assert m.space.ledger.used_bytes == m.objects.used_bytes == m.disk_bytes() <= 2 * 8192
        assert not m.space.shared.removing


@pytest.mark.parametrize("where", ["directory_of", "load"])
async def test_an_index_that_fails_leaves_nothing_removing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, expected_logs: list[str]
) -> None:
    """Else each read of it would wait for ever."""
    driver = FakeStore()
    for number in range(4):
        driver.place(f"k{number}", random_bytes(8192, number))
    async with mounted(tmp_path, driver) as m:
        oids = [await cache_whole(m, f"k{number}") for number in range(4)]
        real = getattr(m.objects, where)

        def fail(oid: bytes) -> object:
            if oid == oids[2]:
                raise OSError(errno.EIO, "broken")
            return real(oid)

        def refuse(_oid: bytes) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        assert all(m.cache.contents.let_go(oid) for oid in oids)
        with monkeypatch.context() as patch:
            patch.setattr(m.objects, where, fail)
            if where == "load":  # which is asked for those that stay, and are wanted meanwhile
                expected_logs.append("until it recovers")
                patch.setattr(m.space.directory, "remove", refuse)
                patch.setattr(m.cache.contents, "removal_ended", lambda oid, _removed: fail(oid))
            with pytest.raises(OSError, match="broken"):
                await m.space.evict(oids)
        assert not m.space.shared.removing
        for number in range(4):
            assert await m.read_all(f"k{number}") == driver.objects[f"k{number}"][0]
