"""The POSIX tree of one under-store, without FUSE: the calls that the operations of `luxfuse.fuse` make."""

from __future__ import annotations

import os
from collections.abc import Callable

from luxfuse.cache.page_cache import PageCache
from luxfuse.errors import StoreError
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.steps import reached
from luxfuse.types import Buffer, Kind
from luxfuse.vfs.answers import Answers
from luxfuse.vfs.attributes import AttributeChanges, Caller, Stat
from luxfuse.vfs.describing import Describing
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import BadHandle, NoSuchName, NotALink, Stale
from luxfuse.vfs.files import Files
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.links import Links
from luxfuse.vfs.making import Making
from luxfuse.vfs.moves.rename import Moves
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.refusals import Refusals
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.replicas import PromisedReplicas
from luxfuse.vfs.shown import Shown
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writer import Writer
from luxfuse.vfs.xattrs import ExtendedAttributes

UNCHECKED_S = 1.0
"""For how long the kernel keeps attributes of an open file that are not checked: else it asks before each copied read."""


class FileSystem:
    """One under-store's tree. Errors are `LuxError` with the errno to return."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        descriptions: Descriptions,
        files: Files,
        cache: PageCache,
        entries: DirtyEntries,
        writer: Writer,
        notes: Notes,
        promises: Promises,
        replicas: PromisedReplicas,
        tree: Tree,
        making: Making,
        describing: Describing,
        removing: Removing,
        moves: Moves,
        links: Links,
        shown: Shown,
        refusals: Refusals,
        directories: OpenDirectories,
        answers: Answers,
        xattrs: ExtendedAttributes,
    ) -> None:
        self.namespace = namespace
        self._descriptions = descriptions
        self.files = files
        self._dirty = entries
        self._writer = writer
        self._notes = notes
        self._promises = promises
        self._replicas = replicas
        self._tree = tree
        self._making = making
        self._describing = describing
        self._removing = removing
        self._moves = moves
        self.links = links
        self._shown = shown
        self._refusals = refusals
        self.directories = directories
        self.answers = answers
        self.xattrs = xattrs
        self._cache = cache

    # -- attributes

    async def lookup(self, parent: int, name: bytes) -> Stat:
        """Return a name's attributes. Raises `NoSuchName`, `NameTooLong`."""
        self._refusals.check_length(name)
        if name == b".":
            return await self.getattr(parent)
        if name == b"..":
            above = ROOT_INODE if parent == ROOT_INODE else self.namespace.places.locate(parent)[0]
            return await self.getattr(above)
        entry = await self.namespace.lookup(parent, name)
        return self._shown.stat(await self._descriptions.known(parent, name, entry))

    def known(self, parent: int, name: bytes) -> Stat | None:
        """Return what `lookup` would, if nothing has to be asked for that, else None. Raises as `lookup`."""
        self._refusals.check_length(name)
        entry = self.namespace.known(parent, name)
        if entry is None or not self._descriptions.tells(parent, entry):
            return None
        return self._shown.stat(entry)

    def known_attributes(self, inode: int) -> Stat | None:
        """Return what `getattr` would, if nothing has to be asked for that, else None. Raises `Stale`."""
        dirty = self._dirty.get(inode)
        if dirty is not None:
            return self._shown.dirty(dirty, self._notes.entry(dirty))
        if inode == ROOT_INODE:
            return self.root_stat()
        if self._removing.removed_directory(inode) is not None or self.files.open_entry(inode) is not None:
            return None
        parent, name, entry = self.namespace.places.locate(inode)
        if self.namespace.unfinished.covers(parent, name):
            return None
        if not self.namespace.belief.is_fresh(entry) or self._descriptions.lacks(parent, entry):
            return None
        return self._shown.stat(entry) if entry.attributes is not None or entry.kind is Kind.DIRECTORY else None

    async def getattr(self, inode: int) -> Stat:
        """Return an inode's attributes; of an open file those of the version that is open."""
        dirty = self._dirty.get(inode)
        if dirty is not None:
            return self._shown.dirty(dirty, self._notes.entry(dirty))
        if (removed := self._removing.removed_directory(inode)) is not None:
            return self._shown.gone(removed, 0.0)
        opened = self.files.open_entry(inode)
        if opened is not None:
            return await self._stat_open(inode, opened)
        entry = await self.namespace.current(inode)
        if inode != ROOT_INODE:
            entry = await self._described(inode)
        return self._shown.stat(entry)

    async def _described(self, inode: int) -> Entry:
        """Return the entry of an inode with its attributes, as far as they can be had. Raises `Stale`."""
        parent, name, entry = self.namespace.places.locate(inode)
        if not self._descriptions.lacks(parent, entry):
            await self._descriptions.ask(parent, name, entry)
            return self.namespace.places.locate(inode)[2]
        try:
            await self._descriptions.known(parent, name, entry)
        except NoSuchName:
            raise Stale(f"{name!r} was removed") from None
        return self.namespace.places.locate(inode)[2]

    async def _stat_open(self, inode: int, opened: Entry) -> Stat:
        try:
            entry = await self._described(inode)
        except Stale:
            return self._shown.gone(opened, UNCHECKED_S)
        except StoreError:  # an outage
            return self._shown.clean(opened, UNCHECKED_S)
        if self._dirty.get(inode) is not None:
            return await self.getattr(inode)
        fresh = self.namespace.belief.is_fresh(entry)
        return self._shown.stat(entry) if fresh else self._shown.clean(entry, UNCHECKED_S)

    def root_stat(self) -> Stat:
        """Return the attributes of the root, as far as they are known."""
        return self._shown.stat(self.namespace.root)

    async def readlink(self, inode: int) -> bytes:
        """Return a symlink's target."""
        entry = await self.namespace.current(inode)
        if entry.kind is not Kind.SYMLINK:
            raise NotALink(f"inode {inode} is no symlink")
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.target:
            return dirty.target
        parent, name, _ = self.namespace.places.locate(inode)
        key = self.namespace.places.key(parent, name, Kind.SYMLINK)
        obj = self._cache.acquire(key, entry.version, min(entry.size, 4096))
        try:
            return bytes(await self._cache.read(obj, 0, 4096))
        finally:
            self._cache.release(obj)

    # -- files

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Stat]:
        """Create a file and open it; returns (handle, attributes)."""
        self._refusals.check_new(parent, name)
        handle, entry = await self._making.create(parent, name, mode, flags, caller)
        return handle, self._shown.stat(entry)

    @property
    def next_inode(self) -> int:
        """The lowest inode number that was never given."""
        return self.namespace.next_inode

    async def made(self, parent: int, name: bytes, first_new: int) -> Stat | None:
        """Return the attributes of a name that a daemon before this one has made; None, with the name free, if it has not.

        ``first_new``: the lowest inode number that it can have. What is to be in the store is brought there first.
        """
        entry = self.namespace.peek(parent, name)
        if entry is None or entry.inode < first_new:
            return None
        dirty = self._dirty.get(entry.inode)
        if dirty is None and not entry.version:  # it was killed between the name and the note of it
            self.namespace.undo(parent, name)
            return None
        if dirty is not None and self._tree.is_through(dirty.key):
            await self._promises.sync(dirty)
        return self._shown.stat(entry)

    def create_now(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Stat] | None:
        """As `create`, if that waits for nothing; else None, and nothing is done."""
        self._refusals.check_new(parent, name)
        made = self._making.create_now(parent, name, mode, flags, caller)
        return (made[0], self._shown.stat(made[1])) if made is not None else None

    async def open(self, inode: int, flags: int, caller: Caller) -> int:
        """Open a file; returns the handle."""
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return await self.files.open(inode)
        self._refusals.check_inode(inode)
        return await self._writer.open(inode, truncate=bool(flags & os.O_TRUNC), caller=caller)

    async def read(self, ref: Ref, offset: int, length: int) -> Buffer:
        """Read from an open file."""
        if ref.inode is not None:
            return await self.files.backings.read(ref.inode, offset, length)
        assert ref.number is not None
        return await self.files.copied.read(ref.number, offset, length)

    def _written(self, ref: Ref) -> tuple[Dirty | None, bool]:
        """Return the dirty state of an open file, and whether it is open for writing."""
        if ref.inode is not None:
            return self._dirty.get(ref.inode), True
        assert ref.number is not None
        inode, writing = self.files.copied.opened_as(ref.number)
        return self._dirty.get(inode), writing

    async def write(self, ref: Ref, offset: int, data: Buffer) -> int:
        """Write to an open file; returns the bytes written: all."""
        dirty, writing = self._written(ref)
        if dirty is None or not writing:
            raise BadHandle("the file is not open for writing")
        await self._writer.write(dirty, offset, data)
        reached("write.made")
        return len(data)

    async def flush(self, ref: Ref) -> None:
        """A descriptor of a file that is open for writing is closed."""
        dirty, writing = self._written(ref)
        if dirty is not None and writing:
            await self._promises.sync(dirty)

    def flush_soon(self, ref: Ref, done: Callable[[Exception | None], None]) -> bool:
        """As `flush`, if that waits for the journal alone: ``done`` is called at the end. Else False, nothing is done."""
        dirty, writing = self._written(ref)
        if dirty is not None and writing:
            return self._promises.sync_soon(dirty, done)
        done(None)
        return True

    async def fsync(self, ref: Ref, datasync: bool) -> None:
        """Bring the content where the write mode wants it."""
        dirty, _ = self._written(ref)
        if dirty is not None:
            await self._promises.fsync(dirty)

    async def fsyncdir(self, inode: int) -> None:
        """Make the changes of a directory durable."""
        await self._tree.commit()

    async def release(self, ref: Ref) -> None:
        """The last descriptor of an open is closed."""
        self.released(ref)

    def released(self, ref: Ref) -> None:
        """As `release`, which waits for nothing."""
        dirty, writing = self._written(ref)
        if ref.number is not None:
            self.files.copied.release(ref.number)
        elif ref.inode is not None:
            writing = self.files.backings.released(ref.inode)
        if dirty is not None and writing:
            self._promises.closed(dirty)
        elif dirty is not None and ref.inode is not None and not dirty.emptied:
            self._promises.ended(dirty)  # counted down by a predecessor, or not taken over

    async def fallocate(self, ref: Ref, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range, as fallocate(2) does with ``mode``."""
        dirty, writing = self._written(ref)
        if dirty is None or not writing:
            raise BadHandle("the file is not open for writing")
        await self._writer.fallocate(dirty, mode, offset, length)
        reached("fallocate.made")

    def close_idle(self) -> bool:
        """Give up the backings of files that are not open; returns whether no file and no directory is open."""
        return self.files.backings.retire_all_idle() and not self.files.copied.any_open and not self.directories.any_open

    # -- changes of names and attributes

    async def setattr(self, inode: int, changes: AttributeChanges, ref: Ref | None, caller: Caller) -> Stat:
        """Change attributes; returns the new ones."""
        dirty = None
        if ref is not None:
            opened, writing = self._written(ref)
            dirty = opened if writing else None
        self._refusals.check_inode(inode)
        await self._describing.set_attributes(inode, changes, dirty, caller)
        reached("attributes.made")
        return await self.getattr(inode)

    def setattr_now(self, inode: int, changes: AttributeChanges) -> Stat | None:
        """As `setattr` of a file that is dirty, if that waits for nothing; else None, and nothing is done."""
        self._refusals.check_inode(inode)
        return self.known_attributes(inode) if self._describing.describe_now(inode, changes) else None

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Stat:
        """Make a directory."""
        self._refusals.check_new(parent, name)
        return self._shown.stat(await self._making.mkdir(parent, name, mode, caller))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Stat:
        """Make a file, or a FIFO, socket or device."""
        self._refusals.check_new(parent, name)
        return self._shown.stat(await self._making.mknod(parent, name, mode, rdev, caller))

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Stat:
        """Make a symlink."""
        self._refusals.check_new(parent, name)
        return self._shown.stat(await self._making.symlink(parent, name, target, caller))

    async def link(self, inode: int, parent: int, name: bytes, caller: Caller) -> Stat:
        """Make a copy under a further name, where the mount is told to; it is another file from then on."""
        self._refusals.check_new(parent, name)
        target = b""
        if self.links.hardlinks == "copy" and (await self.namespace.current(inode)).kind is Kind.SYMLINK:
            target = await self.readlink(inode)
        return self._shown.stat(await self.links.link(inode, parent, name, target, caller))

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of anything but a directory."""
        self._refusals.check_name(parent, name)
        await self._removing.unlink(parent, name)
        await self._replicas.tell_holders()

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._refusals.check_name(parent, name)
        await self._removing.rmdir(parent, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename a file or directory; ``flags`` are those of renameat2."""
        self._refusals.check_length(new_name)
        self._refusals.check_name(parent, name)
        self._refusals.check_name(new_parent, new_name)
        await self._moves.rename((parent, name), (new_parent, new_name), flags)
        await self._replicas.tell_holders()

    async def refresh(self, path: str) -> None:
        """Ask the store again about a path and the names directly below it. Raises `NoSuchName`, `StoreError`."""
        await self.namespace.refresh(path)
