"""Serves peers: pages of the caches here, and, as their home, pages that are fetched for all nodes.

A page that a peer waits for is fetched from the under-store, in memory of its own (`Fetching.serving`), never from another
peer. So no circle of nodes can wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.disk import checksum
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.members import Want
from luxfuse.core.spans import page_bytes
from luxfuse.errors import NotFound, PeerRefused, Refusal, VersionChanged
from luxfuse.peers.provider import Provided
from luxfuse.types import PAGE_BYTES, Description

OPENERS = 4
TOLD_S = 60.0
"""For how long peers are told what the under-store said of an object when it was read."""


class Serving:
    """Implements `luxfuse.peers.provider.Provider` for the caches of a mount; ``cache_of`` finds one by its source's id."""

    def __init__(self, cache_of: Callable[[bytes], PageCache | None]) -> None:
        self._cache_of = cache_of
        self._limiter = trio.CapacityLimiter(OPENERS)
        self.provided_bytes = 0
        self.refused = 0

    async def provide(self, want: Want, *, fetch: bool) -> Provided:
        """Return the pages, for the caller to release. ``fetch``: get those that are missing. Raises `PeerRefused`."""
        cache = self._cache_of(want.source)
        try:
            if cache is None:
                raise PeerRefused(Refusal.NOT_HERE, "this under-store is not mounted here")
            obj = cache.acquire(want.key, want.version, want.size)
            try:
                provided = await self._provide(cache, obj, range(want.first, want.first + want.count), fetch)
            except BaseException:
                cache.release(obj)
                raise
        except PeerRefused:
            self.refused += 1
            raise
        self.provided_bytes += provided.length
        return provided

    async def _provide(self, cache: PageCache, obj: CachedObject, pages: range, fetch: bool) -> Provided:
        if not pages or pages.stop > obj.pages.total:
            raise PeerRefused(Refusal.FAILED, "the object has no such pages")
        if fetch:
            cache.start(obj, pages, keep_in_memory=False, for_peer=True)
        from_memory: dict[int, memoryview] = {}
        for page in pages:
            data = await _arrival(cache, obj, page, fetch=fetch)
            if data is not None:
                from_memory[page] = data
        cache.touch(obj)
        length = sum(page_bytes(page, obj.size) for page in pages)
        provided = await self._from_disk(cache, obj, pages, length)
        if provided is None:
            if len(from_memory) < len(pages):
                raise PeerRefused(Refusal.NOT_HERE)
            provided = self._from_memory(cache, obj, from_memory, length)
        provided.described = _described(cache, obj)
        return provided

    async def _from_disk(self, cache: PageCache, obj: CachedObject, pages: range, length: int) -> Provided | None:
        """Open the object's file, if it has all the pages."""
        if not all(obj.pages.has(page) for page in pages) or obj.space is None:
            return None
        sums = tuple(obj.pages.checksums[page] for page in pages)
        oid, record, space, cuts = obj.oid, obj.record, obj.space, obj.cuts
        try:
            fd = await trio.to_thread.run_sync(space.directory.open, oid, limiter=self._limiter)
        except OSError:
            return None  # a reader here will find out what is wrong
        if not cache.still_there(obj, oid, record, space) or obj.cuts != cuts:
            os.close(fd)
            return None

        def release() -> None:
            os.close(fd)
            cache.release(obj)

        return Provided(length, sums, fd, pages.start * PAGE_BYTES, None, release)

    @staticmethod
    def _from_memory(cache: PageCache, obj: CachedObject, found: dict[int, memoryview], length: int) -> Provided:
        parts = [found[page] for page in sorted(found)]
        sums = tuple(checksum(part) for part in parts)
        data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        return Provided(length, sums, data=data, on_release=lambda: cache.release(obj))


def _described(cache: PageCache, obj: CachedObject) -> Description | None:
    """Return what is known of an object, so that a peer need not ask for it."""
    if obj.described is not None and 0 <= (age_s := cache.clock() - obj.described[1]) < TOLD_S:
        return obj.described[0], age_s
    return cache.descriptions.told(obj.record.key, obj.record.version)


async def _arrival(cache: PageCache, obj: CachedObject, page: int, *, fetch: bool) -> memoryview | None:
    """Wait for a page that is on its way; returns it if it is in memory. Raises `PeerRefused` if it does not come.

    A request to a holder waits for no other peer, one to the home only for a holder: else nodes that the
    directory is wrong about, or that do not agree on the home, could wait for each other.
    """
    flight = obj.flights.get(page)
    if flight is None:
        kept = cache.recent.get(obj.oid, page)
        return None if kept is None else memoryview(kept)
    if flight.waits_for_peer or (flight.asks_peer and not fetch):
        raise PeerRefused(Refusal.NOT_HERE, "asked for elsewhere")
    await flight.done.wait()
    if flight.error is not None:
        changed = isinstance(flight.error, VersionChanged | NotFound)
        raise PeerRefused(Refusal.CHANGED if changed else Refusal.FAILED, str(flight.error))
    return flight.page(page)
