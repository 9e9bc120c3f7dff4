"""How calls of a driver are made: worker threads, deadlines, retries, and what `status` reports about them.

Every driver call runs in a thread of this store's own limiters: writes have one of their own, so that reads never wait
behind them. A call that outlives its deadline is abandoned: the caller gets `StoreUnavailable` at once, and the thread
keeps its slot until the driver's own time-outs end it. So threads, abandoned ones included, never exceed
``max_requests`` and `WRITES` more; with all slots taken, new calls wait for one inside their own deadline.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import trio

from luxfuse.core.histogram import Histogram
from luxfuse.core.retry import BASE_S, CAP_S, backoff_delays, next_delay
from luxfuse.core.rules import PathPolicies, RateName
from luxfuse.errors import DeadlinePassed, NotFound, StoreError, StoreRejected, StoreUnavailable, VersionChanged
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import OnDescribed, UnderStore
from luxfuse.understore.throttle import Throttle
from luxfuse.understore.turns import Turns
from luxfuse.workers import FEWEST, Workers

log = logging.getLogger(__name__)
T = TypeVar("T")
RequestKind = Literal["get", "head", "list", "put", "delete"]
Transfer = Literal["get", "put"]
State = Literal["up", "down"]

DOWN_AFTER_FAILURES = 3
"""This many failed attempts in a row mean "down" even before one of them has used up its deadline."""

LARGE_BYTES = 4 << 20
LARGE_BASE_S = 2.0
"""The pauses between attempts that send much begin with up to so long."""

ODD_ANSWERS = (LookupError, TypeError, ValueError, AttributeError)
"""What an answer that makes no sense causes in a driver."""

DEADLINE_CHECK_S = 0.5

_RATES: dict[Transfer, RateName] = {"get": "bandwidth_limit_bytes_s", "put": "upload_bandwidth_limit_bytes_s"}

WRITES = 32
"""Write requests at once, at most: each part that is being uploaded holds megabytes of memory."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """A snapshot. Counters run from the start: those named after requests count attempts, retries included.

    ``puts`` are all requests that make something, copies and the steps of multipart uploads among them.
    ``errors`` counts failed attempts other than "not found" and "changed", which are answers like any other.
    ``in_flight`` counts calls that are waited for; ``timeouts`` ones that ran into their deadline so far.
    """

    gets: int
    heads: int
    lists: int
    puts: int
    deletes: int
    errors: int
    retries: int
    get_bytes: int
    put_bytes: int
    in_flight: int
    timeouts: int
    state: State


@dataclass(slots=True)
class _Submission:
    kind: RequestKind
    done: Callable[[Any, StoreError | None], None]
    submitted_s: float
    seconds: list[float] = field(default_factory=list)
    """How long each request of its job took."""
    began_s: float | None = None
    """When a thread took it up, by `time.monotonic`."""


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


def unforeseen(exc: BaseException, what: str) -> StoreError:
    """Return the error for what no driver should raise: most likely an answer of the server that makes no sense."""
    log.error("%s failed in an unexpected way", what, exc_info=exc)
    missing = f" {exc.args[0]!r}" if isinstance(exc, KeyError) and exc.args else ""
    return StoreRejected(f"{what}: the under-store's answer cannot be understood ({type(exc).__name__}{missing})")


class Calls:
    """Runs the calls of one driver. All methods raise `luxfuse.errors.StoreError` subclasses only."""

    def __init__(
        self,
        driver: UnderStore,
        *,
        request_timeout_s: float,
        max_requests: int,
        rng: random.Random,
        clock: Callable[[], float] = trio.current_time,
        get_bytes_s: int | None = None,
        put_bytes_s: int | None = None,
        on_changed: Callable[[str, bool], None] = lambda _key, _gone: None,
    ) -> None:
        """``get_bytes_s`` and ``put_bytes_s``: most bytes a second to receive and to send; `watch_deadlines` lets go.

        ``on_changed``: told of each key that was written, or is gone (True), as soon as the store has said so; and of each
        that may be.
        """
        self.driver = driver
        limits: dict[RequestKind, int | None] = {"get": get_bytes_s, "put": put_bytes_s}
        self._throttles = {kind: Throttle(limit, clock) for kind, limit in limits.items()}
        self._turns: dict[RequestKind, Turns] = {kind: Turns(clock) for kind in _RATES}
        self._timeout_s = request_timeout_s
        self._limiter = trio.CapacityLimiter(max_requests)
        self._write_limiter = trio.CapacityLimiter(min(WRITES, max_requests))
        self._rng = rng
        self._clock = clock
        self._attempts: dict[RequestKind, int] = dict.fromkeys(("get", "head", "list", "put", "delete"), 0)
        self.latency: dict[RequestKind, Histogram] = {kind: Histogram() for kind in self._attempts}
        """How long the requests took that were answered, or ran into their deadline."""
        self._errors = self._retries = self._in_flight = self._timeouts = 0
        self._get_bytes = self._put_bytes = 0
        self._durations: deque[tuple[RequestKind, float]] = deque()
        """Of calls that have ended, from their threads."""
        self._unanswered = 0
        self.last_failure: StoreError | None = None
        """What went wrong with the last request that failed."""
        self._state: State = "up"
        self._max_requests = max_requests
        self._workers: Workers | None = None
        self._submitted: dict[int, _Submission] = {}
        self._next_submission = 0
        self._progress_s = self._clock()
        self._on_changed = on_changed

    def set_bandwidth(self, *, get_bytes_s: int | None, put_bytes_s: int | None) -> None:
        """Change the most bytes a second to receive and to send; None: any number."""
        self._throttles["get"].set_rate(get_bytes_s)
        self._throttles["put"].set_rate(put_bytes_s)

    def follow_rules(self, policies: PathPolicies, path_of: Callable[[str], str]) -> None:
        """From now on the limits of these rules hold beside that of the whole store; ``path_of``: the path of a key."""
        for kind, name in _RATES.items():
            self._turns[kind].replace(
                policies.rates(name),
                lambda key, name=name: policies.rate_of(name, path_of(key)),  # type: ignore[misc]
            )

    async def turn(self, kind: Transfer, key: str, size_bytes: int, *, background: bool = False) -> None:
        """Wait until the rules let so many bytes of an object go; before anything is held that others need.

        Everybody who transfers content asks for this first, or `try_turn`.
        """
        throttle = self._turns[kind].of(key)
        if throttle is not None:
            await throttle.wait(size_bytes, background=background)

    def try_turn(self, kind: Transfer, key: str, size_bytes: int) -> bool:
        """Whether the rules let so many bytes go now; they are counted then."""
        throttle = self._turns[kind].of(key)
        return throttle is None or throttle.try_admit(size_bytes)

    def admit_turn(self, kind: Transfer, key: str, size_bytes: int, go: Callable[[], None], *, background: bool) -> None:
        """Call ``go`` when the rules let so many bytes go: at once, or in the event loop later."""
        throttle = self._turns[kind].of(key)
        if throttle is None:
            go()
        else:
            throttle.admit(size_bytes, go, background=background)

    def charge_turn(self, kind: RequestKind, key: str, size_bytes: int) -> None:
        """Count bytes that go once more."""
        throttle = self._turns[kind].of(key) if kind in self._turns else None
        if throttle is not None:
            throttle.charge(size_bytes)

    def held_back(self, kind: Transfer) -> int:
        """How many wait for a `turn`."""
        return self._turns[kind].holding

    def _throttle(self, kind: RequestKind) -> Throttle | None:
        throttle = self._throttles.get(kind)
        return throttle if throttle is not None and throttle.limited else None

    @property
    def reachable(self) -> bool:
        """Whether the store answered last, rather than timing out or refusing connections."""
        return self._state == "up"

    def statistics(self) -> StoreStatistics:
        """Return the counters as they are now."""
        return StoreStatistics(
            gets=self._attempts["get"],
            heads=self._attempts["head"],
            lists=self._attempts["list"],
            puts=self._attempts["put"],
            deletes=self._attempts["delete"],
            errors=self._errors,
            retries=self._retries,
            get_bytes=self._get_bytes,
            put_bytes=self._put_bytes,
            in_flight=self._in_flight,
            timeouts=self._timeouts,
            state=self._state,
        )

    async def call(
        self,
        kind: RequestKind,
        function: Callable[[UnderStore], T],
        *,
        what: str,
        patience: float = 1,
        size_bytes: int = 0,
        key: str | None = None,
        once: bool = False,
    ) -> T:
        """Return ``function(driver)``, run in a thread and retried within the deadline. ``what`` names it in errors.

        Raises the last error once it is not retryable or the deadline does not allow another try, and
        `StoreUnavailable` if the deadline (``patience`` times as long, for calls that make many requests or send
        much) passes while the driver or the queue for a slot hangs. ``size_bytes`` are sent or received: where there is a
        limit to that, they wait before the deadline begins. ``key`` is the object that had its `turn`: further attempts are
        charged to it. ``once``: make no further attempt, as the caller makes them. Large bodies are sent again less often.
        """
        limiter = self._write_limiter if kind in ("put", "delete") else self._limiter
        throttle = self._throttle(kind) if size_bytes else None
        timeout_s = self._timeout_s * patience
        delays: Iterator[float] | None = None
        last: StoreError | None = None
        self._in_flight += 1
        try:
            if throttle is not None:
                await throttle.wait(size_bytes)
            retry_until_s = self._clock() + self._timeout_s
            with trio.move_on_after(timeout_s):
                while True:
                    self._attempts[kind] += 1
                    try:
                        # The thread keeps its limiter slot until it really ends, also when it is abandoned.
                        result = await trio.to_thread.run_sync(
                            self._timed, kind, function, what, abandon_on_cancel=True, limiter=limiter
                        )
                    except StoreError as exc:
                        last = exc
                        self._note_failure(exc)
                        if not exc.retryable or once:
                            raise
                        base_s = LARGE_BASE_S if size_bytes >= LARGE_BYTES else BASE_S
                        delays = delays or backoff_delays(self._rng, base_s=base_s, cap_s=max(CAP_S, 4 * base_s))
                        delay_s = next_delay(delays, self._clock(), retry_until_s)
                        if delay_s is None:
                            self._state = "down"
                            raise
                        await trio.sleep(delay_s)
                        self._retries += 1
                        if throttle is not None:
                            throttle.charge(size_bytes)
                        if key is not None:
                            self.charge_turn(kind, key, size_bytes)
                    else:
                        self._unanswered = 0
                        self._state = "up"
                        self._progress_s = self._clock()
                        return result
            # Only the deadline leads here.
            self.latency[kind].observe(timeout_s)
            self._timeouts += 1
            self._errors += 1
            self._state = "down"
            if last is not None:
                raise last
            raise DeadlinePassed(f"{what}: no answer within {timeout_s:g} s")
        finally:
            self._in_flight -= 1
            self._note_durations()

    def _timed(self, kind: RequestKind, function: Callable[[UnderStore], T], what: str) -> T:
        """Run a call, in its thread."""
        began_s = time.perf_counter()
        try:
            return function(self.driver)
        except ODD_ANSWERS as exc:
            raise unforeseen(exc, what) from None
        finally:
            self._durations.append((kind, time.perf_counter() - began_s))

    def _note_durations(self) -> None:
        while self._durations:
            kind, seconds = self._durations.popleft()
            self.latency[kind].observe(seconds)

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
        to it: `DeadlinePassed`. ``size_bytes`` is about what the request transfers. ``later``: those of others that wait
        for a thread go first. ``requests``: how many the driver makes, one after the other, within that deadline.
        """
        if self._workers is None:
            self._workers = Workers(self._max_requests)
        self._attempts[kind] += requests
        self._in_flight += 1
        self._next_submission += 1
        number = self._next_submission
        submission = self._submitted[number] = _Submission(kind, done, self._clock())

        def job() -> T:
            submission.began_s = time.monotonic()
            return function(cast(UnderStore, _Timed(self.driver, submission.seconds)))

        def go() -> None:
            submission.submitted_s = self._clock()
            assert self._workers is not None
            self._workers.submit(
                job, lambda result, error: self._finish(number, result, error), size_bytes // requests, requests,
                later=later,
            )  # fmt: skip

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
        self._in_flight -= 1
        for seconds in submitted.seconds:
            self.latency[submitted.kind].observe(seconds)
        if error is None:
            self._unanswered = 0
            self._state = "up"
            self._progress_s = self._clock()
            submitted.done(result, None)
            return
        if not isinstance(error, StoreError):
            error = unforeseen(error, submitted.kind.upper())
        self._note_failure(error)
        submitted.done(None, error)

    async def watch_deadlines(self) -> None:
        """Fail submissions whose driver call hangs, and let those go that a limit holds back; until cancelled."""
        async with trio.open_nursery() as nursery:
            for throttle in self._throttles.values():
                nursery.start_soon(throttle.run)
            for turns in self._turns.values():
                nursery.start_soon(turns.run)
            await self._watch_deadlines()

    async def _watch_deadlines(self) -> None:
        while True:
            await trio.sleep(DEADLINE_CHECK_S)
            for number in [n for n, submission in self._submitted.items() if self._overdue(submission)]:
                if self._workers is not None and self._submitted[number].began_s is not None:
                    self._workers.give_up()
                self._timeouts += 1
                self.latency[self._submitted[number].kind].observe(self._timeout_s)
                self._finish(number, None, DeadlinePassed(f"no answer within {self._timeout_s:g} s"))
                self._state = "down"

    def _overdue(self, submission: _Submission) -> bool:
        if submission.began_s is not None:
            return time.monotonic() - submission.began_s >= self._timeout_s
        return self._clock() - max(submission.submitted_s, self._progress_s) >= self._timeout_s

    def note_retry(self) -> None:
        """Count a further attempt at what `submit` failed at, made by `call`."""
        self._retries += 1

    def note_stored(self, key: str, size_bytes: int) -> None:
        """Count an object that a `call` of the caller's own has written."""
        self._put_bytes += size_bytes

    @contextmanager
    def changing(self, *keys: str, gone: bool = False) -> Iterator[None]:
        """Tell at the end of the block, which asks for it, of a change; if it fails, too: the answer may have got lost."""
        try:
            yield
        finally:
            for key in keys:
                self._on_changed(key, gone)

    @property
    def width(self) -> int:
        """About how many bulk requests at once keep the store busy."""
        return self._workers.width if self._workers is not None else FEWEST

    @property
    def idle(self) -> bool:
        """Whether no answer is waited for."""
        return self._in_flight == 0

    def stuck_s(self) -> float:
        """Return for how long no bulk request has been answered; 0 while a limit holds some back."""
        if self._throttles["get"].holding or self._turns["get"].holding:
            return 0.0
        return self._clock() - self._progress_s

    @property
    def timeout_s(self) -> float:
        """The deadline of one request."""
        return self._timeout_s

    def _note_failure(self, exc: StoreError) -> None:
        self.last_failure = exc
        if isinstance(exc, StoreUnavailable):
            self._errors += 1
            self._unanswered += 1
            if self._unanswered >= DOWN_AFTER_FAILURES:
                self._state = "down"
            return
        self._unanswered = 0
        self._state = "up"
        if not isinstance(exc, NotFound | VersionChanged):
            self._errors += 1

    async def _next_page(self, pages: Iterator[ListPage], what: str) -> ListPage | None:
        self._in_flight += 1
        try:
            with trio.move_on_after(self._timeout_s):
                return await trio.to_thread.run_sync(
                    self._timed,
                    "list",
                    lambda _driver: next(pages, None),
                    what,
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
            self._timeouts += 1
            self._errors += 1
            self._state = "down"
            raise StoreUnavailable(f"{what}: no answer within {self._timeout_s:g} s")
        except StoreError as exc:
            self._note_failure(exc)
            raise
        finally:
            self._in_flight -= 1
            self._note_durations()

    def close(self) -> None:
        """Free the driver's connections. Blocks shortly; further calls are errors."""
        if self._workers is not None:
            self._workers.close()
        self.driver.close()
