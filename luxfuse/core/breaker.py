"""When a store is taken for away, and when it is asked whether it is back. Times are seconds of one clock.

*Closed*, requests go to the store. As soon as something has waited, or failed, for some time without a single answer,
the store is probed, and where the probe is not answered, either, it is in doubt. Where all probes fail until the
patience of a request is over, the breaker is *open*: nothing goes to the store but probes. It is *half-open* while one
is under way, and closed by the first answer.

So a store that answers anything, however slowly, is never taken for away, and a single request or object that always fails
takes nothing from the others. One that has come back is noticed by the next probe: `PROBE_EVERY_S` later at most, as a
probe that hangs keeps no other from being sent.
"""

from __future__ import annotations

import math
from typing import Literal

State = Literal["closed", "open", "half-open"]

DOUBT_S = 3.0
"""So long without an answer is more than a slow request: half of it before, a probe was sent. Half the patience, where that
is less."""
PROBE_EVERY_S = 2.0
PROBE_DEADLINE_S = 5.0
"""A store that needs longer for the least of all requests is of no use. It is the patience, where that is less."""
MOST_PROBES = 6
"""Under way at once: threads that hang in a driver until its own time-outs, 10 s, end them."""


class Breaker:
    """The breaker of one under-store."""

    def __init__(self, patience_s: float, now_s: float) -> None:
        """``patience_s``: for how long a request is tried."""
        self._patience_s = patience_s
        self._doubt_s = min(DOUBT_S, patience_s / 2)
        self.probe_deadline_s = min(PROBE_DEADLINE_S, patience_s)
        self._answered_s = now_s
        self._unanswered_s: float | None = None
        """Since when the store has been asked something without one answer."""
        self._probes_failed = 0
        """In that time."""
        self._probing = 0
        self._probed_s = -math.inf
        self.opened_s: float | None = None
        """When the store was taken for away; None while it is not."""

    @property
    def state(self) -> State:
        """The state of the breaker."""
        if self.opened_s is None:
            return "closed"
        return "half-open" if self._probing else "open"

    @property
    def away(self) -> bool:
        """Whether nothing but probes may go to the store."""
        return self.opened_s is not None

    @property
    def unanswered_s(self) -> float | None:
        """Since when the store has answered nothing, though it was asked; None if it has."""
        return self._unanswered_s

    def is_doubtful(self, now_s: float) -> bool:
        """Whether the store has not answered for so long that what is known had better do."""
        return self.away or (self._unanswered_s is not None and now_s - self._unanswered_s >= self._doubt_s)

    def answered(self, now_s: float) -> bool:
        """Note an answer, be it a refusal; returns whether the store was away until now."""
        was_away = self.away
        self._answered_s = now_s
        self._unanswered_s = self.opened_s = None
        self._probes_failed = 0
        return was_away

    def unanswered(self, since_s: float, now_s: float) -> bool:
        """Note that a request that was sent at ``since_s`` has failed or waits; returns whether the store is away now.

        A request of before the last answer counts from that on. False if it was away already.
        """
        since_s = max(since_s, self._answered_s)
        self._unanswered_s = since_s if self._unanswered_s is None else min(since_s, self._unanswered_s)
        return self._judge(now_s)

    def found_away(self, now_s: float) -> None:
        """The store did not answer the first question of all, which was tried with patience."""
        self._unanswered_s = self.opened_s = now_s

    def _judge(self, now_s: float) -> bool:
        if self.away or not self._probes_failed or self._unanswered_s is None:
            return False
        if now_s - self._unanswered_s < self._patience_s:
            return False
        self.opened_s = now_s
        return True

    # -- probes

    def is_probe_due(self, now_s: float, *, wanted: bool = False) -> bool:
        """Whether to send a probe now; ``wanted``: also where nothing is wrong with the store."""
        asked = wanted or self.away or (self._unanswered_s is not None and now_s - self._unanswered_s >= self._doubt_s / 2)
        return asked and self._probing < MOST_PROBES and now_s - self._probed_s >= PROBE_EVERY_S

    def probe_began(self, now_s: float) -> None:
        """A probe is sent; `probe_ended` is to be called."""
        self._probing += 1
        self._probed_s = now_s

    def probe_ended(self) -> None:
        """A probe is over, and its thread free; how it went is told besides."""
        self._probing -= 1

    def probe_failed(self, since_s: float, now_s: float) -> bool:
        """A probe that was sent at ``since_s`` had no answer; returns whether the store is now away."""
        if since_s >= self._answered_s:
            self._probes_failed += 1
        return self.unanswered(since_s, now_s)
