"""Threads for jobs that block.

`Threads` is for those that somebody waits for. `Workers` is for many small ones: cheaper than a trio task for each.

Outcomes go back to the event loop in batches: however many jobs end while the loop is busy, it is woken once.
Measured for 100 KiB objects on loopback: 40 us of the loop's time a job instead of 150.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import trio

from luxfuse.core.concurrency import Concurrency

log = logging.getLogger(__name__)

FEWEST = 8

T = TypeVar("T")
Job = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]
"""(result, exception): called in the event loop; must not raise."""


_Job = tuple[Job, Done, int, Sequence[float]]
"""With the size of its requests, and how long they took."""


def _timed(job: Job) -> tuple[Job, Sequence[float]]:
    """Return a job that does the same, and where it puts how long it took."""
    seconds: list[float] = []

    def timed() -> Any:
        began_s = time.perf_counter()
        try:
            return job()
        finally:
            seconds.append(time.perf_counter() - began_s)

    return timed, seconds


async def take(lock: trio.Lock | trio.Semaphore) -> None:
    """Acquire a lock: without a turn of the event loop, which trio's `acquire` takes always, if it is free."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()


class Threads:
    """Runs blocking calls of the event loop in threads, ``most`` at a time.

    `trio.to_thread` gives each call a name, a context and a turn of the loop more. Measured, with an fdatasync: 61 us of
    the loop's time a call instead of 134.
    """

    def __init__(self, most: int) -> None:
        self._free = trio.Semaphore(most)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what ``function`` does. Once it runs, a caller that is cancelled waits for its end all the same."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await take(self._free)
        try:
            task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

            def deliver(result: Any) -> None:
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)

            trio.lowlevel.start_thread_soon(lambda: function(*arguments), deliver)
            return await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)  # type: ignore[no-any-return]
        finally:
            self._free.release()


class Workers:
    """Up to ``limit`` threads, started as `Concurrency` asks. Create and use it inside `trio.run`; `submit` never waits."""

    def __init__(self, limit: int) -> None:
        self._concurrency = Concurrency(FEWEST, limit)
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True for each job, False for each thread that is to end."""
        self._jobs: deque[_Job] = deque()
        self._later: deque[_Job] = deque()
        self._outcomes: deque[tuple[_Job, Any, BaseException | None]] = deque()
        self._woken = False
        """Whether the loop is about to look at the outcomes: waking it is a system call, which passes the lock on."""
        self._token = trio.lowlevel.current_trio_token()
        self._outstanding = 0
        self._threads = 0
        self._most = limit
        self._lost = 0

    @property
    def width(self) -> int:
        """How many jobs run at once, if there are as many."""
        return self._concurrency.limit

    def submit(
        self, job: Job, done: Done, size_bytes: int, seconds: Sequence[float] | None = None, *, later: bool = False
    ) -> None:
        """Run ``job`` in a thread and then ``done`` in the event loop.

        It makes one request for about ``size_bytes``, or several, one after the other; then it adds to ``seconds`` how
        long each of them took. ``later``: the others that wait go first.
        """
        if seconds is None:
            job, seconds = _timed(job)
        self._outstanding += 1
        (self._later if later else self._jobs).append((job, done, size_bytes, seconds))
        self._turns.put(True)
        self._start_threads(1)

    def _start_threads(self, at_most: int) -> None:
        wanted = min(self._concurrency.limit, self._outstanding) + self._lost
        for _ in range(min(at_most, wanted - self._threads)):
            # Daemon threads: one that hangs in a driver must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=f"get-{self._threads}", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no more threads: those that there are will get to the job
                log.warning("cannot start a thread: %s", exc)
                return
            self._threads += 1

    def _work(self) -> None:
        while self._turns.get():
            job = self._next()
            result, error = None, None
            try:
                result = job[0]()
            except BaseException as exc:  # noqa: BLE001 (it is handed to the caller that submitted the job)
                error = exc
            self._outcomes.append((job, result, error))
            del job, result, error  # an idle thread must not keep a page alive
            if self._woken:  # it was set before the outcomes are looked at, so this one is seen, too
                continue
            self._woken = True
            try:
                self._token.run_sync_soon(self._deliver, idempotent=True)
            except trio.RunFinishedError:
                return

    def _next(self) -> _Job:
        """Take a job: there is one for each turn."""
        try:
            return self._jobs.popleft()
        except IndexError:
            return self._later.popleft()

    def _deliver(self) -> None:
        self._woken = False
        while self._outcomes:
            (_, done, size_bytes, seconds), result, error = self._outcomes.popleft()
            self._outstanding -= 1
            if seconds:
                self._concurrency.observe(min(seconds), size_bytes)
            try:
                done(result, error)
            except Exception:  # an exception here would end the event loop, and so the mount
                log.exception("the outcome of a request could not be dealt with")
        self._start_threads(FEWEST)

    def bound(self, limit: int) -> None:
        """Have up to ``limit`` threads from now on; those beyond end when they have done what waits."""
        self._most = limit
        self._concurrency.bound(limit)
        self._end_surplus()

    def _end_surplus(self) -> None:
        """Those that hang do not count: else so many of the others would end in their place."""
        for _ in range(self._threads - self._most - self._lost):
            self._turns.put(False)
            self._threads -= 1

    def give_up(self) -> bool:
        """Count a thread out whose job hangs, so that another may take its place; returns whether that is so.

        No more are counted out than the limit. Call `come_back` when the job has ended after all.
        """
        if self._lost >= self._most:
            return False
        self._lost += 1
        self._start_threads(1)
        return True

    def come_back(self) -> None:
        """Count a thread in again."""
        self._lost -= 1
        self._end_surplus()

    def close(self) -> None:
        """Let the threads end once they are idle."""
        for _ in range(self._threads):
            self._turns.put(False)
