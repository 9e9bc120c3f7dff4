"""The names of keys in the journal: the journal alone is believed, and names that the index lacks are made anew."""

from __future__ import annotations

import time

from luxfuse.core import names as naming
from luxfuse.index.entries import Entry, describe
from luxfuse.index.journal import FileRecord
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import ABSENT, Kind, ObjectInfo
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace

DOUBTED_AT_ONCE = 1000
"""Names that are read from the index at once."""


class JournalPlaces:
    """Finds, makes and forgets the names of keys."""

    def __init__(self, namespace: Namespace, names: Names, entries: DirtyEntries) -> None:
        self._namespace = namespace
        self._names = names
        self._entries = entries

    def place(self, key: str) -> tuple[int, bytes]:
        """Return (parent, name) of a key, with the directories above it made where the index lacks them."""
        *above, last = key.rstrip("/").split("/")
        parent = ROOT_INODE
        for part in above:
            entry = self._names.get(parent, part.encode())
            if entry is None or entry.kind is not Kind.DIRECTORY:
                entry = self._names.create(
                    parent, part.encode(), Kind.DIRECTORY, attributes=None, mtime_ns=time.time_ns(), checked_s=0.0
                )
            parent = entry.inode
        if key.endswith(naming.SYMLINK_SUFFIX):
            last = last[: -len(naming.SYMLINK_SUFFIX)]
        return parent, last.encode()

    def entry_of(self, parent: int, name: bytes, record: FileRecord) -> Entry:
        """Return the entry of a file of the journal, made anew where the index has another one or none."""
        entry = self._names.get(parent, name)
        if entry is not None and entry.kind is record.kind and entry.inode == record.inode:
            entry.attributes, entry.checked_s = record.attributes, self._namespace.now_s()
            self._names.put(parent, name, entry)
            return entry
        if entry is not None and entry.kind is record.kind and not record.content:
            entry.attributes, entry.checked_s = record.attributes, self._namespace.now_s()
            self._names.put(parent, name, entry)
            return entry
        # A directory that was made here is another one than that of the index, and so are the entries in it.
        made = record.expect == ABSENT
        if entry is not None and entry.kind is Kind.DIRECTORY and record.kind is Kind.DIRECTORY and not made:
            entry.attributes, entry.checked_s = record.attributes, self._namespace.now_s()
            self._names.put(parent, name, entry)
            return entry
        size = record.size
        return self._names.create(
            parent,
            name,
            record.kind,
            attributes=record.attributes,
            size=size,
            version=record.expect or "",
            mtime_ns=record.stamp,
            checked_s=self._namespace.now_s(),
        )

    def forget_listing(self, key: str) -> None:
        """An object of the store has come or gone: let its directory be listed again, and its name looked up."""
        parent, name = self.place(key)
        self._names.listings.forget(parent)
        self.erase(parent, name, key)

    def move(self, source: str, target: str, inode: int) -> None:
        """Give an inode the name of ``target``, if it has that of ``source``; nothing else has the new name then."""
        old, new = self.place(source), self.place(target)
        entry, there = self._names.get(*old), self._names.get(*new)
        if entry is not None and entry.inode == inode:
            self._names.move(*old, *new)
        elif there is not None and there.inode != inode:
            self.erase(*new, target)

    def exchange(self, keys: tuple[str, str], between: str, inodes: tuple[int, int]) -> None:
        """Exchange the names of two keys, as far as the inodes have them that they had; may have been begun or made."""
        first, second = self.place(keys[0]), self.place(keys[1])
        aside = self.place(between)
        for inode, source, target in ((inodes[0], first, aside), (inodes[1], second, first), (inodes[0], aside, second)):
            entry = self._names.get(*source)
            if entry is not None and entry.inode == inode:
                self._names.move(*source, *target)

    def settle(self, key: str, inode: int, info: ObjectInfo | None, asked_s: float, *, copied: bool) -> None:
        """A key has what an inode stands for: ``info`` in the store at ``asked_s``, None for a directory or what is here.

        ``copied``: it is known to be what the inode was under its old key; else that is so if it has the version that is
        known of the inode. What may be something else gets another inode.
        """
        parent, name = self.place(key)
        self._names.listings.forget(parent)
        entry = self._names.get(parent, name)
        same = copied or info is None or (entry is not None and entry.version == info.version)
        if entry is None or entry.inode != inode or not same:
            self.erase(parent, name, key)
        elif info is not None and self._entries.get(inode) is not None:
            return  # it is changed here, and pushed
        elif info is not None:
            entry.version, entry.size, entry.checked_s = info.version, info.size, asked_s
            describe(entry, entry.attributes, info.mtime_ns, entry.checked_s)
            self._names.put(parent, name, entry)
        else:
            self._doubt(parent, name, entry)

    def _doubt(self, parent: int, name: bytes, entry: Entry) -> None:
        """Have an entry, and all below it, asked for again: copies are other versions. But not what is changed here."""
        doubted = [(parent, name, entry)]
        while doubted:
            above, name, entry = doubted.pop()
            if self._entries.get(entry.inode) is None:
                entry.checked_s = 0.0
                self._names.put(above, name, entry)
            if entry.kind is Kind.DIRECTORY:
                self._names.listings.forget(entry.inode)
                last = b""
                while found := self._names.after(entry.inode, last, DOUBTED_AT_ONCE):
                    doubted += [(entry.inode, *each) for each in found]
                    last = found[-1][0]

    def erase(self, parent: int, name: bytes, key: str) -> None:
        """Forget the name of a key, unless another object, or something dirty, has it."""
        entry = self._names.get(parent, name)
        if entry is None or (entry.kind is _kind_of(key) and self._entries.get(entry.inode) is None):
            self._names.erase(parent, name)  # else it is another object, which also stands for the name


def _kind_of(key: str) -> Kind:
    return Kind.DIRECTORY if key.endswith("/") else Kind.SYMLINK if key.endswith(naming.SYMLINK_SUFFIX) else Kind.FILE
