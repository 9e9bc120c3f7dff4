"""Changing the attributes of files, directories and symlinks, extended ones too."""

from __future__ import annotations

import os

import msgspec

from luxfuse.errors import LuxError
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.steps import reached
from luxfuse.types import Kind
from luxfuse.vfs.attributes import (
    XATTRS_MOST_BYTES,
    AttributeChanges,
    Caller,
    now_ns,
    to_metadata,
    with_times,
    without_set_id,
)
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import IsADirectory, TooManyAttributes
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer


class Describing:
    """Changes the attributes of the entries of one mount."""

    def __init__(
        self,
        *,
        tree: Tree,
        namespace: Namespace,
        descriptions: Descriptions,
        entries: DirtyEntries,
        writer: Writer,
        notes: Notes,
        publisher: Publisher,
        writeback: WriteBack,
    ) -> None:
        self._tree = tree
        self._namespace = namespace
        self._descriptions = descriptions
        self._entries = entries
        self._writer = writer
        self._notes = notes
        self._publisher = publisher
        self._writeback = writeback

    async def set_attributes(self, inode: int, changes: AttributeChanges, dirty: Dirty | None, caller: Caller) -> None:
        """Change size, permissions, owner and times; ``dirty`` is the file if it is open for writing."""
        if changes.size is not None:
            if inode == ROOT_INODE or (dirty is None and self._tree.entry(inode).kind is Kind.DIRECTORY):
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
        await self.put_attributes(inode, self._described(await self.known(inode), changes))

    def describe_now(self, inode: int, changes: AttributeChanges) -> bool:
        """Change permissions, owner and times of a dirty file, if that waits for nothing; else nothing is done."""
        dirty = self._entries.get(inode)
        if dirty is None or dirty.source is None or dirty.place is None or changes.size is not None:
            return False
        if self._namespace.unfinished.covers(*dirty.place) or not self._namespace.belief.is_held(inode):
            return False
        if not dirty.writers and self._tree.is_through(dirty.key):
            return False
        return self._note_attributes(inode, self._described(self._tree.entry(inode), changes))[1] is None

    def _described(self, entry: Entry, changes: AttributeChanges) -> Attributes:
        """Return what the attributes of an entry are after changes; the times of content are set."""
        new = self._changed(self._shown(entry), entry.kind, changes)
        dirty = self._entries.get(entry.inode)
        if dirty is not None and dirty.source is not None:
            self._set_times(dirty, changes)
        return new

    async def known(self, inode: int) -> Entry:
        """Return the entry of an inode with the attributes that the store has of it."""
        if inode == ROOT_INODE:
            return self._namespace.root
        await self._namespace.current(inode)
        parent, name, entry = self._namespace.places.locate(inode)
        await self._descriptions.attributes(parent, name, entry)
        return self._tree.entry(inode)

    def _shown(self, entry: Entry) -> Attributes:
        """Return the attributes of an entry with the times that it shows: a new version of its object moves none."""
        dirty = self._entries.get(entry.inode)
        now = dirty.stamp if dirty is not None else None
        return with_times(entry, now.mtime_ns if now is not None else None)

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

    async def put_attributes(self, inode: int, new: Attributes | None) -> None:
        """Record attributes and bring them where the write mode wants them. The store's error leaves all as it was.

        None, of a directory: they are not known, so its marker is made if there is none.
        """
        old, dirty = self._note_attributes(inode, new)
        if dirty is None:
            return
        try:
            await self._writeback.push(dirty)
        except (LuxError, OSError):
            if dirty.place is not None and (entry := self._tree.entry(inode)).attributes == new:
                entry.attributes = old
                self._namespace.put(*dirty.place, entry)
                if not dirty.content_changed(dirty.uploaded):
                    dirty.told()
                    self._publisher.publish(dirty)
            raise

    def _note_attributes(self, inode: int, new: Attributes | None) -> tuple[Attributes | None, Dirty | None]:
        """Record attributes; returns those of before, and what is to be brought to the store before that is answered."""
        entry = self._tree.entry(inode)
        old, entry.attributes = entry.attributes, new
        if inode == ROOT_INODE:
            return old, None  # the bucket has no place for them
        parent, name = self._namespace.places.place(inode)
        self._namespace.put(parent, name, entry)
        key = self._namespace.places.key(parent, name, entry.kind)
        dirty = self._entries.get(inode) or self._notes.mark(entry, key, entry.version or None)
        dirty.describe()
        self._notes.note(dirty)
        reached("describe.noted")
        if dirty.writers or not dirty.must_push:
            return old, None  # they go with the content
        if self._tree.is_through(key):
            return old, dirty
        self._writeback.schedule(dirty)
        return old, None

    async def xattrs(self, inode: int, *, ask: bool = True) -> dict[str, bytes]:
        """Return the extended attributes that programs have set; without ``ask``, only as far as they are known."""
        dirty = self._entries.get(inode)
        if dirty is not None:
            entry: Entry = self._notes.entry(dirty)
        else:
            entry = await self.known(inode) if ask else self._tree.entry(inode)
        return dict((entry.attributes.xattrs if entry.attributes else None) or {})

    async def set_xattrs(self, inode: int, xattrs: dict[str, bytes]) -> None:
        """Replace them all."""
        entry = await self.known(inode)
        new = msgspec.structs.replace(self._shown(entry), xattrs=xattrs or None, ctime_ns=now_ns())
        if len(to_metadata(Kind.FILE, Attributes(xattrs=xattrs)).get("xattr", "")) > XATTRS_MOST_BYTES:
            raise TooManyAttributes("object metadata has no room for so much")
        await self.put_attributes(inode, new)
