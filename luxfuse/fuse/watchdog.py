"""Tells of requests that are not answered, and of an event loop that does not turn; a thread of its own looks after that.

Neither should happen: whatever waits has a deadline, and whatever blocks is in a thread. So if one does, the log says what
each waits for, which is all that a mount that hangs can still tell of itself.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import trio

from luxfuse.core.deadlines import Verdict, judge
from luxfuse.core.units import format_age
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.noting import frames_of, keep_noting
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.slow import SlowRequests

log = logging.getLogger(__name__)

CHECK_S = 1.0
STALL_CHECKS = 10
"""So many checks in a row without a turn of the loop are a stall. Counted, because a stopped process misses none."""
FRAMES = 6
"""The innermost frames say what is waited for."""


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
        """Look after the requests until cancelled, and have a thread look after this."""
        loop = threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True)
        thread.start()
        passthrough.time_queue(self._slow is not None)
        try:
            async with trio.open_nursery() as nursery:
                if self._slow_s is not None:
                    nursery.start_soon(keep_noting, self._operations, self._slow_s)
                while True:
                    await trio.sleep(self._check_s)
                    self._turns += 1
                    self.look(time.perf_counter())
        finally:
            self._ended.set()
            passthrough.time_queue(False)
            if self._slow is not None:
                self._slow.tell_untold(math.inf)

    def look(self, now_s: float) -> None:
        """Report requests that take too long, once each, and end those of which nothing can come."""
        if self._slow is not None:
            self._slow.tell_untold(now_s)
        for request in list(self._operations.running):
            verdict = judge(request.name, now_s - request.began_s, self._request_timeout_s)
            if verdict is Verdict.IN_TIME or request.reported:
                continue
            request.reported = True
            self.overdue += 1
            level = logging.WARNING if verdict is Verdict.OVERDUE else logging.INFO
            age = format_age(now_s - request.began_s)
            log.log(level, "%s has not been answered for %s; it waits in %s", request.name, age, waits_in(request.call))
            if verdict is Verdict.OVERDUE:
                assert request.task is not None
                self._operations.interrupts.time_out(request.task)

    def _watch(self, loop: int) -> None:
        """Report a loop that does not turn, in a thread."""
        seen, missed = self._turns, 0
        while not self._ended.wait(self._check_s):
            if self._turns != seen:
                if missed >= STALL_CHECKS:
                    log.info("the event loop turns again, after about %s", format_age(missed * self._check_s))
                seen, missed = self._turns, 0
                continue
            missed += 1
            if missed == STALL_CHECKS:
                self.stalls += 1
                frame = sys._current_frames().get(loop)
                where = _places(frame) if frame is not None else "nowhere"
                log.warning("the event loop has not turned for %s; it is in %s", format_age(missed * self._check_s), where)


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
