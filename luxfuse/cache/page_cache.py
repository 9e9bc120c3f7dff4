"""The page cache: finds a page in memory, on disk or elsewhere, and fills itself on the way.

`contents` knows the pages here, `fetching` gets the others. Invariants: a page is recorded only after its bytes were
written; the bytes of an object's file are never changed once recorded, only dropped, by page or with the whole file, and
never while the kernel has the file open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from luxfuse import origins
from luxfuse.cache import disk
from luxfuse.cache.attempts import Attempts
from luxfuse.cache.budget import RecentPages
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.contents import Contents
from luxfuse.cache.descriptors import patiently
from luxfuse.cache.fetching import Fetching
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.landing import Descriptions
from luxfuse.cache.quotas import Quotas
from luxfuse.cache.race import PeerSource
from luxfuse.core.memory import Shares
from luxfuse.core.spans import pages_of
from luxfuse.index.objects import Objects
from luxfuse.types import PAGE_BYTES, Buffer
from luxfuse.understore.retrying import Store

DISK_READERS = 8
T = TypeVar("T")


class PageCache:
    """The cache of one mount: reads what `Contents` has and lets `Fetching` get the rest."""

    def __init__(
        self,
        *,
        store: Store,
        objects: Objects,
        hierarchy: Hierarchy,
        descriptions: Descriptions,
        source_id: str,
        epoch: int,
        memory: Shares,
        nursery: trio.Nursery,
        peers: PeerSource | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock``: wall-clock seconds."""
        self.hierarchy = hierarchy
        self.clock = clock
        self.descriptions = descriptions
        self.contents = contents = Contents(
            objects=objects, hierarchy=hierarchy, source_id=source_id, epoch=epoch, nursery=nursery
        )
        self.quotas = Quotas(objects, contents)
        self.attempts = attempts = Attempts(store, peers, clock, hierarchy.shared.left_files)
        self.fetching = fetching = Fetching(
            contents=contents,
            quotas=self.quotas,
            attempts=attempts,
            store=store,
            descriptions=descriptions,
            memory=memory,
            nursery=nursery,
        )
        self.counters = contents.counters
        self.budget = fetching.budget
        self.serving = fetching.serving
        self._disk_limiter = trio.CapacityLimiter(DISK_READERS)
        # The parts' own methods, under one name for all callers: a call goes straight to the part.
        self.acquire, self.release, self.touch = contents.acquire, contents.release, contents.touch
        self.expect, self.flush, self.close = contents.expect, contents.flush, contents.close
        self.expect_ids = contents.expect_ids
        self.keeps, self.record_of, self.still_there = contents.keeps, contents.record_of, contents.still_there
        self.object_id, self.cached_bytes, self.touch_by_ids = (
            contents.object_id,
            contents.cached_bytes,
            contents.touch_by_ids,
        )
        self.detach, self.can_install, self.install = contents.detach, contents.can_install, contents.install
        self.rename = contents.rename
        self.start, self.start_small, self.has_begun = fetching.start, fetching.start_small, fetching.has_begun
        self.start_spread, self.has_any = fetching.start_spread, fetching.has_any
        self.fetch_whole, self.turn = fetching.fetch_whole, attempts.turn

    @property
    def recent(self) -> RecentPages:
        """Pages kept in memory for a moment."""
        return self.fetching.recent

    @property
    def peers(self) -> PeerSource | None:
        """Other nodes, while the mount is in a cluster."""
        return self.attempts.peers

    async def read(self, obj: CachedObject, offset: int, length: int, *, early: bool = False) -> Buffer:
        """Return ``length`` bytes at ``offset``, fewer only at the end of the object. Raises `StoreError`.

        What had to be fetched is recorded then, as far as the disk takes it; ``early``: it may still be about to be.
        """
        length = max(0, min(length, obj.size - offset))
        wanted = pages_of(offset, length)
        if not wanted:
            return b""
        obj.heat.add(wanted)
        self.start(obj, wanted)
        if all(obj.pages.has(p) and p not in obj.flights and self.recent.get(obj.oid, p) is None for p in wanted):
            data = await self._read_disk(obj, offset, length)
            if data is not None:
                return data
        parts: list[Buffer] = []
        for page in wanted:
            low = max(offset, page * PAGE_BYTES) - page * PAGE_BYTES
            high = min(offset + length, (page + 1) * PAGE_BYTES) - page * PAGE_BYTES
            parts.append(await self._read_page(obj, page, low, high, early))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_page(self, obj: CachedObject, page: int, low: int, high: int, early: bool) -> Buffer:
        while True:
            kept = self.recent.get(obj.oid, page)
            if kept is not None:
                self.counters.memory_bytes += high - low
                origins.tell(origins.MEMORY, high - low)
                if high == len(kept) and obj.pages.has(page):
                    self.recent.discard(obj.oid, page)
                return memoryview(kept)[low:high]
            flight = obj.flights.get(page)
            if flight is not None:
                await (flight.arrived() if early else flight.landed())
                data = flight.page(page)
                origins.tell(flight.source, high - low)
                if high == len(data):
                    flight.taken.add(page)
                    if obj.pages.has(page):
                        self.recent.discard(obj.oid, page)
                return data[low:high]
            if obj.pages.has(page):
                loaded = await self._read_disk(obj, page * PAGE_BYTES + low, high - low)
                if loaded is not None:
                    return loaded
                continue
            self.start(obj, range(page, page + 1))

    async def _read_disk(self, obj: CachedObject, offset: int, length: int) -> bytes | None:
        """Read checked bytes of pages that are on disk; None if that failed and the pages must be fetched again."""
        wanted = pages_of(offset, length)
        sums = [obj.pages.checksums[p] for p in wanted]
        trusted = frozenset(p for p in wanted if p in obj.trusted)
        stamp = 0 if obj.flights or obj.oid in self.hierarchy.removing else obj.record.stamp
        distrusts, cuts, oid, record, space = obj.distrusts, obj.cuts, obj.oid, obj.record, obj.space
        assert space is not None
        try:
            loaded = await self._on_disk(
                lambda: disk.load(space.directory, oid, obj.size, offset, length, sums, trusted, stamp)
            )
        except OSError as exc:
            if self.still_there(obj, oid, record, space):
                self.contents.lose_file(obj, exc)
            return None
        if not self.still_there(obj, oid, record, space) or obj.cuts != cuts:
            return None  # somebody began to write to the file meanwhile, or it moved, or has new holes
        still_so = distrusts == obj.distrusts
        if loaded.foreign and not obj.flights and stamp == obj.record.stamp:
            self.contents.trust.distrust(obj)
        if still_so and loaded.verified:
            obj.trusted.update(loaded.verified)
            self.contents.readers.landed(obj, range(min(loaded.verified), max(loaded.verified) + 1))
        self.counters.verified_bytes += len(loaded.verified) * PAGE_BYTES
        if loaded.damaged:
            self.contents.trust.mend(obj, loaded.damaged)
            return None
        space.read_bytes += length
        origins.tell(space.tier, length)
        return loaded.data

    # -- handing over to the kernel

    def is_verified(self, obj: CachedObject) -> bool:
        """Whether a whole file needs no look at its pages before it is handed over, if nobody else has written to it."""
        return obj.record.epoch == self.contents.epoch

    async def _on_disk(self, job: Callable[[], T]) -> T:
        """Run what reads a cache file in a thread. Raises `NoDescriptors`, OSError."""
        return await patiently(lambda: trio.to_thread.run_sync(job, limiter=self._disk_limiter))

    async def open_while_filled(self, obj: CachedObject) -> int | None:
        """Return a descriptor of the file of an object that is not whole yet, for the caller to close; None: not now.

        Raises `NoDescriptors`.
        """
        oid, record, space = obj.oid, obj.record, obj.space
        if space is None or not obj.file_number:
            return None
        try:
            fd = await self._on_disk(lambda: space.directory.open(oid))
        except OSError:  # the next one that reads it finds out more
            return None
        st = os.fstat(fd)
        there = self.still_there(obj, oid, record, space) and oid not in self.hierarchy.removing
        if there and (st.st_ino, st.st_size) == (obj.file_number, obj.size):
            return fd
        os.close(fd)
        return None

    async def open_for_kernel(self, obj: CachedObject) -> int | None:
        """Return a descriptor of the whole object's verified file, for the caller to close; None if it must be fetched."""
        record = obj.record
        stamp = record.stamp if record.epoch == self.contents.epoch else 0
        oid, space, cuts = obj.oid, obj.space, obj.cuts
        if space is None or not obj.whole:
            return None
        try:
            sums = obj.pages.checksums
            opened = await self._on_disk(lambda: disk.open_verified(space.directory, oid, obj.size, sums, stamp))
        except OSError as exc:
            if self.still_there(obj, oid, record, space):
                self.contents.lose_file(obj, exc)
            return None
        if not self.still_there(obj, oid, record, space) or obj.cuts != cuts:
            if opened.fd >= 0:  # somebody began to write to the file meanwhile
                os.close(opened.fd)
            return None
        stamp = opened.stamp
        if opened.resize:
            os.ftruncate(opened.fd, obj.size)
            stamp = os.fstat(opened.fd).st_mtime_ns
        self.counters.verified_bytes += opened.verified_bytes
        if opened.damaged:
            self.contents.trust.mend(obj, opened.damaged)
            return None
        if record.epoch != self.contents.epoch or record.stamp != stamp:
            record.epoch, record.stamp = self.contents.epoch, stamp
            self.contents.save(obj)
        obj.file_number = os.fstat(opened.fd).st_ino  # so that another file in its place is noticed
        return opened.fd
