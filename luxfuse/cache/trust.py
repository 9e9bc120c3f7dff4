"""How far the pages of cached objects can be trusted, and changes of their files that are no fetches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from luxfuse.cache import disk
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.counters import Counters
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.spans import page_bytes

log = logging.getLogger(__name__)

Save = Callable[[CachedObject, range | None], None]
"""Brings an object's record, and its changed pages, to the index."""


class Trust:
    """The trust in the objects of one mount's cache."""

    def __init__(
        self, save: Save, epoch: int, counters: Counters, take_back: Callable[[bytes], None] = lambda _oid: None
    ) -> None:
        """``epoch``: the present one; ``counters``: to count damaged pages in; ``take_back``: see `Readers`."""
        self._save = save
        self._take_back = take_back
        self.epoch = epoch
        self._counters = counters

    def look_for_strangers(self, obj: CachedObject, stored: disk.Stored) -> None:
        """Distrust an object's pages if somebody else has written to its file."""
        strange = stored.found != 0 and stored.found not in (obj.loaded_stamp, obj.record.stamp)
        if strange or stored.strangers > obj.strangers:
            self.distrust(obj)

    def distrust(self, obj: CachedObject) -> None:
        """Somebody else wrote to the file: check each page before it is read, and all before the kernel gets the file."""
        self._take_back(obj.oid)
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
        self._save(obj, None)

    def recount(self, obj: CachedObject, disk_bytes: int) -> None:
        """The file of an object takes so many bytes on disk, not those that were counted."""
        assert obj.space is not None
        obj.space.ledger.free(obj.record.allocated_bytes)
        obj.space.ledger.add(disk_bytes)
        obj.record.allocated_bytes = disk_bytes
        self._save(obj, None)

    def mend(self, obj: CachedObject, damaged: tuple[int, ...]) -> None:
        """Forget damaged pages, so that they are fetched again."""
        log.warning("%d damaged page(s) of %r in the cache; fetching them again", len(damaged), obj.record.key)
        self._counters.checksum_failures += len(damaged)
        self._take_back(obj.oid)
        for page in damaged:
            if obj.pages.has(page):
                obj.pages.remove(page)
                obj.record.allocated_bytes -= min(obj.record.allocated_bytes, allocated_bytes(page_bytes(page, obj.size)))
                if obj.space is not None:
                    obj.space.ledger.free(allocated_bytes(page_bytes(page, obj.size)))
            obj.trusted.discard(page)
        obj.record.whole = False
        self._save(obj, range(min(damaged), max(damaged) + 1))

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
        self.look_for_strangers(obj, stored)
        obj.strangers = max(obj.strangers, stored.strangers)
        obj.record.stamp = max(obj.record.stamp, stored.stamp)
        self._save(obj, None)
