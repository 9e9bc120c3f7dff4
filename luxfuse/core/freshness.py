"""When what is known of a name must be asked of the store again. Times are wall-clock seconds (they survive restarts)."""

from __future__ import annotations

RELIST_AFTER_LOOKUPS = 2
"""Expired or unknown names looked up one by one in a directory before its whole listing is fetched instead:
one LIST answers for 1,000 names."""


def remaining_s(checked_s: float, now_s: float, ttl_s: float) -> float:
    """Return for how long an answer of time ``checked_s`` still holds; 0 if it does not.

    An answer from the future (the clock was set back) does not hold.
    """
    if checked_s > now_s + 1:
        return 0.0
    return max(0.0, min(checked_s, now_s) + ttl_s - now_s)


def is_fresh(checked_s: float, now_s: float, ttl_s: float) -> bool:
    """Whether an answer of time ``checked_s`` still holds."""
    return checked_s <= now_s + 1 and min(checked_s, now_s) + ttl_s > now_s
