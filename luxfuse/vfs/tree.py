"""The common ground of all changes of the tree of names; `making`, `describing`, `removing` and `moves` make them.

In `cache-through` and `through` a change is made in the store first, and its error is the program's. In
`async-through` it is made here and in the journal, and in the store later. In `must-cache` only here.
"""

from __future__ import annotations

import msgspec

from luxfuse.core import names as naming
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import ABSENT, Kind, WriteMode
from luxfuse.vfs.attributes import now_ns
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.dirty_fields import NOTHING_UNHEARD, Unheard
from luxfuse.vfs.errors import BadName, Exists, KeyTooLong, NoSuchName, NotTaken, ReservedName
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.turns import Turn, Turns


class Tree:
    """Entries, keys and turns of the names of one mount that are to be changed."""

    def __init__(
        self, *, namespace: Namespace, entries: DirtyEntries, notes: Notes, journal: Journal, limits: naming.KeyLimits
    ) -> None:
        """``limits``: how long keys of the store may be."""
        self._namespace = namespace
        self._entries = entries
        self._notes = notes
        self._journal = journal
        self._limits = limits
        self._turns: Turns[tuple[int, bytes]] = Turns()

    # -- entries

    def entry(self, inode: int) -> Entry:
        """Return the entry of an inode, the root's too. Raises `Stale`."""
        return self._namespace.root if inode == ROOT_INODE else self._namespace.places.locate(inode)[2]

    def entry_of(self, place: tuple[int, bytes]) -> Entry:
        """Return the entry of a name that exists."""
        entry = self._namespace.peek(*place)
        if entry is None:
            raise NoSuchName(f"{place[1]!r} does not exist")
        return entry

    async def require_absent(self, parent: int, name: bytes) -> None:
        """Raise `Exists` if there is a name."""
        try:
            await self._namespace.lookup(parent, name)
        except NoSuchName:
            return
        raise Exists(f"{name!r} exists")

    def touch(self, directory: int) -> None:
        """The entries of a directory have changed: so has its mtime, here."""
        entry = self.entry(directory)
        now = now_ns()
        known = entry.attributes or Attributes()
        if directory == ROOT_INODE or entry.attributes is not None:
            entry.attributes = msgspec.structs.replace(known, mtime_ns=now, ctime_ns=now)
        entry.mtime_ns = now
        if directory != ROOT_INODE:
            self._namespace.put(*self._namespace.places.place(directory), entry)

    def touched(self, directory: int) -> tuple[int, bytes, Entry] | None:
        """Return what `touch` would make of a directory: its name's parent, its name and its entry; None: the root."""
        if directory == ROOT_INODE:
            return None
        parent, name, entry = self._namespace.places.locate(directory)
        now, attributes = now_ns(), entry.attributes
        if attributes is not None:
            attributes = msgspec.structs.replace(attributes, mtime_ns=now, ctime_ns=now)
        return parent, name, msgspec.structs.replace(entry, attributes=attributes, mtime_ns=now)

    def note_renamed(self, parent: int, name: bytes) -> None:
        """An entry has got this name: so its ctime is now, here."""
        entry = self.entry_of((parent, name))
        if entry.attributes is not None:
            entry.attributes = msgspec.structs.replace(entry.attributes, ctime_ns=now_ns())
            self._namespace.put(parent, name, entry)

    # -- keys

    def new_key(self, parent: int, name: bytes, kind: Kind) -> str:
        """Return the key of a name that is to be made. Raises `BadName`, `ReservedName`, `KeyTooLong`, `NotTaken`."""
        component = naming.component_of(name)
        if component is None:
            raise BadName(f"the name {name!r} is not UTF-8: no object key can stand for it")
        if naming.classify(component) is None or component.endswith(naming.SYMLINK_SUFFIX):
            raise ReservedName(f"the name {name!r} stands for a symlink in the bucket")
        key = self._namespace.places.key(parent, name, kind)
        self.check_key(key)
        return key

    def check_key(self, key: str) -> None:
        """Raise `KeyTooLong` or `NotTaken` if the store cannot hold a key: nothing could ever be brought there."""
        if refusal := naming.not_taken(key, self._limits):
            raise NotTaken(refusal)
        if refusal := naming.too_long(key, self._limits):
            raise KeyTooLong(refusal)

    def check_key_below(self, key: str) -> None:
        """Raise `KeyTooLong` if the store cannot hold a key that comes along with its directory."""
        if refusal := naming.too_long_below(key, self._limits):
            raise KeyTooLong(refusal)

    def may_be_too_long(self, prefix: str, new_prefix: str) -> bool:
        """Whether keys below a directory get longer with its new name."""
        return self._limits.length(new_prefix) > self._limits.length(prefix)

    # -- what the store has, and what of it is changed first

    def is_through(self, key: str) -> bool:
        """Whether changes of a key are made in the store first."""
        return self._notes.mode_of(key).is_through

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
        return None if dirty.lock.locked() or dirty.stored.resumed or dirty.stored.unheard else dirty.stored.expect

    def is_unheard(self, entry: Entry) -> bool:
        """Whether the store has nothing of an entry but what may have arrived, or arrive yet, without an answer."""
        dirty = self._entries.get(entry.inode)
        return dirty is not None and dirty.stored.unheard and dirty.stored.expect == ABSENT

    def unheard(self, entry: Entry) -> Unheard:
        """Return what the store may have of an entry whose uploads had no answer."""
        dirty = self._entries.get(entry.inode)
        return dirty.unheard if dirty is not None else NOTHING_UNHEARD

    def stays_here(self, entry: Entry) -> bool:
        """Whether an entry is of this machine only: the store has nothing of it, and gets nothing."""
        dirty = self._entries.get(entry.inode)
        never = dirty is not None and dirty.mode is WriteMode.MUST_CACHE and not dirty.may_be_stored
        return never or entry.kind is Kind.SPECIAL

    # -- one change of a name at a time

    def turn(self, *places: tuple[int, bytes]) -> Turn[tuple[int, bytes]]:
        """Wait for a turn to change names."""
        return self._turns.of(places)

    def is_taken(self, place: tuple[int, bytes]) -> bool:
        """Whether somebody has the turn of a name, or waits for it."""
        return self._turns.has(place)

    async def commit(self) -> None:
        """Make the notes in the journal durable. Raises OSError."""
        await self._journal.commit()
