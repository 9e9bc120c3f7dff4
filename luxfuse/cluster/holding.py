"""Gets and keeps copies of ranges that other nodes ask for, and says which are held: the answers to `HOLD_PATH`.

A copy is fetched as any page is, from peers first, in the background: after what programs want. A node that is full, or
has enough to fetch, refuses, and the next one is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.members import RANGE_PAGES, Want
from luxfuse.core.spans import page_count
from luxfuse.errors import LuxError, PeerRefused, Refusal, StoreError
from luxfuse.types import PAGE_BYTES

log = logging.getLogger(__name__)

HOLD_PATH = "/v1/hold"
MOST_WANTS = 64
"""In one request."""
MOST_WAITING = 256
WORKERS = 4
RUN_PAGES = 8
PAUSE_S = 0.05
NO, COMING, HELD = range(3)
"""The outcome of a want, a byte each."""


class HoldRequest(msgspec.Struct, frozen=True, array_like=True):
    """Whole ranges that are to be held. Without ``fetch``, it is only asked which are."""

    fetch: bool
    wants: tuple[Want, ...]


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HoldRequest).decode


class Shelf(Protocol):
    """One cache as it is seen here."""

    def holds(self, want: Want) -> bool:
        """Whether all pages are held."""

    def has_room(self, want: Want, size_bytes: int) -> bool:
        """Whether it may be stored, and so many bytes more can be without giving anything up."""

    async def fetch(self, want: Want) -> None:
        """Get the pages that are missing; those that fail are fetched another time. Raises `LuxError`, OSError."""


@dataclass(slots=True)
class _Waiting:
    wants: dict[Want, None] = field(default_factory=dict)
    under_way: set[Want] = field(default_factory=set)
    bytes: int = 0


class Holding:
    """The pages that this node is asked to hold. ``shelf_of`` finds a cache by its source's id."""

    def __init__(self, shelf_of: Callable[[bytes], Shelf | None]) -> None:
        self._shelf_of = shelf_of
        self._waiting = _Waiting()
        self._wake = trio.Event()
        self.accepted = self.refused = self.fetched = 0

    async def answer(self, _peer: str, body: bytes) -> bytes:
        """Answer a request: a byte for each want, of `NO`, `COMING` and `HELD`. Raises `PeerRefused`."""
        try:
            request = _decode(body)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise PeerRefused(Refusal.FAILED, f"no request to hold something: {exc}") from None
        if len(request.wants) > MOST_WANTS or not all(map(_sound, request.wants)):
            raise PeerRefused(Refusal.FAILED, "no such ranges")
        await trio.lowlevel.checkpoint()
        return bytes(self._answer(want, request.fetch) for want in request.wants)

    def _answer(self, want: Want, fetch: bool) -> int:
        shelf = self._shelf_of(want.source)
        if shelf is None:
            return NO
        if shelf.holds(want):
            return HELD
        if not fetch:
            return NO
        waiting = self._waiting
        if want in waiting.wants or want in waiting.under_way:
            return COMING
        size = _bytes_of(want)
        if len(waiting.wants) >= MOST_WAITING or not shelf.has_room(want, waiting.bytes + size):
            self.refused += 1
            return NO
        waiting.wants[want] = None
        waiting.bytes += size
        self.accepted += 1
        self._wake.set()
        return COMING

    async def run(self) -> None:
        """Fetch the pages that are asked for, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        waiting = self._waiting
        while True:
            while not waiting.wants:
                self._wake = trio.Event() if self._wake.is_set() else self._wake
                await self._wake.wait()
            want = next(iter(waiting.wants))
            del waiting.wants[want]
            waiting.under_way.add(want)
            try:
                if (shelf := self._shelf_of(want.source)) is not None:
                    await shelf.fetch(want)
                    self.fetched += 1
            except (LuxError, OSError) as exc:
                log.info("no copy of %r is made now: %s", want.key, exc)
            finally:
                waiting.under_way.discard(want)
                waiting.bytes -= _bytes_of(want)


def _sound(want: Want) -> bool:
    most = page_count(want.size)
    return want.first >= 0 and want.first % RANGE_PAGES == 0 and want.count == min(RANGE_PAGES, most - want.first) > 0


def _bytes_of(want: Want) -> int:
    return allocated_bytes(min(want.size, (want.first + want.count) * PAGE_BYTES) - want.first * PAGE_BYTES)


class CacheShelf:
    """Implements `Shelf` for the cache of a volume."""

    def __init__(self, cache: PageCache) -> None:
        self._cache = cache

    def holds(self, want: Want) -> bool:
        """Whether all pages are in the cache."""
        oid = self._cache.object_id(want.key, want.version)
        record = self._cache.record_of(oid)
        if record is None or record.size != want.size or oid in self._cache.hierarchy.removing:
            return False
        if record.whole:
            return True
        obj = self._cache.acquire(want.key, want.version, want.size)
        try:
            return all(obj.pages.has(page) for page in range(want.first, want.first + want.count))
        finally:
            self._cache.release(obj)

    def has_room(self, want: Want, size_bytes: int) -> bool:
        """Whether a directory that the object may be put in has so many bytes free."""
        placing = self._cache.hierarchy.placing(want.key)
        roomy = any(space.free_bytes >= size_bytes for space in self._cache.hierarchy if not space.shut)
        return placing.keep and roomy

    async def fetch(self, want: Want) -> None:
        """Fetch the missing pages, while no reader waits for memory."""
        cache = self._cache
        obj = cache.acquire(want.key, want.version, want.size)
        try:
            for first in range(want.first, want.first + want.count, RUN_PAGES):
                pages = range(first, min(first + RUN_PAGES, want.first + want.count))
                while not cache.budget.idle:  # noqa: ASYNC110 (an event would be set at the end of every request)
                    await trio.sleep(PAUSE_S)
                await cache.turn(obj, min(obj.size, pages.stop * PAGE_BYTES) - first * PAGE_BYTES)
                for page in pages:
                    cache.recent.discard(obj.oid, page)  # being in memory would do for a reader
                cache.start(obj, pages, keep_in_memory=False, later=True, had_turn=True)
                for flight in {obj.flights[page] for page in pages if page in obj.flights}:
                    await flight.done.wait()
                    if flight.error is not None:
                        raise StoreError(str(flight.error)) from flight.error
        finally:
            cache.release(obj)
