"""Virtual time beside real threads: it goes on where the event loop waits and no thread works.

`trio.testing.MockClock` sees the loop alone: on a busy machine, where a thread takes its time, it goes on to the next
deadline, which then is over though all was quick.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from luxfuse import workers
from tests.support.fake_store import FakeStore

QUIET_S = 0.01
HANGS_S, WAITS_S = 5.0, 0.3
"""A thread that works for so long is one that a test lets hang by its own means; what `FakeStore` holds is known, but where
it holds something, others may wait for the threads."""


class Working:
    """How many threads have something to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = self._begun = 0
        self._seen: tuple[int, int, int] | None = None
        self._since_s = 0.0

    def began(self) -> None:
        with self._lock:
            self._count += 1
            self._begun += 1

    def ended(self) -> None:
        with self._lock:
            self._count -= 1

    def any(self) -> bool:
        """Whether it is worth while to wait for a thread."""
        hanging = FakeStore.hanging
        if self._count <= hanging:
            return False
        seen, now_s = (self._count, self._begun, hanging), time.monotonic()
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
        return now_s - self._since_s < (WAITS_S if hanging else HANGS_S)


def virtual_time(patch: pytest.MonkeyPatch) -> MockClock:
    """Return a clock for one test."""
    working, clock = Working(), MockClock(autojump_threshold=QUIET_S)
    start, submit, jump = trio.lowlevel.start_thread_soon, workers.Workers.submit, clock._autojump

    def counted_start(function: Callable[[], Any], deliver: Callable[[Any], object], name: str | None = None) -> None:
        def delivered(result: Any) -> None:
            try:
                deliver(result)
            finally:
                working.ended()

        working.began()
        start(function, delivered, name)

    def counted_submit(own: workers.Workers, job: workers.Job, done: workers.Done, *rest: Any, **options: Any) -> None:
        def ended(result: Any, error: BaseException | None) -> None:
            working.ended()
            done(result, error)

        working.began()
        submit(own, job, ended, *rest, **options)

    def jump_if_quiet() -> None:
        if not working.any():
            jump()

    patch.setattr("trio.lowlevel.start_thread_soon", counted_start)
    patch.setattr("trio._threads.start_thread_soon", counted_start)
    patch.setattr(workers.Workers, "submit", counted_submit)
    patch.setattr(clock, "_autojump", jump_if_quiet, raising=False)
    return clock
