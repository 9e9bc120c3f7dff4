"""What a trace tells of requests, without a kernel: too many at once, those of before, those of ended programs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from luxfuse.core.tallies import names_of, sources_of
from luxfuse.errors import MountError
from luxfuse.fuse import accesses, tracing
from luxfuse.fuse.errnos import Running, guarded
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.tracing import Tracing
from luxfuse.vfs.kernel import NoKernel
from luxfuse.vfs.volumes import Volumes

SIZE = 100_000
KERNEL: Any = SimpleNamespace(passthrough=True)


class Waiting(Operations):
    """Its opens wait."""

    gate: trio.Event

    @guarded
    async def open(self, _inode: int, _flags: int, _ctx: Any) -> Any:
        await self.gate.wait()
        return SimpleNamespace(fh=passthrough.MARK_FAST | 9)


@pytest.fixture
async def operations(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    monkeypatch.setattr(accesses, "size_of", lambda _volumes, _inode: SIZE)
    monkeypatch.setattr(passthrough, "caller", lambda: (os.getpid(), 1000, 0))
    made = Waiting(Volumes(NoKernel()), read_only=False)
    made.gate = trio.Event()
    return made


@asynccontextmanager
async def traced(operations: Operations, pid: int | None = None) -> AsyncIterator[Any]:
    """Yield a function that waits for what is told next: events, and how many were dropped."""
    async with aclosing(Tracing(operations, KERNEL).watch("", pid)) as batches:

        async def more() -> tuple[list[dict[str, Any]], int]:
            told: Any = await anext(batches)
            return told["events"], told["dropped"]

        await more()
        yield more


def ask(operations: Operations, thread: int, name: str = "getattr") -> None:
    """A request that has ended now."""
    running = Running(name, None)
    running.thread, running.user = thread, 1000
    for told in operations.observers:
        told(running, (1,), None, 0)


async def test_what_comes_too_fast_is_counted(
    operations: Waiting, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(tracing, "MOST_KEPT", 1000)
    async with traced(operations) as more:
        for _ in range(1234):
            ask(operations, os.getpid())
        batches = [await more() for _ in range(4)]
        assert [(len(events), dropped) for events, dropped in batches] == [(400, 234), (400, 0), (200, 0), (0, 0)]
        ask(operations, os.getpid())
        assert [event["op"] for event in (await more())[0]] == ["getattr"]
    assert not operations.observers
    ask(operations, os.getpid())
    async with traced(operations) as more:
        assert await more() == ([], 0), "nothing of before is told"


async def test_of_a_request_of_before_it_is_told_what_is_known(operations: Waiting, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.open, 9, 0, None)
        await trio.testing.wait_all_tasks_blocked()
        async with traced(operations) as more:
            operations.gate.set()
            await trio.testing.wait_all_tasks_blocked()
            ((before,), _) = await more()
            await operations.open(9, 0, None)
            ((after,), _) = await more()
    assert (before["pid"], before["uid"], before["program"]) == (None, None, "?")
    assert names_of(before)[1] == "?[?]"
    assert sources_of(before) == {}, "it may have waited for the store"
    assert (after["pid"], after["uid"]) == (os.getpid(), 1000)
    assert sources_of(after) == {"kernel": SIZE}


async def test_a_program_that_has_ended_is_not_known(operations: Waiting, autojump_clock: MockClock) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    async with traced(operations) as more:
        ask(operations, ended.pid)
        ask(operations, 0)
        ask(operations, os.getpid(), "release")
        (gone, kernel), _ = await more()
    assert names_of(gone)[1] == f"?[{ended.pid}]"
    assert names_of(kernel)[1] == "kernel[0]"
    async with traced(operations, os.getpid()) as more:
        ask(operations, ended.pid)
        ask(operations, os.getpid())
        ((mine,), _) = await more()
    assert mine["pid"] == os.getpid()


async def test_one_trace_at_a_time(operations: Waiting, autojump_clock: MockClock) -> None:
    one = Tracing(operations, KERNEL)
    async with aclosing(one.watch("", None)) as first:
        await anext(first)
        with pytest.raises(MountError, match="traced already"):
            await anext(one.watch("", None))
        await anext(first)
    async with aclosing(one.watch("", None)) as next_one:
        await anext(next_one)
