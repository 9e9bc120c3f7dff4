"""Requests that took long, in the log: which are told, what of them, and how many."""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from luxfuse.fuse import accesses, slow
from luxfuse.fuse.errnos import Running
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.slow import MOST, SlowRequests
from luxfuse.fuse.watchdog import Watchdog
from luxfuse.vfs.kernel import NoKernel
from luxfuse.vfs.volumes import Volumes

pytestmark = pytest.mark.expected_logs("slow request: ")
LOOKUP = 1
NOW_S = 5000.0


class Log:
    """The slow requests of a mount without a file system, and what is logged of them."""

    def __init__(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped = SimpleNamespace(perf_counter=lambda: NOW_S, monotonic=time.monotonic)
        for module in (slow, accesses):
            monkeypatch.setattr(module, "time", stopped)
        self._caplog = caplog
        self.operations = Operations(Volumes(NoKernel()), read_only=False)
        self.slow = SlowRequests(self.operations, 2.0)

    def note(self, ran_s: float, queued_s: float = 0.0, name: str = "lookup", code: int = 0, **more: Any) -> None:
        """A look-up that has ended now."""
        running = Running(name, None, NOW_S - ran_s)
        running.thread, running.user, running.at_ns = os.getpid(), 1000, 0
        if queued_s:
            running.at_ns = int((running.began_s - queued_s) * 1e9)
        for key, value in more.items():
            setattr(running, key, value)
        self.slow(running, (1, b"a\xff"), None, code)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Log:
    caplog.set_level(logging.INFO)
    return Log(caplog, monkeypatch)


def test_what_is_told_of_a_request(log: Log) -> None:
    log.note(1.9)
    log.note(9.0, name="release")
    assert log.lines == []
    log.note(3.25, code=5, places={"the cache disk": 0.5, "the store": 2.0})
    (line,) = log.lines
    assert line.startswith("slow request: lookup of ?/a\udcff took 3.25 s, for python")
    assert line.endswith(f"(process {os.getpid()}, user 1000); it waited for the store; EIO")


def test_the_wait_for_the_event_loop_counts(log: Log) -> None:
    log.note(0.001, queued_s=1.9)
    assert log.lines == []
    log.note(0.001, queued_s=8.0)
    log.note(2.0, queued_s=1.0, places={"the store": 2.0})
    first, second = log.lines
    assert " took 8.00 s, " in first
    assert first.endswith("; it waited for the queue of the daemon")
    assert " took 3.00 s, " in second
    assert second.endswith("; it waited for the store")


def test_sixty_a_minute_are_told_and_the_number_of_the_others_without_one_more(log: Log) -> None:
    for _ in range(MOST + 3):
        log.note(2.5)
    assert len(log.lines) == MOST
    log.slow.tell_untold(NOW_S + 59.0)
    assert len(log.lines) == MOST
    for _ in range(2):
        log.slow.tell_untold(NOW_S + 61.0)
    assert log.lines[MOST:] == ["slow request: 3 more in the minute before were not told"]


async def test_a_mount_that_ends_tells_the_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, timed = Log(caplog, monkeypatch), list[bool]()
    monkeypatch.setattr(passthrough, "time_queue", timed.append)
    watchdog = Watchdog(log.operations, 30.0, 2.0, check_s=3600.0)
    (told,) = log.operations.observers
    assert isinstance(told, SlowRequests)
    log.slow = told
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        await trio.testing.wait_all_tasks_blocked()
        assert timed == [True]
        for _ in range(MOST + 1):
            log.note(2.5)
        assert len(log.lines) == MOST
        nursery.cancel_scope.cancel()
    assert log.lines[MOST:] == ["slow request: 1 more in the minute before were not told"]
    assert timed == [True, False]


async def test_the_number_is_looked_for_all_the_time(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    watchdog = Watchdog(log.operations, 30.0, 2.0, check_s=0.01)
    monkeypatch.setattr(log.operations.observers[0], "tell_untold", looks.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        with trio.fail_after(120):
            while len(looks) < 2:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert looks == sorted(looks)


@pytest.fixture
def queue() -> Iterator[list[tuple[int, int, int]]]:
    """Who asked, of look-ups that were answered from the lanes' queue."""
    callers: list[tuple[int, int, int]] = []

    def lookup(_unique: int, _parent: int, _name: bytes) -> bool:
        callers.append(passthrough.caller())
        return True

    passthrough.set_prompt((lookup,) * 7)
    yield callers
    passthrough.set_prompt(None)
    passthrough.time_queue(False)


def test_lanes_note_when_they_read_a_request_while_that_is_wanted(queue: list[tuple[int, int, int]]) -> None:
    request = struct.pack("IIQQIIII", 42, LOOKUP, 2, 1, 1000, 100, 77, 0) + b"a\0"
    passthrough.push(request)
    passthrough.serve_prompt()
    passthrough.time_queue(True)
    before_ns = time.monotonic_ns()
    passthrough.push(request)
    after_ns = time.monotonic_ns()
    passthrough.serve_prompt()
    (thread, user, unknown), (_, _, at_ns) = queue
    assert (thread, user, unknown) == (77, 1000, 0)
    assert before_ns <= at_ns <= after_ns
