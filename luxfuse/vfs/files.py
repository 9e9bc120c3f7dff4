"""Opening, reading and releasing files.

An open ends in one of two modes (`core.modes`): handed to the kernel with a backing file, or copied through `read`.
The kernel insists that all opens of an inode have one mode, so the decision is made from the inode's present state,
without a wait between it and its effect; after every wait it is made anew.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from luxfuse.cache import descriptors
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.staged import StagedBytes
from luxfuse.core.modes import OpenMode, decide
from luxfuse.core.readahead import Sequence
from luxfuse.core.spans import pages_of
from luxfuse.errors import LuxError, NotFound, StoreUnavailable, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.types import Buffer, Kind
from luxfuse.vfs.ahead import FilesAhead, FillBehind
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import BadHandle, Stale
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

REGISTERED_BOUND = 16_384
"""Inodes with a backing id at once: each is an open file, for the kernel and for us."""
LEAST_REGISTERED = 8
KEPT_FREE = 128
"""Descriptors that the rest of the daemon may want."""
RETIRE_TRIES = 64
HAND_OVER_TRIES = 3
MEETINGS = 5
"""How often a new version is asked for while the object is replaced all the time."""
VOUCHED_S = 1.0
"""For how long the next open may rely on the version that was fetched for it."""
AHEAD_RUN_PAGES = 4
"""Pages of one request of a stream's read-ahead: fewer requests than for pages that somebody waits for."""


@dataclass(slots=True)
class CopiedInode:
    """An inode with copied opens: they share the object, and keep the entry's version readable."""

    entry: Entry
    obj: CachedObject | None
    staged: StagedBytes | None = None
    """While the file is written to: its content, instead of the object's."""
    opens: int = 0


@dataclass(slots=True)
class _Handle:
    inode: int
    shared: CopiedInode
    sequence: Sequence
    writing: bool


@dataclass(slots=True)
class _Registered:
    parent: int
    name: bytes
    key: str
    entry: Entry
    oid: bytes | None
    """None while the backing is a staging file."""


@dataclass(slots=True)
class FileCounters:
    """Opens by mode, rising from the start on."""

    passthrough_opens: int = 0
    copied_opens: int = 0
    stale_handles: int = 0


@dataclass(slots=True)
class _Files:
    registered: OrderedDict[int, _Registered] = field(default_factory=OrderedDict)
    by_object: dict[bytes, set[int]] = field(default_factory=dict)


