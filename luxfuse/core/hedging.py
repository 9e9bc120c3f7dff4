"""When to ask somebody else for the same once more, because the first one is unusually slow.

A request that takes longer than 95 of 100 such took lately is hedged. As that rule alone would let load rise just when all
are slow, hedges are also paid for: each request earns a twentieth of one, and little can be saved up.
"""

from __future__ import annotations

from luxfuse.core.recent import Recent

FRACTION = 0.95
FLOOR_S = 0.01
UNKNOWN_S = 0.5
FEWEST = 20
EARNED = 0.05
"""Hedges that a request earns: so large a share of all requests they are in the long run."""
MOST_SAVED = 10.0
CLASSES_BYTES = (256 << 10, 2 << 20, 8 << 20)
"""Upper bounds of the size classes, which are looked at apart; one more has the rest."""


class Hedging:
    """For requests of one kind, as those to nodes that have pages, or to those that have to get them."""

    def __init__(self, *, floor_s: float = FLOOR_S, unknown_s: float = UNKNOWN_S) -> None:
        """``floor_s``: sooner it is never worth it; ``unknown_s``: while there are too few durations to tell."""
        self._floor_s = floor_s
        self._unknown_s = unknown_s
        self._recent = [Recent() for _ in range(len(CLASSES_BYTES) + 1)]
        self._saved = 1.0
        self.hedges = 0
        self.forgone = 0
        """Times that a hedge was due and not paid for."""

    def began(self, alike: int = 1) -> None:
        """A request, which is no hedge, was made; so many do the same, and hedge at the expense of the same store."""
        self._saved = min(MOST_SAVED, self._saved + EARNED / alike)

    def observe(self, size_bytes: int, seconds: float) -> None:
        """A request was answered. One that was given up because its hedge was faster counts with the time until then."""
        self._recent[_class_of(size_bytes)].observe(seconds)

    def delay_s(self, size_bytes: int) -> float:
        """Return after how many seconds without an answer a hedge is due."""
        recent = self._recent[_class_of(size_bytes)]
        found = recent.quantile(FRACTION) if len(recent) >= FEWEST else None
        return self._unknown_s if found is None else max(self._floor_s, found)

    def insist(self) -> None:
        """A hedge is made whether it is paid for or not."""
        self._saved = max(0.0, self._saved - 1.0)
        self.hedges += 1

    def take(self) -> bool:
        """A hedge is due: whether it may be made. If so it counts as made."""
        if self._saved < 1.0:
            self.forgone += 1
            return False
        self._saved -= 1.0
        self.hedges += 1
        return True


def _class_of(size_bytes: int) -> int:
    return sum(size_bytes > bound for bound in CLASSES_BYTES)
