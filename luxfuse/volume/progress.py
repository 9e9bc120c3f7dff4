"""Says to the keeper that a beginning gets on, however long the store takes for it."""

from __future__ import annotations

import trio

from luxfuse.keeper import saying
from luxfuse.understore.statistics import RequestCounters

EVERY_S = 1.0


async def tell_of_progress(counters: RequestCounters, scope: trio.CancelScope) -> None:
    """Say it as long as there are further requests, each of which has a deadline; until ``scope`` is cancelled."""
    with scope:
        before = -1
        while True:
            now = sum(counters.attempts.values())
            if now != before:
                saying.goes_on()
            before = now
            await trio.sleep(EVERY_S)
