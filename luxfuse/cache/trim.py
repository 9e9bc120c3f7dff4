"""Evicts large objects in parts: the pages that were read least are punched out of the file, the rest stays.

Order of steps, so that no page is ever recorded whose bytes are a hole: the record is changed and *committed* without
the pages, then the file is punched. Meanwhile the object counts as being removed (`Shared.removing`), so nothing is
fetched into the file; a reader of it looks at `CachedObject.cuts` afterwards.

Objects in use are left alone: those that the kernel has open (`Contents.may_drop`) or lanes read, as we do not know which
of their pages are hot, and others unless they want pages themselves. Such a one gives those up that were read much less
than those that it wants. So is what is protected, as the files of loads are.

After a kill in between, the pages take room that is not counted, until they are fetched again or the object goes.
"""

from __future__ import annotations

import logging

import trio

from luxfuse.cache import disk
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.contents import Contents
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.spans import page_bytes
from luxfuse.index.objects import Objects
from luxfuse.steps import reached

log = logging.getLogger(__name__)

LARGER = 4
"""An object is trimmed if it takes more than so many times the bytes that are needed; else it goes whole."""


class Trimmer:
    """Takes pages out of objects, when a `Space` asks."""

    def __init__(self, contents: Contents, objects: Objects) -> None:
        self._contents = contents
        self._objects = objects
        self.trims = 0

    async def trim(self, oid: bytes, space: Space, wanted_bytes: int) -> int:
        """Free ``wanted_bytes`` of a large object's file; returns the bytes freed, 0 if it is left as it is."""
        found = self._objects.record(oid)
        if found is None or found.allocated_bytes <= LARGER * wanted_bytes or not space.directory.can_punch:
            return 0
        if self._contents.is_protected(oid) or self._contents.readers.reads_alone(oid):
            return 0
        obj = self._contents.acquire(found.key, found.version, found.size)
        try:
            if obj.oid != oid or obj.space is not space or oid in self._contents.hierarchy.removing:
                return 0
            pages = _coldest(obj, wanted_bytes)
            if not pages or not self._contents.may_drop(oid):
                return 0
            return await self._take_out(obj, space, pages)
        finally:
            self._contents.release(obj)

    async def _take_out(self, obj: CachedObject, space: Space, pages: list[int]) -> int:
        oid, record, known = obj.oid, obj.record, obj.pages
        sums = {page: known.checksums[page] for page in pages}
        freed = min(record.allocated_bytes, sum(allocated_bytes(page_bytes(page, obj.size)) for page in pages))
        removing = self._contents.hierarchy.removing
        removing[oid] = over = trio.Event()
        self._contents.trust.cut(obj, pages, freed)
        space.ledger.hold(freed)
        kept = 0
        try:
            with trio.CancelScope(shield=True):  # or what is not recorded any more would stay
                await self._objects.commit()
                reached("trim.committed")
                stored = await trio.to_thread.run_sync(disk.punch_pages, space.directory, oid, obj.size, pages)
            reached("trim.punched")
            if obj.record is record and obj.pages is known:
                self._contents.trust.note_written(obj, stored)
            self.trims += 1
        except OSError as exc:
            log.info("%r stays in the cache as it is: %s", record.key, exc)
            if obj.record is record and obj.pages is known:
                self._contents.trust.put_back(obj, sums, freed)
                kept = freed
        finally:
            space.ledger.settle(freed, kept)
            del removing[oid]
            over.set()
        return freed - kept


def _coldest(obj: CachedObject, wanted_bytes: int) -> list[int]:
    """Return pages to do without: of an object in use, such as are read much less than those that are on their way."""
    if obj.users > 1 and not obj.flights:
        return []
    wanted = obj.heat.of(obj.flights) if obj.flights else None
    pages: list[int] = []
    freed = 0
    for page in obj.heat.coldest(obj.pages.has, obj.pages.total, wanted):
        if freed >= wanted_bytes:
            break
        pages.append(page)
        freed += allocated_bytes(page_bytes(page, obj.size))
    return sorted(pages) if freed >= wanted_bytes else []
