"""What the watchdog does about requests that are not answered, and a loop that does not turn: by gates, not by time."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from luxfuse.core.deadlines import OTHER_TIMES, QUESTION_TIMES, Verdict, judge
from luxfuse.core.histogram import Histogram
from luxfuse.core.stalls import STUCK_AFTER
from luxfuse.fuse import interrupts, watchdog
from luxfuse.fuse.errnos import Observer, Running, guarded
from luxfuse.fuse.interrupts import Interrupts, interruptible
from luxfuse.fuse.lowlevel import pyfuse3
from luxfuse.fuse.watchdog import Watchdog
from tests.support.harness import until

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


class Listener(logging.Handler):
    """Sets an event when the watchdog has said something."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.heard = {text: threading.Event() for text in texts}

    def __enter__(self) -> Listener:
        logging.getLogger().addHandler(self)  # behind those that keep what was said
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        for text, event in self.heard.items():
            if text in record.getMessage():
                event.set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the log was told, with its level."""
    caplog.set_level(logging.INFO)
    numbers = itertools.count(10)
    monkeypatch.setattr(interrupts.passthrough, "current", lambda: (next(numbers), 77))
    return lambda: [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == watchdog.__name__]


def hold_up(until: threading.Event, seconds: float = 120) -> bool:
    """Block the event loop."""
    return until.wait(seconds)


async def hold_up_until(heard: threading.Event) -> None:
    """Block it for long, and again: on a busy machine a stall may have been told of just before."""
    while not hold_up(heard, 10):
        await trio.sleep(0.05)


async def test_what_takes_too_long_is_found_once(told: Callable[[], list[str]]) -> None:
    handlers = Handlers()
    dog = Watchdog(handlers, TIMEOUT_S)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outcome_of, handlers.lookup, [])
        nursery.start_soon(outcome_of, handlers.rename, [])
        await trio.testing.wait_all_tasks_blocked()
        now_s = time.perf_counter()
        assert dog.find_late(now_s + TIMEOUT_S) == []
        found = dog.find_late(now_s + 1000)
        assert {(request.name, verdict) for request, verdict in found} == {
            ("lookup", Verdict.OVERDUE), ("rename", Verdict.LATE),
        }  # fmt: skip
        assert dog.find_late(now_s + 1000) == []
        assert dog.overdue == 2
        handlers.gate.set()
    for each in found:  # they were answered meanwhile
        dog.tell(*each)
        dog.end(*each)
    assert told() == []


@pytest.mark.expected_logs("has not been answered", "has not turned")
async def test_a_question_that_takes_too_long_is_told_of_and_ends_and_a_change_goes_on(
    told: Callable[[], list[str]],
) -> None:
    handlers = Handlers()
    dog = Watchdog(handlers, 0.0, check_s=0.01)  # type: ignore[arg-type]
    asked: list[object] = []
    changed: list[object] = []
    with Listener("rename has not") as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dog.run)
            nursery.start_soon(outcome_of, handlers.rename, changed)
            await outcome_of(handlers.lookup, asked)
            assert asked == [110]
            await trio.to_thread.run_sync(listener.heard["rename has not"].wait, 120)
            assert not changed
            handlers.gate.set()
            await until(lambda: bool(changed))
            nursery.cancel_scope.cancel()
    assert changed == ["answer"]
    assert dog.overdue == 2
    lines = [line for line in told() if "has not been answered" in line]
    assert sorted(line.partition(" has not been")[0] for line in lines) == ["INFO rename", "WARNING lookup"]
    assert all("_ask:" in line for line in lines)


@pytest.mark.expected_logs("has not turned", "has not been answered")
async def test_of_a_loop_that_does_not_turn_a_thread_tells_what_all_wait_for(told: Callable[[], list[str]]) -> None:
    """And of requests that take too long meanwhile, which end once it turns."""
    handlers = Handlers()
    dog = Watchdog(handlers, TIMEOUT_S, check_s=0.01)  # type: ignore[arg-type]
    asked: list[object] = []
    gate = threading.Event()
    threading.Thread(target=gate.wait, daemon=True).start()
    with Listener("hold_up:", "lookup has not", "turns again") as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dog.run)
            for _ in range(3):
                nursery.start_soon(outcome_of, handlers.lookup, asked)
            nursery.start_soon(trio.sleep_forever, name="another task")
            await until(lambda: len(handlers.running) == 3 and dog._turns > 0)
            await hold_up_until(listener.heard["hold_up:"])
            assert (dog.overdue, asked) == (0, [])
            dog._request_timeout_s = 0.0
            await hold_up_until(listener.heard["lookup has not"])
            await trio.to_thread.run_sync(listener.heard["turns again"].wait, 120)
            await until(lambda: asked == [110] * 3)
            nursery.cancel_scope.cancel()
    gate.set()
    lines = told()
    assert any("INFO while the event loop does not turn: 3 times: lookup waits in " in line for line in lines)
    assert any("task another task waits in trio." in line for line in lines)
    assert any("a thread is in threading.wait:" in line for line in lines)
    assert dog.stalls
    assert dog.overdue == 3


@pytest.mark.expected_logs("has not turned", "is stuck")
@pytest.mark.parametrize("stuck", [True, False])
async def test_the_keeper_is_told_of_a_loop_that_is_stuck_and_of_no_other(
    stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of which a thread waits for a disk is none."""
    said, looked = threading.Event(), threading.Semaphore(0)

    def held_up() -> bool:
        looked.release()
        return not stuck

    def is_stuck() -> bool:
        said.set()
        return True

    monkeypatch.setattr(watchdog.threads, "are_held_up", held_up)
    monkeypatch.setattr(watchdog.saying, "is_stuck", is_stuck)
    dog = Watchdog(Handlers(), TIMEOUT_S, check_s=0.001)  # type: ignore[arg-type]
    with Listener("the keeper is asked to end this daemon") as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dog.run)
            await until(lambda: dog._turns > 0)
            if stuck:
                hold_up(listener.heard["the keeper is asked to end this daemon"])
            else:
                while looked.acquire(blocking=False):
                    pass
                for _ in range(3 * STUCK_AFTER):
                    looked.acquire()
            nursery.cancel_scope.cancel()
        assert said.is_set() == listener.heard["the keeper is asked to end this daemon"].is_set() == stuck
