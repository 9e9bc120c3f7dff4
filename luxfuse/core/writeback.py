"""When a failed push of a dirty file is tried again."""

from __future__ import annotations

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0


def retry_delay_s(attempts: int) -> float:
    """Return how long to wait after so many failures before this one."""
    return float(min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(attempts, 10)))
