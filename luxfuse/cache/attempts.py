"""One attempt at a flight: at the under-store, or at a peer and, if that fails or is slow, at the under-store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import trio

from luxfuse import origins
from luxfuse.cache import disk
from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.race import Done, Fetched, Keep, PeerSource, Race
from luxfuse.cache.small import SmallFlights, is_small
from luxfuse.cache.space import Space
from luxfuse.errors import StoreError
from luxfuse.types import PAGE_BYTES, Description, ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.retrying import Store


class Attempts:
    """Knows where pages come from."""

    def __init__(
        self,
        store: Store,
        peers: PeerSource | None,
        clock: Callable[[], float] = time.time,
        left_files: Callable[[], None] = lambda: None,
    ) -> None:
        """``peers``: asked before the under-store, while the mount is in a cluster. ``clock``: wall-clock seconds.

        ``left_files`` is called, in the event loop, when a write may have left a cache file that nobody counts.
        """
        self._left_files = left_files
        self._store = store
        self._clock = clock
        self._peers = peers
        self._token = trio.lowlevel.current_trio_token()
        self.asking_peers = 0
        """Requests to peers that are under way, those that nobody waits for any more included."""

    @property
    def peers(self) -> PeerSource | None:
        """Other nodes, while the mount takes part in a cluster."""
        return self._peers if self._peers is not None and self._peers.taking_part else None

    def _asks_peers(self, flight: Flight) -> bool:
        """Whether peers are asked before the under-store."""
        return self.peers is not None and not flight.from_store

    async def turn(self, obj: CachedObject, size_bytes: int) -> None:
        """Wait until the rules let so many bytes be fetched in the background; where peers are asked first, they may."""
        if self.peers is None:
            await self._store.turn("get", obj.record.key, size_bytes, background=True)

    def has_turn(self, obj: CachedObject, flight: Flight) -> bool:
        """Whether the rules let a flight begin now."""
        if not flight.had_turn:
            ask = self._store.try_turn
            flight.had_turn = self._asks_peers(flight) or ask("get", obj.record.key, flight.length)
        return flight.had_turn

    def begin(self, obj: CachedObject, flight: Flight, space: Space | None, done: Done[Fetched]) -> None:
        """Make the first attempt at a flight, without waiting; ``done`` gets its outcome in the event loop."""
        flight.asked_s = trio.current_time()
        peers = self.peers
        if peers is None or flight.from_store:
            if self._store.fetches_small and is_small(obj, flight):
                self._ask_store_directly(obj, flight, space, done)
            else:
                self._ask_store(obj, flight, space, done)
            return
        race = Race(done)
        peer_done = race.enter()
        asked = False

        def in_turn(done: Done[Fetched]) -> None:
            self._store.admit_turn(
                "get", obj.record.key, flight.length, partial(self._ask_store, obj, flight, space, done),
                background=flight.later,
            )  # fmt: skip

        def ask_store() -> None:
            nonlocal asked
            if not asked and not race.over:
                asked = True
                in_turn(race.enter())

        def answered(result: Fetched | None, error: StoreError | None) -> None:
            self.asking_peers -= 1
            if error is not None:
                ask_store()
            peer_done(result, error)

        self.asking_peers += 1
        if not peers.ask(obj, flight, self._keeper(obj, flight, space, flight.attempt), answered, ask_store):
            self.asking_peers -= 1
            in_turn(peer_done)

    async def first(self, obj: CachedObject, flight: Flight, space: Space | None) -> Fetched:
        """Make the first attempt, and wait for its outcome. Raises `StoreError`."""
        ended = trio.Event()
        outcome: list[tuple[Fetched | None, StoreError | None]] = []

        def done(result: Fetched | None, error: StoreError | None) -> None:
            outcome.append((result, error))
            ended.set()

        self.begin(obj, flight, space, done)
        await ended.wait()
        result, error = outcome[0]
        if result is None:
            raise error or StoreError("no answer")
        return result

    def _ask_store(self, obj: CachedObject, flight: Flight, space: Space | None, done: Done[Fetched]) -> None:
        self._store.submit("get", self.job(obj, flight, space), done, flight.length, later=flight.later)

    def _ask_store_directly(self, obj: CachedObject, flight: Flight, space: Space | None, done: Done[Fetched]) -> None:
        small = self.small([(obj, flight, space)])

        def ended(result: Fetched | None, error: StoreError | None) -> None:
            small.abandon()
            done(result, error)

        self._store.submit("get", small.one, ended, flight.length, later=flight.later)

    def small(self, flights: Sequence[tuple[CachedObject, Flight, Space | None]]) -> SmallFlights:
        """Return what gets small flights, of which no peer is asked; `SmallFlights.abandon` is to be told their end."""
        return SmallFlights(flights, self.job, self._clock, self._note_left)

    def _note_left(self) -> None:
        """An attempt was over when its bytes had been written, so nobody counts them; called by the thread that did."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._left_files, idempotent=True)

    def job(
        self, obj: CachedObject, flight: Flight, space: Space | None, attempt: int | None = None
    ) -> Callable[[UnderStore], Fetched]:
        """Return what gets a flight's bytes from the under-store and stores them, in the thread of a request.

        ``attempt``: the one that this is a part of; else the present one.
        """
        record = obj.record
        start = flight.pages.start * PAGE_BYTES
        attempt = flight.attempt if attempt is None else attempt
        keep = self._keeper(obj, flight, space, attempt, by_peer=False)
        token = self._token

        def job(driver: UnderStore) -> Fetched:
            if flight.attempt != attempt:
                raise StoreError("nobody waits for it any more")
            asked_s, told = self._clock(), list[ObjectInfo]()
            data = driver.read(record.key, start, start + flight.length, record.version, on_described=told.append)
            described = (told[-1], self._clock() - asked_s) if told else None
            view = memoryview(data).cast("B")
            flight.bring(view, token)
            return keep(view, getattr(view.obj, "checksums", ()), described)

        return job

    def _keeper(
        self, obj: CachedObject, flight: Flight, space: Space | None, attempt: int, *, by_peer: bool = True
    ) -> Keep:
        """Return what stores the bytes of a flight, in the thread that got them."""
        size, oid = obj.record.size, obj.oid
        keep_open = flight.opens and len(flight.pages) == obj.pages.total

        def keep(data: memoryview, sums: tuple[int, ...], described: Description | None) -> Fetched:
            # Past its deadline nobody waits for this attempt any more, and its room on disk is given back.
            if not flight.claim(attempt):
                raise StoreError("nobody waits for it any more")
            flight.source = origins.NODES if by_peer else origins.STORE
            # A file that has pages must be there: a new one in its place would show holes where they were.
            stored = disk.store_run(
                space.directory if space is not None else None, oid, size, flight.pages, data,
                create=obj.pages.count == 0, keep_open=keep_open, sums=sums,
            )  # fmt: skip
            if flight.attempt != attempt:
                self._note_left()
            if described is None:
                return Fetched(data, stored, by_peer)
            return Fetched(data, stored, by_peer, described[0], self._clock() - described[1])

        return keep
