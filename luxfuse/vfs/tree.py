"""Changes of the tree of names: making, removing and describing files, directories and links.

In `cache-through` and `through` a change is made in the store first, and its error is the program's. In
`async-through` it is made here and in the journal, and in the store later. In `must-cache` only here.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections import OrderedDict

import msgspec
import trio

from luxfuse.core import names as naming
from luxfuse.errors import LuxError, StoreError, StoreUnavailable
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind, WriteMode
from luxfuse.vfs.attributes import (
    XATTRS_MOST_BYTES,
    AttributeChanges,
    Caller,
    Defaults,
    now_ns,
    stat_of,
    to_metadata,
    with_times,
)
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import Stored
from luxfuse.vfs.errors import (
    BadName,
    Exists,
    IsADirectory,
    KeyTooLong,
    NoSuchName,
    NotADirectory,
    NotEmpty,
    ReservedName,
    Stale,
    TooManyAttributes,
)
from luxfuse.vfs.files import Files
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.pushing import MARKED
from luxfuse.vfs.room import Room
from luxfuse.vfs.turns import Turn, Turns
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer, without_set_id

REMOVED_KEPT = 10_000
NAMES_AT_ONCE = 16


class Tree:
    """The names of one mount, to be changed."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        descriptions: Descriptions,
        names: Names,
        entries: DirtyEntries,
        files: Files,
        writer: Writer,
        notes: Notes,
        promises: Promises,
        publisher: Publisher,
        room: Room,
        writeback: WriteBack,
        journal: Journal,
        defaults: Defaults,
        hierarchical: bool,
        limits: naming.KeyLimits,
    ) -> None:
        """``hierarchical``: directories of the store exist by themselves; ``limits``: how long its keys may be."""
        self._namespace = namespace
        self._descriptions = descriptions
        self._names = names
        self._entries = entries
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
        self._hierarchical = hierarchical
        self._limits = limits
        self._removed: OrderedDict[int, Entry] = OrderedDict()
        self._turns: Turns[tuple[int, bytes]] = Turns()

    def removed_directory(self, inode: int) -> Entry | None:
        """Return the entry of a directory that was removed lately, and may still be open."""
        return self._removed.get(inode)

    # -- making

    def new_key(self, parent: int, name: bytes, kind: Kind) -> str:
        """Return the key of a name that is to be made. Raises `BadName`, `ReservedName`, `KeyTooLong`."""
        component = naming.component_of(name)
        if component is None:
            raise BadName(f"the name {name!r} is not UTF-8: no object key can stand for it")
        if naming.classify(component) is None or component.endswith(naming.SYMLINK_SUFFIX):
            raise ReservedName(f"the name {name!r} stands for a symlink in the bucket")
        key = self._namespace.key(parent, name, kind)
        self.check_key(key)
        return key

    def check_key(self, key: str) -> None:
        """Raise `KeyTooLong` if the store cannot hold a key: nothing could ever be brought there."""
        if refusal := naming.too_long(key, self._limits):
            raise KeyTooLong(refusal)

    def check_key_below(self, key: str) -> None:
        """The same for a key that comes along with its directory. Raises `KeyTooLong`."""
        if refusal := naming.too_long_below(key, self._limits):
            raise KeyTooLong(refusal)

    def may_be_too_long(self, prefix: str, new_prefix: str) -> bool:
        """Whether keys below a directory get longer with its new name."""
        return self._limits.length(new_prefix) > self._limits.length(prefix)

    def _owned(self, parent: int, mode: int, caller: Caller, kind: Kind) -> Attributes:
        """Return the attributes of what the caller makes; a set-group-ID directory passes its group on."""
        above = stat_of(self.row(parent), self._defaults, 0.0)
        gid = caller.gid
        mode = mode & (0o177777 if kind is Kind.SPECIAL else 0o7777)
        if above.mode & stat_module.S_ISGID:
            gid = above.gid
            if kind is Kind.DIRECTORY:
                mode |= stat_module.S_ISGID
        now = now_ns()
        return Attributes(mode=mode, uid=caller.uid, gid=gid, mtime_ns=now, atime_ns=now, ctime_ns=now)

    def row(self, inode: int) -> Entry:
        """Return the entry of an inode, the root's too. Raises `Stale`."""
        return self._namespace.root if inode == ROOT_INODE else self._namespace.locate(inode)[2]

    def row_of(self, place: tuple[int, bytes]) -> Entry:
        """Return the entry of a name that exists."""
        row = self._namespace.peek(*place)
        if row is None:
            raise NoSuchName(f"{place[1]!r} does not exist")
        return row

    def _make(self, parent: int, name: bytes, kind: Kind, attributes: Attributes, key: str, size: int = 0) -> Dirty:
        """Make a name and hold it; returns its dirty entry, which the store does not have."""
        # What the store does not get takes no object's place: one that was removed here still has to go.
        expect = self._deletes.reuse(key) if kind is not Kind.SPECIAL else ABSENT
        entry = self._names.create(
            parent,
            name,
            kind,
            attributes=attributes,
            size=size,
            mtime_ns=attributes.mtime_ns or 0,
            checked_s=self._namespace.now_s(),
        )
        dirty = self._notes.mark(entry, key, expect)
        dirty.stored.replaces_removed(expect != ABSENT)
        self.touch(parent)
        if kind is Kind.DIRECTORY:
            self._names.listings.note_empty(entry.inode)
            self._deletes.hold_below(key, entry.inode)
        return dirty

    async def require_absent(self, parent: int, name: bytes) -> None:
        """Raise `Exists` if there is a name."""
        try:
            await self._namespace.lookup(parent, name)
        except NoSuchName:
            return
        raise Exists(f"{name!r} exists")

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Entry]:
        """Create a file and open it, or open the one that there is unless O_EXCL forbids it; returns (handle, entry)."""
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        async with self.turn((parent, name)):
            try:
                found = await self._namespace.lookup(parent, name)
            except NoSuchName:
                await self._room.wait(0)
                dirty = self._create(parent, name, mode, caller)
                if writing:
                    return self._writer.open_new(dirty), self.row(dirty.inode)
                handle = self._files.open_staged(dirty, self.row(dirty.inode))
                with trio.CancelScope(shield=True):  # it is made: who is interrupted would not know
                    await self._promises.sync(dirty)
                return handle, self.row(dirty.inode)
        if flags & os.O_EXCL:
            raise Exists(f"{name!r} exists")
        if found.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{name!r} is a directory")
        if self._namespace.shared:  # the kernel took it for missing, and has not checked who may open it: it looks again
            raise Stale(f"{name!r} exists")
        if writing or flags & os.O_TRUNC:
            handle = await self._writer.open(found.inode, truncate=bool(flags & os.O_TRUNC), caller=caller)
        else:
            handle = await self._files.open(found.inode)
        return handle, self.row(found.inode)

    def _create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Dirty:
        owned = self._owned(parent, mode, caller, Kind.FILE)
        return self.make_like(parent, name, msgspec.structs.replace(owned, mtime_ns=None))

    def make_like(self, parent: int, name: bytes, attributes: Attributes) -> Dirty:
        """Make an empty file with the attributes of another one. The caller has the turn of the name."""
        key = self.new_key(parent, name, Kind.FILE)
        dirty = self._make(parent, name, Kind.FILE, attributes, key)
        self._writer.stage_new(dirty)
        return dirty

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
        async with self.turn((parent, name)):
            await self.require_absent(parent, name)
            dirty = self._create(parent, name, mode, caller)
            dirty.close()
        try:
            await self._promises.sync(dirty)
        except (LuxError, OSError):
            self.undo(dirty)
            raise
        return self.row(dirty.inode)

    async def _make_small(
        self, parent: int, name: bytes, kind: Kind, mode: int, caller: Caller, target: bytes = b"", rdev: int | None = None
    ) -> Entry:
        async with self.turn((parent, name)):
            await self.require_absent(parent, name)
            key = self.new_key(parent, name, kind)
            attributes = msgspec.structs.replace(self._owned(parent, mode, caller, kind), rdev=rdev)
            dirty = self._make(parent, name, kind, attributes, key, len(target))
            dirty.made(target)
            self._notes.note(dirty, target or None)
            reached("make.noted")
        if self.is_through(key) and kind is not Kind.SPECIAL:
            try:
                await self._writeback.push(dirty)
            except (LuxError, OSError):
                self.undo(dirty)
                raise
            reached("make.stored")
        elif dirty.must_push:
            self._writeback.schedule(dirty)
        return self.row(dirty.inode)

    def undo(self, dirty: Dirty) -> None:
        """The store refused what was made: it was never there."""
        if dirty.place is None:
            return
        parent, name = dirty.place
        row = self.row(dirty.inode)
        self._publisher.orphan(dirty, row)
        self._names.erase(parent, name)
        self._namespace.settle(None, parent, name)

    def make_whiteout(self, place: tuple[int, bytes]) -> None:
        """Give a name that is free a whiteout, and note it: a character device 0/0, which tells overlayfs of a removal."""
        parent, name = place
        key = self._namespace.key(parent, name, Kind.SPECIAL)
        dirty = self._make(parent, name, Kind.SPECIAL, _whiteout(), key)
        dirty.made()
        self._notes.note(dirty)

    def promise_whiteout(self, place: tuple[int, bytes]) -> int:
        """Let a restart make the whiteout, beside the move that leaves it; returns its number in the journal."""
        key = self._namespace.key(*place, Kind.SPECIAL)
        number = self._journal.new_id()
        dirty = Dirty(number, 0, Kind.SPECIAL, self._notes.mode_of(key), place, key, Stored(ABSENT), closed=True)
        self._journal.put_file(number, dirty.record(_whiteout()))
        return number

    # -- describing

    async def set_attributes(self, inode: int, changes: AttributeChanges, dirty: Dirty | None, caller: Caller) -> None:
        """Change size, permissions, owner and times; ``dirty`` is the file if it is open for writing."""
        if changes.size is not None:
            if inode == ROOT_INODE or (dirty is None and self.row(inode).kind is Kind.DIRECTORY):
                raise IsADirectory("a directory has no size to set")
            await self._writer.truncate(inode, changes.size, dirty)
            if caller.uid != 0 and (opened := self._entries.get(inode)) is not None and opened.source is not None:
                self._writer.clear_set_id(opened)
        plain = (changes.mode, changes.uid, changes.gid, changes.atime_ns, changes.mtime_ns)
        if any(value is not None for value in plain):
            await self._describe(inode, changes)

    async def _describe(self, inode: int, changes: AttributeChanges) -> None:
        dirty = self._entries.get(inode)
        if dirty is not None and dirty.place is None:
            assert dirty.orphan is not None
            dirty.orphan.attributes = self._changed(self._shown(dirty.orphan), dirty.orphan.kind, changes)
            self._set_times(dirty, changes)
            return
        row = await self.known(inode)
        new = self._changed(self._shown(row), row.kind, changes)
        dirty = self._entries.get(inode)
        if dirty is not None and dirty.source is not None:
            self._set_times(dirty, changes)
        await self.put_attributes(inode, new)

    async def known(self, inode: int) -> Entry:
        """Return the entry of an inode with the attributes that the store has of it."""
        if inode == ROOT_INODE:
            return self._namespace.root
        await self._namespace.current(inode)
        parent, name, row = self._namespace.locate(inode)
        await self._descriptions.attributes(parent, name, row)
        return self.row(inode)

    def _shown(self, row: Entry) -> Attributes:
        """Return the attributes of an entry with the times that it shows: a new version of its object moves none."""
        dirty = self._entries.get(row.inode)
        now = dirty.stamp if dirty is not None else None
        return with_times(row, now.mtime_ns if now is not None else None)

    def _changed(self, known: Attributes, kind: Kind, changes: AttributeChanges) -> Attributes:
        mode = known.mode
        if (changes.uid is not None or changes.gid is not None) and kind is Kind.FILE and mode is not None:
            mode = without_set_id(mode)
        if changes.mode is not None:
            mode = changes.mode & 0o7777
            if kind is Kind.SPECIAL:
                mode |= (known.mode or 0) & ~0o7777
        return msgspec.structs.replace(
            known,
            mode=mode,
            uid=known.uid if changes.uid is None else changes.uid,
            gid=known.gid if changes.gid is None else changes.gid,
            atime_ns=known.atime_ns if changes.atime_ns is None else changes.atime_ns,
            mtime_ns=known.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
            ctime_ns=now_ns(),
        )

    def _set_times(self, dirty: Dirty, changes: AttributeChanges) -> None:
        """The times of a file that is being written to are those of its staging file."""
        if dirty.source is None or (changes.atime_ns is None and changes.mtime_ns is None):
            return
        fd = dirty.source.bytes.fd
        unchanged = not dirty.content_changed(dirty.uploaded)
        st = os.fstat(fd)
        os.utime(
            fd,
            ns=(
                st.st_atime_ns if changes.atime_ns is None else changes.atime_ns,
                st.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
            ),
        )
        dirty.set_times()
        if unchanged:  # the content is what the store has, only its times are not
            dirty.keeps_content()

    async def put_attributes(self, inode: int, new: Attributes) -> None:
        """Record attributes and bring them where the write mode wants them. The store's error leaves all as it was."""
        row = self.row(inode)
        old, row.attributes = row.attributes, new
        if inode == ROOT_INODE:
            return  # the bucket has no place for them
        parent, name = self._namespace.place(inode)
        self._namespace.put(parent, name, row)
        key = self._namespace.key(parent, name, row.kind)
        dirty = self._entries.get(inode) or self._notes.mark(row, key, row.version or None)
        dirty.describe()
        self._notes.note(dirty)
        reached("describe.noted")
        if dirty.writers or not dirty.must_push:
            return  # they go with the content
        if not self.is_through(key):
            self._writeback.schedule(dirty)
            return
        try:
            await self._writeback.push(dirty)
        except (LuxError, OSError):
            if dirty.place is not None and (row := self.row(inode)).attributes == new:
                row.attributes = old
                self._namespace.put(*dirty.place, row)
                if not dirty.content_changed(dirty.uploaded):
                    dirty.differs(False)
                    self._publisher.publish(dirty)
            raise

    async def xattrs(self, inode: int, *, ask: bool = True) -> dict[str, bytes]:
        """Return the extended attributes that programs have set; without ``ask``, only as far as they are known."""
        dirty = self._entries.get(inode)
        if dirty is not None:
            row: Entry = self._notes.row(dirty)
        else:
            row = await self.known(inode) if ask else self.row(inode)
        return dict((row.attributes.xattrs if row.attributes else None) or {})

    async def set_xattrs(self, inode: int, xattrs: dict[str, bytes]) -> None:
        """Replace them all."""
        row = await self.known(inode)
        new = msgspec.structs.replace(self._shown(row), xattrs=xattrs or None, ctime_ns=now_ns())
        if len(to_metadata(Kind.FILE, Attributes(xattrs=xattrs)).get("xattr", "")) > XATTRS_MOST_BYTES:
            raise TooManyAttributes("object metadata has no room for so much")
        await self.put_attributes(inode, new)

    def touch(self, directory: int) -> None:
        """The entries of a directory have changed: so has its mtime, here."""
        row = self.row(directory)
        now = now_ns()
        known = row.attributes or Attributes()
        if directory == ROOT_INODE or row.attributes is not None:
            row.attributes = msgspec.structs.replace(known, mtime_ns=now, ctime_ns=now)
        row.mtime_ns = now
        if directory != ROOT_INODE:
            self._namespace.put(*self._namespace.place(directory), row)

    def note_renamed(self, parent: int, name: bytes) -> None:
        """An entry has got this name: so its ctime is now, here."""
        row = self.row_of((parent, name))
        if row.attributes is not None:
            row.attributes = msgspec.structs.replace(row.attributes, ctime_ns=now_ns())
            self._namespace.put(parent, name, row)

    # -- removing

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a file, symlink or special file. What is open of it lives on."""
        async with self.turn((parent, name)):
            entry = await self._namespace.lookup(parent, name)
            if entry.kind is Kind.DIRECTORY:
                raise IsADirectory(f"{name!r} is a directory")
            await self.keep_directory(parent, name)
            await self.remove(parent, name, entry)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        async with self.turn((parent, name)):
            entry = await self._namespace.lookup(parent, name)
            if entry.kind is not Kind.DIRECTORY:
                raise NotADirectory(f"{name!r} is no directory")
            await self.require_empty(entry.inode, name)
            await self.keep_directory(parent, name)
            await self.remove(parent, name, entry)

    async def require_empty(self, directory: int, name: bytes) -> None:
        """Raise `NotEmpty` unless the directory has no entries, and the object that stands for it no content."""
        await self._namespace.listed(directory)
        if self._names.after(directory, b"", 1):
            raise NotEmpty(f"{name!r} is not empty")
        key = self._namespace.prefix(directory)
        if not key or not self.in_store(self.row(directory)):
            return
        try:
            size = await self._deletes.content_of_marker(key)
        except StoreUnavailable:
            if self.is_through(key):
                raise
            size = 0  # it is looked at again before it is removed
        if size:
            raise NotEmpty(f"{name!r} is not empty: the object {key!r} itself has {size} bytes")

    async def remove(self, parent: int, name: bytes, entry: Entry) -> None:
        """Take a name away, here and in the store. The caller has the turn of the name."""
        key = self._namespace.key(parent, name, entry.kind)
        await self._writeback.thawed(key)
        self._namespace.hold(None, parent, name)
        reached("remove.held")
        removed = not self.in_store(entry)
        promised = self._is_promised(entry)
        if not removed and self.is_through(key) and not self._files.copied.needs_store(entry.inode):
            try:
                await self._deletes.now([key])
            except StoreError:
                if self._entries.get(entry.inode) is None:
                    self._namespace.settle(None, parent, name)
                raise
            reached("remove.stored")
            removed = promised = True  # the journal may still have the record of a push that is over: it must not come back
        version, after = self.version_in_store(entry), self._in_flight(entry)
        self.forget(parent, name, entry)
        reached("remove.local")
        if removed:
            self._namespace.settle(None, parent, name)
            if promised:
                await self._journal.commit()
        else:
            self._deletes.later(key, (parent, name), version, after)
            self._files.copied.defer(key, entry.inode)
            reached("remove.noted")
            await self._journal.commit()
            reached("remove.committed")

    def is_through(self, key: str) -> bool:
        """Whether changes of a key are made in the store first."""
        return self._notes.mode_of(key) in (WriteMode.CACHE_THROUGH, WriteMode.THROUGH)

    def in_store(self, entry: Entry) -> bool:
        """Whether the store may have an object of an entry."""
        if entry.kind is Kind.SPECIAL:
            return False
        dirty = self._entries.get(entry.inode)
        return dirty is None or dirty.may_be_stored or dirty.lock.locked()

    def version_in_store(self, entry: Entry) -> str | None:
        """Return the version that the store has of an entry, None if that is not known."""
        dirty = self._entries.get(entry.inode)
        if dirty is None:
            return entry.version or None
        return None if dirty.lock.locked() or dirty.stored.resumed else dirty.stored.expect

    def _is_promised(self, entry: Entry) -> bool:
        """Whether a restart would bring back what other nodes hold, or in part: then its removal is made sure of at once.

        What would come back as it was, as on a local disk after a crash, is removed with the next commit.
        """
        dirty = self._entries.get(entry.inode)
        record = self._journal.files.get(dirty.number) if dirty is not None else None
        return record is not None and record.closed and bool(record.holders or not record.has_inline)

    def _in_flight(self, entry: Entry) -> int:
        dirty = self._entries.get(entry.inode)
        return dirty.number if dirty is not None and dirty.lock.locked() else 0

    def forget(self, parent: int, name: bytes, entry: Entry) -> None:
        """The name is gone here: what is open of it lives on without."""
        dirty = self._entries.get(entry.inode)
        if dirty is not None:
            self._publisher.orphan(dirty, entry)
        if entry.kind is Kind.DIRECTORY:
            self._removed[entry.inode] = entry
            if len(self._removed) > REMOVED_KEPT:
                self._removed.popitem(last=False)
        self._names.erase(parent, name)
        self._files.unlinked(entry.inode)
        self.touch(parent)

    async def keep_directory(self, directory: int, leaving: bytes) -> None:
        """Before the last entry of a directory that the store has goes, see to it that the store has a marker of it."""
        if directory == ROOT_INODE or self._hierarchical:
            return
        row = self.row(directory)
        if row.version == MARKED or self._entries.get(directory) is not None or self._others_stored(directory, leaving):
            return
        parent, name = self._namespace.place(directory)
        await self._descriptions.attributes(parent, name, row)
        row = self.row(directory)
        row.version = MARKED
        await self.put_attributes(directory, row.attributes or Attributes())

    def _others_stored(self, directory: int, leaving: bytes) -> bool:
        """Whether a directory has an entry beside one that is in the store, or was promised to go there."""
        after = b""
        while batch := self._names.after(directory, after, NAMES_AT_ONCE):
            if any(name != leaving and self._is_stored_or_promised(entry) for name, entry in batch):
                return True
            after = batch[-1][0]
        return False

    def _is_stored_or_promised(self, entry: Entry) -> bool:
        if self.stays_here(entry):
            return False
        dirty = self._entries.get(entry.inode)
        return dirty is None or dirty.may_be_stored or dirty.closed

    def stays_here(self, entry: Entry) -> bool:
        """Whether an entry is of this machine only: the store has nothing of it, and gets nothing."""
        dirty = self._entries.get(entry.inode)
        never = dirty is not None and dirty.mode is WriteMode.MUST_CACHE and not dirty.may_be_stored
        return never or entry.kind is Kind.SPECIAL

    async def commit(self) -> None:
        """Make what was noted in the journal durable. Raises OSError."""
        await self._journal.commit()

    # -- one change of a name at a time

    def turn(self, *places: tuple[int, bytes]) -> Turn[tuple[int, bytes]]:
        """Wait for a turn to change names."""
        return self._turns.of(places)


def _whiteout() -> Attributes:
    now = now_ns()
    return Attributes(mode=stat_module.S_IFCHR, uid=0, gid=0, mtime_ns=now, atime_ns=now, ctime_ns=now, rdev=0)
