"""Virtual time beside real threads: it goes on where the event loop waits and no thread works.

`trio.testing.MockClock` sees the loop alone: on a busy machine, where a thread takes its time, it goes on to the next
deadline, which then is over though all was quick.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from luxfuse import workers
from tests.support.fake_store import FakeStore

QUIET_S = 0.01


class Working:
    """How many threads have something to do, and of which the loop has not taken in the outcome yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._queued: Counter[workers.Workers] = Counter()
        """Jobs that no thread has taken up yet."""
        self._taken: Counter[workers.Workers] = Counter()

    def began(self) -> None:
        with self._lock:
            self._running += 1

    def ended(self) -> None:
        with self._lock:
            self._running -= 1

    def queued(self, own: workers.Workers) -> None:
        with self._lock:
            self._queued[own] += 1

    def took(self, own: workers.Workers) -> None:
        with self._lock:
            self._queued[own] -= 1
            self._taken[own] += 1
            self._running += 1

    def gave_back(self, own: workers.Workers) -> None:
        with self._lock:
            self._taken[own] -= 1
            self._running -= 1

    def any(self) -> bool:
        """Whether time has to wait for a thread: for each, but those of requests that a `FakeStore` holds."""
        with self._lock:
            # What waits for threads that are all held waits in vain.
            begins = any(count and self._taken[own] < own._threads for own, count in self._queued.items())
            return begins or self._running > FakeStore.hanging


def virtual_time(patch: pytest.MonkeyPatch) -> MockClock:
    """Return a clock for one test."""
    working, clock = Working(), MockClock(autojump_threshold=QUIET_S)
    start, submit, jump = trio.lowlevel.start_thread_soon, workers.Workers.submit, clock._autojump

    def counted_start(function: Callable[[], Any], deliver: Callable[[Any], object], name: str | None = None) -> None:
        token = trio.lowlevel.current_trio_token()

        def delivered(result: Any) -> None:
            try:
                deliver(result)
            finally:
                # By the loop, behind what it was given: it may have waited long enough, but not have looked yet.
                try:
                    token.run_sync_soon(working.ended)
                except trio.RunFinishedError:
                    working.ended()

        working.began()
        start(function, delivered, name)

    def counted_submit(own: workers.Workers, job: workers.Job, done: workers.Done, *rest: Any, **options: Any) -> None:
        def counted() -> Any:
            working.took(own)
            return job()

        def ended(result: Any, error: BaseException | None) -> None:
            working.gave_back(own)
            done(result, error)

        working.queued(own)
        submit(own, counted, ended, *rest, **options)

    def jump_if_quiet() -> None:
        if not working.any():
            jump()

    patch.setattr("trio.lowlevel.start_thread_soon", counted_start)
    patch.setattr("trio._threads.start_thread_soon", counted_start)
    patch.setattr(workers.Workers, "submit", counted_submit)
    patch.setattr(clock, "_autojump", jump_if_quiet, raising=False)
    return clock
