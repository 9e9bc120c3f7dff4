"""Whether a store is there: every request to it passes here, and while it is away all but probes are refused at once.

`core.breaker` decides. Here are the requests that wait, which end when the store is found to be away; the probes, each in a
thread that may hang; and the two lines of the log that an outage is worth.

A store that refuses the credentials is there, and each request gets that answer. Whether it refuses all, a probe tells: it
is sent after such an answer, and then as in an outage until one is let in, whose driver looks for other credentials. So it
is where there are no credentials to ask it with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

from luxfuse.core.breaker import MOST_PROBES, Breaker
from luxfuse.core.units import format_age
from luxfuse.errors import AccessDenied, NoCredentials, StoreAway, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
QUIET_S = 60.0
"""An outage that begins so shortly after another one is no further warning."""
LOOKED_S = 0.25
"""How often a caller that has something else to show looks whether the store is in doubt."""


_DENIES = {False: "refuses the credentials", True: "cannot be asked without credentials"}


class _Wait:
    """A request that waits for the store: a context manager, as a generator costs as much again."""

    __slots__ = ("_presence", "patient", "scope", "since_s")

    def __init__(self, presence: Presence, scope: trio.CancelScope, since_s: float, *, patient: bool) -> None:
        self._presence = presence
        self.scope = scope
        self.since_s = since_s
        self.patient = patient

    def __enter__(self) -> None:
        self._presence.waiting[self] = None

    def __exit__(self, *_: object) -> None:
        self._presence.waiting.pop(self, None)


class Presence:
    """The presence of one store. All methods belong to the event loop."""

    def __init__(self, patience_s: float, clock: Callable[[], float], name: str) -> None:
        """``patience_s``: for how long a request is tried; ``name``: of the store, in the log."""
        self._patience_s = patience_s
        self._clock = clock
        self._name = name
        self._breaker = Breaker(patience_s, clock())
        self.waiting: dict[_Wait, None] = {}
        """The requests that wait, the oldest first."""
        self.on_away: list[Callable[[], None]] = []
        """Called when the store is found to be away."""
        self.on_back: list[Callable[[], None]] = []
        """Called when it answers again, or accepts the credentials again."""
        self.cause = "it does not answer"
        self.outages = self.probes = self.refused = 0
        """Outages, probes, and requests that were refused because the store was away."""
        self._ended_s = -math.inf
        self.denial: str | None = None
        """Why the store refuses the credentials, or cannot be asked without, while it does."""
        self.denies = _DENIES[False]
        """Which of both."""
        self._denied_s = 0.0
        self._denial_suspected = False

    # -- as requests see it

    @property
    def away(self) -> bool:
        """Whether the store is away: nothing is asked of it but whether it is back."""
        return self._breaker.away

    @property
    def doubtful(self) -> bool:
        """Whether the store is away, or has not answered for so long that what is known had better do."""
        return self._breaker.is_doubtful(self._clock())

    @property
    def away_s(self) -> float | None:
        """For how long the store has answered nothing, if it is away."""
        since_s = self._breaker.unanswered_s
        return self._clock() - since_s if self.away and since_s is not None else None

    @property
    def denied_s(self) -> float | None:
        """For how long the store has refused the credentials, or could not be asked without, if that is so."""
        return self._clock() - self._denied_s if self.denial is not None else None

    def require(self, what: str) -> None:
        """Raise `StoreAway` if the store is away."""
        if self._breaker.away:
            self.refused += 1
            raise self.error(what)

    def error(self, what: str, *, sent: bool = False) -> StoreAway:
        """Return the error of a request that is not made while the store is away, or, if ``sent``, not waited for."""
        error = StoreAway(f"{what}: the under-store is away since {format_age(self.away_s or 0.0)} ({self.cause})")
        error.sent = sent
        return error

    def waits(self, scope: trio.CancelScope, *, patient: bool) -> _Wait:
        """Count a request as one that waits, for the block; ``scope`` is cancelled when the store is found to be away.

        ``patient``: it sends so much that it may well be silent for long, and goes on for a while even then.
        """
        return _Wait(self, scope, self._clock(), patient=patient)

    async def promptly(self, answer: trio.Event) -> bool:
        """Wait for an answer; returns False, before it has come, if the store is in doubt."""
        while not answer.is_set():
            with trio.move_on_after(LOOKED_S):
                await answer.wait()
            if not answer.is_set() and self.doubtful:
                return False
        return True

    # -- what requests tell

    def answered(self) -> None:
        """Note an answer, be it a refusal."""
        away_s = self.away_s
        if self._breaker.answered(self._clock()):
            log.info("%s answers again, after %s", self._name, format_age(away_s or 0.0))
            self._back()

    def _back(self) -> None:
        self._ended_s = self._clock()
        for listener in self.on_back:
            listener()

    def failed(self, error: StoreError, since_s: float) -> None:
        """Note how a request ended that began at ``since_s``."""
        if not isinstance(error, StoreUnavailable):
            self._denial_suspected |= _is_denial(error)
            self.answered()
            return
        self.cause = _cause(error)
        if self._breaker.unanswered(since_s, self._clock()):
            self._gone()

    def still_waiting(self, since_s: float) -> None:
        """Note that a request that began at ``since_s`` has no answer yet."""
        if self._breaker.unanswered(since_s, self._clock()):
            self._gone()

    def found_away(self, error: StoreError | None) -> None:
        """Take the store for away from the beginning, until a probe is answered; ``error``: the first request's, if any."""
        if isinstance(error, NoCredentials):
            self._judge_denial(error)
            return
        self.cause = _cause(error) if error is not None else self.cause
        self._breaker.found_away(self._clock())
        self._gone()

    def _gone(self) -> None:
        self.outages += 1
        log.log(self._level(), "%s cannot be reached: %s; what is cached is served, all else fails until it answers again",
                self._name, self.cause)  # fmt: skip
        self._end_waits()
        for listener in self.on_away:
            listener()

    def _level(self) -> int:
        return logging.WARNING if self._clock() - self._ended_s >= QUIET_S else logging.INFO

    def _judge_denial(self, error: StoreError | None) -> None:
        """A probe was answered, with an error or well: note whether the store refuses the credentials."""
        denied_s = self.denied_s
        if error is not None and _is_denial(error):
            self.denial = _cause(error)
            if denied_s is None:
                self._denied_s = self._clock()
                self.denies = _DENIES[isinstance(error, NoCredentials)]
                log.log(self._level(), "%s %s: %s; what is cached is served, all else fails until it accepts them, or "
                        "others are found", self._name, self.denies, self.denial)  # fmt: skip
            return
        self.denial, self._denial_suspected = None, False
        if denied_s is not None:
            log.info("%s accepts the credentials again, after %s", self._name, format_age(denied_s))
            self._back()

    def _end_waits(self) -> None:
        opened_s = self._breaker.opened_s
        impatient = opened_s is not None and self._clock() - opened_s >= self._patience_s
        for wait in list(self.waiting):
            if impatient or not wait.patient:
                wait.scope.cancel()

    # -- in the background

    async def run(self, probe: Callable[[], None], probe_answered: Callable[[], None]) -> None:
        """Look after what waits, and probe a store that is in doubt; until cancelled.

        ``probe`` blocks in a thread; ``probe_answered`` is told in the event loop.
        """
        limiter = trio.CapacityLimiter(MOST_PROBES)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_EVERY_S)
                oldest = next((wait for wait in self.waiting if not wait.patient), None)
                if oldest is not None:
                    self.still_waiting(oldest.since_s)
                if self.away:
                    self._end_waits()
                if self._breaker.is_probe_due(self._clock(), wanted=self._denial_suspected):
                    self._breaker.probe_began(self._clock())
                    nursery.start_soon(self._probe, probe, probe_answered, limiter)

    async def _probe(
        self, probe: Callable[[], None], probe_answered: Callable[[], None], limiter: trio.CapacityLimiter
    ) -> None:
        self.probes += 1
        since_s = self._clock()
        ended = trio.Event()
        outcome: list[StoreError | None] = []

        async def ask() -> None:
            try:
                await trio.to_thread.run_sync(probe, abandon_on_cancel=True, limiter=limiter)
                outcome.append(None)
            except StoreError as exc:
                outcome.append(exc)
            except Exception as exc:  # noqa: BLE001 - no answer of a store makes a driver fail like this
                outcome.append(StoreUnavailable(f"what answers makes no sense ({type(exc).__name__})"))
            finally:
                self._breaker.probe_ended()
                ended.set()
            if outcome[0] is None or not isinstance(outcome[0], StoreUnavailable):
                probe_answered()
                self.answered()
                self._judge_denial(outcome[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.move_on_after(self._breaker.probe_deadline_s):
                await ended.wait()
            error = outcome[0] if outcome else StoreUnavailable("it does not answer")
            if isinstance(error, StoreUnavailable):
                self.cause = _cause(error)
                if self._breaker.probe_failed(since_s, self._clock()):
                    self._gone()


def _is_denial(error: StoreError) -> bool:
    return isinstance(error, AccessDenied) and error.renewable


def _cause(error: StoreError) -> str:
    """Return the reason without the request that met it."""
    text = str(error)
    what, separator, reason = text.partition(": ")
    return reason if separator and what.split(" ", 1)[0].isupper() else text
