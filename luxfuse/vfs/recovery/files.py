"""Makes files dirty again that were closed or synced, so that they are pushed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from luxfuse.cache.open_uploads import best
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.upload_source import Source
from luxfuse.errors import AccessDenied, NotFound, StoreUnavailable
from luxfuse.index.entries import Entry
from luxfuse.index.journal import FileRecord, Journal
from luxfuse.index.names import Names
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import parse_attributes
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import MOST_SENT, Replicas, Stored
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.contents import JournalContents
from luxfuse.vfs.recovery.places import JournalPlaces
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)


class Superseded(Exception):
    """Something that is dirty has the name of a file of the journal."""


class PromisedFiles:
    """The files, directories and symlinks that the journal promises to bring to the store."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        places: JournalPlaces,
        contents: JournalContents,
        entries: DirtyEntries,
        journal: Journal,
        staging: Staging,
        writeback: WriteBack,
        cache: PageCache,
        store: Store,
        is_open: Callable[[int], bool],
        waits: Callable[[str], bool],
    ) -> None:
        """``is_open``: whether a program still has an inode open, as the daemon that was killed has a successor.
        ``waits``: whether a key waits for a move.
        """
        self._waits = waits
        self._is_open = is_open
        self._namespace = namespace
        self._names = names
        self._places = places
        self._contents = contents
        self._entries = entries
        self._journal = journal
        self._staging = staging
        self._writeback = writeback
        self._cache = cache
        self._store = store

    async def resume(self, number: int, record: FileRecord) -> bool:
        """Make an entry dirty again; False if it was never closed, or its content is gone. Raises `Superseded`."""
        is_open = self._is_open(record.inode)
        if not record.closed and not is_open:
            return False
        content = None
        own = is_open and self._contents.has_own(number, record)  # a program may have written to it since it was noted
        if record.kind is Kind.FILE and (own or self._contents.is_there(number, record)):
            content = await trio.to_thread.run_sync(lambda: self._contents.open(number, record, is_open=is_open))
            if content is None:
                return False
        inline = self._journal.inline(number)
        parent, name = self._places.place(record.key)
        expect: str | None = record.expect
        if record.kind is Kind.FILE and content is None:
            expect = await self._look_up(parent, name, record)
            if expect is None:
                return False
        try:
            self._insist_that_it_is_free(parent, name)
            entry = self._places.entry_of(parent, name, record)
        except BaseException:
            if content is not None:
                content.close()
            raise
        dirty = self._dirty(number, record, entry, (parent, name), expect, content, inline)
        self._entries.add(dirty)
        if dirty.needs_base:
            self._entries.note_partial(dirty)
        self._namespace.hold(entry.inode, parent, name)
        as_noted = content is None or os.fstat(content.fd).st_mtime_ns == record.stamp
        if is_open and record.emptied:
            dirty.empties()  # it is being written anew: until it is closed the journal has what it was before
        elif record.inode != entry.inode or record.emptied or (inline is not None and not as_noted):
            self._journal.put_file(number, dirty.record(entry.attributes), inline if as_noted else None)
        if is_open and content is not None and not record.content and as_noted:
            dirty.keeps_content()  # the store has it; of attributes that is not known
        if dirty.must_push and dirty.closed and not dirty.emptied:
            self._writeback.schedule(dirty)
        return True

    def _insist_that_it_is_free(self, parent: int, name: bytes) -> None:
        """Raise `Superseded` where a name has been taken up already: what it stands for holds until the next wait only."""
        entry = self._names.get(parent, name)
        if entry is not None and self._entries.get(entry.inode) is not None:
            raise Superseded

    def _dirty(
        self,
        number: int,
        record: FileRecord,
        entry: Entry,
        place: tuple[int, bytes],
        expect: str | None,
        content: StagedBytes | None,
        inline: bytes | None,
    ) -> Dirty:
        """Return the dirty entry that a record tells of."""
        sent = (*record.sent, (record.stamp, record.size), *([record.sending] if record.sending else []))
        dirty = Dirty(
            number,
            entry.inode,
            record.kind,
            record.mode,
            place,
            record.key,
            Stored(
                expect,
                inherits=record.inherits,
                resumed=True,
                sent=sent[-MOST_SENT - 1 :],
            ),
            target=(inline or b"") if record.kind is Kind.SYMLINK else b"",
            closed=record.closed,
            since_s=record.since_s,
            attributes_changed=content is None,
            replicas=Replicas(record.generation, record.holders),
        )
        if content is not None:
            arrived = best(self._journal.uploads.open, record.key, self._journal)
            st = os.fstat(content.fd)
            # Of what is open, and of what was written to since, not all is known to be on the disk, if it is not kept.
            as_noted = record.content and (st.st_mtime_ns, st.st_size) == (record.stamp, record.size)
            kept = inline is not None and st.st_mtime_ns == record.stamp
            promised = record.closed and (kept or (as_noted and not self._is_open(record.inode)))
            dirty.resume(Source(record.key, content, open=arrived), st.st_blocks * 512, promised=promised)
            space = self._cache.hierarchy.of(self._staging.directory_of(number))
            space.count_staged(dirty.accounted_bytes)
        return dirty

    async def _look_up(self, parent: int, name: bytes, record: FileRecord) -> str | None:
        """Record the object of a file of which only the attributes changed; returns its version.

        None if there is none, or another one that somebody else has written.
        """
        known = self._names.get(parent, name)
        if self._waits(record.key):
            if known is None or known.kind is not Kind.FILE or not known.version:
                raise StoreUnavailable("its rename is not finished yet")
            return known.version  # `UnfinishedMoves` looks once more when it is moved
        try:
            info = await self._store.head(record.key)
        except NotFound:
            return None
        except (StoreUnavailable, AccessDenied):
            if known is None or known.kind is not Kind.FILE or not known.version:
                raise
            return known.version
        self._insist_that_it_is_free(parent, name)
        if record.expect and info.version != record.expect and not _is_described_by_us(info, record):
            log.info("%r was replaced by somebody else since its attributes were changed here", record.key)
            return None
        entry = self._names.get(parent, name)
        if entry is None or entry.kind is not Kind.FILE or entry.version != info.version:
            self._names.create(
                parent,
                name,
                Kind.FILE,
                attributes=None,
                size=info.size,
                version=info.version,
                mtime_ns=info.mtime_ns,
                checked_s=self._namespace.now_s(),
            )
        return info.version


def _is_described_by_us(info: ObjectInfo, record: FileRecord) -> bool:
    """Whether an object has the content of a file of which attributes changed: a copy with new ones was not noted."""
    said = parse_attributes(info.metadata)
    if said is None or said.mtime_ns is None:
        return False
    if record.stamp:  # the size of what was not opened for writing is not noted
        return (said.mtime_ns, info.size) == (record.stamp, record.size)
    return record.attributes is not None and said.mtime_ns == record.attributes.mtime_ns
