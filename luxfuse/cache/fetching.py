"""How pages get into the page cache.

A page that is missing is fetched by one `Flight`, however many wait for it: `start` registers the flight without a wait
in between, so there is no window in which a second one could begin. A flight holds memory (`ByteBudget`) and, if there is
room, disk space (`Space`) for its bytes; its worker thread gets them, wakes the readers that wait, which take the bytes
from the flight itself, checksums and writes them; then the event loop records the pages. Where the disk is slow, or cannot
take them, the readers are served all the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import trio

from luxfuse import origins
from luxfuse.cache.attempts import Attempts
from luxfuse.cache.budget import ByteBudget, RecentPages
from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.contents import Contents
from luxfuse.cache.landing import Descriptions, Landed, Landing
from luxfuse.cache.quotas import Quotas
from luxfuse.cache.race import Fetched
from luxfuse.cache.reservations import Reservations, settle
from luxfuse.cache.small import Outcome
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.memory import Shares
from luxfuse.core.spans import missing_runs
from luxfuse.errors import DeadlinePassed, StoreError, Unforeseen
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)


RUN_PAGES = 2
MOST_TOGETHER = 8
"""So many small files are fetched at most in one turn of a thread."""
SERVING_PART = 4
"""As much of the memory for requests, one part in so many, there is for those of peers besides."""


class Fetching:
    """Fills the objects of one mount's cache."""

    def __init__(
        self,
        *,
        contents: Contents,
        quotas: Quotas,
        attempts: Attempts,
        store: Store,
        descriptions: Descriptions,
        memory: Shares,
        nursery: trio.Nursery,
    ) -> None:
        self._contents = contents
        self._hierarchy = contents.hierarchy
        self._reservations = Reservations(contents.hierarchy, quotas)
        self._attempts = attempts
        self._store = store
        self._nursery = nursery
        self.budget = ByteBudget(memory.flights_bytes)
        self.recent = RecentPages(memory.kept_bytes)
        self._landing = Landing(contents, descriptions, self.recent)
        self.serving = ByteBudget(memory.flights_bytes // SERVING_PART)
        """Memory for pages that peers wait for: it must not wait for readers here, which may wait for those peers."""

    def start(
        self,
        obj: CachedObject,
        pages: range,
        *,
        keep_in_memory: bool = True,
        run: int = RUN_PAGES,
        on_end: Callable[[int], None] | None = None,
        later: bool = False,
        for_peer: bool = False,
        had_turn: bool = False,
    ) -> list[Flight]:
        """Begin to fetch the pages of ``pages`` that are neither here nor on their way; returns the new flights.

        ``on_end`` is called at each flight's end, with the open cache file (which it closes) if the flight made the
        whole object, else -1. ``later``: the requests of others go first. ``for_peer``: a peer waits for the pages, which
        come from the under-store. ``had_turn``: see `Attempts.turn`.
        """
        started = []
        for missing in missing_runs(pages, lambda p: self.has_begun(obj, p), run):
            flight = Flight(missing, obj.size, keep_in_memory, on_end, self.serving if for_peer else self.budget, later)
            flight.from_store, flight.had_turn = for_peer, had_turn
            self._take_off(obj, flight)
            self._launch(obj, flight)
            started.append(flight)
        return started

    @staticmethod
    def _take_off(obj: CachedObject, flight: Flight) -> None:
        """Note that pages are on their way: nobody else fetches them now."""
        for page in flight.pages:
            obj.flights[page] = flight
        obj.users += 1  # the flight's own use, until `_end`

    def start_spread(self, objs: Sequence[CachedObject], on_ends: Sequence[Callable[[int], None]]) -> None:
        """Begin to fetch objects as `start_small` does, in turns of as many threads as keep the store busy.

        ``on_ends``: of each, see `start`. They do not go after the requests of others.
        """
        # A driver that makes requests one after the other needs more threads; one in C makes all of a turn at once.
        each = MOST_TOGETHER if self._store.fetches_small else min(MOST_TOGETHER, -(-len(objs) // self._store.width))
        for first in range(0, len(objs), each):
            together = slice(first, first + each)
            self.start_small(objs[together], on_ends[together], later=False, had_turn=False)

    def start_small(
        self,
        objs: Sequence[CachedObject],
        on_ends: Sequence[Callable[[int], None]] = (),
        *,
        later: bool = True,
        had_turn: bool = True,
    ) -> list[Flight]:
        """Begin to fetch objects of one run each, of which nothing is here or on its way; returns their flights.

        The requests are made in one turn of a thread, as what there is to do for each turn costs more
        than the request for a small file. See `start` for the rest.
        """
        flights = []
        for number, obj in enumerate(objs):
            on_end = on_ends[number] if on_ends else None
            flight = Flight(range(obj.pages.total), obj.size, False, on_end, self.budget, later)
            flight.had_turn = had_turn
            self._take_off(obj, flight)
            flights.append(flight)
        if not self._launch_together(objs, flights):
            for obj, flight in zip(objs, flights, strict=True):
                self._launch(obj, flight)
        return flights

    def _launch_together(self, objs: Sequence[CachedObject], flights: Sequence[Flight]) -> bool:
        total = sum(flight.length for flight in flights)
        if self._attempts.peers is not None or any(obj.oid in self._hierarchy.removing for obj in objs):
            return False
        if not all(self._attempts.has_turn(obj, flight) for obj, flight in zip(objs, flights, strict=True)):
            return False
        if not self.budget.try_hold(total):
            return False
        spaces = self._reservations.try_reserve_all(objs, flights)
        if spaces is None:
            self.budget.give_back(total)
            return False
        whole = list(zip(objs, flights, spaces, strict=True))
        small = self._attempts.small(whole)
        now_s = trio.current_time()
        for flight in flights:
            flight.asked_s = now_s

        def answered(results: list[Outcome] | None, error: StoreError | None) -> None:
            small.abandon()
            self._answered_together(whole, results or [(None, error)] * len(whole))

        self._store.submit("get", small.all, answered, total, later=flights[0].later, requests=len(whole))
        return True

    def has_begun(self, obj: CachedObject, page: int) -> bool:
        """Whether a page is here, or was asked for already."""
        return page in obj.flights or obj.pages.has(page) or self.recent.get(obj.oid, page) is not None

    def has_any(self, obj: CachedObject) -> bool:
        """Whether any page of an object is here, or was asked for already."""
        return bool(obj.pages.count or obj.flights) or self.recent.has_any(obj.oid, obj.pages.total)

    def _launch(self, obj: CachedObject, flight: Flight) -> None:
        """Send the request at once if there is memory and room for it; otherwise a task waits for them."""
        free = obj.oid not in self._hierarchy.removing and self._attempts.has_turn(obj, flight)
        if free and flight.budget.try_hold(flight.length):
            decided, space = self._reservations.try_reserve(obj, flight)
            if decided:
                self._attempts.begin(obj, flight, space, partial(self._answered, obj, flight, space))
                return
            flight.budget.give_back(flight.length)
        self._nursery.start_soon(self._fly, obj, flight)

    def _answered_together(
        self, whole: Sequence[tuple[CachedObject, Flight, Space | None]], outcomes: Sequence[Outcome]
    ) -> None:
        """Deal with the ends of requests that were made in one turn: of new objects, all at once."""
        new, others = [], []
        for (obj, flight, space), (result, error) in zip(whole, outcomes, strict=True):
            if result is not None and space is not None and self._is_new(obj, flight, space, result):
                new.append(Landed(obj, flight, space, result))
            else:
                others.append((obj, flight, space, result, error))
        if new:
            self._land_new(new)
        for each in others:
            self._answered(*each)

    def _is_new(self, obj: CachedObject, flight: Flight, space: Space, fetched: Fetched) -> bool:
        return self._landing.is_new(obj, flight, space, fetched) and not self._contents.index_closed

    def _land_new(self, landed: Sequence[Landed]) -> None:
        """Record new objects, and end their flights: the room that was reserved for each is all taken."""
        try:
            self._landing.land_new(landed)
        except Exception as exc:
            log.exception("storing %d files failed in an unexpected way", len(landed))
            error = Unforeseen(f"internal error while fetching: {type(exc).__name__}")
            for obj, flight, space, fetched in landed:
                fetched.stored.close()
                self._landing.forget(obj)
                self._conclude(obj, flight, space, 0, error)
            return
        taken: dict[Space, int] = {}
        for _, flight, space, _ in landed:
            taken[space] = taken.get(space, 0) + allocated_bytes(flight.length)
            flight.settle_quota()
            flight.budget.give_back(flight.length)
        for space, taken_bytes in taken.items():
            space.ledger.settle(taken_bytes, taken_bytes)
        for obj, flight, _, _ in landed:
            self._end(obj, flight)

    def _answered(
        self, obj: CachedObject, flight: Flight, space: Space | None, result: Fetched | None, error: StoreError | None
    ) -> None:
        stored_bytes = 0
        if result is not None and space is not None and self._is_new(obj, flight, space, result):
            self._land_new([Landed(obj, flight, space, result)])
            return
        try:
            if result is not None and self._contents.index_closed:  # nothing can be recorded any more
                error = StoreError("the under-store is not attached any more")
            elif result is not None:
                try:
                    stored_bytes = self._landing.land(obj, flight, space, result)
                finally:
                    result.stored.close()
        except Exception as exc:
            log.exception("storing a part of %r failed in an unexpected way", obj.record.key)
            error = Unforeseen(f"internal error while fetching: {type(exc).__name__}")
        self._conclude(obj, flight, space, stored_bytes, error)

    def _conclude(
        self, obj: CachedObject, flight: Flight, space: Space | None, stored_bytes: int, error: StoreError | None
    ) -> None:
        """End the first attempt at a flight, and the flight unless there is to be another one."""
        flight.attempt += 1
        if space is not None:
            settle(flight, space, stored_bytes)
        flight.budget.give_back(flight.length)
        again = error is not None and error.retryable and not self._contents.closed
        if again and self._spent_s(flight) < self._store.timeout_s:
            self._store.note_retry()
            self._store.charge_turn("get", obj.record.key, flight.length)
            self._nursery.start_soon(self._fly, obj, flight)
        else:
            flight.error = error
            self._end(obj, flight)

    async def _fly(self, obj: CachedObject, flight: Flight) -> None:
        """Fetch with patience: wait for a turn and for memory, make room by eviction, retry within the deadline."""
        flight.error = StoreError("the daemon is stopping")
        timeout_s = self._store.timeout_s
        try:
            if not flight.had_turn:
                await self._store.turn("get", obj.record.key, flight.length, background=flight.later)
                flight.had_turn = True
            while True:
                # Memory may take its time to come while others are served, but not while nobody is.
                with trio.move_on_after(timeout_s) as patience:
                    async with flight.budget.hold(flight.length):
                        patience.deadline = math.inf
                        await self._fetch(obj, flight)
                if not patience.cancelled_caught:
                    break
                if self._store.stuck_s() >= timeout_s:
                    raise DeadlinePassed(f"{obj.record.key!r}: the under-store has not answered for {timeout_s:g} s")
            flight.error = None
        except (StoreError, OSError) as exc:
            flight.error = exc
        except Exception as exc:
            log.exception("fetching %r failed in an unexpected way", obj.record.key)
            flight.error = Unforeseen(f"internal error while fetching: {type(exc).__name__}")
        finally:
            self._end(obj, flight)

    async def _fetch(self, obj: CachedObject, flight: Flight) -> None:
        while (removal := self._hierarchy.removing.get(obj.oid)) is not None:
            await removal.wait()
        space = await self._reservations.reserve(obj, flight)
        stored_bytes = 0
        try:
            fetched = await self._get(obj, flight, space)
            with closing(fetched.stored):
                stored_bytes = self._landing.land(obj, flight, space, fetched)
        finally:
            if space is not None:
                settle(flight, space, stored_bytes)

    async def _get(self, obj: CachedObject, flight: Flight, space: Space | None) -> Fetched:
        key = obj.record.key
        if flight.attempt == 0:  # in the queue of the others, so that a stream's pages come in their order
            try:
                return await self._attempts.first(obj, flight, space)
            except StoreError as exc:
                flight.attempt += 1
                if not exc.retryable or self._spent_s(flight) >= self._store.timeout_s:
                    raise
                self._store.note_retry()
                self._store.charge_turn("get", key, flight.length)
        job = self._attempts.job(obj, flight, space)
        spent_s = min(self._spent_s(flight), self._store.timeout_s)
        return await self._store.call("get", job, what=f"GET {key!r}", size_bytes=flight.length, key=key, spent_s=spent_s)

    @staticmethod
    def _spent_s(flight: Flight) -> float:
        """Return how long ago the first attempt at a flight was begun."""
        return trio.current_time() - flight.asked_s if flight.asked_s is not None else 0.0

    def _end(self, obj: CachedObject, flight: Flight) -> None:
        flight.attempt += 1
        for page in flight.pages:
            del obj.flights[page]
        if obj.pages.count == 0 and not obj.flights and obj.space is not None and not self._contents.has_file(obj):
            obj.space.directory.expect_no_more(obj.oid)  # nothing came of it
            obj.space = None
        flight.end()
        on_end, flight.on_end = flight.on_end, None  # it may refer to the flight, which would then wait for the collector
        if on_end is not None:
            try:
                on_end(flight.fd)
            except Exception:
                log.exception("handing over %r failed in an unexpected way", obj.record.key)
        self._contents.release(obj)

    async def fetch_whole(self, obj: CachedObject, on_end: Callable[[int], None] | None = None) -> bool:
        """Bring every page of the object to disk; returns whether there were any that had not been asked for before.

        ``on_end``: see `start`. Raises `StoreError`; may leave pages out where the disk is full.
        """
        asked = bool(self.start(obj, range(obj.pages.total), keep_in_memory=False, on_end=on_end))
        while obj.flights:
            flight = next(iter(obj.flights.values()))
            await flight.landed()
            origins.tell(flight.source, flight.length)
        return asked
