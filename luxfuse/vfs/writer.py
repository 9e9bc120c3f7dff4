"""Writing to files: opening for it, and the bytes.

Theory of operation
-------------------
A file that is opened for writing becomes `Dirty` with a staging file: the cache file itself, taken out of the cache by
a rename, where the object is whole; a new file where it is empty or truncated; else one with holes over the object
(`cache.staged`). Its inode number stays, and so does its backing file, so readers in passthrough go on reading it.
While it is dirty its name is held (`Namespace.hold`). A close or fsync brings the content to the store or to the journal,
as the write mode says (`promises`). When nobody writes any more and the store has all of it, `publishing` renames the
staging file back into the cache, as the object version that was uploaded.

A change from one state to another has no wait in it; after each wait, the state is looked at anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import msgspec
import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.upload_source import OldObject, Source
from luxfuse.durable import copy_with_times
from luxfuse.errors import NotFound, VersionChanged
from luxfuse.index.entries import Attributes, Entry
from luxfuse.steps import reached
from luxfuse.tiers.directory import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from luxfuse.tiers.staging import Staging, allocate
from luxfuse.types import Buffer, Kind, WriteMode
from luxfuse.vfs.attributes import Caller, now_ns, with_times, without_set_id
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.early import EARLY_BYTES, EarlyUploads
from luxfuse.vfs.errors import Busy, IsADirectory, NoRoom, Stale
from luxfuse.vfs.files import Files
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.room import Room
from luxfuse.vfs.spares import SpareFiles
from luxfuse.vfs.writeback import WriteBack
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.1
MAPPED_INTERVAL_S = 1.0
IO_THREADS = 16


class Writer:
    """The files of one mount that are written to."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        descriptions: Descriptions,
        entries: DirtyEntries,
        files: Files,
        cache: PageCache,
        staging: Staging,
        kernel: Kernel,
        writeback: WriteBack,
        notes: Notes,
        room: Room,
        publisher: Publisher,
        promises: Promises,
        early: EarlyUploads,
        threads: Threads,
        spares: SpareFiles,
        whole_file_bytes: int,
    ) -> None:
        self._namespace = namespace
        self._descriptions = descriptions
        self._entries = entries
        self._files = files
        self._cache = cache
        self._staging = staging
        self._kernel = kernel
        self._writeback = writeback
        self._notes = notes
        self._room = room
        self._publisher = publisher
        self._promises = promises
        self._early = early
        self._threads = threads
        self._whole_file_bytes = whole_file_bytes
        self._spares = spares

    # -- opening

    async def open(self, inode: int, *, truncate: bool, caller: Caller) -> int:
        """Open a file for writing; returns the handle. Raises `Stale`, `NoRoom`, `StoreError`, OSError."""
        dirty = await self.begin(inode, truncate=truncate)
        with self._opening(dirty):
            if truncate:
                with trio.CancelScope(shield=True):  # it may be empty already: an open that is given up has cut nothing
                    await self._promises.empty(dirty)
            if caller.uid != 0:
                dirty.lose_privileges()
            return self._attach(dirty, self._notes.entry(dirty))

    @contextlib.contextmanager
    def _opening(self, dirty: Dirty) -> Iterator[None]:
        """Count one more open for writing, unless it fails."""
        dirty.opened()
        try:
            yield
        except BaseException:
            self._promises.closed(dirty)
            raise

    def _attach(self, dirty: Dirty, entry: Entry) -> int:
        # Without a say in each write, we cannot make writers wait for room, nor take set-user-ID away in time.
        space = self._room.space_of(dirty)
        copy = not space.has_room(EARLY_BYTES) or (dirty.unprivileged and self._has_set_id(entry))
        handle = self._files.open_staged(dirty, entry, writing=True, copy=copy)
        self._room.grant_first(dirty, space)
        if dirty.mode.is_through:
            self._early.opened(dirty)
        if dirty.unprivileged and dirty.inode not in self._files.copied:
            self.clear_set_id(dirty)
        if dirty.uploaded is not None:  # the kernel may have attributes that hold, and does not hear of mapped writes
            self._kernel.invalidate_inode(dirty.inode)
        return handle

    @staticmethod
    def _has_set_id(entry: Entry) -> bool:
        mode = (entry.attributes.mode if entry.attributes else None) or 0
        return without_set_id(mode) != mode

    async def begin(self, inode: int, *, truncate: bool = False) -> Dirty:
        """Return the inode's dirty entry with a staging file, made now if there is none. Raises as `open`."""
        while True:
            dirty = self._entries.get(inode)
            if dirty is not None and dirty.source is not None:
                if dirty.place is None and not dirty.writers:
                    raise Stale(f"inode {inode} was removed, and is not open for writing")
                dirty.source.bytes.unseal()
                return dirty
            if dirty is not None and dirty.lock.locked():  # its attributes make a new version of the object
                await self._writeback.landed(dirty)
                continue
            entry = await self._namespace.current(inode)
            if entry.kind is Kind.DIRECTORY:
                raise IsADirectory(f"inode {inode} is a directory")
            parent, name, _ = self._namespace.places.locate(inode)
            await self._descriptions.attributes(parent, name, entry)
            fetched = not truncate and entry.size <= self._whole_file_bytes  # a larger one takes room page by page
            await self._room.wait(entry.size if fetched else 0)
            begun = await self._begin(inode, entry, truncate=truncate)
            if begun is not None:
                return begun

    async def _begin(self, inode: int, entry: Entry, *, truncate: bool) -> Dirty | None:
        """Make a staging file; None if something has changed meanwhile."""
        parent, name, _ = self._namespace.places.locate(inode)
        key = self._namespace.places.key(parent, name, entry.kind)
        if entry.size == 0 or (truncate and not self._kernel.is_registered(inode)):
            return self._begin_empty(inode, key, unchanged=entry.size == 0)
        obj = self._cache.acquire(key, entry.version, entry.size)
        try:
            if not obj.whole and entry.size <= self._whole_file_bytes and self._cache.keeps(obj):
                await self._cache.fetch_whole(obj)
            if obj.whole:
                fd = await self._cache.open_for_kernel(obj)
                if fd is None:
                    return None
                os.close(fd)
            begun = self._begin_with(inode, key, entry, obj)
            if begun is not None and obj.whole and begun.source is not None:  # it was in memory, and is to be on disk
                with contextlib.suppress(NoRoom), trio.CancelScope(shield=True):  # or it stays over what is cached
                    await self._room.fill(begun)
            return begun
        except (VersionChanged, NotFound):
            self._namespace.belief.expire(inode)
            raise Stale(f"{key!r} changed in the under-store") from None
        finally:
            self._cache.release(obj)

    def _is_current(self, inode: int, key: str, version: str | None = None) -> Entry | None:
        """Return the inode's entry if nothing has changed since it was looked at; no wait may follow."""
        dirty = self._entries.get(inode)
        if dirty is not None and (dirty.source is not None or dirty.lock.locked()):
            return None
        parent, name, entry = self._namespace.places.locate(inode)
        if self._namespace.places.key(parent, name, entry.kind) != key:
            return None
        return entry if version is None or entry.version == version else None

    def _begin_empty(self, inode: int, key: str, *, unchanged: bool) -> Dirty | None:
        entry = self._is_current(inode, key)
        if entry is None or (unchanged and entry.size):
            return None
        with self._made_dirty(entry, key) as dirty:
            self.stage_new(dirty, self._notes.entry(dirty), unchanged=entry if unchanged else None)
        return dirty

    def _begin_with(self, inode: int, key: str, shown: Entry, obj: CachedObject) -> Dirty | None:
        entry = self._is_current(inode, key, shown.version)
        if entry is None:
            return None
        # Memory does not outlive the machine: what is written to goes to a disk, unless somebody reads it in passthrough.
        fit = obj.whole and not (self._room.is_unfit(obj.space) and self._files.backings.retire_idle(inode))
        adopted = obj.space if fit else None
        if adopted is not None and not self._files.backings.may_adopt(inode, obj.oid):
            raise Busy(f"{key!r} is open with another cache file")
        if adopted is None and self._kernel.is_registered(inode):
            raise Busy(f"{key!r} is open, and no longer whole in the cache")
        if self._room.is_volatile(adopted) and self._notes.mode_of(key) is WriteMode.MUST_CACHE:
            raise Busy(f"{key!r} is open in a cache directory in memory, where nothing can be kept")
        with self._made_dirty(entry, key) as dirty:
            self._stage_over(dirty, entry, obj, adopted)
        return dirty

    def _stage_over(self, dirty: Dirty, entry: Entry, obj: CachedObject, adopted: Space | None) -> None:
        """Give a file that has a cached object a staging file: the cache file, if it is adopted from its directory."""
        key = dirty.key
        sums = {page: obj.pages.checksums[page] for page in range(obj.pages.total) if obj.pages.has(page)}
        old = OldObject(key, entry.version, entry.size, sums)
        if adopted is not None:
            fd = self._staging.adopt(adopted.directory, obj.oid, dirty.number)
            reached("begin.adopted")
            dirty.count(self._cache.detach(obj)[1])
            adopted.staged_bytes += dirty.accounted_bytes
            content = StagedBytes(fd, self._staging.path_of(dirty.number), cache=self._cache, threads=self._threads)
            dirty.adopt(sums)
            reached("begin.detached")
        else:
            fd = self._new_staging_file(dirty, entry.size)
            base = self._cache.acquire(key, entry.version, entry.size)
            content = StagedBytes(
                fd,
                self._staging.path_of(dirty.number),
                cache=self._cache,
                threads=self._threads,
                base=base,
                base_bytes=entry.size,
            )
        self._stage(dirty, content, old, self._notes.entry(dirty), entry)
        if not content.complete:
            self._entries.note_partial(dirty)

    @contextlib.contextmanager
    def _made_dirty(self, entry: Entry, key: str) -> Iterator[Dirty]:
        """The inode's dirty entry; its name is held. One that is made here ends again if it gets no staging file."""
        dirty = self._entries.get(entry.inode)
        made = dirty is None
        if dirty is None:
            dirty = self._notes.mark(entry, key, entry.version)
        try:
            yield dirty
        except BaseException:
            if made and dirty.source is None:
                self._publisher.finish(dirty)
            raise

    def _stage(
        self, dirty: Dirty, content: StagedBytes, old: OldObject | None, entry: Entry, unchanged: Entry | None
    ) -> None:
        """Give what is dirty its content. ``unchanged``: the store has the same, and says this of it."""
        dirty.stage(Source(dirty.key, content, old))
        if dirty.place is not None and entry.attributes is not None and entry.attributes.atime_ns is None:
            # It has been the mtime, which moves from now on.
            entry.attributes = msgspec.structs.replace(entry.attributes, atime_ns=with_times(entry).atime_ns)
            self._namespace.put(*dirty.place, entry)
        if unchanged is not None:
            self._set_times(dirty, unchanged)
            dirty.is_unchanged()
        self._files.attach_staged(dirty)
        self._notes.note(dirty, entry=entry)
        reached("begin.noted")

    def _new_staging_file(self, dirty: Dirty, size: int = 0) -> int:
        fd = self._staging.create(dirty.number)
        self._spares.look()
        try:
            if size:
                os.ftruncate(fd, size)
            else:
                made_ns = now_ns()
                os.utime(fd, ns=(made_ns, made_ns))  # a spare file was made long before
        except BaseException:
            os.close(fd)
            self._staging.remove(dirty.number)
            raise
        return fd

    def _set_times(self, dirty: Dirty, entry: Entry) -> None:
        known = entry.attributes or Attributes()
        mtime_ns = known.mtime_ns if known.mtime_ns is not None else entry.mtime_ns
        atime_ns = known.atime_ns if known.atime_ns is not None else mtime_ns
        os.utime(dirty.content.fd, ns=(atime_ns, mtime_ns))

    def stage_new(self, dirty: Dirty, entry: Entry, *, unchanged: Entry | None = None) -> None:
        """Give a file, whose entry this is, an empty staging file. Raises OSError, and nothing has changed then."""
        fd, path = self._new_staging_file(dirty), self._staging.place_of(dirty.number)
        content = StagedBytes(fd, path, cache=self._cache, threads=self._threads)
        if unchanged is None and dirty.closed:  # its attributes are promised: until it is closed, with the object's content
            dirty.withdraw()
            dirty.empties()
        self._stage(dirty, content, None, entry, unchanged)

    def open_new(self, dirty: Dirty, entry: Entry) -> int:
        """Open a file that was just created; returns the handle."""
        dirty.opened()
        try:
            return self._attach(dirty, entry)
        except BaseException:
            self._promises.closed(dirty)
            raise

    # -- the bytes

    async def write(self, dirty: Dirty, offset: int, data: Buffer) -> None:
        """Write to a file that is open for writing. Raises `NoRoom`, OSError, `StoreError`."""
        async with self._room.kept(dirty, dirty.content.takes_bytes(offset, len(data))):
            await dirty.content.write(offset, data)
        await self._room.grant_more(dirty)

    async def copy_content(self, source: Dirty, target: Dirty) -> None:
        """Fill an empty file with all that another one has, which is complete. Raises `NoRoom`, OSError."""
        content, new = source.content, target.content
        async with self._room.kept(target, content.size):
            with content.in_use(), new.in_use():
                new.unseal()
                await self._threads.run(copy_with_times, content.fd, new.fd)
        target.set_times()

    async def truncate(self, inode: int, size: int, dirty: Dirty | None) -> None:
        """Set a file's size; ``dirty`` is None unless it is open for writing."""
        opened = dirty if dirty is not None and dirty.writers else await self.begin(inode, truncate=size == 0)
        opened.opened()
        try:
            await opened.content.truncate(size)
            await self._promises.cut(opened)
            self._room.account(opened)
            if opened.writers == 1:
                await self._promises.sync(opened)
        finally:
            self._promises.closed(opened)

    async def fallocate(self, dirty: Dirty, mode: int, offset: int, length: int) -> None:
        """Reserve or punch, as fallocate(2). Raises OSError."""
        content = dirty.content
        if mode & ~FALLOC_KEEP_SIZE:
            await self._room.fill(dirty)
            await self._promises.cut(dirty)
        async with self._room.kept(dirty, 0 if mode & FALLOC_PUNCH_HOLE else length):
            await self._fallocate(content, mode, offset, length)

    async def _fallocate(self, content: StagedBytes, mode: int, offset: int, length: int) -> None:
        if not content.complete and not mode & FALLOC_KEEP_SIZE and content.size < offset + length:
            await content.truncate(offset + length)
        elif content.complete:
            with content.in_use():
                content.unseal()
                await self._threads.run(allocate, content.fd, mode, offset, length)

    # -- set-user-ID

    def clear_set_id(self, dirty: Dirty) -> None:
        """Somebody without privileges may write: set-user-ID goes, and set-group-ID where the group may execute."""
        entry = self._notes.entry(dirty)
        mode = (entry.attributes.mode if entry.attributes else None) or 0
        cleared = without_set_id(mode)
        if cleared != mode:
            entry.attributes = msgspec.structs.replace(entry.attributes or Attributes(), mode=cleared)
            dirty.differs()
            if dirty.place is not None:
                self._namespace.put(*dirty.place, entry)
            self._kernel.invalidate_inode(dirty.inode)

    # -- in the background

    async def watch(self) -> None:
        """Count what programs write on their own, begin uploads early, end mapped files; until cancelled."""
        mapped_s = 0.0
        while True:
            await trio.sleep(WATCH_INTERVAL_S if len(self._entries) else 4 * WATCH_INTERVAL_S)
            for dirty in self._entries:
                if dirty.writers and dirty.source is not None:
                    self._room.account(dirty)
                    self._early.begin(dirty)
            for space in list(self._cache.hierarchy):
                if space.ledger.shortage(0):
                    await space.make_room(0)
            if self._publisher.has_mapped and trio.current_time() - mapped_s > MAPPED_INTERVAL_S:
                mapped_s = trio.current_time()
                self._publisher.publish_mapped()
