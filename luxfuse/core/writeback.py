"""When a failed push of a dirty file is tried again."""

from __future__ import annotations

from luxfuse.core.retry import Rng

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 300.0
LONGEST_OUTAGE_RETRY_S = 60.0
"""While the store cannot be reached: a try costs little, and nobody tells when it is back."""


def retry_delay_s(attempts: int, longest_s: float = LONGEST_OUTAGE_RETRY_S, rng: Rng | None = None) -> float:
    """Return how long to wait after so many failures before this one: doubling, less up to a quarter by chance."""
    pause_s = min(longest_s, FIRST_RETRY_S * 2 ** min(attempts, 16))
    return float(pause_s * (1 - rng.random() / 4 if rng is not None else 1.0))
