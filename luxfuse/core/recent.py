"""Quantiles of the last so many durations."""

from __future__ import annotations

from collections import deque

KEPT = 256
RESORTED_EVERY = 16


class Recent:
    """The last `KEPT` durations in seconds."""

    __slots__ = ("_durations", "_new", "_sorted")

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=KEPT)
        self._sorted: list[float] = []
        self._new = 0

    def __len__(self) -> int:
        return len(self._durations)

    def observe(self, seconds: float) -> None:
        """Take one into account."""
        self._durations.append(seconds)
        self._new += 1

    def quantile(self, fraction: float) -> float | None:
        """Return the duration that this fraction did not exceed, within the last few; None if there are none."""
        if self._new >= RESORTED_EVERY or len(self._sorted) < min(len(self._durations), RESORTED_EVERY):
            self._sorted, self._new = sorted(self._durations), 0
        if not self._sorted:
            return None
        return self._sorted[min(len(self._sorted) - 1, int(fraction * len(self._sorted)))]
