"""How many requests the loads of a mount have on their way: few, while anybody else waits for the store."""

from __future__ import annotations

import trio

from luxfuse.cache.cached import Flight
from luxfuse.cache.page_cache import PageCache
from luxfuse.understore.retrying import Store

FLIGHTS_FOR_A_THREAD = 8
"""Requests on their way for each thread of the store, so that none of them waits for the event loop. Those of others go
first."""
FLIGHTS_BESIDE_OTHERS = 2


class Window:
    """How many requests the loads of a mount may have on their way, together."""

    def __init__(self, cache: PageCache, store: Store) -> None:
        self._cache = cache
        self._store = store
        self._flights = 0
        self._bytes = 0
        self._waiting = trio.Event()
        self._waited_for = False

    @property
    def _has_room(self) -> bool:
        budget = self._cache.budget
        others = budget.held_bytes > self._bytes
        most = FLIGHTS_BESIDE_OTHERS if others else FLIGHTS_FOR_A_THREAD * self._store.width
        return self._flights < most and (self._bytes <= budget.limit_bytes // 2 or not self._flights)

    async def room(self) -> None:
        """Wait until one more request may be made."""
        while not self._has_room:
            self._waited_for = True
            await self._waiting.wait()

    def began(self, flight: Flight) -> None:
        """Count a request; its memory is held from now on."""
        self._flights += 1
        self._bytes += flight.length

    def ended(self, flight: Flight) -> None:
        """A request is over."""
        self._flights -= 1
        self._bytes -= flight.length
        if self._waited_for:
            self._waited_for = False
            self._waiting.set()
            self._waiting = trio.Event()
