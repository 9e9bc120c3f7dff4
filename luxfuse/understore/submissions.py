"""Bulk requests of one store: one attempt each, in threads of their own, without a task that waits."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import trio

from luxfuse.errors import AccessDenied, DeadlinePassed, NotFound, StoreAway, StoreError, StoreRejected
from luxfuse.shares import shares
from luxfuse.types import Buffer, ObjectInfo
from luxfuse.understore.base import OnDescribed, UnderStore
from luxfuse.understore.gets import client
from luxfuse.understore.limits import Limits
from luxfuse.understore.presence import Presence
from luxfuse.understore.small_files import Answer, WantedFile, fetch_small, fetches_small
from luxfuse.understore.statistics import RequestCounters, RequestKind
from luxfuse.workers import FEWEST, Workers

log = logging.getLogger(__name__)
T = TypeVar("T")

DEADLINE_CHECK_S = 0.5
PROBE_KEY = ".luxfuse-probe"


@dataclass(slots=True)
class _Submission:
    kind: RequestKind
    done: Callable[[Any, StoreError | None], None]
    submitted_s: float
    requests: int
    seconds: list[float] = field(default_factory=list)
    """How long each request of its job took."""
    began_s: float | None = None
    """When a thread took it up, by `time.monotonic`."""
    lost: bool = False
    """Whether its thread was counted out, as it hangs."""


class _Timed:
    """A driver whose requests are timed, as a job also does other things."""

    def __init__(self, driver: UnderStore, seconds: list[float]) -> None:
        self._driver = driver
        self._seconds = seconds

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        began_s = time.perf_counter()
        try:
            return self._driver.read(key, start, end, version, on_described=on_described)
        finally:
            self._seconds.append(time.perf_counter() - began_s)

    def head(self, key: str) -> ObjectInfo:
        began_s = time.perf_counter()
        try:
            return self._driver.head(key)
        finally:
            self._seconds.append(time.perf_counter() - began_s)

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        answers = fetch_small(self._driver, files, abandoned)
        self._seconds += [answer.seconds for answer in answers if answer.seconds is not None]
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


def unforeseen(exc: BaseException, what: str) -> StoreError:
    """Return the error for an exception that no driver should raise: most likely the server's answer makes no sense."""
    log.error("%s failed in an unexpected way", what, exc_info=exc)
    missing = f" {exc.args[0]!r}" if isinstance(exc, KeyError) and exc.args else ""
    return StoreRejected(f"{what}: the under-store's answer cannot be understood ({type(exc).__name__}{missing})")


