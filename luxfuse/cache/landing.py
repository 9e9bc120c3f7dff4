"""What came of flights: which bytes are where is recorded, and what was reserved for them is given back.

Small files come many at a time. What can be done once for all of them is (`Landing.land_new`): their descriptions, their
standings and their records are one change of the index each, where each of them is a new object that came whole. All else
goes flight by flight.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from luxfuse.cache import disk
from luxfuse.cache.budget import RecentPages
from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.contents import Contents
from luxfuse.cache.race import Fetched
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes
from luxfuse.index.object_records import ObjectRecord
from luxfuse.types import Description, ObjectInfo


class Descriptions(Protocol):
    """Descriptions of objects, which come beside their bytes."""

    def heard(self, told: Iterable[tuple[ObjectInfo, float]]) -> None:
        """Take note of descriptions of objects that the under-store, asked at a time each, sent with their bytes."""

    def told(self, key: str, version: str) -> Description | None:
        """Return the description of a version of an object, if it is known."""


class Landed(NamedTuple):
    """A flight, the directory that has room for its bytes, and what it brought."""

    obj: CachedObject
    flight: Flight
    space: Space
    fetched: Fetched


class Landing:
    """Records what flights bring to one mount's cache."""

    def __init__(self, contents: Contents, descriptions: Descriptions, recent: RecentPages) -> None:
        """``recent``: has the pages that are kept in memory."""
        self._contents = contents
        self._descriptions = descriptions
        self._recent = recent

    def land(self, obj: CachedObject, flight: Flight, space: Space | None, fetched: Fetched) -> int:
        """Record the pages that a flight brought; returns the bytes that are new on disk."""
        flight.data, stored = fetched.data, fetched.stored
        self._note_described([(obj, fetched)])
        if fetched.by_peer:
            self._contents.counters.peer_bytes += flight.length
        else:
            self._contents.counters.understore_bytes += flight.length
        if isinstance(stored.error, FileNotFoundError) and obj.pages.count:
            self._contents.lose_file(obj, stored.error)
        elif isinstance(stored.error, disk.FileGone):
            pass  # a flight beside this one has told of it
        elif stored.error is not None and space is not None:
            _not_stored(space, stored.error, obj)
        elif stored.file_number and obj.file_number not in (0, stored.file_number):
            self._contents.file_replaced(obj)
        allocated = 0
        if space is not None and stored.file_number:
            obj.file_number = stored.file_number
            allocated = self._record(obj, flight.pages, stored, flight.length)
        unasked = allocated > 0 and self._contents.readers.landed(obj, flight.pages)
        if (flight.keep_in_memory and not unasked) or not allocated:
            for page in flight.pages:
                if not (allocated and page in flight.taken):
                    self._recent.put(obj.oid, page, flight.page(page))
        if stored.file is not None and allocated:
            flight.fd = stored.file.take()
        return allocated

    def _note_described(self, told: Iterable[tuple[CachedObject, Fetched]]) -> None:
        """Pass on the descriptions that came with bytes, unless the cache is closed: then the index is about to be, too."""
        heard = []
        for obj, fetched in told:
            if fetched.info is not None:
                obj.described = fetched.info, fetched.asked_s
                heard.append(obj.described)
        if heard and not self._contents.closed:
            self._descriptions.heard(heard)

    def _record(self, obj: CachedObject, pages: range, stored: disk.Stored, length: int) -> int:
        self._contents.trust.look_for_strangers(obj, stored)
        now_us = time.time_ns() // 1000
        if obj.pages.count == 0 and obj.space is not None:
            obj.record.cached_us = now_us
            obj.space.standings.insert(obj.oid, obj.record, used=obj.used)
        for page, checksum in zip(pages, stored.checksums, strict=True):
            obj.pages.add(page, checksum)
            if stored.strangers >= obj.strangers:
                obj.trusted.add(page)
        obj.strangers = max(obj.strangers, stored.strangers)
        allocated = allocated_bytes(length)
        record = obj.record
        record.allocated_bytes += allocated
        record.stamp = max(record.stamp, stored.stamp)
        record.used_us = max(record.used_us, now_us)
        record.whole = obj.pages.whole
        self._contents.save(obj, pages)
        return allocated

    # -- many at a time

    @staticmethod
    def is_new(obj: CachedObject, flight: Flight, space: Space, fetched: Fetched) -> bool:
        """Whether a flight of the under-store brought the whole of an object of which there was nothing, to its file."""
        stored = fetched.stored
        if not stored.file_number or stored.error is not None or obj.space is not space:
            return False
        pages = obj.pages
        if pages.count or obj.file_number or obj.unsaved or obj.strangers or stored.strangers or stored.found:
            return False
        return len(flight.pages) == pages.total == len(stored.checksums) and not (flight.keep_in_memory or fetched.by_peer)

    def land_new(self, landed: Sequence[Landed]) -> None:
        """Record what `is_new`: different objects. As many bytes are new on disk as each of them has."""
        contents = self._contents
        self._note_described([(each.obj, each.fetched) for each in landed])
        now_us = time.time_ns() // 1000
        coming: dict[Space, list[tuple[bytes, ObjectRecord, bool]]] = {}
        for obj, flight, space, fetched in landed:
            stored, record, length = fetched.stored, obj.record, flight.length
            flight.data = fetched.data
            contents.counters.understore_bytes += length
            obj.file_number = stored.file_number
            obj.pages.fill(stored.checksums)
            obj.trusted.update(flight.pages)
            record.cached_us = now_us
            record.used_us = max(record.used_us, now_us)
            record.allocated_bytes = allocated_bytes(length)
            record.stamp = max(record.stamp, stored.stamp)
            record.whole = True
            if space not in coming:
                coming[space] = []
            coming[space].append((obj.oid, record, obj.used))
        for space, objects in coming.items():
            space.standings.insert_new(objects)
        contents.save_new([each.obj for each in landed])
        for each in landed:
            if each.fetched.stored.file is not None:
                each.flight.fd = each.fetched.stored.file.take()

    @staticmethod
    def forget(obj: CachedObject) -> None:
        """Undo `land_new`, which failed, for one of the objects: nobody counts its bytes."""
        obj.forget_pages()
        obj.record.allocated_bytes = 0
        obj.unsaved = True  # the index may have it


def _not_stored(space: Space, error: OSError, obj: CachedObject) -> None:
    """What was fetched could not be written: its reader has it, and the next one fetches it again."""
    space.fail(error, f"{obj.record.key!r} is not kept in the cache")
