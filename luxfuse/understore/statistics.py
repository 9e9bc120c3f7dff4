"""Counts the requests of one store, how long they take and how they end, and judges by that whether it answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from luxfuse.core.histogram import Histogram
from luxfuse.errors import NotFound, StoreError, StoreUnavailable, VersionChanged

RequestKind = Literal["get", "head", "list", "put", "delete"]
KINDS: tuple[RequestKind, ...] = ("get", "head", "list", "put", "delete")
State = Literal["up", "down"]

DOWN_AFTER_FAILURES = 3
"""This many failed attempts in a row mean "down" even before one of them has used up its deadline."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """A snapshot. RequestCounters run from the start: those named after requests count attempts, retries included.

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


class RequestCounters:
    """The counters. All methods but `took` belong to the event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.attempts: dict[RequestKind, int] = dict.fromkeys(KINDS, 0)
        self.latency: dict[RequestKind, Histogram] = {kind: Histogram() for kind in KINDS}
        """How long the requests took that were answered, or ran into their deadline."""
        self.errors = self.retries = self.in_flight = self.timeouts = self.get_bytes = self.put_bytes = 0
        self._unanswered = 0
        self._durations: deque[tuple[RequestKind, float]] = deque()
        self.last_failure: StoreError | None = None
        """The error of the last request that failed."""
        self.state: State = "up"
        self.progress_s = clock()
        """When the store last answered."""

    def took(self, kind: RequestKind, seconds: float) -> None:
        """Note how long a call took, in its thread."""
        self._durations.append((kind, seconds))

    def note_durations(self) -> None:
        """Add the durations that the threads have noted."""
        while self._durations:
            kind, seconds = self._durations.popleft()
            self.latency[kind].observe(seconds)

    def answered(self) -> None:
        """Note a success."""
        self._unanswered = 0
        self.state = "up"
        self.progress_s = self._clock()

    def failed(self, exc: StoreError) -> None:
        """Note a failed attempt."""
        self.last_failure = exc
        if isinstance(exc, StoreUnavailable):
            self.errors += 1
            self._unanswered += 1
            if self._unanswered >= DOWN_AFTER_FAILURES:
                self.state = "down"
            return
        self._unanswered = 0
        self.state = "up"
        if not isinstance(exc, NotFound | VersionChanged):
            self.errors += 1

    def timed_out(self) -> None:
        """Note a call that ran into its deadline."""
        self.timeouts += 1
        self.errors += 1
        self.state = "down"

    def statistics(self) -> StoreStatistics:
        """Return the counters as they are now."""
        return StoreStatistics(
            gets=self.attempts["get"],
            heads=self.attempts["head"],
            lists=self.attempts["list"],
            puts=self.attempts["put"],
            deletes=self.attempts["delete"],
            errors=self.errors,
            retries=self.retries,
            get_bytes=self.get_bytes,
            put_bytes=self.put_bytes,
            in_flight=self.in_flight,
            timeouts=self.timeouts,
            state=self.state,
        )
