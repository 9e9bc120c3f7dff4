"""The objects of the page cache: which pages of each are here, where, and how far they can be trusted.

Each object version in use is one `CachedObject`, shared by all its readers; a few that are not used any more are kept at
hand. `Fetching` fills them, `PageCache` reads them.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.counters import Counters
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.readers import NoReaders, Readers
from luxfuse.cache.space import Space
from luxfuse.cache.trust import Trust
from luxfuse.index.object_records import ObjectRecord, object_id
from luxfuse.index.objects import Objects
from luxfuse.index.pages import Pages

log = logging.getLogger(__name__)

IDLE_OBJECTS = 1024


class Contents:
    """The objects of one mount's cache."""

    def __init__(
        self, *, objects: Objects, hierarchy: Hierarchy, source_id: str, epoch: int, nursery: trio.Nursery
    ) -> None:
        self._objects = objects
        self.hierarchy = hierarchy
        self._source_id = source_id
        self.epoch = epoch
        self._nursery = nursery
        self._live: dict[bytes, CachedObject] = {}
        self._idle: OrderedDict[bytes, CachedObject] = OrderedDict()
        self.counters = Counters()
        self.trust = Trust(self.save, epoch, self.counters, lambda oid: self.readers.take_back(oid))  # noqa: PLW0108 (they change)
        self.closed = False
        """Nothing more is to be started: the nursery is about to end."""
        self.readers: Readers = NoReaders()
        """They are made after the cache, which they read from."""
        self.protections: list[Callable[[bytes], bool]] = []
        """Ask whether an object is to be kept from eviction for the moment."""
        self.expectations: list[Callable[[], Iterable[bytes]]] = []
        """Give the objects that are about to be opened: those of `protections` that eviction need not look at first."""
        self.on_use: list[Callable[[bytes, ObjectRecord, Space], None]] = []
        """Told of each use of a cached object."""

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
        """Bring the records of the cache to the index's disk; while it cannot be written, that waits."""
        await self._objects.flush()

    async def expect(self, versions: Iterable[tuple[str, str]]) -> None:
        """Prepare for many objects (key, version) to be acquired soon."""
        await self.expect_ids(object_id(self._source_id, key, version) for key, version in versions)

    async def expect_ids(self, oids: Iterable[bytes]) -> None:
        """Do so by their ids."""
        await self._objects.expect(oid for oid in oids if oid not in self._live and oid not in self._idle)

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
        # While its file is being removed, an object is as good as not cached; `removal_ended` tells how that ended.
        shared = self.hierarchy.shared
        found = None if oid in shared.removing and oid not in shared.strays else self._objects.load(oid)
        space = self.hierarchy.by_number(found[0].directory) if found is not None else None
        if found is not None and space is not None and found[0].size == size and not space.unreadable:
            return CachedObject(oid, *found, space)
        obj = CachedObject(oid, ObjectRecord(key, version, size, epoch=self.epoch), Pages(size))
        obj.unsaved = found is not None  # what the index has of it are not these pages
        return obj

    def touch(self, obj: CachedObject) -> None:
        """Note that the object is used now, for eviction."""
        obj.used = True
        obj.record.used_us = time.time_ns() // 1000
        if obj.pages.count and obj.space is not None:
            if obj.space.standings.use(obj.oid, obj.record):
                self.save(obj)
            self._tell_use(obj.oid, obj.record, obj.space)

    def _tell_use(self, oid: bytes, record: ObjectRecord, space: Space) -> None:
        for told in self.on_use:
            told(oid, record, space)

    def save(self, obj: CachedObject, changed: range | None = None) -> None:
        """Bring an object's record, and the ``changed`` pages, to the index; what that cannot take it gets later."""
        if obj.unsaved:
            changed = range(obj.pages.total)
        saved = self._objects.save(obj.oid, obj.record, obj.pages, changed)
        obj.unsaved = not saved and (obj.unsaved or changed is not None)

    def save_new(self, objs: Sequence[CachedObject]) -> None:
        """Bring objects that have come whole to the index, which has none of them as a rule."""
        saved = self._objects.save_new([(obj.oid, obj.record, obj.pages) for obj in objs])
        for obj in objs:
            obj.unsaved = not saved

    def touch_by_ids(self, oids: Iterable[bytes]) -> None:
        """Note a use of each of these objects, which need not be loaded, as one change of the index."""
        now_us = time.time_ns() // 1000
        changed: dict[bytes, ObjectRecord] = {}
        for oid in oids:
            if (obj := self._live.get(oid) or self._idle.get(oid)) is not None:
                if obj.unsaved:
                    self.touch(obj)
                    continue
                obj.used = True
                record, space = obj.record, obj.space if obj.pages.count else None
            else:
                found = changed.get(oid) or self._objects.record(oid)
                if found is None:
                    continue
                record, space = found, self.hierarchy.by_number(found.directory)
            record.used_us = now_us
            if space is not None:
                if space.standings.use(oid, record):
                    changed[oid] = record
                self._tell_use(oid, record, space)
        self._objects.save_all(changed.items())

    def keeps(self, obj: CachedObject) -> bool:
        """Whether anything of the object can be stored now."""
        return self.hierarchy.usable and self.hierarchy.placing(obj.record.key).keep

    def record_of(self, oid: bytes) -> ObjectRecord | None:
        """Return the record of a cached object."""
        obj = self._live.get(oid) or self._idle.get(oid)
        return obj.record if obj is not None and obj.pages.count else self._objects.record(oid)

    def recorded_after(self, oid: bytes, limit: int) -> list[tuple[bytes, ObjectRecord]]:
        """Return the next objects of the index, by id; `flush` before."""
        return self._objects.scan(oid, limit)

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

    def may_drop(self, oid: bytes) -> bool:
        """Whether the kernel does not have an object open; its backing id is closed then."""
        return self.readers.may_drop(oid)

    def note_touched(self) -> None:
        """Bring the order of last uses up to date."""
        self.readers.note_touched()

    def expected(self) -> set[bytes]:
        """Return the objects that are about to be opened."""
        return {oid for expects in self.expectations for oid in expects()}

    def is_protected(self, oid: bytes) -> bool:
        """Whether an object is to be kept, whole, from eviction for the moment."""
        return any(protects(oid) for protects in self.protections)

    def let_go(self, oid: bytes) -> bool:
        """Let go of an object unless it is in use; returns whether it is free now, and its file may be removed."""
        if self.is_protected(oid) or oid in self._live or not self.readers.may_drop(oid):
            return False
        self._idle.pop(oid, None)
        return True

    def removal_ended(self, oid: bytes, removed: bool) -> None:
        """Take note that an object's file was removed, or could not be."""
        obj = self._live.get(oid)
        if obj is None:
            self._idle.pop(oid, None)  # so that it is loaded as the index has it now
        elif removed:
            obj.forget_pages()
            obj.record.allocated_bytes = 0
            obj.unsaved = self._objects.known(oid)
        elif obj.pages.count == 0 and (found := self._objects.load(oid)) is not None:
            space = self.hierarchy.by_number(found[0].directory)
            if space is not None and space.unreadable:
                return
            if not obj.flights:
                obj.record, obj.pages = found
                obj.space = space
            elif space is not None and obj.space is None:
                self._give_up_file(oid, space)

    def _give_up_file(self, oid: bytes, space: Space) -> None:
        """An object of which pages are on their way already gets another file than the recorded one, which is swept."""
        space.ledger.free(self._objects.drop(oid) or 0)

    def take_up(self, space: Space) -> None:
        """A cache directory came into use: the objects that the index has there are cached."""
        for oid in [oid for oid, obj in self._idle.items() if not obj.pages.count]:
            del self._idle[oid]
        for oid, obj in self._live.items():
            if obj.pages.count or self._objects.directory_of(oid) != space.number:
                continue
            if obj.flights:
                self._give_up_file(oid, space)
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

    def forsake(self, space: Space) -> None:
        """The disk of a directory cannot be read: do without its files. The index keeps them, for `take_up`."""
        for oid in [oid for oid, obj in self._idle.items() if obj.space is space]:
            del self._idle[oid]
        for obj in self._live.values():
            if obj.space is space:
                obj.record = copy.copy(obj.record)  # threads that still read the file come too late: see `still_there`
                obj.forget_pages()
                obj.record.allocated_bytes = 0
                obj.unsaved = True

    def distrust_all(self, epoch: int) -> None:
        """A disk may have lost what it had said it had: each file is verified before its next use: a new ``epoch``."""
        self.epoch = self.trust.epoch = epoch
        for obj in (*self._live.values(), *self._idle.values()):
            self.readers.take_back(obj.oid)
            obj.trusted.clear()

    def close(self) -> None:
        """Start nothing more: the nursery is about to end."""
        self.closed = True

    @property
    def index_closed(self) -> bool:
        """Whether nothing can be recorded any more, as after the end of the volume."""
        return self._objects.closed

    def has_file(self, obj: CachedObject) -> bool:
        """Whether an object without pages has a file all the same: all were taken out. Also said after the volume's end."""
        if self.index_closed:
            return True
        return obj.space is not None and self._objects.directory_of(obj.oid) == obj.space.number

    def lose_file(self, obj: CachedObject, exc: OSError) -> None:
        """The cache file cannot be read: go on without it."""
        space = obj.space
        assert space is not None
        if isinstance(exc, FileNotFoundError):
            log.warning("the cache file of %r is gone; fetching it again", obj.record.key)
        else:
            space.fail(exc)
            if not self.closed:
                self._nursery.start_soon(self._remove_unreadable, obj.oid, space)
        self.readers.lost(obj.oid)
        freed = self._objects.drop(obj.oid)
        space.ledger.free(freed or 0)
        obj.forget_pages()
        obj.unsaved = freed is None
        obj.record.allocated_bytes = 0

    def file_replaced(self, obj: CachedObject) -> None:
        """Bytes that arrived went to another file than those before them."""
        if obj.pages.count:
            self.lose_file(obj, FileNotFoundError())
        else:  # all pages were dropped as damaged before, but the kernel may have the old file open
            self.readers.lost(obj.oid)

    async def _remove_unreadable(self, oid: bytes, space: Space) -> None:
        if oid not in self.hierarchy.removing:
            await space.remove(oid)

    @staticmethod
    def still_there(obj: CachedObject, oid: bytes, record: ObjectRecord, space: Space) -> bool:
        """Whether the file that a thread went for was the object's all the while.

        It may have become a staging file or moved, maybe come back since, or have another name.
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
        space = self.hierarchy.by_number(number) if number is not None else None
        return space is not None and not space.unreadable

    def install(self, record: ObjectRecord, checksums: Mapping[int, int], file_number: int, space: Space) -> bytes:
        """Take over an object whose file was just put in its place, with these pages; returns its id."""
        oid = object_id(self._source_id, record.key, record.version)
        pages = Pages(record.size)
        for page, value in checksums.items():
            pages.add(page, value)
        record.used_us = record.cached_us = time.time_ns() // 1000
        record.epoch, record.whole = self.epoch, pages.whole
        space.standings.insert(oid, record, used=True)
        obj = self._live.get(oid) or self._idle.pop(oid, None)
        if obj is None:
            obj = CachedObject(oid, record, pages)
        obj.record, obj.pages, obj.file_number, obj.loaded_stamp = record, pages, file_number, record.stamp
        obj.trusted = set(checksums)
        obj.put_in(space)
        if oid not in self._live:
            self._idle[oid] = obj
        self.save(obj, range(pages.total))
        return oid

    def rename(self, key: str, version: str, size: int, new_key: str, new_version: str) -> bytes | None:
        """An object of the store has another key or version now: keep its pages; returns its new id if there are any.

        What is on its way at the moment is given up, and fetched again when it is needed.
        """
        oid, new = object_id(self._source_id, key, version), object_id(self._source_id, new_key, new_version)
        obj = self.acquire(key, version, size)
        try:
            busy = obj.flights or oid in self.hierarchy.removing
            if obj.space is None or obj.pages.count == 0 or busy or not self.can_install(new_key, new_version):
                return new if oid == new else None
            self.readers.take_back(oid)
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
        self.save(obj, range(obj.pages.total))
        return new

    def relocate(self, obj: CachedObject, space: Space, st: os.stat_result, *, used: bool) -> None:
        """The object's file is in another directory now; all its pages were checked on the way there."""
        obj.record = copy.copy(obj.record)  # also if it comes back, that is not the file that it was: see `still_there`
        obj.put_in(space)
        space.standings.insert(obj.oid, obj.record, used=used)
        obj.record.stamp = obj.loaded_stamp = st.st_mtime_ns
        obj.record.epoch = self.epoch
        obj.file_number, obj.strangers = st.st_ino, 0
        obj.trusted = {page for page in range(obj.pages.total) if obj.pages.has(page)}
        self.save(obj)
