"""The names of keys in the journal: the journal alone is believed, and names that the index lacks are made anew."""

from __future__ import annotations

import time

from luxfuse.core import names as naming
from luxfuse.index.entries import Entry
from luxfuse.index.journal import FileRecord
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import ABSENT, Kind
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace


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

    def erase(self, parent: int, name: bytes, key: str) -> None:
        """Forget the name of a key, unless another object, or something dirty, has it."""
        entry = self._names.get(parent, name)
        if entry is None or (entry.kind is _kind_of(key) and self._entries.get(entry.inode) is None):
            self._names.erase(parent, name)  # else it is another object, which also stands for the name


def _kind_of(key: str) -> Kind:
    return Kind.DIRECTORY if key.endswith("/") else Kind.SYMLINK if key.endswith(naming.SYMLINK_SUFFIX) else Kind.FILE
