"""Opening files, and the changes that their opens are to see.

An open ends in one of two modes (`core.modes`): handed to the kernel with a backing file (`vfs.backings`), or copied: the
daemon answers each READ (`vfs.copied`). The kernel insists that all opens of an inode have one mode, so the decision is
made from the inode's present state, without a wait between it and its effect; after every wait it is made anew.
"""

from __future__ import annotations

import logging
import os
from functools import partial

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.modes import OpenMode, decide
from luxfuse.errors import LuxError, NotFound, StoreUnavailable, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.origins import STAGING
from luxfuse.types import Kind
from luxfuse.vfs.ahead import FilesAhead
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.copied import CopiedOpens
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import Stale
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

HAND_OVER_TRIES = 3
MEETINGS = 5
"""How often a new version is asked for while the object is replaced all the time."""
VOUCHED_S = 1.0
"""For how long the next open may rely on the version that was fetched for it."""


class Files:
    """The open files of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: PageCache,
        kernel: Kernel,
        ahead: FilesAhead,
        copied: CopiedOpens,
        backings: Backings,
        whole_file_bytes: int,
        dirty: DirtyEntries,
    ) -> None:
        self._namespace = namespace
        self._dirty = dirty
        self._cache = cache
        self._kernel = kernel
        self._ahead = ahead
        self.copied = copied
        self.backings = backings
        self._whole_file_bytes = whole_file_bytes
        kernel.on_first_open(self._opened_by_kernel)

    # -- open

    async def open(self, inode: int) -> int:
        """Open a file for reading; returns the file handle. Raises `Stale`, `StoreError`."""
        place, began_s = self._namespace.places.place_of(inode), self._namespace.now_s()
        try:
            entry = await self._namespace.current(inode)
        except Stale:
            if place is not None and not self._is_nameless(inode):
                await self._meet_next(*place)
            return self._open_again(inode)
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.source is not None:
            return self.open_staged(dirty, entry)
        parent, name, _ = self._namespace.places.locate(inode)
        self._guess_next(parent, name)
        if entry.size == 0:
            return self.copied.open(entry, None)
        key = self._namespace.places.key(parent, name, entry.kind)
        obj = self._cache.acquire(key, entry.version, entry.size)
        try:
            self._cache.touch(obj)
            self.backings.note_open(obj.oid)
            return await self._open_object(parent, name, entry, obj, began_s)
        except (VersionChanged, NotFound, Stale):
            self._namespace.belief.expire(inode)
            await self._meet_next(parent, name)
            raise Stale(f"{key!r} changed in the under-store") from None
        finally:
            self._cache.release(obj)

    async def _meet_next(self, parent: int, name: bytes) -> None:
        """Fetch the beginning of the version that the next open of a name meets: the kernel tries it once more, no oftener.

        So an object that is replaced all the time can be opened, too.
        """
        for _ in range(MEETINGS):
            try:
                entry = await self._namespace.lookup(parent, name)
                if entry.kind is not Kind.FILE or entry.size == 0:
                    return
                obj = self._cache.acquire(self._namespace.places.key(parent, name, entry.kind), entry.version, entry.size)
                try:
                    if entry.size <= self._whole_file_bytes and self._cache.keeps(obj):
                        await self._cache.fetch_whole(obj)
                    else:
                        await self._cache.read(obj, 0, 1)
                except (VersionChanged, NotFound):
                    self._namespace.belief.expire(entry.inode)
                    continue
                finally:
                    self._cache.release(obj)
                self._namespace.belief.vouch(entry.inode, VOUCHED_S)
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
            # The kernel opens no third time: the version fetched for its second can be read from the start, at least.
            if not (self._namespace.belief.is_vouched(entry.inode) and self._cache.has_begun(obj, 0)):
                raise

    def _open_again(self, inode: int) -> int:
        """Open a file that was removed here, if it is open already (by /proc/self/fd). Raises `Stale`."""
        if not self._is_nameless(inode):
            raise Stale(f"inode {inode} was replaced or is gone")
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.source is not None and dirty.orphan is not None:
            return self.open_staged(dirty, dirty.orphan)
        copied = self.copied.get(inode)
        if copied is not None:
            return self.copied.open(copied.entry, copied.obj)
        handle = self._kernel.acquire(inode, 0.0) if self.backings.get(inode) is not None else None
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
                return self.open_staged(dirty, entry)  # it was opened for writing meanwhile
            if self._has_been_written(inode, obj):
                return await self.open(inode)
            copied = self.copied.get(inode)
            mode = decide(
                registered=self._kernel.is_registered(inode),
                copied_opens=copied.opens if copied else 0,
                whole=obj.whole,
                fetchable=not fetched and entry.size <= self._whole_file_bytes and self._cache.keeps(obj),
                passthrough_possible=self.backings.accepts(obj) and hand_overs < HAND_OVER_TRIES,
            )
            if mode is OpenMode.COPY:
                if not (confirmed or obj.whole):  # also if it is open: its readers may be about to close it
                    confirmed = True
                    await self._confirm(entry, obj, began_s)
                    continue
                self.backings.arrived(inode)  # it will not be registered now
                return self.copied.open(entry, obj)
            if mode is OpenMode.JOIN:
                if not self._kernel.is_intact(inode) and self.backings.retire_idle(inode):
                    continue  # another program wrote to the cache file: verify it before it is used again
                handle = self.backings.acquire(entry)
                if handle is None:
                    continue  # it was retired, and its last open ended just now in the kernel's thread
                return handle
            if mode is OpenMode.FETCH:
                fetched = True
                # A file that comes in one piece is handed over at once: else a thread would have to open it once more.
                arrived = partial(self._arrived, parent, name, entry, obj)
                confirmed = await self._cache.fetch_whole(obj, arrived) or confirmed
                continue
            hand_overs += 1
            fd = await self._cache.open_for_kernel(obj)
            if fd is None:
                fetched = False  # damaged or lost pages were dropped: fetch them again
                continue
            self._arrived(parent, name, entry, obj, fd)

    def _has_been_written(self, inode: int, obj: CachedObject) -> bool:
        """Whether a program has written to an inode meanwhile, and the store has it: the object is of before."""
        place = self._namespace.places.place_of(inode)
        entry = self._namespace.peek(*place) if place is not None else None
        return entry is not None and entry.inode == inode and entry.version != obj.record.version

    def _arrived(self, parent: int, name: bytes, entry: Entry, obj: CachedObject, fd: int) -> None:
        """Hand over a file that was fetched, unless it was written to meanwhile: then it is the content of before."""
        if self._namespace.stands_for(parent, name, entry.inode, obj.record.version):
            self.backings.register(parent, name, entry, obj, fd)
        elif fd >= 0:
            os.close(fd)

    def open_staged(self, dirty: Dirty, entry: Entry, *, writing: bool = False, copy: bool = False) -> int:
        """Open a file that is being written to; returns the handle.

        In passthrough if its content is complete in the staging file, unless a first open is to ``copy``.
        """
        inode = dirty.inode
        source = dirty.source
        assert source is not None
        possible = self._kernel.hands_over and source.bytes.complete and inode not in self.copied
        st = source.bytes.stat()
        possible = possible and st is not None and self._kernel.accepts(st.st_dev)
        if copy:
            self.backings.retire_idle(inode)
        registered = possible and self._kernel.is_registered(inode)
        if possible and st is not None and not registered and not copy:
            registered = self.backings.register_staged(dirty, entry, source.bytes.fd, st.st_mtime_ns)
        if registered:
            handle = self.backings.acquire(entry, writing=writing)
            if handle is not None:
                return handle
        handle = self.copied.open(entry, None, writing=writing)
        self.copied.attach_staged(inode, source.bytes)
        return handle

    def attach_staged(self, dirty: Dirty) -> None:
        """A file begins to be written to: programs that have it open see its staging file from now on."""
        assert dirty.source is not None
        self.copied.attach_staged(dirty.inode, dirty.source.bytes)
        self.backings.attach_staged(dirty.inode)

    def detach_staged(self, dirty: Dirty, entry: Entry, oid: bytes, stamp_ns: int) -> None:
        """The file is an object of the cache again (or has to be fetched): programs that have it open read that."""
        self.copied.detach_staged(dirty.inode, entry, dirty.key)
        self.backings.detach_staged(dirty, entry, oid, stamp_ns)

    def moved(self, inode: int, entry: Entry, key: str, oid: bytes | None) -> None:
        """The inode has another key or version now; ``oid`` is the cached object of it, if that was kept."""
        self.copied.moved(inode, entry, key, kept=oid is not None)
        self.backings.moved(inode, entry, key, oid)

    def unlinked(self, inode: int) -> None:
        """The name of an inode is gone: its backing goes with the last close."""
        self.copied.lose_name(inode)
        self.backings.lose_name(inode)
        dirty = self._dirty.get(inode)
        if dirty is None or dirty.source is None:
            self.backings.retire(inode)

    def _is_nameless(self, inode: int) -> bool:
        """Whether the inode was removed and is open."""
        return any(opened is not None and opened.nameless for opened in (self.copied.get(inode), self.backings.get(inode)))

    def _opened_by_kernel(self, inode: int) -> None:
        """A file fetched ahead was opened without our help: keep ahead of its reader."""
        backing = self.backings.get(inode)
        if backing is not None:
            self._guess_next(backing.parent, backing.name)

    def _guess_next(self, parent: int, name: bytes) -> None:
        """Fetch what is opened next, by the order of the opens so far; but where that was told, nobody need guess."""
        if not self.backings.is_foreseen(parent):
            self._ahead.opened(parent, name)

    def staged_size(self, inode: int) -> int | None:
        """Return the size of the content of a file that was written here, and is not in the under-store yet; else None."""
        dirty = self._dirty.get(inode)
        st = dirty.source.bytes.stat() if dirty is not None and dirty.source is not None else None
        return None if st is None else st.st_size

    def source_of(self, inode: int) -> str | None:
        """Return where the content of an inode lies: `STAGING`, or the tier of its cached file; None if in neither."""
        if self.staged_size(inode) is not None:
            return STAGING
        oid = self._object_of(inode)
        record = None if oid is None else self._cache.record_of(oid)
        space = None if record is None else self._cache.hierarchy.by_number(record.directory)
        return None if space is None else space.tier

    def _object_of(self, inode: int) -> bytes | None:
        """Return the id of the object that an inode is open for, or, if it is closed, that its name stands for."""
        backing, copied = self.backings.get(inode), self.copied.get(inode)
        if backing is not None:
            return backing.oid
        if copied is not None:
            return copied.obj.oid if copied.obj is not None else None
        place = self._namespace.places.place_of(inode)
        entry = None if place is None else self._namespace.peek(*place)
        if place is None or entry is None or entry.inode != inode or not entry.version:
            return None
        return self._cache.object_id(self._namespace.places.key(*place, entry.kind), entry.version)

    def open_entry(self, inode: int) -> Entry | None:
        """Return the entry of an inode that is open, though its name may be gone or stand for another one."""
        if (copied := self.copied.get(inode)) is not None:
            return copied.entry
        backing = self.backings.get(inode)
        return backing.entry if backing is not None and not backing.gone else None


def _said_since(obj: CachedObject, since_s: float) -> bool:
    """Whether the store has described the version with an answer that was asked for at ``since_s`` or later."""
    return obj.described is not None and obj.described[1] >= since_s
