"""Removing names, here and in the store."""

from __future__ import annotations

from collections import OrderedDict

from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.steps import reached
from luxfuse.types import Kind
from luxfuse.vfs.describing import Describing
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.errors import IsADirectory, NotADirectory, NotEmpty
from luxfuse.vfs.files import Files
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.room import Room
from luxfuse.vfs.small_pushes import MARKED
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack

REMOVED_KEPT = 10_000
NAMES_AT_ONCE = 16


class Removing:
    """Removes names of one mount; open files live on without."""

    def __init__(
        self,
        *,
        tree: Tree,
        namespace: Namespace,
        names: Names,
        descriptions: Descriptions,
        describing: Describing,
        entries: DirtyEntries,
        files: Files,
        publisher: Publisher,
        writeback: WriteBack,
        journal: Journal,
        room: Room,
        hierarchical: bool,
    ) -> None:
        """``hierarchical``: directories of the store exist by themselves."""
        self._tree = tree
        self._namespace = namespace
        self._names = names
        self._descriptions = descriptions
        self._describing = describing
        self._entries = entries
        self._files = files
        self._publisher = publisher
        self._writeback = writeback
        self._deletes = writeback.deletes
        self._journal = journal
        self._room = room
        self._hierarchical = hierarchical
        self._removed: OrderedDict[int, Entry] = OrderedDict()

    def removed_directory(self, inode: int) -> Entry | None:
        """Return the entry of a directory that was removed lately, and may still be open."""
        return self._removed.get(inode)

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a file, symlink or special file. If it is open, it lives on without a name."""
        async with self._tree.turn((parent, name)):
            entry = await self._namespace.lookup(parent, name)
            if entry.kind is Kind.DIRECTORY:
                raise IsADirectory(f"{name!r} is a directory")
            await self.keep_directory(parent, name)
            await self.remove(parent, name, entry)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        async with self._tree.turn((parent, name)):
            entry = await self._namespace.lookup(parent, name)
            if entry.kind is not Kind.DIRECTORY:
                raise NotADirectory(f"{name!r} is no directory")
            await self.require_empty(entry.inode, name)
            await self.keep_directory(parent, name)
            await self.remove(parent, name, entry)

    async def require_empty(self, directory: int, name: bytes) -> None:
        """Raise `NotEmpty` unless the directory has no entries, and the object that stands for it no content."""
        await self._namespace.relisting.listed(directory)
        if self._names.after(directory, b"", 1):
            raise NotEmpty(f"{name!r} is not empty")
        key = self._namespace.places.prefix(directory)
        if not key or not self._tree.in_store(self._tree.entry(directory)):
            return
        try:
            size = await self._deletes.content_of_marker(key)
        except StoreUnavailable:
            if self._tree.is_through(key):
                raise
            size = 0  # it is looked at again before it is removed
        if size:
            raise NotEmpty(f"{name!r} is not empty: the object {key!r} itself has {size} bytes")

    async def remove(self, parent: int, name: bytes, entry: Entry) -> None:
        """Take a name away, here and in the store. The caller has the turn of the name. Raises `TooMany`, `StoreError`."""

        async def ready(key: str) -> None:
            await self._journal.require()
            if self._tree.in_store(entry) and not self._tree.is_through(key):
                await self._room.wait_for_fewer()

        frozen = self._writeback.frozen
        (key,) = await frozen.settled(lambda: (self._namespace.places.key(parent, name, entry.kind),), ready)
        self._namespace.hold(None, parent, name)
        reached("remove.held")
        removed = not self._tree.in_store(entry)
        promised = self._is_promised(entry)
        now = self._tree.is_through(key) and not self._tree.is_unheard(entry)
        if not removed and now and not self._files.copied.needs_store(entry.inode):
            try:
                with frozen.freeze(key):  # the move of a directory above would take the object along
                    await self._deletes.now([key])
            except StoreError:
                if self._entries.get(entry.inode) is None:
                    self._namespace.settle(None, parent, name)
                raise
            reached("remove.stored")
            removed = promised = True  # the journal may still have the record of a push that is over: it must not come back
        version, after, unheard = self._tree.version_in_store(entry), self._in_flight(entry), self._tree.unheard(entry)
        with self._journal.together():  # else a successor would find the name gone, and take another one for it
            self.forget(parent, name, entry)
            reached("remove.local")
            if not removed:
                self._deletes.later(key, (parent, name), version, after, unheard)
                self._files.copied.defer(key, entry.inode)
                reached("remove.noted")
        if removed:
            self._namespace.settle(None, parent, name)
        if not removed or promised:
            await self._journal.commit_made()
            reached("remove.committed")

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
        """The name is gone here: if the file is open, it lives on without."""
        dirty = self._entries.get(entry.inode)
        if dirty is not None:
            self._publisher.orphan(dirty, entry)
        if entry.kind is Kind.DIRECTORY:
            self._removed[entry.inode] = entry
            if len(self._removed) > REMOVED_KEPT:
                self._removed.popitem(last=False)
        self._names.erase(parent, name)
        self._files.unlinked(entry.inode)
        self._tree.touch(parent)

    async def keep_directory(self, directory: int, leaving: bytes) -> None:
        """Before the last entry of a directory that the store has goes, see to it that the store has a marker of it."""
        if directory == ROOT_INODE or self._hierarchical:
            return
        entry = self._tree.entry(directory)
        if entry.version == MARKED or self._entries.get(directory) is not None or self._others_stored(directory, leaving):
            return
        parent, name = self._namespace.places.place(directory)
        attributes: Attributes | None = None
        try:
            attributes = await self._descriptions.attributes(parent, name, entry)
        except StoreUnavailable:
            if self._tree.is_through(self._namespace.places.prefix(directory)):
                raise  # else it stays unknown: the store may have a marker that says them
        entry = self._tree.entry(directory)
        entry.version = MARKED
        await self._describing.put_attributes(directory, entry.attributes or attributes)

    def _others_stored(self, directory: int, leaving: bytes) -> bool:
        """Whether a directory has an entry beside one that is in the store, or was promised to go there."""
        after = b""
        while batch := self._names.after(directory, after, NAMES_AT_ONCE):
            if any(name != leaving and self._is_stored_or_promised(entry) for name, entry in batch):
                return True
            after = batch[-1][0]
        return False

    def _is_stored_or_promised(self, entry: Entry) -> bool:
        if self._tree.stays_here(entry):
            return False
        dirty = self._entries.get(entry.inode)
        return dirty is None or dirty.may_be_stored or dirty.closed
