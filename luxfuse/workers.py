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
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from luxfuse.core.concurrency import Concurrency

log = logging.getLogger(__name__)

FEWEST = 8

T = TypeVar("T")
Job = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]
"""(result, exception): called in the event loop; must not raise."""


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
        self._jobs: deque[tuple[Job, Done, int, int]] = deque()
        self._later: deque[tuple[Job, Done, int, int]] = deque()
        self._outcomes: deque[tuple[Done, Any, BaseException | None, float, int]] = deque()
        self._token = trio.lowlevel.current_trio_token()
        self._outstanding = 0
        self._threads = 0
        self._most = limit
        self._lost = 0

    @property
    def width(self) -> int:
        """How many jobs run at once, if there are as many."""
        return self._concurrency.limit

    def submit(self, job: Job, done: Done, size_bytes: int, requests: int = 1, *, later: bool = False) -> None:
        """Run ``job`` in a thread and then ``done`` in the event loop.

        It makes so many ``requests``, one after the other, each for about ``size_bytes``. ``later``: the others that
        wait go first.
        """
        self._outstanding += 1
        (self._later if later else self._jobs).append((job, done, size_bytes, requests))
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
            job, done, size_bytes, requests = self._next()
            result, error = None, None
            began_s = time.perf_counter()
            try:
                result = job()
            except BaseException as exc:  # noqa: BLE001 (it is handed to the caller that submitted the job)
                error = exc
            self._outcomes.append((done, result, error, (time.perf_counter() - began_s) / requests, size_bytes))
            del job, done, result, error  # an idle thread must not keep a page alive
            try:
                self._token.run_sync_soon(self._deliver, idempotent=True)
            except trio.RunFinishedError:
                return

    def _next(self) -> tuple[Job, Done, int, int]:
        """Take a job: there is one for each turn."""
        try:
            return self._jobs.popleft()
        except IndexError:
            return self._later.popleft()

    def _deliver(self) -> None:
        while self._outcomes:
            done, result, error, seconds, size_bytes = self._outcomes.popleft()
            self._outstanding -= 1
            self._concurrency.observe(seconds, size_bytes)
            try:
                done(result, error)
            except Exception:  # an exception here would end the event loop, and so the mount
                log.exception("the outcome of a request could not be dealt with")
        self._start_threads(FEWEST)

    def give_up(self) -> None:
        """Count a thread out whose job hangs, so that another may take its place; bounded by the limit in all."""
        if self._lost < self._most:
            self._lost += 1
            self._start_threads(1)

    def close(self) -> None:
        """Let the threads end once they are idle."""
        for _ in range(self._threads):
            self._turns.put(False)
