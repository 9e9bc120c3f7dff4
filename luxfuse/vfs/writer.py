"""Writing to files: opening for it, the bytes, and what a close or fsync promises.

Theory of operation
-------------------
A file that is opened for writing becomes `Dirty` with a staging file: the cache file itself, taken out of the cache by
a rename, where the object is whole; a new file where it is empty or truncated; else one with holes over the object
(`cache.staged`). Its inode number stays, and so does its backing file, so readers in passthrough go on reading it.
While it is dirty its name is held (`Namespace.hold`). A close or fsync brings the content to the store or to the journal,
as the write mode says. When nobody writes any more and the store has all of it, `publish` renames the staging file
back into the cache, as the object version that was uploaded.

What turns one state into another happens without a wait in between; after each wait, it is looked at anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat as stat_module
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.cache.staged import Buffer, StagedBytes, Stamp
from luxfuse.cache.upload import OldObject, Source, Uploader
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.parts import PART_BYTES
from luxfuse.core.spans import pages_of
from luxfuse.core.waits import SmallCloses
from luxfuse.errors import LuxError, NotFound, NotReplicated, StoreError, Unforeseen, VersionChanged
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.journal import Journal
from luxfuse.index.objects import ObjectRecord
from luxfuse.steps import reached
from luxfuse.tiers.directory import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from luxfuse.tiers.staging import Staging
from luxfuse.types import PAGE_BYTES, Kind, Tier, WriteMode
from luxfuse.vfs.attributes import Caller, now_ns, to_metadata, with_times
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import Stored
from luxfuse.vfs.errors import Busy, IsADirectory, NoRoom, Stale, TooMany
from luxfuse.vfs.files import Files
from luxfuse.vfs.keeping import foreign, keep
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.replicator import Replicator
from luxfuse.vfs.writeback import WriteBack
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

INLINE_BYTES = 16 << 10
"""Content up to this size goes into the journal: one synchronous commit instead of two."""
ROOM_POLL_S = 0.1
WATCH_INTERVAL_S = 0.1
MAPPED_INTERVAL_S = 1.0
PUBLISH_AGAIN_S = (0.01, 0.05, 0.2)
EARLY_BYTES = 4 * PART_BYTES
"""A file that has grown to this size while it is written begins to go up."""
MOST_DIRTY = 300_000
"""Files and the like that are not in the store yet: each takes a kilobyte or two of memory."""
IO_THREADS = 16
_COPY_BYTES = 64 << 20


class Writer:
    """The files of one mount that are written to."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        entries: DirtyEntries,
        files: Files,
        cache: PageCache,
        staging: Staging,
        journal: Journal,
        kernel: Kernel,
        writeback: WriteBack,
        uploader: Uploader,
        nursery: trio.Nursery,
        mode_of: Callable[[str], WriteMode],
        whole_file_bytes: int,
        room_timeout_s: float,
    ) -> None:
        """``mode_of`` tells the write mode of a key; ``room_timeout_s``: how long writers wait for room in the cache."""
        self._namespace = namespace
        self._entries = entries
        self._files = files
        self._cache = cache
        self._staging = staging
        self._journal = journal
        self._kernel = kernel
        self._writeback = writeback
        self._uploader = uploader
        self._nursery = nursery
        self.mode_of = mode_of
        self._whole_file_bytes = whole_file_bytes
        self.room_timeout_s = room_timeout_s
        self._threads = Threads(IO_THREADS)
        self._mapped: set[Dirty] = set()
        self.on_conflict: Callable[[Dirty], None] = lambda _dirty: None
        """Set by `Conflicts`: a file that nobody writes to any more is not to replace somebody else's."""
        self.spares_low = trio.Event()
        """Set when spare staging files are to be made."""
        self.replication: Replicator | None = None
        """Where other nodes are to hold what was promised until the store has it."""
        self.small_closes = SmallCloses()
        self._misled: set[Dirty] = set()
        """Those that have another key than their holders know."""
        writeback.connect(self)
        files.on_copied_closed = self._copied_closed

    # -- opening

    async def open(self, inode: int, *, truncate: bool, caller: Caller) -> int:
        """Open a file for writing; returns the handle. Raises `Stale`, `NoRoom`, `StoreError`, OSError."""
        dirty = await self.begin(inode, truncate=truncate)
        with self._opening(dirty):
            if truncate:
                with trio.CancelScope(shield=True):  # it may be empty already: an open that is given up has cut nothing
                    await self._content(dirty).truncate(0)
            if caller.uid != 0:
                dirty.lose_privileges()
            return self._attach(dirty)

    @contextlib.contextmanager
    def _opening(self, dirty: Dirty) -> Iterator[None]:
        """Count one more open for writing, unless it fails."""
        dirty.opened()
        try:
            yield
        except BaseException:
            self.closed(dirty)
            raise

    def _attach(self, dirty: Dirty) -> int:
        row = self.row(dirty)
        # Without a say in each write, we cannot make writers wait for room, nor take set-user-ID away in time.
        copy = not self._space(dirty).has_room(EARLY_BYTES) or (dirty.unprivileged and self._has_set_id(row))
        handle = self._files.open_staged(dirty, row, writing=True, copy=copy)
        if dirty.unprivileged and not self._files.has_copied_opens(dirty.inode):
            self.clear_set_id(dirty)
        if dirty.uploaded is not None:  # the kernel may have attributes that hold, and does not hear of mapped writes
            self._kernel.invalidate_inode(dirty.inode)
        return handle

    @staticmethod
    def _has_set_id(row: Entry) -> bool:
        mode = (row.attributes.mode if row.attributes else None) or 0
        return without_set_id(mode) != mode

    def row(self, dirty: Dirty) -> Entry:
        """Return the entry of a dirty inode, also if its name is gone."""
        row = self._namespace.peek(*dirty.place) if dirty.place is not None else dirty.orphan
        assert row is not None
        return row

    async def begin(self, inode: int, *, truncate: bool = False) -> Dirty:
        """Return the inode's dirty entry with a staging file, made now if there is none. Raises as `open`."""
        while True:
            dirty = self._entries.get(inode)
            if dirty is not None and dirty.source is not None:
                dirty.source.bytes.unseal()
                return dirty
            if dirty is not None and dirty.lock.locked():  # its attributes make a new version of the object
                await self._writeback.landed(dirty)
                continue
            entry = await self._namespace.current(inode)
            if entry.kind is Kind.DIRECTORY:
                raise IsADirectory(f"inode {inode} is a directory")
            parent, name, _ = self._namespace.locate(inode)
            await self._namespace.attributes(parent, name, entry)
            fetched = not truncate and entry.size <= self._whole_file_bytes  # a larger one takes room page by page
            await self.wait_for_room(entry.size if fetched else 0)
            begun = await self._begin(inode, entry, truncate=truncate)
            if begun is not None:
                return begun

    async def _begin(self, inode: int, entry: Entry, *, truncate: bool) -> Dirty | None:
        """Make a staging file; None if something has changed meanwhile."""
        parent, name, _ = self._namespace.locate(inode)
        key = self._namespace.key(parent, name, entry.kind)
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
                    await self._complete(begun)
            return begun
        except (VersionChanged, NotFound):
            self._namespace.expire(inode)
            raise Stale(f"{key!r} changed in the under-store") from None
        finally:
            self._cache.release(obj)

    def _is_current(self, inode: int, key: str, version: str | None = None) -> Entry | None:
        """Return the inode's entry if nothing has changed since it was looked at; no wait may follow."""
        dirty = self._entries.get(inode)
        if dirty is not None and (dirty.source is not None or dirty.lock.locked()):
            return None
        parent, name, entry = self._namespace.locate(inode)
        if self._namespace.key(parent, name, entry.kind) != key:
            return None
        return entry if version is None or entry.version == version else None

    def _begin_empty(self, inode: int, key: str, *, unchanged: bool) -> Dirty | None:
        entry = self._is_current(inode, key)
        if entry is None or (unchanged and entry.size):
            return None
        dirty = self._make_dirty(entry, key)
        self.stage_new(dirty, unchanged=entry if unchanged else None)
        return dirty

    def _begin_with(self, inode: int, key: str, shown: Entry, obj: CachedObject) -> Dirty | None:
        entry = self._is_current(inode, key, shown.version)
        if entry is None:
            return None
        # Memory does not outlive the machine: what is written to goes to a disk, unless somebody reads it in passthrough.
        adopted = obj.space if obj.whole and not (self._is_unfit(obj.space) and self._files.retire_idle(inode)) else None
        if adopted is not None and not self._files.may_adopt(inode, obj.oid):
            raise Busy(f"{key!r} is open with another cache file")
        if adopted is None and self._kernel.is_registered(inode):
            raise Busy(f"{key!r} is open, and no longer whole in the cache")
        if self._is_volatile(adopted) and self.mode_of(key) is WriteMode.MUST_CACHE:
            raise Busy(f"{key!r} is open in a cache directory in memory, where nothing can be kept")
        dirty = self._make_dirty(entry, key)
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
            fd = self._new_staging_file(dirty)
            os.ftruncate(fd, entry.size)
            base = self._cache.acquire(key, entry.version, entry.size)
            content = StagedBytes(
                fd,
                self._staging.path_of(dirty.number),
                cache=self._cache,
                threads=self._threads,
                base=base,
                base_bytes=entry.size,
            )
        self._stage(dirty, content, old, entry)
        if not content.complete:
            self._entries.note_partial(dirty)
        return dirty

    def _make_dirty(self, entry: Entry, key: str) -> Dirty:
        """Return the inode's dirty entry, a new one if there is none; its name is held."""
        dirty = self._entries.get(entry.inode)
        if dirty is None:
            dirty = self.mark(entry, key, entry.version)
        return dirty

    def mark(self, entry: Entry, key: str, expect: str | None) -> Dirty:
        """Make an inode dirty, and hold its name. ``expect``: see `Stored`."""
        parent, name = self._namespace.place(entry.inode)
        dirty = Dirty(
            self._journal.new_id(),
            entry.inode,
            entry.kind,
            self.mode_of(key),
            (parent, name),
            key,
            Stored(expect, (key, entry.version) if entry.kind is Kind.FILE and entry.version else None),
        )
        self._entries.add(dirty)
        self._namespace.hold(entry.inode, parent, name)
        return dirty

    def _stage(self, dirty: Dirty, content: StagedBytes, old: OldObject | None, unchanged: Entry | None) -> None:
        """Give a dirty entry its content; ``unchanged``: the store has the same, and says this of it."""
        dirty.stage(Source(dirty.key, content, old))
        row = self.row(dirty)
        if dirty.place is not None and row.attributes is not None and row.attributes.atime_ns is None:
            # It has been the mtime, which moves from now on.
            row.attributes = msgspec.structs.replace(row.attributes, atime_ns=with_times(row).atime_ns)
            self._namespace.put(*dirty.place, row)
        if unchanged is not None:
            self._set_times(dirty, unchanged)
            dirty.is_unchanged()
        self._files.attach_staged(dirty)
        self.note(dirty)
        reached("begin.noted")

    def _new_staging_file(self, dirty: Dirty) -> int:
        fd = self._staging.create(dirty.number)
        if self._staging.spares_low:
            self.spares_low.set()
        return fd

    def _set_times(self, dirty: Dirty, entry: Entry) -> None:
        known = entry.attributes or Attributes()
        mtime_ns = known.mtime_ns if known.mtime_ns is not None else entry.mtime_ns
        atime_ns = known.atime_ns if known.atime_ns is not None else mtime_ns
        os.utime(self._content(dirty).fd, ns=(atime_ns, mtime_ns))

    def stage_new(self, dirty: Dirty, *, unchanged: Entry | None = None) -> None:
        """Give a file an empty staging file; see `_stage`."""
        fd, path = self._new_staging_file(dirty), self._staging.path_of(dirty.number)
        content = StagedBytes(fd, path, cache=self._cache, threads=self._threads)
        made_ns = now_ns()
        os.utime(content.fd, ns=(made_ns, made_ns))  # a spare file was made long before
        self._stage(dirty, content, None, unchanged)

    def open_new(self, dirty: Dirty) -> int:
        """Open a file that was just created; returns the handle."""
        with self._opening(dirty):
            return self._attach(dirty)

    def note(self, dirty: Dirty, inline: bytes | None = None, *, synced: bool = False) -> None:
        """Bring an entry to the journal, to be committed soon. ``synced``: the staging file is what was promised now.

        Otherwise content that the journal has stays what was promised.
        """
        before = self._journal.files.get(dirty.number)
        if before is not None and before.key != dirty.key and dirty.replicas.holders:
            dirty.replicas.misled()
            self._misled.add(dirty)
        record = dirty.record(self.row(dirty).attributes)
        if inline is None and not synced and before is not None and before.has_inline:
            record.has_inline = True
            if dirty.source is not None and dirty.content_changed(dirty.noted):
                record.stamp, record.size = before.stamp, before.size
        if inline is None and record == before:
            return
        self._journal.put_file(dirty.number, record, inline)

    # -- the bytes

    def _content(self, dirty: Dirty) -> StagedBytes:
        assert dirty.source is not None
        return dirty.source.bytes

    async def write(self, dirty: Dirty, offset: int, data: Buffer) -> None:
        """Write to a file that is open for writing. Raises `NoRoom`, OSError, `StoreError`."""
        whole_pages = len(pages_of(offset, len(data))) * PAGE_BYTES  # what is written in part may have to be filled
        async with self._room(dirty, len(data) if self._content(dirty).complete else whole_pages):
            await self._content(dirty).write(offset, data)

    @asynccontextmanager
    async def _room(self, dirty: Dirty, wanted_bytes: int) -> AsyncIterator[None]:
        """Wait for room where the staging file is, keep it for the block, then count what was taken. Raises `NoRoom`."""
        space, wanted = self._space(dirty), allocated_bytes(wanted_bytes)
        await self.wait_for_room(wanted, space)
        reserved = wanted if space.ledger.reserve(wanted) else 0
        dirty.reserve()
        try:
            yield
        finally:
            dirty.unreserve()
            if dirty.reservations and dirty.source is not None:  # the last one finds out what all took
                space.ledger.settle(reserved, reserved)
                space.staged_bytes += reserved
                dirty.count(dirty.accounted_bytes + reserved)
            else:
                space.ledger.settle(reserved, 0)
                if dirty.source is not None:
                    self.account(dirty)

    async def _complete(self, dirty: Dirty) -> None:
        """Bring everything into the staging file. Raises `NoRoom`, `StoreError`, OSError."""
        content = self._content(dirty)
        if not content.complete:
            async with self._room(dirty, content.size):
                await content.complete_all()

    async def complete(self, dirty: Dirty) -> None:
        """Make a file independent of the object that it was, durably. Raises `StoreError`, OSError."""
        if dirty.source is None:
            return
        content = dirty.source.bytes
        if not content.complete and not content.closed:
            with content.in_use():  # whoever has it open may close it meanwhile
                await self._complete(dirty)
                await self._threads.run(self._staging.sync, content.fd)
            if dirty.place is not None:
                self.note(dirty)
        if dirty.source is not None:
            dirty.source.old = None

    async def copy_content(self, source: Dirty, target: Dirty) -> None:
        """Fill an empty file with all that another one has, which is complete. Raises `NoRoom`, OSError."""
        content, new = self._content(source), self._content(target)
        async with self._room(target, content.size):
            with content.in_use(), new.in_use():
                await self._threads.run(_copy_bytes, content.fd, new.fd)
        target.set_times()

    async def truncate(self, inode: int, size: int, dirty: Dirty | None) -> None:
        """Set a file's size; ``dirty`` is None unless it is open for writing."""
        opened = dirty if dirty is not None and dirty.writers else await self.begin(inode, truncate=size == 0)
        opened.opened()
        try:
            await self._content(opened).truncate(size)
            self.account(opened)
            if opened.writers == 1:
                await self.sync(opened)
        finally:
            self.closed(opened)

    async def fallocate(self, dirty: Dirty, mode: int, offset: int, length: int) -> None:
        """Reserve or punch, as fallocate(2). Raises OSError."""
        content = self._content(dirty)
        if mode & ~FALLOC_KEEP_SIZE:
            await self._complete(dirty)
        async with self._room(dirty, 0 if mode & FALLOC_PUNCH_HOLE else length):
            await self._fallocate(content, mode, offset, length)

    async def _fallocate(self, content: StagedBytes, mode: int, offset: int, length: int) -> None:
        if not content.complete and not mode & FALLOC_KEEP_SIZE and content.size < offset + length:
            await content.truncate(offset + length)
        elif content.complete:
            with content.in_use():
                await self._threads.run(_fallocate, content.fd, mode, offset, length)

    async def wait_for_room(self, wanted_bytes: int, space: Space | None = None) -> None:
        """Wait until so many more bytes fit, at home or in ``space``. Raises `NoRoom` after the room timeout.

        What is not in the store yet takes memory, so there is a bound on the number of files, too (`TooMany`).
        """
        space = space or self._cache.hierarchy.home
        few = len(self._entries) < MOST_DIRTY
        if few and space.capacity_bytes is None and not space.ledger.shortage(wanted_bytes):
            return
        deadline = trio.current_time() + self.room_timeout_s
        while not (
            len(self._entries) < MOST_DIRTY and space.has_room(wanted_bytes) and await space.make_room(wanted_bytes)
        ):
            if trio.current_time() >= deadline or (
                space.capacity_bytes is not None and wanted_bytes > space.capacity_bytes
            ):
                if len(self._entries) >= MOST_DIRTY:
                    raise TooMany(f"{len(self._entries)} changed files are not in the under-store yet: no more are taken")
                raise NoRoom(
                    f"no room in the cache for {wanted_bytes} bytes: {space.staged_bytes} bytes, {len(self._entries)} "
                    "files are not in the under-store yet"
                )
            self._writeback.hurry(failed=False)
            await trio.sleep(ROOM_POLL_S)

    def account(self, dirty: Dirty) -> None:
        """Count what the staging file takes on disk now."""
        st = self._content(dirty).stat()
        if st is None or dirty.reservations:  # what is written now is counted already
            return
        self._space(dirty).count_staged(dirty.count(st.st_blocks * 512))

    def _space(self, dirty: Dirty) -> Space:
        """Return where the staging file is."""
        return self._cache.hierarchy.of(self._staging.directory_of(dirty.number))

    def _is_volatile(self, space: Space | None) -> bool:
        return space is not None and space.tier == "mem" and space is not self._cache.hierarchy.home

    def _is_unfit(self, space: Space | None) -> bool:
        """Whether nothing should be staged in a directory if that can be helped."""
        return space is not None and (space.draining or self._is_volatile(space))

    def tier_of(self, dirty: Dirty) -> Tier:
        """Return the tier of the staging file."""
        return self._space(dirty).tier

    def _remove_staged(self, dirty: Dirty) -> None:
        space, number, size = self._space(dirty), dirty.number, dirty.accounted_bytes
        if not dirty.promised or self._journal.is_durable(number):
            self._staging.remove(number)
            space.count_staged(-size)
            return
        remove = self._staging.retire(number)
        space.retired_bytes += size
        reached("discard.retired")

        def finish() -> None:
            reached("discard.committed")
            try:
                remove()
            except OSError as exc:
                log.warning("the staging file %x cannot be removed; the next mount does it: %s", number, exc)
                return
            space.retired_bytes -= size
            space.count_staged(-size)

        self._journal.after_commit(finish)

    # -- what a close or an fsync promises

    async def sync(self, dirty: Dirty) -> None:
        """Bring the content where the write mode wants it. Raises the store's error; the data stay, and are retried.

        Who waits for the store may be cancelled: then the push goes on.
        """
        if dirty.source is not None:
            self.account(dirty)
        if dirty.place is None:
            return
        dirty.close()
        local = dirty.mode in (WriteMode.ASYNC_THROUGH, WriteMode.MUST_CACHE) or dirty.kind is Kind.SPECIAL
        if local and (dirty.source is None or not self._is_volatile(self._space(dirty))):
            with trio.CancelScope(shield=True):
                await self._promise(dirty)
                if await self._replicate(dirty):
                    return
        began_s = trio.current_time()
        await self._apart(lambda: self._push(dirty))
        if not local and dirty.source is not None and dirty.uploaded is not None:
            now_s = trio.current_time()
            if self.small_closes.note(now_s, now_s - began_s, dirty.uploaded.size):
                log.info("%s", self.small_closes.hint)

    async def _apart(self, function: Callable[[], Awaitable[None]]) -> None:
        """Wait for what runs in a task of its own, and goes on if the caller is cancelled. Raises what it raises."""
        done = trio.Event()
        errors: list[LuxError | OSError] = []

        async def run() -> None:
            try:
                await function()
            except (LuxError, OSError) as exc:
                errors.append(exc)
            except Exception as exc:
                log.exception("bringing a file to the under-store failed in an unexpected way")
                errors.append(Unforeseen(f"internal error: {type(exc).__name__}"))
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        if errors:
            raise errors[0]

    async def _push(self, dirty: Dirty) -> None:
        """Bring the content to the store, or have it tried again. Raises the store's error."""
        try:
            await self._writeback.push(dirty)
        except (LuxError, OSError):
            try:
                await self._promise(dirty)
            except OSError:
                log.exception("%r is neither in the under-store nor safe on disk", dirty.key)
            if dirty.conflict is None:
                self._writeback.schedule(dirty)
            raise

    async def _promise(self, dirty: Dirty) -> None:
        """Make the content and its journal record durable, unless the store has it. Raises OSError."""
        stamp = dirty.stamp
        if stamp is not None and self._is_stored(dirty, stamp):
            if dirty.place is not None:
                self.note(dirty)  # it is closed: a program that has it mapped may write to it from now on
        elif stamp is None or dirty.has_changed(stamp, dirty.noted):
            await self._make_durable(dirty, stamp)
            dirty.promised_content(stamp)
        elif not self._journal.is_durable(dirty.number):  # attributes that were set since
            await self._journal.commit()
        if dirty.must_push:
            self._writeback.schedule(dirty)
        elif dirty.mode is not WriteMode.MUST_CACHE:
            self.publish(dirty)

    async def _make_durable(self, dirty: Dirty, stamp: Stamp | None) -> None:
        inline = None
        if dirty.source is not None and stamp is not None:
            content = self._content(dirty)
            with content.in_use():
                if stamp.size <= INLINE_BYTES and content.complete:
                    inline = os.pread(content.fd, stamp.size, 0)
                else:
                    await self._threads.run(self._staging.sync, content.fd)
        reached("promise.synced")
        if self._is_to_be_replicated(dirty):
            self._plan_replicas(dirty)
        if inline is not None or not self._is_promised_anyway(dirty):
            if dirty.place is not None:
                self.note(dirty, inline, synced=dirty.source is not None)
            await self._journal.commit()
        reached("promise.committed")

    def _is_stored(self, dirty: Dirty, stamp: Stamp) -> bool:
        """Whether the store has all of a file with this stamp: it was opened for writing, and not written to, say."""
        if dirty.uploaded is None or dirty.attributes_changed or dirty.has_changed(stamp, dirty.uploaded):
            return False
        return dirty.stored.is_under(dirty.key)

    def _is_promised_anyway(self, dirty: Dirty) -> bool:
        """Whether the journal says durably that a restart brings up what is in the staging file, whatever that is.

        So it need not be told of each sync of a file: size and time of the content are seen in the staging file itself.
        """
        known = self._journal.files.get(dirty.number)
        if known is None or dirty.place is None or dirty.source is None or not self._journal.is_durable(dirty.number):
            return False
        if not known.closed or not known.content or known.has_inline:
            return False
        record = dirty.record(self.row(dirty).attributes)
        return msgspec.structs.replace(record, size=known.size, stamp=known.stamp) == known

    def _is_to_be_replicated(self, dirty: Dirty) -> bool:
        """Whether other nodes are to hold the content before it is acknowledged."""
        wanted = self.replication is not None and self.replication.copies > 0
        return wanted and dirty.kind is Kind.FILE and dirty.mode == WriteMode.ASYNC_THROUGH and dirty.source is not None

    def _plan_replicas(self, dirty: Dirty) -> None:
        """Give what is about to be promised a generation, and choose who holds it: the journal is to know first."""
        assert self.replication is not None
        dirty.replicas.promise(self.replication.plan(dirty.number, dirty.replicas.holders))

    async def _replicate(self, dirty: Dirty) -> bool:
        """Have other nodes hold what the journal has promised; False: they do not, so it has to go to the store now."""
        replication = self.replication
        if replication is None or not self._is_to_be_replicated(dirty) or not dirty.must_push:
            return True  # there is nothing to be lost
        async with dirty.replicas.lock:
            if dirty.source is None or dirty.place is None or not dirty.must_push:
                return True
            content, stamp = self._content(dirty), dirty.noted
            if not content.complete or stamp is None:
                return False  # the store makes the better copy of what it has
            if dirty.replicas.generation == 0:  # promised by a run without replicas
                self._plan_replicas(dirty)
                self.note(dirty)
                await self._journal.commit()
            if dirty.replicas.have_all:
                return True
            with content.in_use():
                try:
                    await self._send_replicas(replication, dirty, content.fd, stamp)
                except NotReplicated as exc:
                    log.info("%r goes to the under-store at once: %s", dirty.key, exc)
                    return False
        return True

    async def _send_replicas(self, replication: Replicator, dirty: Dirty, fd: int, stamp: Stamp) -> None:
        """Have enough nodes hold the content that has ``stamp``; ``fd`` -1: if they do. Raises `NotReplicated`."""
        generation, key = dirty.replicas.generation, dirty.key
        attributes = msgspec.structs.replace(self.row(dirty).attributes or Attributes(), mtime_ns=stamp.mtime_ns)
        same = dirty.replicas.replicated if dirty.replicas.stamp == stamp else 0
        planned = dirty.replicas.holders[: replication.copies]
        took = await replication.replicate(
            replication.write(dirty.number, generation),
            key,
            to_metadata(Kind.FILE, attributes),
            dirty.stored.expect,
            planned,
            fd,
            stamp.size,
            same,
        )
        others = dirty.replicas.took(took, generation, stamp)
        if dirty.place is None:
            replication.release(dirty.number, generation, dirty.replicas.holders, removed=True)
        elif not dirty.must_push:
            replication.release(dirty.number, generation, dirty.replicas.holders)
        else:
            replication.release(dirty.number, generation, others)  # not before enough have what comes after
            self.note(dirty)

    async def tell_holders(self) -> None:
        """Tell the holders of replicas what has another name now, or none: to be called before that is acknowledged."""
        replication = self.replication
        if replication is None:
            return
        await replication.retract()
        for dirty in list(self._misled):  # those of others, too: who comes second waits for who was first
            if dirty.place is None or dirty.source is None or not dirty.must_push or not dirty.replicas.replicated:
                pass
            elif not self._is_to_be_replicated(dirty):
                replication.release(dirty.number, dirty.replicas.generation, dirty.replicas.holders, removed=True)
            elif not await self._rename_replicas(replication, dirty) and not dirty.writers:
                await self._writeback.push(dirty)
            self._misled.discard(dirty)

    async def _rename_replicas(self, replication: Replicator, dirty: Dirty) -> bool:
        """Tell the holders of a file its new key. False: they do not hold it any more."""
        async with dirty.replicas.lock:
            stamp = dirty.replicas.stamp
            if (
                stamp is None
                or dirty.replicas.replicated == dirty.replicas.generation
                or dirty.source is None
                or dirty.place is None
            ):
                return True
            content = dirty.source.bytes
            # What is being written to is not what they hold: that stays what was promised, under the new key.
            fd = content.fd if not dirty.content_changed(stamp) else -1
            with content.in_use():
                try:
                    await self._send_replicas(replication, dirty, fd, stamp)
                except NotReplicated as exc:
                    log.info("%r goes to the under-store at once: %s", dirty.key, exc)
                    return False
        return True

    async def secure(self, dirty: Dirty) -> None:
        """Promise what there is of a file, though nobody has asked for it."""
        dirty.close()
        await self._promise(dirty)

    async def fsync(self, dirty: Dirty) -> None:
        """As `sync`; a file without a name is synced to disk."""
        if dirty.place is None:
            content = self._content(dirty)
            with content.in_use():
                await self._threads.run(self._staging.sync, content.fd)
        else:
            await self.sync(dirty)

    def closed(self, dirty: Dirty) -> None:
        """A handle for writing is gone."""
        dirty.released()
        if dirty.writers or dirty.finished:
            return
        if dirty.source is not None:
            self.account(dirty)
        if dirty.place is None:
            self.discard_if_unused(dirty)
        elif dirty.must_push:
            dirty.close()
            self.note(dirty)
            self._writeback.schedule(dirty)
        else:
            self.publish(dirty)

    # -- back into the cache

    def publish(self, dirty: Dirty) -> None:
        """End the dirty state if the store has everything and nobody can change it any more."""
        if dirty.finished or dirty.writers or dirty.lock.locked():
            return
        if dirty.mode is WriteMode.MUST_CACHE or dirty.kind is Kind.SPECIAL:
            return
        if dirty.place is None:
            self.discard_if_unused(dirty)
            return
        if dirty.conflict is not None:
            self.on_conflict(dirty)
            return
        if dirty.must_push:
            self._writeback.schedule(dirty)
            return
        if dirty.source is None:
            self._finish(dirty)
        elif self._kernel.passthrough and self._may_be_mapped(dirty):
            if dirty not in self._mapped:
                self._mapped.add(dirty)
                self._nursery.start_soon(self._publish_soon, dirty)
        elif (keep := self._can_keep(dirty)) or self._files.retire_idle(dirty.inode):
            self._put_back(dirty, keep=keep)
            self._finish(dirty)
        else:
            self._mapped.add(dirty)  # who reads it in passthrough keeps its file: later writers must write to that one

    def _may_be_mapped(self, dirty: Dirty) -> bool:
        """Whether somebody can still write to the file: in passthrough, a mapping outlives the close of its file."""
        if not self._content(dirty).seal():
            return True
        return self._staging.has_writers(self._staging.path_of(dirty.number))

    async def _publish_soon(self, dirty: Dirty) -> None:
        """The kernel lets go of a backing file a little after the close: look again before it passes for mapped."""
        for delay_s in PUBLISH_AGAIN_S:
            await trio.sleep(delay_s)
            if dirty in self._mapped:
                self.publish(dirty)

    def _can_keep(self, dirty: Dirty) -> bool:
        """Whether the staging file can become the cache file of the object."""
        wanted = self._content(dirty).size > 0 and bool(dirty.checksums) and dirty.mode is not WriteMode.THROUGH
        wanted = wanted and self._cache.hierarchy.placing(dirty.key).keep
        return wanted and self._cache.can_install(dirty.key, self.row(dirty).version)

    def _put_back(self, dirty: Dirty, *, keep: bool) -> None:
        source, row = dirty.source, self.row(dirty)
        assert source is not None
        fd, key = source.bytes.fd, dirty.key
        st = os.fstat(fd)
        self.account(dirty)
        oid = self._cache.object_id(key, row.version)
        if keep:
            space = self._space(dirty)
            self._staging.publish(dirty.number, oid)
            reached("publish.renamed")
            record = ObjectRecord(key, row.version, st.st_size, dirty.accounted_bytes, stamp=st.st_mtime_ns)
            space.staged_bytes -= dirty.accounted_bytes
            self._cache.install(record, dirty.checksums, st.st_ino, space)
            reached("publish.installed")
        else:
            self._remove_staged(dirty)
        dirty.count(0)
        self._files.detach_staged(dirty, row, oid, st.st_mtime_ns)
        dirty.unstage()
        if source.open is not None:
            self._nursery.start_soon(self._uploader.give_up_open, source)

    def _finish(self, dirty: Dirty) -> None:
        self._mapped.discard(dirty)
        self._journal.drop_file(dirty.number)
        reached("publish.dropped")
        self._entries.remove(dirty)
        self._writeback.forget(dirty)
        if dirty.place is not None:
            self._namespace.settle(dirty.inode, *dirty.place)

    def keep_cached(self, dirty: Dirty, row: Entry, old_version: str) -> None:
        """New attributes made a new version of an object: what is cached of the old one is as good."""
        if dirty.kind is Kind.DIRECTORY:
            return
        oid = self._cache.rename(dirty.key, old_version, row.size, dirty.key, row.version)
        self._files.moved(dirty.inode, row, dirty.key, oid)

    # -- without a name

    def orphan(self, dirty: Dirty, row: Entry) -> None:
        """The name of a dirty entry goes: it is not brought to the store any more. Its open handles live on."""
        dirty.lose_name(row)
        if dirty.source is not None and dirty.source.open is not None:
            self._nursery.start_soon(self._uploader.give_up_open, dirty.source)
        self._namespace.let_go(dirty.inode)
        record = self._journal.files.get(dirty.number)
        dirty.awaits_commit(record is not None and record.closed and not record.has_inline)
        self._journal.drop_file(dirty.number)
        if self.replication is not None and dirty.replicas.holders:
            self.replication.release(dirty.number, dirty.replicas.generation, dirty.replicas.holders, removed=True)
        self._writeback.forget(dirty)
        self.discard_if_unused(dirty)

    def discard_if_unused(self, dirty: Dirty) -> None:
        """Remove the content of an unlinked file that nobody has open."""
        if dirty.finished or dirty.writers or dirty.lock.locked() or self._files.has_copied_opens(dirty.inode):
            return
        if dirty.source is not None:
            self._remove_staged(dirty)
            reached("discard.removed")
            dirty.count(0)
            self._files.retire(dirty.inode)
            dirty.unstage()
        self._mapped.discard(dirty)
        self._entries.remove(dirty)

    def _copied_closed(self, inode: int) -> None:
        dirty = self._entries.get(inode)
        if dirty is not None and dirty.place is None:
            self.discard_if_unused(dirty)

    # -- set-user-ID

    def clear_set_id(self, dirty: Dirty) -> None:
        """Somebody without privileges may write: set-user-ID goes, and set-group-ID where the group may execute."""
        row = self.row(dirty)
        mode = (row.attributes.mode if row.attributes else None) or 0
        cleared = without_set_id(mode)
        if cleared != mode:
            row.attributes = msgspec.structs.replace(row.attributes or Attributes(), mode=cleared)
            dirty.differs(True)
            if dirty.place is not None:
                self._namespace.put(*dirty.place, row)
            self._kernel.invalidate_inode(dirty.inode)

    # -- in the background

    async def watch(self) -> None:
        """Count what programs write on their own, begin uploads early, end mapped files; until cancelled."""
        mapped_s = 0.0
        while True:
            await trio.sleep(WATCH_INTERVAL_S if len(self._entries) else 4 * WATCH_INTERVAL_S)
            for dirty in self._entries:
                if dirty.writers and dirty.source is not None:
                    self.account(dirty)
                    self._begin_early(dirty)
            for space in list(self._cache.hierarchy):
                if space.ledger.shortage(0):
                    await space.make_room(0)
            if self._mapped and trio.current_time() - mapped_s > MAPPED_INTERVAL_S:
                mapped_s = trio.current_time()
                for dirty in list(self._mapped):
                    self.publish(dirty)

    def _begin_early(self, dirty: Dirty) -> None:
        source = dirty.source
        if source is None or source.open is not None or source.old is not None or dirty.sent_early:
            return
        if dirty.mode not in (WriteMode.CACHE_THROUGH, WriteMode.THROUGH) or dirty.place is None:
            return
        if source.bytes.size < EARLY_BYTES or not self._uploader.store.abilities.multipart or dirty.lock.locked():
            return
        dirty.begin_early()
        known = msgspec.structs.replace(self.row(dirty).attributes or Attributes(), mtime_ns=None)
        self._nursery.start_soon(self._send_early, dirty, source, to_metadata(Kind.FILE, known))

    async def _send_early(self, dirty: Dirty, source: Source, metadata: dict[str, str]) -> None:
        if dirty.lock.locked() or dirty.place is None or dirty.source is not source:
            return  # it goes up whole already, or not at all
        try:
            source.keep = await keep(self._uploader.store, dirty)
            if dirty.lock.locked() or dirty.place is None or dirty.source is not source:
                return
            await self._uploader.send_early(source, {**foreign(source.keep), **metadata}, PART_BYTES)
        except StoreError as exc:
            log.info("%r does not go up while it is written: %s", dirty.key, exc)
        except Exception:
            log.exception("sending %r while it is written failed in an unexpected way", dirty.key)


def without_set_id(mode: int) -> int:
    """Return permissions as a write by somebody without privileges leaves them."""
    mode &= ~stat_module.S_ISUID
    return mode & ~stat_module.S_ISGID if mode & stat_module.S_IXGRP else mode


def _copy_bytes(source: int, target: int) -> None:
    """Copy a file with its times."""
    status, at = os.fstat(source), 0
    while done := os.sendfile(target, source, at, _COPY_BYTES):
        at += done
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if mode == 0:
        os.posix_fallocate(fd, offset, length)
    else:
        fallocate(fd, mode, offset, length)
