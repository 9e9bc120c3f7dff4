"""Pages come from the store once, whoever waits, and errors reach all who wait."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.errors import NotFound, StoreRejected, VersionChanged
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, mounted, pages, random_bytes, until


def acquire(mount: Mount, key: str) -> CachedObject:
    data, version, _, _ = mount.driver.objects[key]
    return mount.cache.acquire(key, version, len(data))


async def read_parts(mount: Mount, obj: CachedObject, part_bytes: int) -> bytes:
    return b"".join([bytes(await mount.cache.read(obj, offset, part_bytes)) for offset in range(0, obj.size, part_bytes)])


@pytest.mark.parametrize("size", [1, 4096, pages(1), pages(1) + 1, pages(5) + 77])
async def test_twenty_readers_of_a_cold_file_fetch_each_page_once(tmp_path: Path, size: int) -> None:
    driver = FakeStore()
    data = random_bytes(size, size)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")

        async def reader(number: int) -> None:
            assert await read_parts(m, obj, 100_000 + 7777 * number) == data

        driver.hold()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(reader, number)
            await trio.testing.wait_all_tasks_blocked()
            driver.release()
        fetched = sorted(span for (_, span), count in driver.reads.items() for _ in range(count))
        assert fetched[0][0] == 0
        assert fetched[-1][1] == size
        assert all(one[1] == other[0] for one, other in pairwise(fetched)), fetched
        assert not obj.flights
        assert obj.whole
        m.cache.release(obj)
        assert m.cache.budget.idle
        assert m.space.ledger.reserved_bytes == 0
        assert m.cache.counters.understore_bytes == size


async def test_an_error_reaches_all_waiters_and_the_next_read_tries_again(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(1), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        caught = []

        async def reader() -> None:
            try:
                await m.cache.read(obj, 0, 4096)
            except StoreRejected as exc:
                caught.append(exc)

        driver.fail_next(error=lambda: StoreRejected("no"))
        driver.hold()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            driver.release()
        assert len(caught) == 10
        assert driver.counts["get"] == 1
        assert bytes(await m.cache.read(obj, 0, 4096)) == data[:4096]
        assert m.cache.budget.idle
        assert m.space.ledger.reserved_bytes == 0


async def test_a_passing_failure_is_retried_within_one_read(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(1), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        driver.fail_next(2)
        assert bytes(await m.cache.read(acquire(m, "k"), 0, pages(1))) == data


async def test_an_unexpected_error_of_a_driver_is_an_error_of_the_reader(tmp_path: Path, expected_logs: list) -> None:
    expected_logs.append("failed in an unexpected way")
    driver = FakeStore()
    driver.place("k", bytes(pages(1)))
    async with mounted(tmp_path, driver) as m:
        driver.fail_next(error=lambda: ZeroDivisionError("a bug"))
        obj = acquire(m, "k")
        with trio.fail_after(60), pytest.raises(Exception, match="cannot be understood"):
            await m.cache.read(obj, 0, 10)
        assert bytes(await m.cache.read(obj, 0, 10)) == bytes(10)


async def test_an_index_that_takes_no_changes_is_no_error_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: list
) -> None:
    expected_logs.append("is not recorded")
    driver = FakeStore()
    driver.place("k", bytes(pages(1)))
    async with mounted(tmp_path, driver) as m:

        def refuse(*_args: object) -> None:
            raise OSError(28, "No space left on device")

        obj = acquire(m, "k")
        with monkeypatch.context() as patch:
            patch.setattr(m.index, "apply", refuse)
            with trio.fail_after(60):
                assert bytes(await m.cache.read(obj, 0, 10)) == bytes(10)
        assert not obj.flights
        assert m.cache.budget.idle
        assert m.space.ledger.reserved_bytes == 0


async def test_a_replaced_or_removed_object_is_told_apart_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(4), 1))
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        await m.cache.read(obj, 0, 10)
        before = obj.pages.count
        driver.place("k", random_bytes(pages(4), 2))
        with pytest.raises(VersionChanged):
            await m.cache.read(obj, pages(3), 10)
        driver.remove("k")
        with pytest.raises(NotFound):
            await m.cache.read(obj, pages(3), 10)
        assert obj.pages.count == before
        assert len(await m.cache.read(obj, 0, 10)) == 10


async def test_another_version_and_a_short_body_are_not_taken(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(1), 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        driver.wrong_etag_next()
        obj = acquire(m, "k")
        with pytest.raises(VersionChanged):
            await m.cache.read(obj, 0, 10)
        driver.short_body_next()
        assert bytes(await m.cache.read(obj, 0, pages(1))) == data


async def test_reads_at_and_beyond_the_end(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(1) + 10, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        assert bytes(await m.cache.read(obj, pages(1) + 5, 4096)) == data[-5:]
        assert bytes(await m.cache.read(obj, len(data), 4096)) == b""
        assert bytes(await m.cache.read(obj, len(data) + 5, 4096)) == b""
        assert bytes(await m.cache.read(obj, 0, 0)) == b""
        assert obj.cached_bytes == 10 or obj.whole


async def test_bytes_in_flight_and_in_memory_stay_within_the_limit(tmp_path: Path) -> None:
    driver = FakeStore()
    limit = pages(6)
    driver.delay_s = 0.001
    keys = [f"k{number}" for number in range(12)]
    for number, key in enumerate(keys):
        driver.place(key, random_bytes(pages(6) + 5, number))
    most = 0
    async with mounted(tmp_path, driver, memory_bytes=limit) as m:

        async def reader(key: str) -> None:
            nonlocal most
            obj = acquire(m, key)
            data = driver.objects[key][0]
            for offset in range(0, len(data), 300_000):
                m.cache.start(obj, range(min(obj.pages.total, 4)))
                assert bytes(await m.cache.read(obj, offset, 300_000)) == data[offset : offset + 300_000]
                most = max(most, m.cache.budget.held_bytes)
                assert m.cache.budget.held_bytes <= limit
                assert m.cache.recent.held_bytes <= limit
            m.cache.release(obj)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(reader, key)
        await until(lambda: m.cache.budget.idle)
    assert most > pages(2)


@AWAY
async def test_a_hanging_request_ends_at_its_deadline_and_leaves_nothing_uncounted(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("k", random_bytes(pages(1), 1))
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        driver.hold()
        with m.impatient(), pytest.raises(Exception, match="no answer"):
            await m.cache.read(obj, 0, 10)
        assert m.cache.budget.idle
        assert m.space.ledger.reserved_bytes == 0
        driver.release()
        await until(lambda: driver.counts["get"] >= 1 and _idle_threads(m))
        assert m.store._workers is not None
        assert m.store._workers._lost == 0, "its thread is counted in again"
        assert m.disk_bytes() == m.space.ledger.used_bytes == 0


def _idle_threads(mount: Mount) -> bool:
    workers = mount.store._workers
    return workers is None or (workers._outstanding == 0 and mount.store._limiter.borrowed_tokens == 0)


async def test_an_object_in_use_is_one_and_idle_ones_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luxfuse.cache.contents.IDLE_OBJECTS", 5)
    driver = FakeStore()
    async with mounted(tmp_path, driver) as m:
        one = m.cache.acquire("k", "v", 10)
        assert m.cache.acquire("k", "v", 10) is one
        assert m.cache.acquire("k", "w", 10) is not one
        m.cache.release(one)
        m.cache.release(one)
        for number in range(20):
            m.cache.release(m.cache.acquire(f"k{number}", "v", 10))
        assert len(m.cache.contents._idle) == 5


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_after_the_end_of_the_volume_is_an_error_and_no_mistake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """A thread that a request has left behind comes back when the index is closed already."""
    driver = FakeStore()
    if fails:
        driver.fail_next(error=lambda: StoreRejected("k: no"), kind="get")
    driver.place("k", random_bytes(pages(1), 1))
    async with mounted(tmp_path, driver) as m:
        obj = acquire(m, "k")
        fetching, answered = m.cache.fetching, trio.Event()
        plain = fetching._answered

        def late(*arguments: Any) -> None:
            m.index.closed = True
            get = m.index.get
            m.index.get = lambda *_: pytest.fail("looked up after the end")
            try:
                plain(*arguments)
            finally:
                m.index.closed, m.index.get = False, get
                answered.set()

        fetching._answered = late  # type: ignore[method-assign]
        m.cache.start(obj, range(1))
        with trio.fail_after(60):
            await answered.wait()
        assert obj.pages.count == 0
        assert m.space.ledger.reserved_bytes == 0
        m.cache.release(obj)
    assert not caplog.records
