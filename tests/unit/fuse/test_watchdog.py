"""What the watchdog says of requests that are not answered, and of a loop that does not turn: by gates, not by time."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import trio

from luxfuse.core.deadlines import OTHER_TIMES, QUESTION_TIMES, Verdict, judge
from luxfuse.core.histogram import Histogram
from luxfuse.fuse import interrupts
from luxfuse.fuse.errnos import Observer, Running, guarded
from luxfuse.fuse.interrupts import Interrupts, interruptible
from luxfuse.fuse.lowlevel import pyfuse3
from luxfuse.fuse.watchdog import Watchdog

TIMEOUT_S = 30.0


class Handlers:
    """As `Operations`."""

    read_only = False

    def __init__(self) -> None:
        self.errors = self.refusals = 0
        self.latency: dict[str, Histogram] = {}
        self.running: set[Running] = set()
        self.observers: list[Observer] = []
        self.interrupts = Interrupts(lambda *_, **__: False)
        self.gate = trio.Event()

    @guarded
    @interruptible
    async def lookup(self) -> str:
        """A question, which can be given up."""
        return await self._ask()

    @guarded
    async def rename(self) -> str:
        """A change, which cannot."""
        return await self._ask()

    async def _ask(self) -> str:
        await self.gate.wait()
        return "answer"


async def outcome_of(handler: Any, outcomes: list[object]) -> None:
    try:
        outcomes.append(await handler())
    except pyfuse3.FUSEError as exc:
        outcomes.append(exc.errno)


@pytest.mark.parametrize(
    ("name", "times", "late"), [("lookup", QUESTION_TIMES, Verdict.OVERDUE), ("flush", OTHER_TIMES, Verdict.LATE)]
)
def test_deadlines_by_kind(name: str, times: int, late: Verdict) -> None:
    assert judge(name, times * TIMEOUT_S - 1, TIMEOUT_S) is Verdict.IN_TIME
    assert judge(name, times * TIMEOUT_S, TIMEOUT_S) is late


@pytest.mark.expected_logs("has not been answered")
async def test_what_takes_too_long_is_told_of_once_and_a_question_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(interrupts.passthrough, "current", lambda: (10, 77))
    handlers = Handlers()
    watchdog = Watchdog(handlers, TIMEOUT_S)  # type: ignore[arg-type]
    asked: list[object] = []
    changed: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_of, handlers.lookup, asked)
        nursery.start_soon(outcome_of, handlers.rename, changed)
        await trio.testing.wait_all_tasks_blocked()
        now_s = time.perf_counter()
        watchdog.look(now_s + TIMEOUT_S)
        assert (watchdog.overdue, caplog.records) == (0, [])
        for _ in range(2):
            watchdog.look(now_s + 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert asked == [110]
        assert not changed
        handlers.gate.set()
    assert changed == ["answer"]
    assert not handlers.running
    told = sorted((r.levelname, r.getMessage()) for r in caplog.records if r.name == "luxfuse.fuse.watchdog")
    assert [level for level, _ in told] == ["INFO", "WARNING"]
    assert watchdog.overdue == 2
    for _, text in told:
        assert "_ask:" in text


@pytest.mark.expected_logs("has not turned")
async def test_a_loop_that_does_not_turn_is_told_of_by_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told, turns = threading.Event(), threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has not turned" in record.getMessage():
                told.set()
            elif "turns again" in record.getMessage():
                turns.set()

    logger, listener = logging.getLogger("luxfuse.fuse.watchdog"), Listener()
    logger.addHandler(listener)
    try:
        watchdog = Watchdog(Handlers(), TIMEOUT_S, check_s=0.01)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watchdog.run)
            await trio.sleep(0.1)
            hold_up(told)
            await trio.to_thread.run_sync(turns.wait, 20)
            nursery.cancel_scope.cancel()
    finally:
        logger.removeHandler(listener)
    assert told.is_set()
    assert turns.is_set()
    assert watchdog.stalls >= 1
    texts = [record.getMessage() for record in caplog.records if "has not turned" in record.getMessage()]
    assert any("hold_up:" in text for text in texts)


def hold_up(until: threading.Event) -> None:
    """Block the event loop."""
    until.wait(120)
