"""Opening, reading and releasing files.

An open ends in one of two modes (`core.modes`): handed to the kernel with a backing file, or copied through `read`.
The kernel insists that all opens of an inode have one mode, so the decision is made from the inode's present state,
without a wait between it and its effect; after every wait it is made anew.
"""

from __future__ import annotations

import logging
import os
import resource
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice

from luxfuse.cache.cached import Buffer, CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.modes import OpenMode, decide
from luxfuse.core.readahead import Sequence
from luxfuse.core.spans import pages_of
from luxfuse.errors import NotFound, StoreError, VersionChanged
from luxfuse.index.names import Entry
from luxfuse.vfs.ahead import FilesAhead, FillBehind
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace, Stale

log = logging.getLogger(__name__)

REGISTERED_BOUND = 16_384
"""Inodes with a backing id at once: each is an open file, for the kernel and for us."""
RETIRE_TRIES = 64
HAND_OVER_TRIES = 3
AHEAD_RUN_PAGES = 4
"""Pages of one request of a stream's read-ahead: fewer requests than for pages that somebody waits for."""


class BadHandle(StoreError):
    """The file handle is not open."""

    errno = 9  # EBADF


@dataclass(slots=True)
class CopiedInode:
    """An inode with copied opens: they share the object, and keep the entry's version readable."""

    entry: Entry
    obj: CachedObject | None
    opens: int = 0


@dataclass(slots=True)
class _Handle:
    inode: int
    shared: CopiedInode
    sequence: Sequence


@dataclass(slots=True)
class _Registered:
    parent: int
    name: bytes
    key: str
    entry: Entry
    oid: bytes


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
    ) -> None:
        self._namespace = namespace
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
        self.counters = FileCounters()
        cache.may_drop = self._may_drop
        ahead.hand_over = self._register
        kernel.on_first_open = self._opened_by_kernel
        kernel.on_drained = self._drop_record
        self._registered_bound = min(REGISTERED_BOUND, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        cache.space.before_eviction = self.note_touched

    # -- open

    async def open(self, inode: int) -> int:
        """Open a file for reading; returns the file handle. Raises `Stale`, `StoreError`."""
        entry = await self._namespace.current(inode)
        parent, name, _ = self._namespace.locate(inode)
        self._ahead.opened(parent, name)
        if entry.size == 0:
            return self._open_copied(entry, None)
        key = self._namespace.key(parent, name, entry.kind)
        obj = self._cache.acquire(key, entry.version, entry.size)
        try:
            self._cache.touch(obj)
            return await self._open_object(parent, name, entry, obj)
        except (VersionChanged, NotFound):
            self._namespace.expire(inode)
            raise Stale(f"{key!r} changed in the under-store") from None
        finally:
            self._cache.release(obj)

    async def _open_object(self, parent: int, name: bytes, entry: Entry, obj: CachedObject) -> int:
        inode = entry.inode
        fetched = False
        hand_overs = 0
        while True:
            copied = self._copied.get(inode)
            mode = decide(
                registered=self._kernel.is_registered(inode),
                copied_opens=copied.opens if copied else 0,
                whole=obj.whole,
                fetchable=not fetched and entry.size <= self._whole_file_bytes and self._cache.space.degraded is None,
                passthrough_possible=self._kernel.passthrough and hand_overs < HAND_OVER_TRIES,
            )
            if mode is OpenMode.COPY:
                return self._open_copied(entry, obj)
            if mode is OpenMode.JOIN:
                if not self._kernel.is_intact(inode) and self._kernel.retire(inode, only_idle=True):
                    self._drop_record(inode)  # somebody wrote to the cache file: verify it before it is used again
                    continue
                handle = self._kernel.acquire(inode, self._namespace.remaining_s(entry))
                if handle is None:
                    continue  # it was retired, and its last open ended just now in the kernel's thread
                self.counters.passthrough_opens += 1
                return handle
            if mode is OpenMode.FETCH:
                fetched = True
                await self._cache.fetch_whole(obj)
                continue
            hand_overs += 1
            fd = await self._cache.open_for_kernel(obj)
            if fd is None:
                fetched = False  # damaged or lost pages were dropped: fetch them again
                continue
            self._register(parent, name, entry, obj, fd)

    def _register(
        self, parent: int, name: bytes, entry: Entry, obj: CachedObject, fd: int, notice: bool = False
    ) -> None:
        """Give the inode its backing ``fd`` and close that, unless another open decided otherwise meanwhile."""
        inode = entry.inode
        if fd < 0:
            return
        try:
            if self._kernel.is_registered(inode) or inode in self._copied or not self._kernel.passthrough:
                return
            valid_s = self._namespace.remaining_s(entry)
            if not self._kernel.register(inode, fd, obj.record.stamp, valid_s, notice=notice):
                return
        finally:
            os.close(fd)
        self._registry.registered[inode] = _Registered(parent, name, obj.record.key, entry, obj.oid)
        self._registry.by_object.setdefault(obj.oid, set()).add(inode)
        self._bound_registered()

    def _bound_registered(self) -> None:
        for _ in range(len(self._registry.registered) - self._registered_bound):
            for oldest in list(islice(self._registry.registered, RETIRE_TRIES)):
                if self._kernel.retire(oldest, only_idle=True):
                    self._drop_record(oldest)
                    break
                self._registry.registered.move_to_end(oldest)  # open: look at others first

    def _opened_by_kernel(self, inode: int) -> None:
        """A file fetched ahead was opened without our help: keep ahead of its reader."""
        registered = self._registry.registered.get(inode)
        if registered is not None:
            self._ahead.opened(registered.parent, registered.name)

    def _open_copied(self, entry: Entry, obj: CachedObject | None) -> int:
        shared = self._copied.get(entry.inode)
        if shared is None:
            if obj is not None:
                obj = self._cache.acquire(obj.record.key, obj.record.version, obj.size)
            shared = self._copied[entry.inode] = CopiedInode(entry, obj)
        shared.opens += 1
        number = self._next_handle
        self._next_handle = number % 0xFFFF_FFFF + 1
        self._handles[number] = _Handle(entry.inode, shared, Sequence(self._readahead_bytes))
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
        state = self._handles.get(handle)
        if state is None:
            raise BadHandle(f"file handle {handle} is not open")
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

    # -- backing ids and eviction

    def _drop_record(self, inode: int) -> None:
        """The inode has no backing any more."""
        registered = self._registry.registered.pop(inode, None)
        if registered is None:
            return
        inodes = self._registry.by_object[registered.oid]
        inodes.discard(inode)
        if not inodes:
            del self._registry.by_object[registered.oid]

    def _may_drop(self, oid: bytes) -> bool:
        for inode in list(self._registry.by_object.get(oid, ())):
            if not self._kernel.retire(inode, only_idle=True):
                return False
            self._drop_record(inode)
        return True

    def note_touched(self) -> None:
        """Bring the order of last uses up to date with the opens that the kernel's side answered alone."""
        for inode in self._kernel.take_touched():
            registered = self._registry.registered.get(inode)
            if registered is not None:
                self._cache.touch_by_id(registered.oid)
                self._registry.registered.move_to_end(inode)

    def forget_all(self) -> None:
        """Take every backing away, at the last close where the inode is open (the cache directory lost its files)."""
        for inode in list(self._registry.registered):
            if self._kernel.retire(inode, only_idle=False):
                self._drop_record(inode)