class Files:
    """The open files of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: PageCache,
        kernel: Kernel,
        ahead: FilesAhead,
        behind: FillBehind,
        whole_file_bytes: int,
        readahead_bytes: int,
        dirty: DirtyEntries,
    ) -> None:
        self._namespace = namespace
        self._dirty = dirty
        self._cache = cache
        self._kernel = kernel
        self._ahead = ahead
        self._behind = behind
        self._whole_file_bytes = whole_file_bytes
        self._readahead_bytes = readahead_bytes
        self._copied: dict[int, CopiedInode] = {}
        self._handles: dict[int, _Handle] = {}
        self._next_handle = 1
        self._registry = _Files()
        self._deferred: dict[str, int] = {}
        self._nameless: set[int] = set()
        """Removed inodes that are open."""
        self.counters = FileCounters()
        ahead.hand_over = self._register
        namespace.on_doubt = lambda inode: kernel.restamp(inode, -1, 0.0)
        kernel.on_first_open = self._opened_by_kernel
        kernel.on_drained = self._drop_record
        self.on_copied_closed: Callable[[int], None] = lambda _inode: None
        """Set by the writer: the last copied open of an inode is gone."""

    # -- open

    async def open(self, inode: int) -> int:
        """Open a file for reading; returns the file handle. Raises `Stale`, `StoreError`."""
        place, began_s = self._namespace.place_of(inode), self._namespace.now_s()
        try:
            entry = await self._namespace.current(inode)
        except Stale:
            if inode not in self._nameless and place is not None:
                await self._meet_next(*place)
            return self._open_again(inode)
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.source is not None:
            return self.open_staged(dirty, entry)
        parent, name, _ = self._namespace.locate(inode)
        self._ahead.opened(parent, name)
        if entry.size == 0:
            return self._open_copied(entry, None)
        key = self._namespace.key(parent, name, entry.kind)
        obj = self._cache.acquire(key, entry.version, entry.size)
        try:
            self._cache.touch(obj)
            return await self._open_object(parent, name, entry, obj, began_s)
        except (VersionChanged, NotFound, Stale):
            self._namespace.expire(inode)
            await self._meet_next(parent, name)
            raise Stale(f"{key!r} changed in the under-store") from None
        finally:
            self._cache.release(obj)

    async def _meet_next(self, parent: int, name: bytes) -> None:
        """Fetch what the next open of a name begins with: the kernel looks it up and opens it once more, and no oftener.

        So an object that is replaced all the time can be opened, too.
        """
        for _ in range(MEETINGS):
            try:
                entry = await self._namespace.lookup(parent, name)
                if entry.kind is not Kind.FILE or entry.size == 0:
                    return
                obj = self._cache.acquire(self._namespace.key(parent, name, entry.kind), entry.version, entry.size)
                try:
                    if entry.size <= self._whole_file_bytes and self._cache.keeps(obj):
                        await self._cache.fetch_whole(obj)
                    else:
                        await self._cache.read(obj, 0, 1)
                except (VersionChanged, NotFound):
                    self._namespace.expire(entry.inode)
                    continue
                finally:
                    self._cache.release(obj)
                self._namespace.vouch(entry.inode, VOUCHED_S)
                return
            except LuxError as exc:
                log.info("%r was replaced, and what there is now cannot be fetched: %s", name, exc)
                return

    async def _confirm(self, entry: Entry, obj: CachedObject, since_s: float) -> None:
        """Have the store say that it still has the version, as pages are missing that are about to be read.

        Later it would be too late: the kernel looks the name up again if the open fails, and not if a read does. What
        was asked for before ``since_s``, and what a peer says, may be of before the object was replaced. It costs nothing
        where the first page is missing, as reading mostly begins there. Raises `Stale`, `StoreError`.
        """
        if not self._namespace.can_ask:
            return
        asked = not self._cache.has_begun(obj, 0)
        try:
            if not obj.pages.has(0):
                await self._cache.read(obj, 0, 1)
                if obj.pages.total == 1:
                    return  # no read will ask for more; as all that is whole it is believed
            if not asked or (self._cache.peers is not None and not _said_since(obj, since_s)):
                await self._namespace.confirm(entry.inode, since_s)
        except StoreUnavailable:
            if not obj.cached_bytes:
                raise  # else a read would wait in vain once more
        except (VersionChanged, NotFound, Stale):
            # The kernel opens no third time: what was fetched for its second can be read from the start, at least.
            if not (self._namespace.is_vouched(entry.inode) and self._cache.has_begun(obj, 0)):
                raise

    def _open_again(self, inode: int) -> int:
        """Open a file that was removed here, if it is open already (by /proc/self/fd). Raises `Stale`."""
        if inode not in self._nameless:
            raise Stale(f"inode {inode} was replaced or is gone")
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.source is not None and dirty.orphan is not None:
            return self.open_staged(dirty, dirty.orphan)
        copied = self._copied.get(inode)
        if copied is not None:
            return self._open_copied(copied.entry, copied.obj)
        handle = self._kernel.acquire(inode, 0.0) if inode in self._registry.registered else None
        if handle is None:
            raise Stale(f"inode {inode} has no name and is not open")
        return handle

    async def _open_object(self, parent: int, name: bytes, entry: Entry, obj: CachedObject, began_s: float) -> int:
        inode = entry.inode
        fetched = confirmed = False
        hand_overs = 0
        while True:
            dirty = self._dirty.get(inode)
            if dirty is not None and dirty.source is not None:
                return self.open_staged(dirty, entry)  # somebody opened it for writing meanwhile
            copied = self._copied.get(inode)
            mode = decide(
                registered=self._kernel.is_registered(inode),
                copied_opens=copied.opens if copied else 0,
                whole=obj.whole,
                fetchable=not fetched and entry.size <= self._whole_file_bytes and self._cache.keeps(obj),
                passthrough_possible=self._may_hand_over(obj) and hand_overs < HAND_OVER_TRIES,
            )
            if mode is OpenMode.COPY:
                if not (confirmed or obj.whole):  # also if it is open: those who have it open may be about to close it
                    confirmed = True
                    await self._confirm(entry, obj, began_s)
                    continue
                return self._open_copied(entry, obj)
            if mode is OpenMode.JOIN:
                if not self._kernel.is_intact(inode) and self.retire_idle(inode):
                    continue  # somebody wrote to the cache file: verify it before it is used again
                handle = self._kernel.acquire(inode, self._namespace.remaining_s(entry))
                if handle is None:
                    continue  # it was retired, and its last open ended just now in the kernel's thread
                self.counters.passthrough_opens += 1
                return handle
            if mode is OpenMode.FETCH:
                fetched = True
                confirmed = await self._cache.fetch_whole(obj) or confirmed
                continue
            hand_overs += 1
            fd = await self._cache.open_for_kernel(obj)
            if fd is None:
                fetched = False  # damaged or lost pages were dropped: fetch them again
                continue
            self._register(parent, name, entry, obj, fd)

    def _may_hand_over(self, obj: CachedObject) -> bool:
        return self._kernel.passthrough and (obj.space is None or self._kernel.accepts(obj.space.directory.device))

    def open_staged(self, dirty: Dirty, entry: Entry, *, writing: bool = False, copy: bool = False) -> int:
        """Open a file that is being written to; returns the handle.

        In passthrough if its content is complete in the staging file, unless a first open is to ``copy``.
        """
        inode = dirty.inode
        source = dirty.source
        assert source is not None
        possible = self._kernel.passthrough and source.bytes.complete and inode not in self._copied
        st = source.bytes.stat()
        possible = possible and st is not None and self._kernel.accepts(st.st_dev)
        if copy:
            self.retire_idle(inode)
        if possible and st is not None and not self._kernel.is_registered(inode) and not copy and self._has_room():
            self._register_staged(dirty, entry, source.bytes.fd, st.st_mtime_ns)
        if possible and self._kernel.is_registered(inode):
            handle = self._kernel.acquire(inode, self._namespace.remaining_s(entry), writing=writing)
            if handle is not None:
                self.counters.passthrough_opens += 1
                return handle
        handle = self._open_copied(entry, None, writing=writing)
        self._copied[inode].staged = source.bytes
        return handle

    def _register_staged(self, dirty: Dirty, entry: Entry, fd: int, stamp_ns: int) -> None:
        if self._hand_over(entry, fd, stamp_ns):
            parent, name = dirty.place or (0, b"")
            self._registry.registered[dirty.inode] = _Registered(parent, name, dirty.key, entry, None)

    def _hand_over(self, entry: Entry, fd: int, stamp_ns: int, *, notice: bool = False) -> bool:
        """Make ``fd`` the backing of an inode, by a descriptor that cannot write, so that writers can be counted."""
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            valid_s = self._namespace.remaining_s(entry)
            return self._kernel.register(entry.inode, readable, stamp_ns, valid_s, notice=notice)
        finally:
            os.close(readable)

    def may_adopt(self, inode: int, oid: bytes) -> bool:
        """Whether the object's file may be written to: no other inode has it as its backing, nor the inode another."""
        registered = self._registry.registered.get(inode)
        if registered is not None and registered.oid != oid and not self.retire_idle(inode):
            return False
        return all(self.retire_idle(other) for other in self._registry.by_object.get(oid, set()) - {inode})

    def attach_staged(self, dirty: Dirty) -> None:
        """A file begins to be written to: those who have it open see its staging file from now on."""
        source = dirty.source
        assert source is not None
        copied = self._copied.get(dirty.inode)
        if copied is not None:
            copied.staged = source.bytes
        registered = self._registry.registered.get(dirty.inode)
        if registered is not None and registered.oid is not None:
            self._forget_object(dirty.inode, registered.oid)
            registered.oid = None

    def detach_staged(self, dirty: Dirty, entry: Entry, oid: bytes, stamp_ns: int) -> None:
        """The file is an object of the cache again (or has to be fetched): those who have it open read that."""
        inode = dirty.inode
        copied = self._copied.get(inode)
        if copied is not None:
            copied.staged, copied.entry = None, entry
            if copied.obj is not None:
                self._cache.release(copied.obj)
            copied.obj = self._cache.acquire(dirty.key, entry.version, entry.size) if entry.size else None
        registered = self._registry.registered.get(inode)
        if registered is not None:
            parent, name = dirty.place or (registered.parent, registered.name)
            self._registry.registered[inode] = _Registered(parent, name, dirty.key, entry, oid)
            self._note_object(inode, oid)
            self._kernel.restamp(inode, stamp_ns, self._namespace.remaining_s(entry))

    def moved(self, inode: int, entry: Entry, key: str, oid: bytes | None) -> None:
        """The inode has another key or version now; ``oid`` is the cached object of it, if that was kept."""
        copied = self._copied.get(inode)
        if copied is not None:
            copied.entry = entry
            if copied.obj is not None and oid is None:
                self._cache.release(copied.obj)
                copied.obj = self._cache.acquire(key, entry.version, entry.size)
        registered = self._registry.registered.get(inode)
        if registered is None or registered.oid is None:
            return
        self._forget_object(inode, registered.oid)
        registered.entry, registered.key = entry, key
        registered.parent, registered.name = self._namespace.place(inode)
        if oid is None:  # the cache has nothing of it any more: the file that is open is all there is
            registered.oid = None
            self.retire(inode)
            return
        registered.oid = oid
        self._note_object(inode, oid)

    def _note_object(self, inode: int, oid: bytes) -> None:
        self._registry.by_object.setdefault(oid, set()).add(inode)

    def _forget_object(self, inode: int, oid: bytes) -> None:
        inodes = self._registry.by_object.get(oid)
        if inodes is not None:
            inodes.discard(inode)
            if not inodes:
                del self._registry.by_object[oid]

    def released(self, inode: int) -> None:
        """A passthrough open for writing is over."""
        self._kernel.released(inode)

    def retire(self, inode: int) -> None:
        """Take the backing of an inode away, at its last close if it is open."""
        if self._kernel.retire(inode, only_idle=False):
            self._drop_record(inode)

    def retire_idle(self, inode: int) -> bool:
        """Take the backing of an inode away unless it is open; returns whether it has none now."""
        if not self._kernel.retire(inode, only_idle=True):
            return False
        self._drop_record(inode)
        return True

    def needs_store(self, inode: int) -> bool:
        """Whether somebody has the inode open and will need pages that only the store has."""
        copied = self._copied.get(inode)
        if copied is None:
            return False
        if copied.staged is not None:
            return not copied.staged.complete
        return copied.obj is not None and not copied.obj.whole

    def defer(self, key: str, inode: int) -> None:
        """The object is to be removed once nobody reads the inode any more."""
        if inode in self._copied:
            self._deferred[key] = inode

    def is_deferred(self, key: str) -> bool:
        """Whether the object must stay because somebody still reads it."""
        inode = self._deferred.get(key)
        if inode is not None and inode not in self._copied:
            del self._deferred[key]
            return False
        return inode is not None

    def unlinked(self, inode: int) -> None:
        """The name of an inode is gone: its backing goes with the last close."""
        if inode in self._copied or inode in self._registry.registered:
            self._nameless.add(inode)
        dirty = self._dirty.get(inode)
        if dirty is None or dirty.source is None:
            self.retire(inode)

    def has_copied_opens(self, inode: int) -> bool:
        """Whether the inode is open for copying."""
        return inode in self._copied

    def staged_of(self, handle: int) -> tuple[int, bool]:
        """Return (inode, whether it is open for writing) of a copied open. Raises `BadHandle`."""
        state = self._handle(handle)
        return state.inode, state.writing

    def _handle(self, handle: int) -> _Handle:
        state = self._handles.get(handle)
        if state is None:
            raise BadHandle(f"file handle {handle} is not open")
        return state

    def _register(self, parent: int, name: bytes, entry: Entry, obj: CachedObject, fd: int, notice: bool = False) -> None:
        """Give the inode its backing ``fd`` and close that, unless another open decided otherwise meanwhile."""
        inode = entry.inode
        if fd < 0:
            return
        try:
            dirty = self._dirty.get(inode)
            if dirty is not None and dirty.source is not None:
                return
            if self._kernel.is_registered(inode) or inode in self._copied or not self._may_hand_over(obj):
                return
            if not self._has_room():
                return
            if not self._hand_over(entry, fd, obj.record.stamp, notice=notice):
                return
        finally:
            os.close(fd)
        self._registry.registered[inode] = _Registered(parent, name, obj.record.key, entry, obj.oid)
        self._note_object(inode, obj.oid)

    def _has_room(self) -> bool:
        """Whether one more inode can have a backing, after those that are not open have made room for it."""
        most = min(REGISTERED_BOUND, max(LEAST_REGISTERED, (descriptors.limit() - KEPT_FREE) // 2))
        if len(self._registry.registered) < most:
            return True
        for oldest in list(islice(self._registry.registered, RETIRE_TRIES)):
            if self.retire_idle(oldest):
                return True
            self._registry.registered.move_to_end(oldest)  # open: look at others first
        return False

    def _opened_by_kernel(self, inode: int) -> None:
        """A file fetched ahead was opened without our help: keep ahead of its reader."""
        registered = self._registry.registered.get(inode)
        if registered is not None:
            self._ahead.opened(registered.parent, registered.name)

    def _open_copied(self, entry: Entry, obj: CachedObject | None, *, writing: bool = False) -> int:
        shared = self._copied.get(entry.inode)
        if shared is None:
            if obj is not None:
                obj = self._cache.acquire(obj.record.key, obj.record.version, obj.size)
            shared = self._copied[entry.inode] = CopiedInode(entry, obj)
        shared.opens += 1
        number = self._next_handle
        self._next_handle = number % 0xFFFF_FFFF + 1
        self._handles[number] = _Handle(entry.inode, shared, Sequence(self._readahead_bytes), writing)
        self.counters.copied_opens += 1
        return number

    def pinned(self, inode: int) -> Entry | None:
        """Return the entry of an inode that is open, whatever became of its name since."""
        copied = self._copied.get(inode)
        if copied is not None:
            return copied.entry
        registered = self._registry.registered.get(inode)
        return registered.entry if registered is not None else None

    # -- read and release of copied opens

    async def read(self, handle: int, offset: int, length: int) -> Buffer:
        """Return up to ``length`` bytes of a copied open. Raises `BadHandle`, `Stale`, `StoreError`."""
        state = self._handle(handle)
        if state.shared.staged is not None:
            return await state.shared.staged.read(offset, length)
        obj = state.shared.obj
        if obj is None:
            return b""
        ahead = state.sequence.advance(offset, length, obj.size)
        try:
            if not obj.whole:
                self._cache.start(obj, pages_of(offset, min(length, obj.size - offset)))
                if ahead:
                    self._cache.start(obj, pages_of(ahead.start, len(ahead)), run=AHEAD_RUN_PAGES)
                self._behind.consider(obj)
            return await self._cache.read(obj, offset, length)
        except (VersionChanged, NotFound):
            self._namespace.expire(state.inode)
            self.counters.stale_handles += 1
            raise Stale(f"{obj.record.key!r} changed in the under-store while it was open") from None

    async def read_registered(self, inode: int, offset: int, length: int) -> Buffer:
        """Serve a READ of a passthrough open (readahead(2) and posix_fadvise send them)."""
        registered = self._registry.registered.get(inode)
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.source is not None:
            return await dirty.source.bytes.read(offset, length)
        if registered is None:
            raise BadHandle(f"inode {inode} is not open")
        obj = self._cache.acquire(registered.key, registered.entry.version, registered.entry.size)
        try:
            return await self._cache.read(obj, offset, length)
        except (VersionChanged, NotFound):
            self._namespace.expire(inode)
            raise Stale(f"{registered.key!r} changed in the under-store while it was open") from None
        finally:
            self._cache.release(obj)

    def release(self, handle: int) -> None:
        """End a copied open."""
        state = self._handles.pop(handle, None)
        if state is None:
            raise BadHandle(f"file handle {handle} is not open")
        state.shared.opens -= 1
        if state.shared.opens == 0:
            del self._copied[state.inode]
            if state.shared.obj is not None:
                self._cache.release(state.shared.obj)
            self._nameless.discard(state.inode)
            self.on_copied_closed(state.inode)

    # -- backing ids and eviction

    def _drop_record(self, inode: int) -> None:
        """The inode has no backing any more."""
        registered = self._registry.registered.pop(inode, None)
        if inode not in self._copied:
            self._nameless.discard(inode)
        if registered is not None and registered.oid is not None:
            self._forget_object(inode, registered.oid)

    def may_drop(self, oid: bytes) -> bool:
        """Close the backing ids of an object's file unless the kernel has it open; returns whether it may go."""
        return all(self.retire_idle(inode) for inode in list(self._registry.by_object.get(oid, ())))

    def note_touched(self) -> None:
        """Bring the order of last uses up to date with the opens that the kernel's side answered alone."""
        for inode in self._kernel.take_touched():
            registered = self._registry.registered.get(inode)
            if registered is not None:
                if registered.oid is not None:
                    self._cache.touch_by_id(registered.oid)
                self._registry.registered.move_to_end(inode)

    def retire_all_idle(self) -> bool:
        """Take the backings of files that are not open away; returns whether none is left."""
        return not [inode for inode in list(self._registry.registered) if not self.retire_idle(inode)]

    @property
    def any_copied(self) -> bool:
        """Whether any file is open for copying."""
        return bool(self._handles)

    def forget_all(self) -> None:
        """Take every backing away, at the last close where the inode is open (a cache directory lost its files)."""
        for inode in list(self._registry.registered):
            self.retire(inode)


def _said_since(obj: CachedObject, since_s: float) -> bool:
    """Whether the store has described the version with an answer that was asked for at ``since_s`` or later."""
    return obj.described is not None and obj.described[1] >= since_s
