"""How many requests orders that fetch have on their way, together: those of loads few, while anybody else waits."""

from __future__ import annotations

import trio

from luxfuse.cache.cached import Flight
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.concurrency import in_a_turn
from luxfuse.core.large_runs import LargeRuns
from luxfuse.understore.retrying import Store

TOGETHER, AT_ONCE = 8, 32
"""So many small files are fetched at most in one turn of a thread, by a driver that makes one request after the other, and
by one in C that makes many at once; somebody else may have to wait for the end of a turn. For each thread of the store
there are so many requests on their way, so that none of them waits for the event loop. Measured for 4 KiB, 32 beside 8: a
third less of the daemon's processor time a file."""
FLIGHTS_BESIDE_OTHERS = 2
FLIGHTS_AHEAD = 256
"""So many at most of those that readers are about to wait for: 2,500 a second at 100 ms. With 2,048, 64 threads pass the
interpreter lock on among each other, and the event loop gets it late."""


class Window:
    """How many requests orders of one kind may have on their way, together."""

    def __init__(self, cache: PageCache, store: Store, *, gives_way: bool = True) -> None:
        """``gives_way``: to readers that wait for the store."""
        self._gives_way = gives_way
        self._cache = cache
        self._store = store
        self._flights = 0
        self._runs = LargeRuns(store.timeout_s)
        self._waiting = trio.Event()
        self._waited_for = False

    @property
    def _others_wait(self) -> bool:
        return self._gives_way and self._cache.budget.held_bytes > self._runs.under_way_bytes

    @property
    def together(self) -> int:
        """How many small files to fetch in one turn of a thread."""
        return TOGETHER if self._others_wait or not self._store.fetches_small else AT_ONCE

    def spread(self, files: int) -> int:
        """How many of so many small files, all of which are wanted soon, to fetch in one turn of a thread."""
        at_once = TOGETHER if self._store.fetches_small else 1
        return in_a_turn(files, self._store.width, at_once, self.together)

    def _has_room(self, size_bytes: int) -> bool:
        budget = self._cache.budget
        most = FLIGHTS_BESIDE_OTHERS if self._others_wait else self.together * self._store.width
        if not self._gives_way:
            most = min(most, FLIGHTS_AHEAD)
        elif not self._runs.has_room(size_bytes):
            return False
        return self._flights < most and (self._runs.under_way_bytes <= budget.limit_bytes // 2 or not self._flights)

    async def room(self, size_bytes: int = 0) -> None:
        """Wait until a request for so many bytes may be made, or as many of small files together."""
        while not self._has_room(size_bytes):
            self._waited_for = True
            await self._waiting.wait()

    @property
    def part_pages(self) -> int:
        """How many pages of a file to ask for at once."""
        return self._runs.pages

    def began(self, flight: Flight) -> None:
        """Count a request; its memory is held from now on."""
        self._flights += 1
        self._runs.began(flight.length)

    def ended(self, flight: Flight) -> None:
        """A request is over."""
        self._flights -= 1
        now_s = trio.current_time()
        began_s = now_s if flight.asked_s is None else flight.asked_s
        self._runs.ended(flight.length, began_s, now_s, failed=flight.error is not None)
        if self._waited_for:
            self._waited_for = False
            self._waiting.set()
            self._waiting = trio.Event()
