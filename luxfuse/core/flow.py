"""How many bytes of read-ahead to ask for at once: as many as keep the link busy, and not many more.

Too few, and the link is idle for a part of each round trip. Too many, and they share the link so evenly that all pages
come late and together, those that a reader waits for among them; and what another program misses comes late, too.

What is enough depends on throughput and latency, and the latency cannot be told from requests that share the link with
others of ours: their times are of our own making. So it is tried: now and then twice as much is under way, or half, for a
round, and what serves as well with less, or clearly better with more, stays. A *round* brings as many bytes as may be under
way; one in which readers wanted less than they might have had tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_BYTES = 16 << 20
"""8 requests of 2 MiB: what the benchmark's raw driver has under way. At 20 ms it is enough for 800 MB/s."""
STEP = 2
BETTER, AS_GOOD = 1.25, 0.9
"""So many times the throughput is worth more under way; so many times is not worth the rest of it."""
REST = 12
"""Rounds after a trial that changed nothing."""
RUNS = 16
LEAST_RUN_BYTES, MOST_RUN_BYTES = 2 << 20, 4 << 20


@dataclass(frozen=True, slots=True)
class _Trial:
    """A limit that is tried, instead of another with its throughput."""

    instead_bytes: int
    bytes_s: float


class Flow:
    """The read-ahead of one store, all streams together. Times in seconds, of any clock that does not go back."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._least_bytes = min(LEAST_BYTES, most_bytes)
        self.limit_bytes = self._least_bytes
        """The most to have under way."""
        self.under_way_bytes = 0
        self._trial: _Trial | None = None
        self._rest = 0
        self._try_more = True
        self._began_s = 0.0
        self._came_bytes = 0
        self._steady = False
        """Whether the round counts: the one before it was full, under the same limit."""

    @property
    def settled_bytes(self) -> int:
        """The limit, without what is only tried."""
        return self._trial.instead_bytes if self._trial is not None else self.limit_bytes

    @property
    def run_bytes(self) -> int:
        """About how large the next request should be: a part of the limit, as pages that are needed first come first."""
        return max(LEAST_RUN_BYTES, min(MOST_RUN_BYTES, self.limit_bytes // RUNS))

    @property
    def has_room(self) -> bool:
        """Whether one more may be sent; one always may."""
        return not self.under_way_bytes or self.under_way_bytes + self.run_bytes <= self.limit_bytes

    def began(self, size_bytes: int, now_s: float) -> None:
        """A request was sent."""
        if not self.under_way_bytes:
            self._begin_round(now_s, steady=False)
        self.under_way_bytes += size_bytes

    def wants_less(self) -> None:
        """There is room, and nobody wants it."""
        self._steady = False

    def ended(self, size_bytes: int, now_s: float, *, failed: bool = False) -> None:
        """A request is over. One that failed tells nothing of the link."""
        self.under_way_bytes -= size_bytes
        if failed:
            self._steady = False
            return
        self._came_bytes += size_bytes
        if self._came_bytes >= self.limit_bytes:
            limit = self.limit_bytes
            if self._steady:
                self._judge(self._came_bytes / max(now_s - self._began_s, 1e-6))
            self._begin_round(now_s, steady=limit == self.limit_bytes)

    def _begin_round(self, now_s: float, *, steady: bool) -> None:
        self._began_s, self._came_bytes, self._steady = now_s, 0, steady

    def _judge(self, bytes_s: float) -> None:
        trial, self._trial = self._trial, None
        if trial is None:
            self._rest -= 1
            if self._rest < 0:
                self._try(bytes_s)
        elif self.limit_bytes > trial.instead_bytes and bytes_s >= BETTER * trial.bytes_s:
            self._try(bytes_s)  # even more may be better still
        elif self.limit_bytes < trial.instead_bytes and bytes_s >= AS_GOOD * trial.bytes_s:
            self._rest = REST
        else:
            self.limit_bytes, self._rest, self._try_more = trial.instead_bytes, REST, not self._try_more

    def _try(self, bytes_s: float) -> None:
        more = min(self.limit_bytes * STEP, self._most_bytes)
        less = max(self.limit_bytes // STEP, self._least_bytes)
        wanted = more if self._try_more else less
        if wanted == self.limit_bytes:
            self._try_more, self._rest = not self._try_more, REST
        else:
            self._trial = _Trial(self.limit_bytes, bytes_s)
            self.limit_bytes = wanted
