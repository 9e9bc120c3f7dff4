"""Files handed to the kernel: the inodes that have a backing file, and how long they keep it.

A backing is a cache file or a staging file that the kernel reads by itself (passthrough), under a backing id.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fcntl import F_GETFL, fcntl

from luxfuse.cache import descriptors
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.errors import NotFound, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.shares import shares
from luxfuse.types import Buffer
from luxfuse.vfs.copied import CopiedOpens
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import BadHandle, Stale
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.will import BackingFact, Will

RETIRE_TRIES, SPARED = 64, 256
"""So many open ones are tried for room, and so many awaited ones are passed over before some of these are tried."""
EXPECT_FROM = 4
"""Records are read together from so many on: each by itself passes the interpreter lock on."""


@dataclass(slots=True)
class Backing:
    """An inode with a backing, as it was registered or has changed since."""

    parent: int
    name: bytes
    key: str
    entry: Entry
    oid: bytes | None
    """None while the backing is a staging file, and once it is a cache file that the cache has lost."""
    nameless: bool = False
    """Whether it was removed."""
    gone: bool = False
    """Whether it was a staging file that a predecessor had, and of which nothing is left."""


class Backings:
    """The backings of one mount. Implements `luxfuse.cache.readers.Readers`."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: PageCache,
        kernel: Kernel,
        entries: DirtyEntries,
        copied: CopiedOpens,
        will: Will | None = None,
    ) -> None:
        self._will = will or Will(None, 0)
        self._namespace = namespace
        self._cache = cache
        self._kernel = kernel
        self._dirty = entries
        self._copied = copied
        self._backings: OrderedDict[int, Backing] = OrderedDict()
        """By inode; those that were used last are at the end."""
        self._by_object: dict[bytes, set[int]] = {}
        self.opened = 0
        """Opens in passthrough that the kernel asked for, rising from the start on."""
        self._closed: Callable[[int], None] = lambda _inode: None
        self.on_open: list[Callable[[bytes], None]] = []
        """Told of each open of an object, by its id: of one that a lane answered when `note_touched` hears of it."""
        self.foreseen: list[Callable[[int], bool]] = []
        """Ask whether a program has told what it opens next in a directory, so that it need not be guessed."""
        self.awaited: list[Callable[[bytes], bool]] = []
        """Ask whether an object was fetched for an open that a program has told, and that has not come yet."""
        kernel.on_drained(self._drained)

    def on_closed(self, closed: Callable[[int], None]) -> None:
        """Have ``closed`` called with an inode whose backing went with its last open."""
        self._closed = closed

    def _drained(self, inode: int) -> None:
        if not self._kernel.is_registered(inode):  # else it was opened again meanwhile, with a backing of its own
            self._drop(inode)
        self._closed(inode)

    def get(self, inode: int) -> Backing | None:
        """Return the backing of an inode; None if there is none."""
        return self._backings.get(inode)

    # -- open, read and release

    def acquire(self, entry: Entry, *, writing: bool = False) -> int | None:
        """Count an open and return its handle; None if the inode has no backing any more."""
        handle = self._kernel.acquire(entry.inode, self._namespace.belief.remaining_s(entry), writing=writing)
        if handle is not None:
            self.opened += 1
        return handle

    async def read(self, inode: int, offset: int, length: int) -> Buffer:
        """Answer a READ of an open in passthrough (readahead(2) and posix_fadvise send them)."""
        backing = self._backings.get(inode)
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.source is not None:
            return await dirty.source.bytes.read(offset, length)
        if backing is None:
            raise BadHandle(f"inode {inode} is not open")
        if backing.gone:
            raise Stale(f"the content of {backing.key!r}, which is open, is gone")
        obj = self._cache.acquire(backing.key, backing.entry.version, backing.entry.size)
        try:
            return await self._cache.read(obj, offset, length)
        except (VersionChanged, NotFound):
            self._namespace.belief.expire(inode)
            raise Stale(f"{backing.key!r} changed in the under-store while it was open") from None
        finally:
            self._cache.release(obj)

    def released(self, inode: int) -> bool:
        """An open for writing is over; False if it was before, see `Kernel.released`."""
        return self._kernel.released(inode)

    # -- register

    def accepts(self, obj: CachedObject) -> bool:
        """Whether the kernel takes the cache file of an object, as long as it has room for one more."""
        return self._kernel.hands_over and (obj.space is None or self._kernel.accepts(obj.space.directory.device))

    def expect(self, inode: int) -> None:
        """A file is being fetched that will be handed to `register`, and then to `arrived`: its opens may wait for that."""
        dirty = self._dirty.get(inode)
        if inode not in self._copied and (dirty is None or dirty.source is None):  # else `register` would not take it
            self._kernel.expect(inode)

    def arrived(self, inode: int) -> None:
        """A file that was expected was handed over, or will not be."""
        self._kernel.arrived(inode)

    def register(self, parent: int, name: bytes, entry: Entry, obj: CachedObject, fd: int, notice: bool = False) -> None:
        """Give an inode the cache file ``fd`` of its object as its backing, and close ``fd`` (-1: there is none).

        Nothing is given if another open decided otherwise meanwhile. ``notice``: its first open is to be told.
        """
        inode = entry.inode
        if fd < 0:
            return
        try:
            dirty = self._dirty.get(inode)
            if dirty is not None and dirty.source is not None:
                return
            if self._kernel.is_registered(inode) or inode in self._copied or not self.accepts(obj):
                return
            if not self._has_room():
                return
            self._add(inode, Backing(parent, name, obj.record.key, entry, None), obj.oid)
            if not self._give(entry, fd, obj.record.stamp, notice=notice):
                self._drop(inode)
        finally:
            os.close(fd)

    def _add(self, inode: int, backing: Backing, oid: bytes | None) -> None:
        """The inode has a backing; before a lane opens it, so that a successor knows what is open."""
        self._backings[inode] = backing
        if oid is None:
            self._note(inode, backing)
        else:
            self._set_object(inode, backing, oid)

    def register_staged(self, dirty: Dirty, entry: Entry, fd: int, stamp_ns: int) -> bool:
        """Give a dirty inode its staging file ``fd``, whose mtime is ``stamp_ns``, as its backing, if there is room.

        Returns whether it has one now.
        """
        if not self._has_room():
            return False
        parent, name = dirty.place or (0, b"")
        self._add(dirty.inode, Backing(parent, name, dirty.key, entry, None), None)
        given = self._give(entry, fd, stamp_ns)
        if not given:
            self._drop(dirty.inode)
        return given

    def _has_room(self) -> bool:
        """Whether one more inode can have a backing, after backings that are not open have made room for it."""
        if len(self._backings) < shares().registered:
            return True
        tried, spared = 0, list[int]()
        while tried < RETIRE_TRIES and len(spared) < SPARED and tried + len(spared) < len(self._backings):
            inode, backing = next(iter(self._backings.items()))
            if backing.oid is not None and any(asked(backing.oid) for asked in self.awaited):
                spared.append(inode)
            elif self.retire_idle(inode):
                return True
            else:
                tried += 1
            self._backings.move_to_end(inode)  # open, or about to be: look at others first
        return any(self.retire_idle(inode) for inode in spared[:RETIRE_TRIES])

    def _give(self, entry: Entry, fd: int, stamp_ns: int, *, notice: bool = False) -> bool:
        """Make ``fd`` the backing of an inode, by a descriptor that cannot write, so that writers can be counted."""
        valid_s = self._namespace.belief.remaining_s(entry)
        if fcntl(fd, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return self._kernel.register(entry.inode, fd, stamp_ns, valid_s, notice=notice)
        try:
            readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            if not descriptors.is_shortage(exc):
                raise
            descriptors.shortages.note("a file is not handed to the kernel")
            return False
        try:
            return self._kernel.register(entry.inode, readable, stamp_ns, valid_s, notice=notice)
        finally:
            os.close(readable)

    # -- changes of a file that has a backing

    def may_adopt(self, inode: int, oid: bytes) -> bool:
        """Whether the object's file may be written to: no other inode has it as its backing, nor the inode another."""
        self._copied.lent.take_back(oid)
        backing = self._backings.get(inode)
        if backing is not None and backing.oid != oid and not self.retire_idle(inode):
            return False
        return all(self.retire_idle(other) for other in self._by_object.get(oid, set()) - {inode})

    def attach_staged(self, inode: int) -> None:
        """The file begins to be written to: its backing, the cache file, is the staging file from now on."""
        self._kernel.arrived(inode)  # opens need not wait for the content of before
        backing = self._backings.get(inode)
        if backing is not None:
            self._set_object(inode, backing, None)

    def detach_staged(self, dirty: Dirty, entry: Entry, oid: bytes, stamp_ns: int) -> None:
        """The staging file is the cache file of ``oid`` now."""
        inode = dirty.inode
        backing = self._backings.get(inode)
        if backing is not None:
            backing.parent, backing.name = dirty.place or (backing.parent, backing.name)
            backing.key, backing.entry, backing.gone = dirty.key, entry, False
            self._set_object(inode, backing, oid)
            self._kernel.restamp(inode, stamp_ns, self._namespace.belief.remaining_s(entry))

    def will_detach(self, dirty: Dirty, entry: Entry, oid: bytes) -> None:
        """`detach_staged` comes next, or `stays_staged`: a successor that finds the file gone is to know what it was."""
        backing = self._backings.get(dirty.inode)
        if backing is not None and self._will.wanted:
            parent, name = dirty.place or (backing.parent, backing.name)
            fact = BackingFact(parent, name, dirty.key, entry, oid, backing.nameless)
            self._will.backing(dirty.inode, fact)

    def stays_staged(self, inode: int) -> None:
        """The backing is the staging file still."""
        backing = self._backings.get(inode)
        if backing is not None:
            self._note(inode, backing)

    def moved(self, inode: int, entry: Entry, key: str, oid: bytes | None) -> None:
        """The inode has another key or version now; ``oid`` is the cached object of it, if that was kept."""
        backing = self._backings.get(inode)
        if backing is None or backing.oid is None:
            return
        backing.entry, backing.key = entry, key
        backing.parent, backing.name = self._namespace.places.place(inode)
        self._set_object(inode, backing, oid)
        if oid is None:  # the cache has nothing of it any more: the file that is open is all there is
            self.retire(inode)

    def _set_object(self, inode: int, backing: Backing, oid: bytes | None) -> None:
        if backing.oid is not None:
            inodes = self._by_object.get(backing.oid)
            if inodes is not None:
                inodes.discard(inode)
                if not inodes:
                    del self._by_object[backing.oid]
        backing.oid = oid
        if oid is not None:
            self._by_object.setdefault(oid, set()).add(inode)
        if self._backings.get(inode) is backing:
            self._note(inode, backing)

    def _note(self, inode: int, backing: Backing) -> None:
        if self._will.wanted:
            b, dirty = backing, self._dirty.get(inode)
            staged = b.gone or (b.oid is None and dirty is not None and dirty.source is not None)
            self._will.backing(inode, BackingFact(b.parent, b.name, b.key, b.entry, b.oid, b.nameless, staged))

    def lose_name(self, inode: int) -> None:
        """The inode was removed."""
        backing = self._backings.get(inode)
        if backing is not None:
            backing.nameless = True
            self._note(inode, backing)

    def inherit(self, inode: int, fact: BackingFact, fd: int, stamp_ns: int) -> bool:
        """Take over the backing that the kernel has of an inode; ``fd`` is its file, -1 if that is lost."""
        lost, dirty = fd < 0, self._dirty.get(inode)
        backing = Backing(fact.parent, fact.name, fact.key, fact.entry, None, fact.nameless)
        staged = dirty is not None and dirty.source is not None
        backing.gone = lost and not staged and (fact.staged or not fact.entry.version)
        # One that was removed goes with its last close, as it would have before.
        if not self._kernel.inherit(inode, fd, stamp_ns, retired=lost or fact.nameless):
            return False
        self._add(inode, backing, None if lost or staged else fact.oid)
        if backing.gone:  # what is open has nothing to read; the name stands for what the store has
            self._namespace.renumber(inode)
        return True

    def disinherit(self, inode: int) -> None:
        """Leave what the kernel has of an inode, of which nothing else is known."""
        self._kernel.disinherit(inode)

    # -- take away

    def retire(self, inode: int) -> None:
        """Take the backing of an inode away, at its last close if it is open."""
        if self._kernel.retire(inode, only_idle=False):
            self._drop(inode)

    def retire_idle(self, inode: int) -> bool:
        """Take the backing of an inode away unless it is open; returns whether it has none now."""
        if not self._kernel.retire(inode, only_idle=True):
            return False
        self._drop(inode)
        return True

    def _drop(self, inode: int) -> None:
        """The inode has no backing any more."""
        backing = self._backings.pop(inode, None)
        if backing is not None:
            self._set_object(inode, backing, None)
            self._will.no_backing(inode)

    def may_drop(self, oid: bytes) -> bool:
        """Close the backing ids of an object's file unless the kernel has it open; returns whether it may go.

        What copied opens read of it comes from us from then on.
        """
        self._copied.lent.take_back(oid)
        return all(self.retire_idle(inode) for inode in list(self._by_object.get(oid, ())))

    def lost(self, oid: bytes) -> None:
        """The cache has lost an object's file: the inodes that have it open read on, and nothing may be written to it."""
        self._copied.lent.take_back(oid)
        for inode in list(self._by_object.get(oid, ())):
            self._lose(inode)

    def landed(self, obj: CachedObject, pages: range) -> bool:
        """More pages of an object can be read from disk; returns whether the lanes answer for them."""
        return self._copied.lent.landed(obj, pages)

    def reads_alone(self, oid: bytes) -> bool:
        """Whether the lanes answer for an object's file while it is being filled."""
        return self._copied.lent.is_filling(oid)

    def take_back(self, oid: bytes) -> None:
        """What copied opens read of an object comes from us from now on."""
        self._copied.lent.take_back(oid)

    def _lose(self, inode: int) -> None:
        self._set_object(inode, self._backings[inode], None)
        self.retire(inode)

    def forsake(self, is_lost: Callable[[bytes], bool]) -> None:
        """Files of objects, those whose id ``is_lost``, cannot be read any more: no open from now on is to get them.

        An inode that the kernel has open can have no other file, so its name stands for a new one.
        """
        self._copied.lent.take_back_all()
        for inode, backing in list(self._backings.items()):
            if backing.oid is not None and is_lost(backing.oid) and not self.retire_idle(inode):
                self._lose(inode)
                self._namespace.renumber(inode)

    def note_open(self, oid: bytes) -> None:
        """An object was opened."""
        for told in self.on_open:
            told(oid)

    def is_foreseen(self, directory: int) -> bool:
        """Whether it was told what is opened next in a directory."""
        return any(asked(directory) for asked in self.foreseen)

    def note_touched(self) -> None:
        """Bring the order of last uses up to date with the opens that the kernel's side answered alone."""
        self._note_uses(self._kernel.take_touched())

    async def note_touched_together(self) -> None:
        """Do so when it need not be at once: the records of many are read in one turn of a thread."""
        touched = self._kernel.take_touched()
        try:
            if len(touched) >= EXPECT_FROM:
                backings = [self._backings.get(inode) for inode in touched]
                await self._cache.expect_ids([b.oid for b in backings if b is not None and b.oid is not None])
        finally:
            self._note_uses(touched)

    def _note_uses(self, inodes: Sequence[int]) -> None:
        used = []
        for inode in inodes:
            if (backing := self._backings.get(inode)) is not None:
                if backing.oid is not None:
                    used.append(backing.oid)
                self._backings.move_to_end(inode)
        self._cache.touch_by_ids(used)
        for oid in used:
            self.note_open(oid)

    def retire_all_idle(self) -> bool:
        """Take the backings of files that are not open away; returns whether none is left."""
        return not [inode for inode in list(self._backings) if not self.retire_idle(inode)]

    def forget_all(self) -> None:
        """Take every backing away, at the last close where the inode is open: the volume or a cache directory ends."""
        self._copied.lent.take_back_all()
        for inode in list(self._backings):
            self._lose(inode)
