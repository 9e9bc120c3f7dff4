"""The page cache: finds a page in memory, on disk or in the under-store, and fills itself on the way.

Theory of operation
-------------------
Each object version in use is one `CachedObject`, shared by all its readers. A page that is missing is fetched by one
`Flight`, however many wait for it: `start` registers the flight without a wait in between, so there is no window in
which a second one could begin. A flight holds memory (`ByteBudget`) and, if there is room, disk space (`Space`) for
its bytes; its worker thread gets, checksums and writes them; then the event loop records the pages and wakes the
waiters, who take the bytes from the flight itself. Where the disk cannot take them the readers are served all the same.

Invariants: a page is recorded only after its bytes were written; the bytes of an object's file are never changed once
recorded, only dropped with the whole file, and never while `users` is above 0 or the kernel has the file open.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from luxfuse.cache import disk
from luxfuse.cache.budget import ByteBudget, RecentPages
from luxfuse.cache.cached import Buffer, CachedObject, Flight
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.quotas import Quotas
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.spans import missing_runs, page_bytes, pages_of
from luxfuse.errors import DeadlinePassed, StoreError
from luxfuse.index.objects import ObjectRecord, Objects, Pages, object_id
from luxfuse.types import PAGE_BYTES
from luxfuse.understore.base import UnderStore
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

_Fetched = tuple[memoryview, disk.Stored]

RUN_PAGES = 2
"""Pages of one request: measured on loopback, runs of 1 to 2 MiB in many flights beat fewer of 8 MiB."""
IDLE_OBJECTS = 1024
DISK_READERS = 8


@dataclass(slots=True)
class Counters:
    """Bytes served to readers by where they came from, and what went wrong; all rise from the start on."""

    memory_bytes: int = 0
    understore_bytes: int = 0
    checksum_failures: int = 0
    verified_bytes: int = 0


class PageCache:
    """The cache of one mount."""

    def __init__(
        self,
        *,
        store: Store,
        objects: Objects,
        hierarchy: Hierarchy,
        source_id: str,
        epoch: int,
        memory_bytes: int,
        nursery: trio.Nursery,
    ) -> None:
        """``memory_bytes`` bounds requests in flight and, as much again, pages kept in memory."""
        self._store = store
        self._objects = objects
        self.hierarchy = hierarchy
        self.quotas = Quotas(objects, hierarchy)
        self._source_id = source_id
        self.epoch = epoch
        self._nursery = nursery
        self._live: dict[bytes, CachedObject] = {}
        self._idle: OrderedDict[bytes, CachedObject] = OrderedDict()
        self._disk_limiter = trio.CapacityLimiter(DISK_READERS)
        self.budget = ByteBudget(memory_bytes)
        self.recent = RecentPages(memory_bytes)
        self.counters = Counters()
        self._closed = False
        self.may_drop: Callable[[bytes], bool] = lambda _oid: True
        """Set by vfs: close the object's backing id unless the kernel has it open; returns whether it may go."""
        self.on_use: Callable[[bytes, ObjectRecord, Space], None] = lambda _oid, _record, _space: None
        """Set by the mover: told of each use of a cached object."""
        hierarchy.hooks.release = self._release_for_eviction
        hierarchy.hooks.after_removal = self._after_removal
        hierarchy.hooks.record_of = self.record_of

    # -- objects

    def acquire(self, key: str, version: str, size: int) -> CachedObject:
        """Return the shared object, counted as used; give it back with `release`."""
        oid = object_id(self._source_id, key, version)
        obj = self._live.get(oid)
        if obj is None:
            obj = self._idle.pop(oid, None) or self._load(oid, key, version, size)
            self._live[oid] = obj
        obj.users += 1
        return obj

    async def flush(self) -> None:
        """Bring to the index's disk what is recorded of the cache; while it cannot be written, that waits."""
        await self._objects.flush()

    async def expect(self, versions: Iterable[tuple[str, str]]) -> None:
        """Prepare for many objects (key, version) to be acquired soon."""
        await self._objects.expect([object_id(self._source_id, key, version) for key, version in versions])

    def release(self, obj: CachedObject) -> None:
        """Give an object back."""
        obj.users -= 1
        assert obj.users >= 0
        if obj.users == 0:
            del self._live[obj.oid]
            self._idle[obj.oid] = obj
            if len(self._idle) > IDLE_OBJECTS:
                self._idle.popitem(last=False)

    def _load(self, oid: bytes, key: str, version: str, size: int) -> CachedObject:
        # While its file is being removed, an object is as good as not cached; `_after_removal` tells how that ended.
        found = None if oid in self.hierarchy.removing else self._objects.load(oid)
        space = self.hierarchy.by_number(found[0].directory) if found is not None else None
        if found is not None and space is not None and found[0].size == size:
            return CachedObject(oid, *found, space)
        return CachedObject(oid, ObjectRecord(key, version, size, epoch=self.epoch), Pages(size))

    def touch(self, obj: CachedObject) -> None:
        """Note that the object is used now, for eviction."""
        obj.used = True
        obj.record.used_us = time.time_ns() // 1000
        if obj.pages.count and obj.space is not None:
            if obj.space.use(obj.oid, obj.record):
                self._save(obj)
            self.on_use(obj.oid, obj.record, obj.space)

    def _save(self, obj: CachedObject, changed: range | None = None) -> None:
        """Bring an object's record, and the ``changed`` pages, to the index; what that cannot take it gets later."""
        if obj.unsaved:
            changed = range(obj.pages.total)
        saved = self._objects.save(obj.oid, obj.record, obj.pages, changed)
        obj.unsaved = not saved and (obj.unsaved or changed is not None)

    def touch_by_id(self, oid: bytes) -> None:
        """Note a use of an object that need not be loaded."""
        obj = self._live.get(oid) or self._idle.get(oid)
        if obj is not None:
            self.touch(obj)
        elif (record := self._objects.record(oid)) is not None:
            space = self.hierarchy.by_number(record.directory)
            record.used_us = time.time_ns() // 1000
            if space is not None:
                if space.use(oid, record):
                    self._objects.save(oid, record)
                self.on_use(oid, record, space)

    def keeps(self, obj: CachedObject) -> bool:
        """Whether anything of the object can be stored now."""
        return self.hierarchy.usable and self.hierarchy.hooks.placing(obj.record.key).keep

    def record_of(self, oid: bytes) -> ObjectRecord | None:
        """Return what is recorded of a cached object."""
        obj = self._live.get(oid) or self._idle.get(oid)
        return obj.record if obj is not None and obj.pages.count else self._objects.record(oid)

    def knows(self, oid: bytes, space: Space) -> bool:
        """Whether the object's file in a directory belongs to something: recorded, being filled, or on its way out."""
        obj = self._live.get(oid)
        if obj is not None and (obj.pages.count or obj.flights) and obj.space in (None, space):
            return True
        return oid in self.hierarchy.removing or self._objects.directory_of(oid) == space.number

    def cached_bytes(self, key: str, version: str, size: int) -> tuple[int, str]:
        """Return how many bytes of an object version are cached, and in which tier, or ``none``."""
        obj = self.acquire(key, version, size)
        try:
            cached = obj.cached_bytes
            return cached, obj.space.tier if cached and obj.space is not None else "none"
        finally:
            self.release(obj)

    def _release_for_eviction(self, oid: bytes) -> bool:
        if oid in self._live or not self.may_drop(oid):
            return False
        self._idle.pop(oid, None)
        return True

    def _after_removal(self, oid: bytes, removed: bool) -> None:
        obj = self._live.get(oid)
        if obj is None:
            self._idle.pop(oid, None)  # so that it is loaded as the index has it now
        elif removed:
            obj.forget_pages()
            obj.record.allocated_bytes = 0
            obj.unsaved = self._objects.known(oid)
        elif obj.pages.count == 0 and (found := self._objects.load(oid)) is not None:
            obj.record, obj.pages = found
            obj.space = self.hierarchy.by_number(obj.record.directory)

    def take_up(self, space: Space) -> None:
        """A cache directory came into use: what the index has there is cached."""
        for oid in [oid for oid, obj in self._idle.items() if not obj.pages.count]:
            del self._idle[oid]
        for oid, obj in self._live.items():
            if obj.pages.count or self._objects.directory_of(oid) != space.number:
                continue
            if obj.flights:  # it gets another file
                space.ledger.free(self._objects.drop(oid) or 0)
            elif (found := self._objects.load(oid)) is not None:
                obj.record, obj.pages = found
                obj.space, obj.loaded_stamp = space, obj.record.stamp

    def uses(self, space: Space) -> bool:
        """Whether somebody uses an object that has its file in a directory, or is to get it."""
        return any(obj.space is space for obj in self._live.values())

    def forget_files(self, space: Space) -> None:
        """A cache directory came back without its files, or goes."""
        self._idle.clear()
        for obj in self._live.values():
            if obj.space is space:
                obj.forget_pages()
                obj.record.allocated_bytes = 0

    # -- fetching

    def start(
        self,
        obj: CachedObject,
        pages: range,
        *,
        keep_in_memory: bool = True,
        run: int = RUN_PAGES,
        on_end: Callable[[int], None] | None = None,
        later: bool = False,
    ) -> list[Flight]:
        """Begin to fetch the pages of ``pages`` that are neither here nor on their way; returns the new flights.

        ``on_end`` is called at each flight's end, with the open cache file (which it closes) if the flight made the
        whole object, else -1. ``later``: the requests of others go first.
        """
        started = []
        for missing in missing_runs(pages, lambda p: self._available(obj, p), run):
            flight = Flight(missing, obj.size, keep_in_memory, on_end, later)
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

    def start_small(self, objs: Sequence[CachedObject]) -> list[Flight]:
        """Begin to fetch objects of one run each, of which nothing is here or on its way; returns their flights.

        The requests are made one after the other in one turn of a thread, after those of others: what there is to do for
        each turn costs more than the request for a small file.
        """
        flights = []
        for obj in objs:
            flight = Flight(range(obj.pages.total), obj.size, False, None, True)
            self._take_off(obj, flight)
            flights.append(flight)
        if not self._launch_together(objs, flights):
            for obj, flight in zip(objs, flights, strict=True):
                self._launch(obj, flight)
        return flights

    def _launch_together(self, objs: Sequence[CachedObject], flights: Sequence[Flight]) -> bool:
        total = sum(flight.length for flight in flights)
        if any(obj.oid in self.hierarchy.removing for obj in objs) or not self.budget.try_hold(total):
            return False
        spaces: list[Space | None] = []
        for obj, flight in zip(objs, flights, strict=True):
            decided, space = self._try_reserve(obj, flight)
            if not decided:
                for other, reserved in zip(flights, spaces, strict=False):
                    if reserved is not None:
                        _settle(other, reserved, 0)
                self.budget.give_back(total)
                return False
            spaces.append(space)
        whole = list(zip(objs, flights, spaces, strict=True))
        jobs = [self._job(obj, flight, space) for obj, flight, space in whole]

        def all_of_them(driver: UnderStore) -> list[tuple[_Fetched | None, StoreError | None]]:
            return [_outcome(job, driver) for job in jobs]

        def answered(results: list[tuple[_Fetched | None, StoreError | None]] | None, error: StoreError | None) -> None:
            for (obj, flight, space), (result, why) in zip(whole, results or [(None, error)] * len(whole), strict=True):
                self._answered(obj, flight, space, result, why)

        self._store.submit("get", all_of_them, answered, total, later=True, requests=len(whole))
        return True

    def _available(self, obj: CachedObject, page: int) -> bool:
        return page in obj.flights or obj.pages.has(page) or self.recent.get(obj.oid, page) is not None

    def _launch(self, obj: CachedObject, flight: Flight) -> None:
        """Send the request at once if there is memory and room for it; otherwise a task waits for them."""
        if obj.oid not in self.hierarchy.removing and self.budget.try_hold(flight.length):
            decided, space = self._try_reserve(obj, flight)
            if decided:
                self._store.submit(
                    "get",
                    self._job(obj, flight, space),
                    lambda result, error: self._answered(obj, flight, space, result, error),
                    flight.length,
                    later=flight.later,
                )
                return
            self.budget.give_back(flight.length)
        self._nursery.start_soon(self._fly, obj, flight)

    def _try_reserve(self, obj: CachedObject, flight: Flight) -> tuple[bool, Space | None]:
        """Reserve room at once; see `Hierarchy.try_reserve`."""
        quota = self.quotas.of(obj.record.key)
        if quota is not None and not quota.reserve(allocated_bytes(flight.length)):
            return False, None
        if obj.space is None:
            placing = self.hierarchy.hooks.placing(obj.record.key)
            decided, space = self.hierarchy.try_reserve(obj.size, flight.length, placing)
            if space is not None:
                self._put_in(obj, space)
        else:
            reserved = obj.space.try_reserve(flight.length)
            decided, space = reserved is not None, obj.space if reserved else None
        flight.quota = quota
        if space is None:
            flight.settle_quota()
        return decided, space

    async def _reserve(self, obj: CachedObject, flight: Flight) -> Space | None:
        """Reserve room, in the directory that has the object's file or will get it; None: do without."""
        quota = self.quotas.of(obj.record.key)
        if quota is not None:
            if not await self.quotas.make_room(quota, flight.length) or not quota.reserve(allocated_bytes(flight.length)):
                return None
            flight.quota = quota
        space = None
        try:
            space = await self._reserve_in_directory(obj, flight.length)
        finally:
            if space is None:
                flight.settle_quota()
        return space

    async def _reserve_in_directory(self, obj: CachedObject, wanted_bytes: int) -> Space | None:
        while True:
            wanted = obj.space
            placing = self.hierarchy.hooks.placing(obj.record.key)
            space = await self.hierarchy.reserve(wanted_bytes, placing) if wanted is None else wanted
            if space is None or (wanted is not None and not await space.reserve(wanted_bytes)):
                return None
            if obj.space is None:
                self._put_in(obj, space)
            if obj.space is space:
                return space
            space.settle(wanted_bytes, 0)  # another flight's pages went elsewhere meanwhile, or the file moved

    @staticmethod
    def _put_in(obj: CachedObject, space: Space) -> None:
        """A directory is to get the object's file."""
        obj.put_in(space)
        space.directory.expect(obj.oid)

    def _answered(
        self, obj: CachedObject, flight: Flight, space: Space | None, result: _Fetched | None, error: StoreError | None
    ) -> None:
        stored_bytes = 0
        try:
            if result is not None:
                stored_bytes = self._land(obj, flight, space, result)
        except Exception as exc:
            log.exception("storing a part of %r failed in an unexpected way", obj.record.key)
            error = StoreError(f"internal error while fetching: {type(exc).__name__}")
        finally:
            flight.attempt += 1
            if space is not None:
                _settle(flight, space, stored_bytes)
            self.budget.give_back(flight.length)
        if error is not None and error.retryable and not self._closed:
            self._store.note_retry()
            self._nursery.start_soon(self._fly, obj, flight)
        else:
            flight.error = error
            self._end(obj, flight)

    async def _fly(self, obj: CachedObject, flight: Flight) -> None:
        """Fetch with patience: wait for memory, make room by eviction, retry within the deadline."""
        flight.error = StoreError("the daemon is stopping")
        timeout_s = self._store.timeout_s
        try:
            while True:
                # Memory may take its time to come while others are served, but not while nobody is.
                with trio.move_on_after(timeout_s) as patience:
                    async with self.budget.hold(flight.length):
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
            flight.error = StoreError(f"internal error while fetching: {type(exc).__name__}")
        finally:
            self._end(obj, flight)

    async def _fetch(self, obj: CachedObject, flight: Flight) -> None:
        while (removal := self.hierarchy.removing.get(obj.oid)) is not None:
            await removal.wait()
        space = await self._reserve(obj, flight)
        stored_bytes = 0
        try:
            stored_bytes = self._land(obj, flight, space, await self._get(obj, flight, space))
        finally:
            if space is not None:
                _settle(flight, space, stored_bytes)

    async def _get(self, obj: CachedObject, flight: Flight, space: Space | None) -> _Fetched:
        job = self._job(obj, flight, space)
        if flight.attempt == 0:  # in the queue of the others, so that a stream's pages come in their order
            try:
                return await self._store.attempt("get", job, flight.length)
            except StoreError as exc:
                if not exc.retryable:
                    raise
                self._store.note_retry()
        return await self._store.call("get", job, what=repr(obj.record.key), size_bytes=flight.length)

    def close(self) -> None:
        """Start nothing more: the nursery is about to end."""
        self._closed = True

    def _end(self, obj: CachedObject, flight: Flight) -> None:
        flight.attempt += 1
        for page in flight.pages:
            del obj.flights[page]
        if not obj.flights and obj.pages.count == 0 and obj.space is not None:
            obj.space.directory.expect_no_more(obj.oid)  # nothing came of it
            obj.space = None
        flight.done.set()
        on_end, flight.on_end = flight.on_end, None  # it may refer to the flight, which would then wait for the collector
        if on_end is not None:
            try:
                on_end(flight.fd)
            except Exception:
                log.exception("handing over %r failed in an unexpected way", obj.record.key)
        self.release(obj)

    def _job(self, obj: CachedObject, flight: Flight, space: Space | None) -> Callable[[UnderStore], _Fetched]:
        record, oid = obj.record, obj.oid
        start = flight.pages.start * PAGE_BYTES
        keep_open = flight.on_end is not None and len(flight.pages) == obj.pages.total
        attempt = flight.attempt

        def job(driver: UnderStore) -> _Fetched:
            if flight.attempt != attempt:
                raise StoreError("nobody waits for it any more")
            data = memoryview(driver.read(record.key, start, start + flight.length, record.version)).cast("B")
            # Past its deadline nobody waits for this attempt any more, and its room on disk is given back.
            directory = space.directory if space is not None and flight.attempt == attempt else None
            # A file that has pages must be there: a new one in its place would show holes where they were.
            stored = disk.store_run(
                directory, oid, record.size, flight.pages, data, create=obj.pages.count == 0, keep_open=keep_open
            )
            if stored.fd >= 0 and flight.attempt != attempt:
                os.close(stored.fd)
            return data, stored

        return job

    def _land(self, obj: CachedObject, flight: Flight, space: Space | None, fetched: _Fetched) -> int:
        """Record what a flight brought; returns the bytes that are new on disk."""
        flight.data, stored = fetched
        self.counters.understore_bytes += flight.length
        if isinstance(stored.error, FileNotFoundError) and obj.pages.count:
            self._lose_file(obj, stored.error)
        elif stored.error is not None and space is not None:
            space.fail(stored.error)
        elif stored.file_number and obj.pages.count and obj.file_number not in (0, stored.file_number):
            self._lose_file(obj, FileNotFoundError())
        allocated = 0
        if space is not None and stored.file_number:
            obj.file_number = stored.file_number
            allocated = self._record(obj, flight.pages, stored, flight.length)
        if flight.keep_in_memory or not allocated:
            for page in flight.pages:
                self.recent.put(obj.oid, page, flight.page(page))
        if stored.fd >= 0:
            if allocated:
                flight.fd = stored.fd
            else:
                os.close(stored.fd)
        return allocated

    def _record(self, obj: CachedObject, pages: range, stored: disk.Stored, length: int) -> int:
        self._look_for_strangers(obj, stored)
        if obj.pages.count == 0 and obj.space is not None:
            obj.record.cached_us = time.time_ns() // 1000
            obj.space.insert(obj.oid, obj.record, used=obj.used)
        for page, checksum in zip(pages, stored.checksums, strict=True):
            obj.pages.add(page, checksum)
            if stored.strangers >= obj.strangers:
                obj.trusted.add(page)
        obj.strangers = max(obj.strangers, stored.strangers)
        allocated = allocated_bytes(length)
        record = obj.record
        record.allocated_bytes += allocated
        record.stamp = max(record.stamp, stored.stamp)
        record.used_us = max(record.used_us, time.time_ns() // 1000)
        record.whole = obj.pages.whole
        self._save(obj, pages)
        return allocated

    def _look_for_strangers(self, obj: CachedObject, stored: disk.Stored) -> None:
        strange = stored.found != 0 and stored.found not in (obj.loaded_stamp, obj.record.stamp)
        if strange or stored.strangers > obj.strangers:
            self._distrust(obj)

    # -- pages that are taken out again: see `trim`

    def cut(self, obj: CachedObject, pages: Sequence[int], freed_bytes: int) -> None:
        """Forget pages, which are about to be taken out of the object's file."""
        obj.cuts += 1
        for page in pages:
            obj.pages.remove(page)
            obj.trusted.discard(page)
        obj.record.allocated_bytes -= freed_bytes
        obj.record.whole = False
        self._save(obj, range(min(pages), max(pages) + 1))

    def put_back(self, obj: CachedObject, checksums: Mapping[int, int], allocated_bytes: int) -> None:
        """The pages are still in the file."""
        for page, value in checksums.items():
            obj.pages.add(page, value)
        obj.record.allocated_bytes += allocated_bytes
        obj.record.whole = obj.pages.whole
        self._save(obj, range(min(checksums), max(checksums) + 1))

    def note_written(self, obj: CachedObject, stored: disk.Stored) -> None:
        """The file has another time stamp, and that is ours."""
        self._look_for_strangers(obj, stored)
        obj.strangers = max(obj.strangers, stored.strangers)
        obj.record.stamp = max(obj.record.stamp, stored.stamp)
        self._save(obj)

    async def fetch_whole(self, obj: CachedObject) -> None:
        """Bring every page of the object to disk. Raises `StoreError`; may leave pages out where the disk is full."""
        self.start(obj, range(obj.pages.total), keep_in_memory=False)
        while obj.flights:
            flight = next(iter(obj.flights.values()))
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error

    # -- reading

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
                disk.load, space.directory, oid, obj.size, offset, length, sums, trusted, stamp,
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

    def _distrust(self, obj: CachedObject) -> None:
        """Somebody else wrote to the file: check each page before it is read, and all before the kernel gets the file."""
        obj.trusted.clear()
        obj.distrusts += 1
        obj.record.epoch = 0

    def vouch(self, obj: CachedObject, stamp: int) -> None:
        """All pages of an object were just found good, in a file that has this mtime."""
        obj.record.epoch, obj.record.stamp, obj.loaded_stamp = self.epoch, stamp, stamp
        obj.trusted = {page for page in range(obj.pages.total) if obj.pages.has(page)}
        obj.strangers = 0
        if obj.space is not None:
            obj.space.directory.last_writes.forget(obj.oid)
        self._save(obj)

    def recount(self, obj: CachedObject, disk_bytes: int) -> None:
        """The file of an object takes so many bytes on disk, not those that were counted."""
        assert obj.space is not None
        obj.space.ledger.free(obj.record.allocated_bytes)
        obj.space.ledger.add(disk_bytes)
        obj.record.allocated_bytes = disk_bytes
        self._save(obj)

    def mend(self, obj: CachedObject, damaged: tuple[int, ...]) -> None:
        """Forget damaged pages, so that they are fetched again."""
        log.warning("%d damaged page(s) of %r in the cache; fetching them again", len(damaged), obj.record.key)
        self.counters.checksum_failures += len(damaged)
        for page in damaged:
            if obj.pages.has(page):
                obj.pages.remove(page)
                obj.record.allocated_bytes -= min(obj.record.allocated_bytes, allocated_bytes(page_bytes(page, obj.size)))
                if obj.space is not None:
                    obj.space.ledger.free(allocated_bytes(page_bytes(page, obj.size)))
            obj.trusted.discard(page)
        obj.record.whole = False
        self._save(obj, range(min(damaged), max(damaged) + 1))

    def _lose_file(self, obj: CachedObject, exc: OSError) -> None:
        """The cache file cannot be read: go on without it."""
        space = obj.space
        assert space is not None
        if isinstance(exc, FileNotFoundError):
            log.warning("the cache file of %r is gone; fetching it again", obj.record.key)
        else:
            space.fail(exc)
            if not self._closed:
                self._nursery.start_soon(self._remove_unreadable, obj.oid, space)
        freed = self._objects.drop(obj.oid)
        space.ledger.free(freed or 0)
        obj.forget_pages()
        obj.unsaved = freed is None
        obj.record.allocated_bytes = 0

    async def _remove_unreadable(self, oid: bytes, space: Space) -> None:
        if oid not in self.hierarchy.removing:
            await space.remove(oid)

    @staticmethod
    def still_there(obj: CachedObject, oid: bytes, record: ObjectRecord, space: Space) -> bool:
        """Whether the file that a thread went for was the object's all the while.

        It may have become a staging file, maybe come back since, or have another name or directory.
        """
        return obj.oid == oid and obj.record is record and obj.space is space and obj.pages.count > 0

    # -- files that are written to, renamed or made here

    def detach(self, obj: CachedObject) -> tuple[Pages, int]:
        """Forget an object whose file becomes a staging file; returns its pages, and its bytes, which stay counted."""
        pages, allocated = obj.pages, obj.record.allocated_bytes
        obj.unsaved = self._objects.drop(obj.oid) is None
        if obj.space is not None:
            obj.space.directory.last_writes.forget(obj.oid)
        obj.forget_pages()
        obj.record.allocated_bytes = 0
        return pages, allocated

    def object_id(self, key: str, version: str) -> bytes:
        """Return the id of an object version, which names its file."""
        return object_id(self._source_id, key, version)

    def can_install(self, key: str, version: str) -> bool:
        """Whether the file of an object version may be put in its place: there is none, and none is on its way."""
        oid = object_id(self._source_id, key, version)
        obj = self._live.get(oid) or self._idle.get(oid)
        if obj is not None and (obj.pages.count or obj.flights):
            return False
        return oid not in self.hierarchy.removing and not self._is_recorded(oid)

    def _is_recorded(self, oid: bytes) -> bool:
        """Whether the index has the object in a directory that is in use."""
        number = self._objects.directory_of(oid)
        return number is not None and self.hierarchy.by_number(number) is not None

    def install(self, record: ObjectRecord, checksums: Mapping[int, int], file_number: int, space: Space) -> bytes:
        """Take over an object whose file was just put in its place, with these pages; returns its id."""
        oid = object_id(self._source_id, record.key, record.version)
        pages = Pages(record.size)
        for page, value in checksums.items():
            pages.add(page, value)
        record.used_us = record.cached_us = time.time_ns() // 1000
        record.epoch, record.whole = self.epoch, pages.whole
        space.insert(oid, record, used=True)
        obj = self._live.get(oid) or self._idle.pop(oid, None)
        if obj is None:
            obj = CachedObject(oid, record, pages)
        obj.record, obj.pages, obj.file_number, obj.loaded_stamp = record, pages, file_number, record.stamp
        obj.trusted = set(checksums)
        obj.put_in(space)
        if oid not in self._live:
            self._idle[oid] = obj
        self._save(obj, range(pages.total))
        return oid

    def rename(self, key: str, version: str, size: int, new_key: str, new_version: str) -> bytes | None:
        """An object of the store has another key or version now: keep what is cached; returns its new id if there is any.

        What is on its way at the moment is given up, and fetched again when it is needed.
        """
        oid, new = object_id(self._source_id, key, version), object_id(self._source_id, new_key, new_version)
        obj = self.acquire(key, version, size)
        try:
            busy = obj.flights or oid in self.hierarchy.removing
            if obj.space is None or obj.pages.count == 0 or busy or not self.can_install(new_key, new_version):
                return new if oid == new else None
            obj.space.directory.rename(oid, new)
            self._objects.drop(oid)
        except OSError as exc:
            log.info("what is cached of %r is not kept under its new name: %s", key, exc)
            return None
        finally:
            self.release(obj)
        self._idle.pop(oid, None)
        if self._live.pop(oid, None) is not None:
            self._live[new] = obj
        else:
            self._idle[new] = obj
        obj.oid, obj.record.key, obj.record.version = new, new_key, new_version
        self._save(obj, range(obj.pages.total))
        return new

    def relocate(self, obj: CachedObject, space: Space, st: os.stat_result, *, used: bool) -> None:
        """The object's file is in another directory now; all its pages were checked on the way there."""
        obj.put_in(space)
        space.insert(obj.oid, obj.record, used=used)
        obj.record.stamp = obj.loaded_stamp = st.st_mtime_ns
        obj.record.epoch = self.epoch
        obj.file_number, obj.strangers = st.st_ino, 0
        obj.trusted = {page for page in range(obj.pages.total) if obj.pages.has(page)}
        self._save(obj)

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
                disk.open_verified, space.directory, oid, obj.size, obj.pages.checksums, stamp,
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


def _settle(flight: Flight, space: Space, stored_bytes: int) -> None:
    """End the reservations of a flight, of which so many bytes are new on disk."""
    space.settle(flight.length, stored_bytes)
    flight.settle_quota()


def _outcome(job: Callable[[UnderStore], _Fetched], driver: UnderStore) -> tuple[_Fetched | None, StoreError | None]:
    try:
        return job(driver), None
    except StoreError as exc:
        return None, exc
