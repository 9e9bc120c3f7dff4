"""How long requests take: counts in logarithmic buckets, so that percentiles of any number of them cost a fixed memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

BOUNDS_S: tuple[float, ...] = tuple(round(50e-6 * 2 ** (n / 2), 9) for n in range(43))
"""Upper bounds of the buckets in seconds, from 50 us to 105 s, each 1.41 times the one before; one more has the rest."""


class Histogram:
    """Durations in seconds. A percentile is right to a fifth or so: that of a bucket's width."""

    __slots__ = ("counts", "sum_s")

    def __init__(self, counts: Sequence[int] = (), sum_s: float = 0.0) -> None:
        self.counts = list(counts) or [0] * (len(BOUNDS_S) + 1)
        self.sum_s = sum_s

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def since(self, before: Histogram) -> Histogram:
        """Return what came since ``before``, an earlier state of this one."""
        differences = (max(0, now - then) for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(list(differences), max(0.0, self.sum_s - before.sum_s))

    def quantile(self, fraction: float) -> float | None:
        """Return the duration in seconds that this fraction of all did not exceed; None if there are none."""
        wanted = fraction * self.count
        if not wanted:
            return None
        passed = 0
        for number, count in enumerate(self.counts):
            if count and passed + count >= wanted:
                low = BOUNDS_S[number - 1] if number else 0.0
                high = BOUNDS_S[min(number, len(BOUNDS_S) - 1)]
                return low + (high - low) * (wanted - passed) / count
            passed += count
        return BOUNDS_S[-1]
