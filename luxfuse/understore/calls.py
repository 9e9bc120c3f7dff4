"""Calls of a driver with deadlines and retries, in worker threads.

Every driver call runs in a thread of this store's own limiters: writes have one of their own, so that reads never wait
behind them. A call that outlives its deadline is abandoned: the caller gets `StoreUnavailable` at once, and the thread
keeps its slot until the driver's own time-outs end it. So threads, abandoned ones included, never exceed
``max_requests`` and `WRITES` more, nor connections their share of the descriptors (`luxfuse.shares`); with all slots taken,
new calls wait for one inside their own deadline. Bulk requests have threads of their own (`submissions`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import trio

from luxfuse.core.retry import BASE_S, CAP_S, backoff_delays, next_delay
from luxfuse.core.vain import Pause
from luxfuse.errors import DeadlinePassed, StoreAway, StoreError, StoreUnavailable
from luxfuse.types import ListPage
from luxfuse.understore.base import UnderStore
from luxfuse.understore.late import LateWrites, Write
from luxfuse.understore.puts_together import PutsTogether, Slot, Wanted
from luxfuse.understore.statistics import RequestKind
from luxfuse.understore.submissions import Submissions, unforeseen

T = TypeVar("T")

LARGE_BYTES = 4 << 20
LARGE_BASE_S = 2.0
"""The pauses between attempts that send much begin with up to so long."""

ODD_ANSWERS = (LookupError, TypeError, ValueError, AttributeError)
"""The errors that an answer without sense causes in a driver."""

PATIENT_CALLS = 2.0
"""Writes that may take so many times the deadline of a request send or copy much: that they are silent says little."""

WRITES = 32
"""Write requests at once, at most: each part that is being uploaded holds megabytes of memory."""


class Calls(Submissions):
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
        name: str = "the under-store",
    ) -> None:
        """``get_bytes_s`` and ``put_bytes_s``: most bytes a second to receive and to send; `watch_deadlines` lets go.

        ``on_changed``: told of each key that was written, or is gone (True), as soon as the store has said so; and of each
        that may be. ``name``: of the store, in the log.
        """
        super().__init__(
            driver,
            request_timeout_s=request_timeout_s,
            max_requests=max_requests,
            clock=clock,
            get_bytes_s=get_bytes_s,
            put_bytes_s=put_bytes_s,
            name=name,
        )
        self._limiter = trio.CapacityLimiter(self._allowed)
        self._write_limiter = trio.CapacityLimiter(min(WRITES, self._allowed))
        self._together = PutsTogether(lambda: self.driver, self._write_limiter, self.counters)
        self._rng = rng
        self._on_changed = on_changed
        self.late = LateWrites()
        self._disorder = Pause()

    @property
    def reachable(self) -> bool:
        """Whether the store answered last, rather than timing out, refusing connections, or leaving us to wait."""
        return self.counters.state == "up" and not self.presence.doubtful

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
        spent_s: float = 0.0,
        changes: Collection[str] = (),
        conditional: bool = False,
        target: str | None = None,
        small: Wanted | None = None,
    ) -> T:
        """Return ``function(driver)``, run in a thread and retried within the deadline. ``what`` names it in errors.

        Raises the last error once it is not retryable or the deadline does not allow another try, and
        `StoreUnavailable` if the deadline (``patience`` times as long, for calls that make many requests or send
        much) passes while the driver or the queue for a slot hangs. ``size_bytes`` are sent or received: where there is a
        limit to that, they wait before the deadline begins. ``key`` is the object that had its `turn`: further attempts are
        charged to it. ``once``: make no further attempt, as the caller makes them. Large bodies are sent again less often.
        ``spent_s``: how much of the deadline a first attempt has taken. While the store is away nothing is tried, and what
        waits ends: `StoreAway`. ``changes``: the keys that a write is about, ``conditional``: the store compares their
        version, ``target``: where it copies to. ``small``: what ``function`` puts, if others may go with it. Before its
        deadline begins it waits, for as long again, for earlier ones that may be made yet (`outlive`).
        """
        self.presence.require(what)
        throttle = self._throttle(kind) if size_bytes else None
        timeout_s = self._timeout_s * patience
        delays: Iterator[float] | None = None
        last: StoreError | None = None
        write = Write(changes, conditional=conditional, target=target) if kind in ("put", "delete") else None
        self.counters.in_flight += 1
        try:
            if throttle is not None:
                await throttle.wait(size_bytes)
            if changes:
                await self.outlive(changes, what, conditional=conditional, patience=patience)
            retry_until_s = self._clock() + self._timeout_s - spent_s
            patient = kind == "put" and patience >= PATIENT_CALLS
            with trio.move_on_after(timeout_s - spent_s) as scope, self.presence.waits(scope, patient=patient):
                while True:
                    self.counters.attempts[kind] += 1
                    began_s = self._clock()
                    try:
                        result = await self._attempt(kind, function, what, write, small)
                    except StoreError as exc:
                        last = exc
                        self.counters.failed(exc)
                        self.presence.failed(exc, began_s)
                        if not exc.retryable or once or self.presence.away:
                            raise
                        delays = delays or self._delays(size_bytes)
                        delay_s = next_delay(delays, self._clock(), retry_until_s)
                        if delay_s is None:
                            self.counters.state = "down"
                            raise
                        await trio.sleep(delay_s)
                        self.counters.retries += 1
                        if throttle is not None:
                            throttle.charge(size_bytes)
                        if key is not None:
                            self.charge_turn(kind, key, size_bytes)
                    else:
                        self.counters.answered()
                        self.presence.answered()
                        return result
            # Only the deadline leads here, or that the store is away.
            raise self._ended(kind, what, timeout_s, began_s, last)
        finally:
            if write is not None:
                self.late.end(write)
            self.counters.in_flight -= 1
            self.counters.note_durations()

    def _allow(self, requests: int) -> None:
        super()._allow(requests)
        self._limiter.total_tokens = requests
        self._write_limiter.total_tokens = min(WRITES, requests)

    async def _attempt(
        self, kind: RequestKind, function: Callable[[UnderStore], T], what: str, write: Write | None, small: Wanted | None
    ) -> T:
        if small is not None and write is not None and self._together.takes(small):
            stored = await self._together.put(small, write)
            if isinstance(stored, Slot):
                with stored:
                    return await self._in_thread(kind, function, what, write, cast(trio.CapacityLimiter, stored))
            if stored is not None:
                return cast(T, stored)
        limiter = self._write_limiter if kind in ("put", "delete") else self._limiter
        return await self._in_thread(kind, function, what, write, limiter)

    async def _in_thread(
        self,
        kind: RequestKind,
        function: Callable[[UnderStore], T],
        what: str,
        write: Write | None,
        limiter: trio.CapacityLimiter,
    ) -> T:
        # The thread keeps its limiter slot until it really ends, also when it is abandoned.
        return await trio.to_thread.run_sync(
            self._timed, kind, function, what, write, abandon_on_cancel=True, limiter=limiter
        )

    def _delays(self, size_bytes: int) -> Iterator[float]:
        base_s = LARGE_BASE_S if size_bytes >= LARGE_BYTES else BASE_S
        return backoff_delays(self._rng, base_s=base_s, cap_s=max(CAP_S, 4 * base_s))

    def must_wait(self, keys: Collection[str], *, conditional: bool = False) -> bool:
        """Whether a write of ``keys`` has to wait for an earlier one that was given up, and may be made yet (`late`)."""
        return bool(self.late) and self.late.met_by(self._write(keys, conditional=conditional))

    async def outlive(self, keys: Collection[str], what: str, *, conditional: bool = False, patience: float = 1) -> None:
        """Wait until a write of ``keys`` can be made; that it takes long says nothing of the store, nor uses up its tries.

        Whatever is held, or looked at, for the write comes after it. Raises `StoreUnavailable`.
        """
        if not self.must_wait(keys, conditional=conditional):
            return
        self.presence.require(what)
        write = self._write(keys, conditional=conditional)
        with trio.move_on_after(self._timeout_s * patience) as scope, self.presence.waits(scope, patient=True):
            await self.late.outlive(write)
        self.presence.require(what)
        if self.late.met_by(write):
            raise DeadlinePassed(f"{what}: an earlier request that was not answered in time may be carried out yet")

    def _write(self, keys: Collection[str], *, conditional: bool) -> Write:
        return Write(keys, conditional=conditional, deep=self.driver.abilities.hierarchical)

    def _ended(self, kind: RequestKind, what: str, timeout_s: float, began_s: float, last: StoreError | None) -> StoreError:
        """Return the error of a call that is not waited for any longer; the ``last`` attempt began at ``began_s``."""
        if self.presence.away:
            return self.presence.error(what, sent=True)
        self.counters.latency[kind].observe(timeout_s)
        self.counters.timed_out()
        self.presence.still_waiting(began_s)
        return last or DeadlinePassed(f"{what}: no answer within {timeout_s:g} s")

    def _timed(self, kind: RequestKind, function: Callable[[UnderStore], T], what: str, write: Write | None = None) -> T:
        """Run a call, in its thread; a ``write`` that was given up before the thread came to it is not made."""
        began_s = time.perf_counter()
        if write is not None:
            write.running = True
        try:
            if write is not None and write.given_up:
                raise DeadlinePassed(what)
            return function(self.driver)
        except ODD_ANSWERS as exc:
            raise unforeseen(exc, what) from None
        finally:
            if write is not None:
                write.running = False
            self.counters.took(kind, time.perf_counter() - began_s)

    def note_retry(self) -> None:
        """Count a further attempt, made by `call`, at a request that failed in `submit`."""
        self.counters.retries += 1

    def note_stored(self, key: str, size_bytes: int) -> None:
        """Count an object that a `call` of the caller's own has written."""
        self.counters.put_bytes += size_bytes

    @contextmanager
    def changing(self, *keys: str, gone: bool = False) -> Iterator[None]:
        """Tell at the end of the block, which asks for it, of a change; if it fails, too: the answer may have got lost."""
        try:
            yield
        finally:
            for key in keys:
                self._on_changed(key, gone)

    @property
    def idle(self) -> bool:
        """Whether no answer is waited for."""
        return self.counters.in_flight == 0

    async def _next_page(self, pages: Iterator[ListPage], what: str) -> ListPage | None:
        self.presence.require(what)
        self.counters.in_flight += 1
        began_s = self._clock()
        try:
            with trio.move_on_after(self._timeout_s) as scope, self.presence.waits(scope, patient=False):
                page = await trio.to_thread.run_sync(
                    self._timed,
                    "list",
                    lambda _driver: next(pages, None),
                    what,
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
                self.presence.answered()
                return page
            if self.presence.away:
                raise self.presence.error(what)
            self.counters.timed_out()
            raise StoreUnavailable(f"{what}: no answer within {self._timeout_s:g} s")
        except StoreError as exc:
            if not isinstance(exc, StoreAway):
                self.counters.failed(exc)
                self.presence.failed(exc, began_s)
            raise
        finally:
            self.counters.in_flight -= 1
            self.counters.note_durations()
