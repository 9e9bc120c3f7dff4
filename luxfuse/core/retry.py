"""When to try again: exponential backoff with full jitter, as a pure schedule."""

from __future__ import annotations

from collections.abc import Iterator

from luxfuse.core.rng import Rng

BASE_S = 0.1
CAP_S = 5.0


def backoff_delays(rng: Rng, *, base_s: float = BASE_S, cap_s: float = CAP_S) -> Iterator[float]:
    """Yield without end the seconds to wait before each retry: uniform in [0, min(cap_s, base_s * 2**n)).

    Full jitter spreads the retries of many clients that failed at the same moment evenly over the interval.
    """
    assert 0 < base_s <= cap_s
    ceiling_s = base_s
    while True:
        yield rng.random() * ceiling_s
        ceiling_s = min(cap_s, ceiling_s * 2)


def next_delay(delays: Iterator[float], now_s: float, deadline_s: float) -> float | None:
    """Return how long to wait before another try, or None where that try would start at or past the deadline."""
    delay_s = next(delays)
    return delay_s if now_s + delay_s < deadline_s else None