class Submissions(Limits):
    """The methods of a `Store` that make bulk requests, and watch over them."""

    def __init__(
        self,
        driver: UnderStore,
        *,
        request_timeout_s: float,
        max_requests: int,
        clock: Callable[[], float],
        get_bytes_s: int | None,
        put_bytes_s: int | None,
        name: str,
    ) -> None:
        super().__init__(clock, get_bytes_s, put_bytes_s)
        self.driver = driver
        self.presence = Presence(request_timeout_s, clock, name)
        self.presence.on_away.append(self._give_up)
        self.counters = RequestCounters(clock)
        self._timeout_s = request_timeout_s
        self._max_requests = max_requests
        self._allowed = min(max_requests, shares().requests)
        self._clock = clock
        self._workers: Workers | None = None
        self._submitted: dict[int, _Submission] = {}
        self._next_submission = 0

    def submit(
        self,
        kind: RequestKind,
        function: Callable[[UnderStore], T],
        done: Callable[[T | None, StoreError | None], None],
        size_bytes: int = 0,
        *,
        later: bool = False,
        requests: int = 1,
    ) -> None:
        """Make one attempt at ``function(driver)`` without waiting; ``done`` gets its result or error in the loop.

        The cheap way for bulk requests: no retry (use `call` for that after a retryable error), and its own
        ``max_requests`` threads. A driver call gets the deadline of one request, and so does the wait for a thread
        while the store answers nobody; behind requests that are answered it may last longer. `watch_deadlines` sees
        to it: `DeadlinePassed`, or `StoreAway` if the store is away or found to be. ``size_bytes`` is about what the
        request transfers. ``later``: those of others that wait for a thread go first. ``requests``: how many the driver
        makes, one after the other, within that deadline.
        """
        try:
            self.presence.require(kind.upper())
        except StoreAway as error:
            trio.lowlevel.current_trio_token().run_sync_soon(done, None, error)
            return
        if self._workers is None:
            self._workers = Workers(self._allowed)
        self.counters.attempts[kind] += requests
        self.counters.in_flight += 1
        self._next_submission += 1
        number = self._next_submission
        submission = self._submitted[number] = _Submission(kind, done, self._clock(), requests)

        def job() -> T:
            if number not in self._submitted:
                raise DeadlinePassed("nobody waits for it any more")
            submission.began_s = time.monotonic()
            return function(cast(UnderStore, _Timed(self.driver, submission.seconds)))

        def ended(result: Any, error: BaseException | None) -> None:
            if submission.lost and self._workers is not None:
                self._workers.come_back()
            self._finish(number, result, error)

        def go() -> None:
            if number not in self._submitted:
                return
            submission.submitted_s = self._clock()
            assert self._workers is not None
            self._workers.submit(
                job,
                ended,
                size_bytes // requests,
                submission.seconds,
                later=later,
            )

        throttle = self._throttle(kind)
        if throttle is None:
            go()
        else:
            submission.submitted_s = math.inf  # nobody is to blame while it is held back
            throttle.admit(size_bytes, go, background=later)

    async def attempt(self, kind: RequestKind, function: Callable[[UnderStore], T], size_bytes: int) -> T:
        """Like `submit`, and wait for the result. Raises `StoreError`."""
        done = trio.Event()
        outcome: list[tuple[T | None, StoreError | None]] = []

        def finish(result: T | None, error: StoreError | None) -> None:
            outcome.append((result, error))
            done.set()

        self.submit(kind, function, finish, size_bytes)
        await done.wait()
        result, error = outcome[0]
        if error is not None:
            raise error
        return cast(T, result)

    def _finish(self, number: int, result: Any, error: BaseException | None) -> None:
        submitted = self._submitted.pop(number, None)
        if submitted is None:
            return  # the deadline passed, and the caller was told
        self.counters.in_flight -= 1
        # Of a small file that could not be had past the usual client.
        self.counters.attempts[submitted.kind] += max(0, len(submitted.seconds) - submitted.requests)
        for seconds in submitted.seconds:
            self.counters.latency[submitted.kind].observe(seconds)
        if error is None:
            self.counters.answered()
            self.presence.answered()
            submitted.done(result, None)
            return
        if not isinstance(error, StoreError):
            error = unforeseen(error, submitted.kind.upper())
        if not isinstance(error, StoreAway):
            self.counters.failed(error)
            self.presence.failed(error, self._since_s(submitted))
        submitted.done(None, error)

    def _since_s(self, submission: _Submission) -> float:
        """Return when a submission was made, or its request sent, by the clock of the loop."""
        if submission.began_s is None:
            return submission.submitted_s
        return self._clock() - (time.monotonic() - submission.began_s)

    def _give_up(self) -> None:
        """The store was found to be away: wait for nothing any longer."""
        for number, submission in list(self._submitted.items()):
            self._abandon(number, self.presence.error(submission.kind.upper()))

    def _abandon(self, number: int, error: StoreError) -> None:
        submission = self._submitted[number]
        if self._workers is not None and submission.began_s is not None:
            submission.lost = self._workers.give_up()
        self._finish(number, None, error)

    async def watch_deadlines(self) -> None:
        """Fail submissions whose driver call hangs, and let those go that a limit holds back; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_limits)
            nursery.start_soon(self.presence.run, self._probe, self.counters.answered)
            await self._watch_deadlines()

    def _heed_descriptors(self) -> None:
        """Make only as many requests at once as there are descriptors for, which may have become more, or fewer."""
        requests = shares().requests
        client.allow(requests)
        allowed = min(self._max_requests, requests)
        if allowed != self._allowed:
            self._allow(allowed)

    def _allow(self, requests: int) -> None:
        self._allowed = requests
        if self._workers is not None:
            self._workers.bound(requests)

    async def _watch_deadlines(self) -> None:
        while True:
            self._heed_descriptors()
            await trio.sleep(DEADLINE_CHECK_S)
            sent_s = next((each.submitted_s for each in self._submitted.values() if each.submitted_s < math.inf), None)
            if sent_s is not None:
                self.presence.still_waiting(sent_s)
            for number in [n for n, submission in self._submitted.items() if self._overdue(submission)]:
                if number not in self._submitted:
                    continue  # the store was found to be away meanwhile
                self.counters.timeouts += 1
                self.counters.latency[self._submitted[number].kind].observe(self._timeout_s)
                self._abandon(number, DeadlinePassed(f"no answer within {self._timeout_s:g} s"))
                self.counters.state = "down"

    def _probe(self) -> None:
        """Ask whether the store is there, in a thread, by a request with a short answer: that there is no such object."""
        try:
            self.driver.head(PROBE_KEY)
        except NotFound:
            pass
        except AccessDenied:
            self.driver.probe()  # which says why: perhaps nobody may know whether there is such an object

    def _overdue(self, submission: _Submission) -> bool:
        if submission.began_s is not None:
            return time.monotonic() - submission.began_s >= self._timeout_s
        return self._clock() - max(submission.submitted_s, self.counters.progress_s) >= self._timeout_s

    @property
    def fetches_small(self) -> bool:
        """Whether the driver fetches small files."""
        return fetches_small(self.driver)

    @property
    def width(self) -> int:
        """About how many bulk requests at once keep the store busy."""
        return self._workers.width if self._workers is not None else FEWEST

    def stuck_s(self) -> float:
        """Return for how long no bulk request has been answered; 0 while a limit holds some back."""
        if self._throttles["get"].holding or self._turns["get"].holding:
            return 0.0
        return self._clock() - self.counters.progress_s

    @property
    def timeout_s(self) -> float:
        """The deadline of one request."""
        return self._timeout_s

    def close(self) -> None:
        """Free the driver's connections. Blocks shortly; further calls are errors."""
        if self._workers is not None:
            self._workers.close()
        self.driver.close()
