"""When dirty files are pushed, and tried again after a failure."""

from __future__ import annotations

from luxfuse.core.rng import Rng

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 300.0
LONGEST_OUTAGE_RETRY_S = 60.0
"""While the store cannot be reached: a try costs little, and nobody tells when it is back."""
URGENT_RETRY_S = 5.0
"""While somebody waits for all of it."""
DEAR_ATTEMPTS = 5
"""Tries that each send a whole file in vain begin as after so many failures: with a pause of half a minute."""
POSTPONED_S = 4.0
"""How much longer a file waits while others are being closed, so that pushes slow down no program that makes many."""


def due_until(now_s: float, quiet_s: float, *, urgent: bool) -> float:
    """Return the time by which files must be due to be pushed now; ``quiet_s``: when none is thought to be made."""
    return now_s - POSTPONED_S if now_s < quiet_s and not urgent else now_s


def longest_retry_s(*, outage: bool, urgent: bool) -> float:
    """Return the longest pause between tries. An outage costs little to be looked at, and somebody may wait."""
    if outage:
        return URGENT_RETRY_S if urgent else LONGEST_OUTAGE_RETRY_S
    return LONGEST_RETRY_S


def retry_delay_s(attempts: int, longest_s: float = LONGEST_OUTAGE_RETRY_S, rng: Rng | None = None) -> float:
    """Return how long to wait after so many failures before this one: doubling, less up to a quarter by chance."""
    pause_s = min(longest_s, FIRST_RETRY_S * 2 ** min(attempts, 16))
    return float(pause_s * (1 - rng.random() / 4 if rng is not None else 1.0))
