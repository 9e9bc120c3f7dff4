"""Counting what the store does not have, draining, and persisting paths."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from luxfuse.errors import AccessDenied
from luxfuse.index.names import ROOT_INODE
from luxfuse.orders import backlog as module
from luxfuse.orders import persisting
from luxfuse.orders.backlog import Backlog, Progress
from luxfuse.orders.persisting import persist
from luxfuse.types import WriteMode
from luxfuse.vfs.attributes import Caller
from luxfuse.vfs.deletes import is_at_or_below
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until
from tests.support.late_requests import given_up
from tests.support.virtual_time import virtual_time

ROOT = Caller(0, 0, 1, 0o022)
ASYNC = WriteMode.ASYNC_THROUGH


@pytest.fixture(autouse=True)
def _failures_are_logged(expected_logs: list[str]) -> None:
    expected_logs.append("cannot be brought to the under-store yet")


def backlog_of(m: Mount) -> Backlog:
    unfinished = m.namespace.unfinished
    return Backlog(entries=m.dirty, journal=m.journal, writeback=m.writeback, store=m.store, unfinished=unfinished)


async def create(m: Mount, name: str, data: bytes = b"", parent: int = ROOT_INODE) -> int:
    """Create and write a file; returns the open handle."""
    handle, _ = await m.kernel.create(m.fs, parent, name.encode())
    if data:
        await m.kernel.write(m.fs, handle, 0, data)
    return handle


async def make(m: Mount, name: str, data: bytes = b"", parent: int = ROOT_INODE) -> None:
    await m.kernel.close(m.fs, await create(m, name, data, parent))


async def last(steps) -> Progress:
    found = None
    async with aclosing(steps):
        async for step in steps:
            found = step
    assert found is not None
    return found


def refuse(driver: FakeStore, n: int = 1000) -> None:
    driver.fail_next(n, lambda: AccessDenied("403"), kind="put")
    driver.fail_next(n, lambda: AccessDenied("403"), kind="delete")


def allow(driver: FakeStore) -> None:
    driver._failures.clear()


@pytest.mark.parametrize(
    ("key", "path", "inside"),
    [
        ("a", "a", True), ("ab", "a", False), ("a/b", "a", True), ("a/", "a", True), ("a.rclonelink", "a", True),
        ("a/b.rclonelink", "a/b", True), ("ab/c", "a", False), ("a", "a/b", False), ("x/y", "", True), ("", "", True),
    ],
)  # fmt: skip
def test_at_or_below(key: str, path: str, inside: bool) -> None:
    assert is_at_or_below(key, path) == inside


async def test_tally(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("old", b"old")
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        assert backlog.tally() == module.Tally()
        refuse(driver)
        await make(m, "a", b"12345")
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, ROOT)
        await m.fs.lookup(ROOT_INODE, b"old")
        await m.fs.unlink(ROOT_INODE, b"old")
        handle = await create(m, "open", b"123")
        await m.fs.mknod(ROOT_INODE, b"fifo", 0o010644, 0, ROOT)
        m.writeback.hurry()
        await until(lambda: backlog._count().failing == 3)
        tally = backlog._count()
        assert (tally.files, tally.bytes, tally.open_files, tally.deletes, tally.local_only) == (3, 8, 1, 1, 1)
        assert tally.since_s is not None
        assert tally.due == 3
        assert "403" in str(tally.error)
        allow(driver)
        await m.kernel.close(m.fs, handle)


async def test_counting_many_is_not_done_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, counts = 0.0, 0

    def count(backlog: Backlog) -> module.Tally:
        nonlocal now, counts
        now, counts = now + 0.1, counts + 1
        return module.Tally(files=counts)

    async with mounted(tmp_path, FakeStore()) as m:
        monkeypatch.setattr(Backlog, "_count", count)
        monkeypatch.setattr(module.time, "monotonic", lambda: now)
        backlog = backlog_of(m)
        assert [backlog.tally().files for _ in range(5)] == [1] * 5
        now += 2.1
        assert backlog.tally().files == 2


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


async def test_drain_brings_up_what_is_closed_without_delay(tmp_path: Path, mock_clock: MockClock) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        for number in range(50):
            await make(m, f"f{number}", b"x" * number)
        handle = await create(m, "open", b"open")
        with trio.fail_after(60):
            step = await last(backlog.drain())
        assert step.done
        assert (step.files, step.open_files, step.deletes) == (1, 1, 0)
        assert len(driver.objects) == 50
        assert not backlog.draining
        assert not m.writeback.pace.urgent
        await m.kernel.close(m.fs, handle)


async def test_a_drain_that_is_given_up_changes_nothing(tmp_path: Path, mock_clock: MockClock) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        refuse(driver)
        await make(m, "a", b"a")
        async with aclosing(backlog.drain()) as steps:
            async for step in steps:
                assert backlog.draining
                if step.error is not None:
                    break
        assert "403" in str(step.error)
        assert not backlog.draining
        before = driver.counts["put"]
        await trio.sleep(0.3)
        assert driver.counts["put"] <= before + 1, "no hot loop"
        allow(driver)


async def test_a_drain_tells_how_long_nothing_moved(tmp_path: Path, mock_clock: MockClock) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        refuse(driver)
        await make(m, "a", b"a")
        async with aclosing(backlog.drain()) as steps:
            async for step in steps:
                if step.stalled_s > 30:
                    break
        tries = driver.counts["put"]
        assert 4 <= tries <= 12, "tried again every five seconds"
        allow(driver)


async def test_persist(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        a = (await m.fs.mkdir(ROOT_INODE, b"a", 0o755, ROOT)).inode
        await make(m, "x", b"x", a)
        await make(m, "ab", b"other")
        await m.fs.symlink(ROOT_INODE, b"s", b"a/x", ROOT)
        m.writeback.schedule(next(d for d in m.dirty if d.key == "ab"), 60.0)
        with trio.fail_after(60):
            step = await last(persist(backlog, ["a", "s"]))
        assert (step.done, step.failures, step.notes) == (True, (), ())
        assert set(driver.objects) == {"a/", "a/x", "s.rclonelink"}
        assert backlog.has_changes("ab")
        assert not backlog.has_changes("a")


async def test_persist_tells_of_failures(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("old", b"old")
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        refuse(driver)
        await make(m, "bad", b"bad")
        await m.fs.lookup(ROOT_INODE, b"old")
        await m.fs.unlink(ROOT_INODE, b"old")
        await m.fs.mknod(ROOT_INODE, b"fifo", 0o010644, 0, ROOT)
        handle = await create(m, "open", b"open")
        step = await last(persist(backlog, [""]))
        assert sorted(step.failures) == ["bad: 403", "old: 403", "open: is open for writing"]
        assert step.notes == ("fifo: local only (no regular file)",)
        step = await last(persist(backlog, ["fifo"]))
        assert step.failures == ("fifo: is local only (no regular file): it is never brought to the under-store",)
        allow(driver)
        await m.kernel.close(m.fs, handle)


async def test_persist_gives_up_the_rest_where_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persisting, "LINES", 3)
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        driver.hold("put")
        for number in range(8):
            await make(m, f"f{number}", b"x")
        backlog = backlog_of(m)
        monkeypatch.setattr(persisting, "PATIENCE_S", 0.5)
        monkeypatch.setattr(type(m.store), "reachable", property(lambda _store: False))
        step = await last(persist(backlog, [""]))
        assert step.done
        assert step.failures == (
            *(f"f{number}: not tried: the under-store cannot be reached" for number in range(3)),
            "5 more failed",
        )
        driver.release()


async def test_persist_gives_up_what_waits_for_a_late_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    driver.place("old", b"old")
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        late = given_up(m.store, "new", "old")
        await make(m, "new", b"new")
        await m.fs.lookup(ROOT_INODE, b"old")
        await m.fs.unlink(ROOT_INODE, b"old")
        monkeypatch.setattr(persisting, "PATIENCE_S", 0.5)
        with trio.fail_after(120):
            step = await last(persist(backlog_of(m), [""]))
        assert sorted(step.failures) == [f"{name}: not tried: {persisting.LATE}" for name in ("new", "old")]
        late.running = False


async def test_what_is_written_again_all_the_time_does_not_hold_persist_up(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=ASYNC) as m:
        backlog = backlog_of(m)
        handle = await create(m, "log", b"0")
        await m.kernel.fsync(m.fs, handle)

        async def append() -> None:
            for number in range(1, 1000):
                await m.kernel.write(m.fs, handle, number, b"x")
                await m.kernel.fsync(m.fs, handle)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            with trio.fail_after(60):
                step = await last(persist(backlog, ["log"]))
            nursery.cancel_scope.cancel()
        assert step.failures in ((), ("log: is open for writing",))
        assert "log" in driver.objects
        await m.kernel.close(m.fs, handle)
