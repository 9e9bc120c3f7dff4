"""The page cache: finds a page in memory, on disk or elsewhere, and fills itself on the way.

`contents` knows what is here, `fetching` gets what is not. Invariants: a page is recorded only after its bytes were
written; the bytes of an object's file are never changed once recorded, only dropped, by page or with the whole file, and
never while the kernel has the file open.
"""

from __future__ import annotations

import os

import trio

from luxfuse.cache import disk
from luxfuse.cache.cached import Buffer, CachedObject
from luxfuse.cache.fetching import Fetching
from luxfuse.core.spans import pages_of
from luxfuse.types import PAGE_BYTES


class PageCache(Fetching):
    """The cache of one mount."""

    async def read(self, obj: CachedObject, offset: int, length: int) -> Buffer:
        """Return ``length`` bytes at ``offset``, fewer only at the end of the object. Raises `StoreError`."""
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
            parts.append(await self._read_page(obj, page, low, high))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_page(self, obj: CachedObject, page: int, low: int, high: int) -> Buffer:
        while True:
            kept = self.recent.get(obj.oid, page)
            if kept is not None:
                self.counters.memory_bytes += high - low
                if high == len(kept) and obj.pages.has(page):
                    self.recent.discard(obj.oid, page)
                return memoryview(kept)[low:high]
            flight = obj.flights.get(page)
            if flight is not None:
                await flight.done.wait()
                if flight.error is not None:
                    raise flight.error
                data = flight.page(page)
                if high == len(data) and obj.pages.has(page):
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
            loaded = await trio.to_thread.run_sync(
                disk.load,
                space.directory,
                oid,
                obj.size,
                offset,
                length,
                sums,
                trusted,
                stamp,
                limiter=self._disk_limiter,
            )
        except OSError as exc:
            if self.still_there(obj, oid, record, space):
                self._lose_file(obj, exc)
            return None
        if not self.still_there(obj, oid, record, space) or obj.cuts != cuts:
            return None  # somebody began to write to the file meanwhile, or it moved, or has new holes
        still_so = distrusts == obj.distrusts
        if loaded.foreign and not obj.flights and stamp == obj.record.stamp:
            self._distrust(obj)
        if still_so:
            obj.trusted.update(loaded.verified)
        self.counters.verified_bytes += len(loaded.verified) * PAGE_BYTES
        if loaded.damaged:
            self.mend(obj, loaded.damaged)
            return None
        space.read_bytes += length
        return loaded.data

    # -- handing over to the kernel

    async def open_for_kernel(self, obj: CachedObject) -> int | None:
        """Return a descriptor of the whole object's verified file, for the caller to close; None if it must be fetched."""
        record = obj.record
        stamp = record.stamp if record.epoch == self.epoch else 0
        oid, space, cuts = obj.oid, obj.space, obj.cuts
        if space is None or not obj.whole:
            return None
        try:
            opened = await trio.to_thread.run_sync(
                disk.open_verified,
                space.directory,
                oid,
                obj.size,
                obj.pages.checksums,
                stamp,
                limiter=self._disk_limiter,
            )
        except OSError as exc:
            if self.still_there(obj, oid, record, space):
                self._lose_file(obj, exc)
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
            self.mend(obj, opened.damaged)
            return None
        if record.epoch != self.epoch or record.stamp != stamp:
            record.epoch, record.stamp = self.epoch, stamp
            self._save(obj)
        return opened.fd
