"""Notices requests that are not answered, and an event loop that does not turn, in a thread of its own.

Neither should happen: whatever waits has a deadline, and whatever blocks is in a thread. So if one does, the log says what
everything waits for. The loop ends the requests of which nothing can come, as soon as it turns. If it is stuck
(`luxfuse.core.stalls`), the keeper is told, and ends this process, so that a successor answers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import trio

from luxfuse.core.deadlines import Verdict, judge
from luxfuse.core.stalls import Finding, Look, Stalls
from luxfuse.core.units import format_age
from luxfuse.fuse import threads
from luxfuse.fuse.errnos import Running
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.noting import frames_of, keep_noting
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.slow import SlowRequests
from luxfuse.keeper import saying

log = logging.getLogger(__name__)

CHECK_S = 1.0
FRAMES = 6
"""The innermost frames say what is waited for."""
TOLD_MOST = 100
"""So many different places are told of a loop that does not turn."""


class Watchdog:
    """Looks after the handlers of one mount, whose requests to the store get ``request_timeout_s``."""

    def __init__(
        self, operations: Operations, request_timeout_s: float, slow_s: float | None = None, *, check_s: float = CHECK_S
    ) -> None:
        """``slow_s``: note of requests of half that age what they wait for."""
        self._operations = operations
        self._slow_s = slow_s
        self._slow = SlowRequests(operations, slow_s) if slow_s is not None else None
        if self._slow is not None:
            operations.observers.append(self._slow)
        self._request_timeout_s = request_timeout_s
        self._check_s = check_s
        self._turns = 0
        self._ended = threading.Event()
        self.overdue = self.stalls = 0
        """Requests that took too long, and stalls of the loop."""

    async def run(self) -> None:
        """Let a thread look after the requests, and after this loop, until cancelled."""
        thread = threading.Thread(target=self._watch, args=(_Loop(),), name="watchdog", daemon=True)
        thread.start()
        passthrough.time_queue(self._slow is not None)
        try:
            async with trio.open_nursery() as nursery:
                if self._slow_s is not None:
                    nursery.start_soon(keep_noting, self._operations, self._slow_s)
                while True:
                    await trio.sleep(self._check_s)
                    self._turns += 1
                    if self._slow is not None:
                        self._slow.tell_untold(time.perf_counter())
        finally:
            self._ended.set()
            passthrough.time_queue(False)
            if self._slow is not None:
                self._slow.tell_untold(math.inf)

    def find_late(self, now_s: float) -> list[tuple[Running, Verdict]]:
        """Return the requests that take too long, each once."""
        found: list[tuple[Running, Verdict]] = []
        for request in self._operations.running.copy():  # in one step, as the loop may change it
            verdict = judge(request.name, now_s - request.began_s, self._request_timeout_s)
            if verdict is not Verdict.IN_TIME and not request.reported:
                request.reported = True
                self.overdue += 1
                found.append((request, verdict))
        return found

    def tell(self, request: Running, verdict: Verdict) -> None:
        """Say what a request waits for, if it still does; in the loop, or while that does not turn."""
        if request not in self._operations.running:
            return
        level = logging.WARNING if verdict is Verdict.OVERDUE else logging.INFO
        age = format_age(time.perf_counter() - request.began_s)
        log.log(level, "%s has not been answered for %s; it waits in %s", request.name, age, waits_in(request.call))

    def end(self, request: Running, verdict: Verdict) -> None:
        """End it, in the loop, if nothing can come of it. Its task may have gone on to another one."""
        if verdict is Verdict.OVERDUE and request in self._operations.running:
            assert request.task is not None
            self._operations.interrupts.time_out(request.task)

    def _watch(self, loop: _Loop) -> None:
        stalls, seen, failed = Stalls(loop.cpu_s()), self._turns, False
        while not self._ended.wait(self._check_s):
            turns = self._turns
            try:
                self._look(loop, stalls, turned=turns != seen)
            except Exception:
                if not failed:  # it goes on: nobody else looks
                    log.exception("the watchdog failed in an unexpected way")
                failed = True
            seen = turns

    def _look(self, loop: _Loop, stalls: Stalls, *, turned: bool) -> None:
        cpu_s = loop.cpu_s()
        if turned:
            missed = stalls.missed
            if stalls.turned(cpu_s) is Finding.TURNS:
                log.info("the event loop turns again, after about %s", format_age(missed * self._check_s))
        else:
            finding = stalls.look(Look(cpu_s, threads.is_asleep(loop.thread), threads.are_held_up()))
            self._tell_of_stall(loop, finding, stalls.missed * self._check_s)
        for late in self.find_late(time.perf_counter()):
            if stalls.stalled:
                self.tell(*late)
            else:
                loop.soon(self.tell, *late)
            loop.soon(self.end, *late)

    def _tell_of_stall(self, loop: _Loop, finding: Finding | None, age_s: float) -> None:
        if finding is Finding.STALLED:
            self.stalls += 1
            log.warning("the event loop has not turned for %s; it is in %s", format_age(age_s), loop.place())
            for line in _grouped(self._waits(loop)):
                log.info("while the event loop does not turn: %s", line)
        elif finding is Finding.STUCK and saying.is_stuck():
            log.warning("the event loop is stuck, and the keeper is asked to end this daemon; it is in %s", loop.place())

    def _waits(self, loop: _Loop) -> Iterator[str]:
        """Yield what requests, other tasks and other threads wait for."""
        requests = self._operations.running.copy()
        for request in requests:
            yield f"{request.name} waits in {waits_in(request.call)}"
        handling = {request.task for request in requests}
        for task in loop.tasks():
            if task not in handling:
                yield f"task {task.name} waits in {waits_in(task.coro)}"
        for thread, frame in sys._current_frames().items():
            if thread not in (loop.ident, threading.get_ident()):
                yield f"a thread is in {_places(frame)}"


class _Loop:
    """The event loop of the thread that makes this, for another thread."""

    def __init__(self) -> None:
        self.ident, self.thread = threading.get_ident(), threading.get_native_id()
        self._clock = time.pthread_getcpuclockid(self.ident)
        self._token = trio.lowlevel.current_trio_token()
        self._root = trio.lowlevel.current_root_task()

    def cpu_s(self) -> float:
        """The processor time that its thread has used."""
        return time.clock_gettime_ns(self._clock) / 1e9

    def soon(self, function: Any, *arguments: Any) -> None:
        """Call a function in it, when it turns."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(functools.partial(function, *arguments))

    def place(self) -> str:
        """Where it is."""
        frame = sys._current_frames().get(self.ident)
        return _places(frame) if frame is not None else "nowhere"

    def tasks(self) -> Iterator[trio.lowlevel.Task]:
        """Yield its tasks."""
        left = [] if self._root is None else [self._root]
        while left:
            task = left.pop()
            yield task
            for nursery in list(task.child_nurseries):
                left += nursery.child_tasks


def _grouped(lines: Iterable[str]) -> Iterator[str]:
    """Yield each line once, with how often it came, the most frequent first."""
    counts = Counter(lines)
    for line, count in counts.most_common(TOLD_MOST):
        yield line if count == 1 else f"{count} times: {line}"
    if len(counts) > TOLD_MOST:
        yield f"{len(counts) - TOLD_MOST} more places"


def waits_in(call: Any) -> str:
    """Return where a coroutine waits, the innermost place first."""
    places = [_place(frame, frame.f_lineno) for frame in frames_of(call)]
    return " < ".join(reversed(places[-FRAMES:])) or "nothing"


def _places(frame: FrameType) -> str:
    def inwards() -> Iterator[str]:
        for each, line in traceback.walk_stack(frame):
            yield _place(each, line)

    return " < ".join(list(inwards())[:FRAMES])


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}:{line}"
