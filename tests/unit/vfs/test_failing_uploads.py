"""Uploads that fail for long: told why, tried again ever later, and nothing that arrived is sent again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from luxfuse.core.writeback import LONGEST_OUTAGE_RETRY_S, LONGEST_RETRY_S, retry_delay_s
from luxfuse.errors import NotFound, StoreRejected
from luxfuse.types import ObjectInfo
from luxfuse.vfs.dirty import Dirty
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, snapshot, until
from tests.support.virtual_time import virtual_time

pytestmark = pytest.mark.usefixtures("mock_clock")
LATER = pytest.mark.expected_logs("cannot be brought to the under-store yet")


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


async def write(m: Mount, name: str, data: bytes) -> None:
    handle, _ = await m.kernel.create(m.fs, 1, name.encode(), 0o644)
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.flush(m.fs, handle)
    await m.kernel.release(m.fs, handle)


def pause_s(m: Mount, dirty: Dirty) -> float:
    """For how long the next try waits."""
    return m.writeback._due.at_s(dirty) - trio.current_time()


async def failed(m: Mount, dirty: Dirty, times: int) -> None:
    """Hurry until so many tries have failed."""
    while dirty.tries.attempts < times:
        before = m.writeback.pace.failures
        m.writeback.hurry()
        await until(lambda before=before: m.writeback.pace.failures > before and dirty in m.writeback._due)  # type: ignore[misc]


def test_pauses_grow_to_minutes_and_differ() -> None:
    rng = random.Random(1)
    assert [retry_delay_s(n, LONGEST_RETRY_S) for n in (0, 1, 5, 8, 9, 1000)] == [1, 2, 32, 256, 300, 300]
    assert retry_delay_s(1000) == LONGEST_OUTAGE_RETRY_S
    some = {retry_delay_s(9, LONGEST_RETRY_S, rng) for _ in range(100)}
    assert len(some) == 100
    assert min(some) >= 225
    assert max(some) <= 300


@LATER
async def test_a_file_that_is_refused_waits_longer_each_time_until_it_is_changed(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        driver.fail_next(1000, lambda: StoreRejected("PUT 'a': 400 Bad Request (TooOdd)"), "put")
        await write(m, "a", b"first")
        (dirty,) = m.dirty
        await failed(m, dirty, 9)
        assert 190 < pause_s(m, dirty) <= 256
        m.writing.publisher.publish(dirty)  # as the last close of a reader does
        m.writeback.schedule(dirty)
        assert 190 < pause_s(m, dirty) <= 256
        tries = m.writeback.pace.failures
        m.writeback.pace.urgent = True  # an unmount that waits
        m.writeback.hurry()
        await until(lambda: m.writeback.pace.failures > tries and dirty in m.writeback._due)
        assert pause_s(m, dirty) > 190
        m.writeback.pace.urgent = False
        assert "TooOdd" in str(dirty.tries.error)
        handle = await m.kernel.open(m.fs, await m.inode("a"), 2)
        await m.kernel.write(m.fs, handle, 0, b"second")
        await m.kernel.flush(m.fs, handle)
        await m.kernel.release(m.fs, handle)
        assert pause_s(m, dirty) <= 1
        m.writeback.hurry()
        await until(lambda: dirty.tries.attempts == 1)
        driver._failures.clear()


@pytest.mark.expected_logs("failed in an unexpected way", "cannot be brought to the under-store yet")
async def test_what_nobody_foresaw_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    put = driver.put

    def odd(key: str, *arguments: object, **options: object) -> ObjectInfo:
        raise KeyError("ETag")

    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        monkeypatch.setattr(driver, "put", odd)
        await write(m, "a", b"first")
        (dirty,) = m.dirty
        await failed(m, dirty, 3)
        assert "KeyError" in str(dirty.tries.error)
        assert 2 < pause_s(m, dirty) <= 4
        monkeypatch.setattr(driver, "put", put)
        await m.drain()
    assert driver.objects["a"][0] == b"first"


@LATER
@pytest.mark.parametrize("changed", [False, True])
async def test_what_arrived_before_a_kill_is_not_sent_again(tmp_path: Path, changed: bool) -> None:
    driver = FakeStore()
    data = bytearray(random_bytes(pages(40), 3))
    async with mounted(tmp_path / "1", driver, write_mode="async-through") as m:
        driver.fail_next(1000, lambda: StoreRejected("no"), "complete_upload")
        await write(m, "a", bytes(data))
        (dirty,) = m.dirty
        await failed(m, dirty, 1)
        assert driver.counts["upload_part"] == 5
        if changed:
            handle = await m.kernel.open(m.fs, await m.inode("a"), 2)
            data[pages(9)] ^= 1
            await m.kernel.write(m.fs, handle, pages(9), bytes(data[pages(9) : pages(9) + 1]))
            await m.kernel.flush(m.fs, handle)
            await m.kernel.release(m.fs, handle)
        await m.journal.commit()
        left = snapshot(m, tmp_path / "2")
        driver._failures.clear()
    async with mounted(tmp_path / "2", left, write_mode="async-through") as m:
        await m.drain()
        assert left.objects["a"][0] == bytes(data)
        assert left.counts["upload_part"] == int(changed)
        assert left.counts["begin_upload"] == 0
        assert await m.read_all("a") == bytes(data)
    assert left.uploads == {}


@LATER
async def test_an_upload_that_the_store_has_forgotten_begins_anew(tmp_path: Path) -> None:
    driver = FakeStore()
    data = random_bytes(pages(40), 3)
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        driver.fail_next(1, lambda: StoreRejected("no"), "complete_upload")
        await write(m, "a", data)
        (dirty,) = m.dirty
        await failed(m, dirty, 1)
        driver.uploads.clear()
        await m.drain()
    assert driver.objects["a"][0] == data
    assert driver.counts["upload_part"] == 10
    assert m.journal.uploads.open == set()


@LATER
async def test_a_store_that_forgets_each_upload_is_not_sent_everything_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeStore()
    complete = driver.complete_upload

    def forgets(key: str, *_: object, **__: object) -> ObjectInfo:
        raise NotFound(f"COMPLETE {key!r}: 404 Not Found (NoSuchUpload)")

    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        monkeypatch.setattr(driver, "complete_upload", forgets)
        await write(m, "a", random_bytes(pages(40), 3))
        (dirty,) = m.dirty
        await failed(m, dirty, 1)
        assert "forgets uploads" in str(dirty.tries.error)
        assert driver.counts["upload_part"] <= 10
        assert 20 < pause_s(m, dirty) <= 32
        monkeypatch.setattr(driver, "complete_upload", complete)
        await m.drain()


async def test_deletes_that_are_refused_wait_longer_each_time(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a", b"content")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        driver.fail_next(1000, lambda: StoreRejected("DELETE 'a': 403 Forbidden (AccessDenied)"), "delete")
        await m.fs.unlink(1, b"a")
        pauses = []
        for count in (1, 2, 3, 4):
            m.writeback.hurry()
            await until(
                lambda count=count: m.writeback.deletes._failures.get("a") == count and not m.writeback.deletes._deleting
            )  # type: ignore[misc]
            pauses.append(m.writeback.deletes._due["a"] - trio.current_time())
        assert [round(pause / 0.875 / 2**n) for n, pause in enumerate(pauses, 1)] == [1, 1, 1, 1]
        assert "AccessDenied" in str(m.writeback.deletes.error("a"))
        driver._failures.clear()
        await m.drain()
    assert driver.objects == {}
