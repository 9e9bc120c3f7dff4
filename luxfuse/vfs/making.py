"""Making files, directories, symlinks and special files."""

from __future__ import annotations

import contextlib
import os
import stat as stat_module
from collections.abc import Iterator

import msgspec
import trio

from luxfuse.errors import LuxError
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind
from luxfuse.vfs.attributes import Caller, Defaults, now_ns
from luxfuse.vfs.deletes import NOTHING_LEFT
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.dirty_fields import Stored
from luxfuse.vfs.errors import Exists, IsADirectory, NoSuchName, Stale
from luxfuse.vfs.files import Files
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.room import Room
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer


class Making:
    """Makes what programs ask for, and whiteouts."""

    def __init__(
        self,
        *,
        tree: Tree,
        namespace: Namespace,
        names: Names,
        files: Files,
        writer: Writer,
        notes: Notes,
        promises: Promises,
        publisher: Publisher,
        room: Room,
        writeback: WriteBack,
        journal: Journal,
        defaults: Defaults,
    ) -> None:
        self._tree = tree
        self._namespace = namespace
        self._names = names
        self._files = files
        self._writer = writer
        self._notes = notes
        self._promises = promises
        self._publisher = publisher
        self._room = room
        self._writeback = writeback
        self._deletes = writeback.deletes
        self._journal = journal
        self._defaults = defaults

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Entry]:
        """Create a file and open it, or open the one that there is unless O_EXCL forbids it; returns (handle, entry)."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        async with self._tree.turn((parent, name)):
            try:
                found = await self._namespace.lookup(parent, name)
            except NoSuchName:
                await self._room.wait(0)
                dirty, entry = self._create(parent, name, mode, caller)
                if writing:
                    return self._open_new(dirty, entry), entry
                return await self._open_new_for_reading(dirty), self._tree.entry(dirty.inode)
        if flags & os.O_EXCL:
            raise Exists(f"{name!r} exists")
        if found.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{name!r} is a directory")
        if self._namespace.shared:  # the kernel took it for missing, and has not checked its mode: it looks again
            raise Stale(f"{name!r} exists")
        if writing or flags & os.O_TRUNC:
            handle = await self._writer.open(found.inode, truncate=bool(flags & os.O_TRUNC), caller=caller)
        else:
            handle = await self._files.open(found.inode)
        return handle, self._tree.entry(found.inode)

    def create_now(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Entry] | None:
        """As `create`, where the name is known to be free and nothing is to be waited for; else None."""
        if flags & os.O_ACCMODE == os.O_RDONLY or self._tree.is_taken((parent, name)) or not self._room.fits(0):
            return None
        try:
            self._namespace.known(parent, name)
        except NoSuchName:
            dirty, entry = self._create(parent, name, mode, caller)
            return self._open_new(dirty, entry), entry
        return None

    def _open_new(self, dirty: Dirty, entry: Entry) -> int:
        with self._kept_or_undone(dirty):
            return self._writer.open_new(dirty, entry)

    async def _open_new_for_reading(self, dirty: Dirty) -> int:
        dirty.opened()  # until it is open, it stays as it is
        try:
            with self._kept_or_undone(dirty):
                with trio.CancelScope(shield=True):  # it is made: an interrupted caller would not know
                    await self._promises.sync(dirty)
                return self._files.open_staged(dirty, self._tree.entry(dirty.inode))
        finally:
            self._promises.closed(dirty)

    def _create(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[Dirty, Entry]:
        owned = self._owned(parent, mode, caller, Kind.FILE)
        return self.make_like(parent, name, msgspec.structs.replace(owned, mtime_ns=None))

    def make_like(self, parent: int, name: bytes, attributes: Attributes) -> tuple[Dirty, Entry]:
        """Make an empty file with the attributes of another one. The caller has the turn of the name."""
        key = self._tree.new_key(parent, name, Kind.FILE)
        with self._journal.together():
            dirty, entry = self._make(parent, name, Kind.FILE, attributes, key)
            with self._kept_or_undone(dirty):
                self._writer.stage_new(dirty, entry)
        return dirty, entry

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Make a directory; returns its entry."""
        return await self._make_small(parent, name, Kind.DIRECTORY, mode, caller)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Entry:
        """Make a symlink; returns its entry."""
        return await self._make_small(parent, name, Kind.SYMLINK, 0o777, caller, target)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        """Make a file without opening it, or a FIFO, socket or device, which stays local; returns its entry."""
        if not stat_module.S_ISREG(mode):
            return await self._make_small(parent, name, Kind.SPECIAL, mode, caller, rdev=rdev)
        async with self._tree.turn((parent, name)):
            await self._tree.require_absent(parent, name)
            await self._room.wait(0)
            dirty, _ = self._create(parent, name, mode, caller)
            dirty.close()
        try:
            await self._promises.sync(dirty)
        except (LuxError, OSError):
            self.undo(dirty)
            raise
        return self._tree.entry(dirty.inode)

    async def _make_small(
        self, parent: int, name: bytes, kind: Kind, mode: int, caller: Caller, target: bytes = b"", rdev: int | None = None
    ) -> Entry:
        async with self._tree.turn((parent, name)):
            await self._tree.require_absent(parent, name)
            await self._room.wait_for_fewer()
            key = self._tree.new_key(parent, name, kind)
            attributes = msgspec.structs.replace(self._owned(parent, mode, caller, kind), rdev=rdev)
            with self._journal.together():
                dirty, _ = self._make(parent, name, kind, attributes, key, len(target))
                with self._kept_or_undone(dirty):
                    dirty.made(target)
                    self._notes.note(dirty, target or None)
            reached("make.noted")
        if self._tree.is_through(key) and kind is not Kind.SPECIAL:
            try:
                await self._writeback.push(dirty)
            except (LuxError, OSError):
                self.undo(dirty)
                raise
            reached("make.stored")
        elif dirty.must_push:
            self._writeback.schedule(dirty)
        return self._tree.entry(dirty.inode)

    def _make(
        self, parent: int, name: bytes, kind: Kind, attributes: Attributes, key: str, size: int = 0
    ) -> tuple[Dirty, Entry]:
        """Make a name and hold it; returns its dirty state, which the store does not have, and its entry."""
        entry = self._names.create(
            parent,
            name,
            kind,
            attributes=attributes,
            size=size,
            mtime_ns=attributes.mtime_ns or 0,
            checked_s=self._namespace.now_s(),
            also=self._tree.touched(parent),
        )
        # What the store does not get takes no object's place: one that was removed here still has to go.
        left = self._deletes.reuse(key) if kind is not Kind.SPECIAL else NOTHING_LEFT
        reached("make.named")
        dirty = self._notes.mark(entry, key, left.version, (parent, name))
        if left != NOTHING_LEFT:
            dirty.stored.lies_over(left.sent)
            dirty.stored.replaces_removed(left.any)
        if parent == ROOT_INODE:
            self._tree.touch(parent)
        if kind is Kind.DIRECTORY:
            self._names.listings.note_empty(entry.inode)
            self._deletes.hold_below(key, entry.inode)
        return dirty, entry

    def _owned(self, parent: int, mode: int, caller: Caller, kind: Kind) -> Attributes:
        """Return the attributes of what the caller makes; a set-group-ID directory passes its group on."""
        above = self._tree.entry(parent).attributes
        gid = caller.gid
        mode = mode & (0o177777 if kind is Kind.SPECIAL else 0o7777)
        if above is not None and (above.mode or 0) & stat_module.S_ISGID:
            gid = self._defaults.gid if above.gid is None else above.gid
            if kind is Kind.DIRECTORY:
                mode |= stat_module.S_ISGID
        now = now_ns()
        return Attributes(mode=mode, uid=caller.uid, gid=gid, mtime_ns=now, atime_ns=now, ctime_ns=now)

    @contextlib.contextmanager
    def _kept_or_undone(self, dirty: Dirty) -> Iterator[None]:
        """Undo what was made if the block fails."""
        try:
            yield
        except BaseException:
            self.undo(dirty)
            raise

    def undo(self, dirty: Dirty) -> None:
        """What was made cannot be kept: take its name away, as if it had never been there.

        An object that was removed here before, and that it was to replace, is to be removed again.
        """
        if dirty.place is None:
            return
        parent, name = place = dirty.place
        entry = self._tree.entry(dirty.inode)
        version, unheard = self._tree.version_in_store(entry), self._tree.unheard(entry)
        lies_over_removed = dirty.stored.doomed
        with self._journal.together():
            self._publisher.orphan(dirty, entry)
            self._names.erase(parent, name)
            if lies_over_removed:
                self._namespace.hold(None, *place)
                self._deletes.later(dirty.key, place, version, unheard=unheard)
            else:
                self._namespace.settle(None, *place)

    def make_whiteout(self, place: tuple[int, bytes]) -> None:
        """Give a name that is free a whiteout, and note it: a character device 0/0, which tells overlayfs of a removal."""
        parent, name = place
        key = self._namespace.places.key(parent, name, Kind.SPECIAL)
        with self._journal.together():
            dirty, _ = self._make(parent, name, Kind.SPECIAL, _whiteout(), key)
            dirty.made()
            self._notes.note(dirty)

    def promise_whiteout(self, place: tuple[int, bytes]) -> int:
        """Let a restart make the whiteout, beside the move that leaves it; returns its number in the journal."""
        key = self._namespace.places.key(*place, Kind.SPECIAL)
        number = self._journal.new_id()
        dirty = Dirty(number, 0, Kind.SPECIAL, self._notes.mode_of(key), place, key, Stored(ABSENT), closed=True)
        self._journal.put_file(number, dirty.record(_whiteout()))
        return number


def _whiteout() -> Attributes:
    now = now_ns()
    return Attributes(mode=stat_module.S_IFCHR, uid=0, gid=0, mtime_ns=now, atime_ns=now, ctime_ns=now, rdev=0)
