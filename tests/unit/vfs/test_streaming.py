"""What is fetched ahead of readers of large files, and when they get it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from luxfuse.cache import disk
from luxfuse.core.flow import LEAST_BYTES, LEAST_RUN_BYTES
from luxfuse.errors import StoreError, StoreRejected
from luxfuse.types import PAGE_BYTES
from tests.support.fake_kernel import ref_of
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until

MIB = 1 << 20


def store_of(count: int) -> FakeStore:
    driver = FakeStore()
    driver.place("big", random_bytes(pages(count), 3))
    return driver


def under_way_bytes(m: Mount) -> int:
    return m.files.copied._streams._streams.flow.under_way_bytes


async def test_a_reader_has_the_bytes_before_the_disk_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = store_of(24)
    writing = threading.Event()
    real = disk.store_run

    def slow(*arguments: Any, **options: Any) -> disk.Stored:
        assert writing.wait(120)
        return real(*arguments, **options)

    async with mounted(tmp_path, driver, readahead_bytes=0) as m:
        writing.set()
        handle = await m.open("big")  # which waits for the first page, as the store is to confirm the version
        writing.clear()
        monkeypatch.setattr(disk, "store_run", slow)
        with trio.fail_after(60):
            data = bytes(await m.fs.read(ref_of(handle), pages(5), MIB))
        obj = next(iter(m.cache.contents._live.values()))
        assert data == driver.objects["big"][0][pages(5) : pages(6)]
        assert not obj.pages.has(5)
        assert bytes(await m.fs.read(ref_of(handle), pages(5), 10)) == data[:10], "once more, meanwhile"
        writing.set()
        await until(lambda: obj.pages.has(5))
        assert m.cache.recent.get(obj.oid, 5) is None, "it was read to its end"
        assert bytes(await m.fs.read(ref_of(handle), pages(5), MIB)) == data
        assert driver.reads[("big", (pages(5), pages(6)))] == 1
        await m.kernel.release(m.fs, handle)


async def test_a_read_is_answered_with_the_error_of_a_flight_that_brought_nothing(tmp_path: Path) -> None:
    driver = store_of(24)
    async with mounted(tmp_path, driver, readahead_bytes=0) as m:
        handle = await m.open("big")
        driver.fail_next(error=lambda: StoreRejected("no"), kind="get")
        with pytest.raises(StoreError, match="no"):
            await m.fs.read(ref_of(handle), pages(5), MIB)
        assert len(await m.fs.read(ref_of(handle), pages(5), MIB)) == MIB
        await m.kernel.release(m.fs, handle)


async def test_a_stream_has_a_bounded_number_of_bytes_under_way_in_their_order(tmp_path: Path) -> None:
    driver = store_of(64)
    async with mounted(tmp_path, driver, memory_bytes=pages(64), readahead_bytes=pages(64)) as m:
        handle = await m.open("big")
        driver.hold("get")
        async with trio.open_nursery() as nursery:
            for page in range(4):
                nursery.start_soon(m.fs.read, ref_of(handle), pages(page), MIB)
                await trio.testing.wait_all_tasks_blocked()
            await until(lambda: under_way_bytes(m) == LEAST_BYTES)
            obj = next(iter(m.cache.contents._live.values()))
            assert sorted(obj.flights) == list(range(1, 1 + LEAST_BYTES // PAGE_BYTES))
            assert {len(flight.pages) * PAGE_BYTES for flight in obj.flights.values()} == {LEAST_RUN_BYTES}
            driver.release()
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["big"][0]
        await m.kernel.release(m.fs, handle)
        assert under_way_bytes(m) == 0
        assert all(count == 1 for count in driver.reads.values())


async def test_what_a_read_waits_for_is_asked_for_before_what_is_ahead_of_it(tmp_path: Path) -> None:
    driver = store_of(64)
    async with mounted(tmp_path, driver, memory_bytes=pages(64), readahead_bytes=pages(64)) as m:
        handle = await m.open("big")
        await m.fs.read(ref_of(handle), pages(20), MIB)
        obj = next(iter(m.cache.contents._live.values()))
        await until(lambda: not obj.flights)
        driver.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.read, ref_of(handle), pages(21), MIB)
            await until(lambda: under_way_bytes(m) > 0)
            assert list(obj.flights)[:3] == [21, 22, 23], "in the order in which they began"
            driver.release()
        await m.kernel.release(m.fs, handle)


async def test_a_file_that_is_closed_is_not_fetched_on(tmp_path: Path) -> None:
    driver = store_of(64)
    async with mounted(tmp_path, driver, memory_bytes=pages(64), readahead_bytes=pages(64)) as m:
        handle = await m.open("big")
        driver.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.read, ref_of(handle), 0, MIB)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(m.fs.read, ref_of(handle), pages(1), MIB)
            await until(lambda: under_way_bytes(m) == LEAST_BYTES)
            await m.kernel.release(m.fs, handle)
            driver.release()
        await until(lambda: m.cache.budget.idle)
        assert under_way_bytes(m) == 0
        assert sum(driver.reads.values()) <= 1 + LEAST_BYTES // LEAST_RUN_BYTES


async def test_a_stream_that_fails_is_not_fetched_on_until_it_is_read(tmp_path: Path) -> None:
    driver = store_of(64)
    async with mounted(tmp_path, driver, memory_bytes=pages(64), readahead_bytes=pages(64)) as m:
        handle = await m.open("big")
        driver.fail_next(100, error=lambda: StoreRejected("no"), kind="get")
        await m.fs.read(ref_of(handle), 0, MIB)
        await until(lambda: m.cache.budget.idle and under_way_bytes(m) == 0)
        assert sum(driver.reads.values()) <= 1 + LEAST_BYTES // LEAST_RUN_BYTES
        driver.fail_next(0)
        driver._failures.clear()
        assert await m.kernel.read_all(m.fs, handle) == driver.objects["big"][0]
        await m.kernel.release(m.fs, handle)
