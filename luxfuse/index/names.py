"""Inodes and names.

Keys: NAMES ``parent inode (8 bytes) + name`` -> `Entry`; INODES ``inode (8 bytes)`` -> the NAMES key. An entry's inode
number stands for one version of the object: when the object is replaced in the store, the name gets a new inode number,
as after ``mv new old``. A file that is written or renamed here keeps its number.

A name that is changed here is *held* until the store has the change (see `held`): answers of the store do not undo it, nor
do they remove a directory that it is in.

`purging` removes the records below a directory that is gone. A directory that comes back has another number.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from luxfuse.index.bulk import ROOT_INODE
from luxfuse.index.entries import (
    NOTHING_SAID,
    Attributes,
    Changes,
    Described,
    Entry,
    Found,
    decode_entry,
    describe,
    distrusted,
    encode,
    same,
)
from luxfuse.index.held import HeldNames
from luxfuse.index.listings import Listings
from luxfuse.index.merging import ListedNames
from luxfuse.index.name_changes import MADE, NameChanges
from luxfuse.index.numbers import Numbers
from luxfuse.index.purging import Purger
from luxfuse.index.store import IndexStore
from luxfuse.index.told import Told, Untold
from luxfuse.index.uncommitted import U64, Table
from luxfuse.index.uncommitted import Changes as Records
from luxfuse.types import Kind

__all__ = ["ROOT_INODE", "Attributes", "Changes", "Entry", "Found", "Names"]

ENTRIES_KEPT = 8192


class Names(ListedNames):
    """The tree of names of one mount."""

    def __init__(
        self, store: IndexStore, clock: Callable[[], float] = time.time, *, believe_from_s: float = -math.inf
    ) -> None:
        """``believe_from_s``: the attributes of what was asked for before are asked for again, see `distrusted`."""
        self._store = store
        self.told: Told = Untold()
        self.changes: NameChanges | None = None
        """Where names that are removed or moved here are noted, for a restart."""
        self._clock = clock
        self.believe_from_s = believe_from_s
        self.keeps_attributes = True
        """Whether the store does; else those that are known here are all that there are."""
        self._numbers = Numbers(store)
        self.listings = Listings(store, clock)
        self.purger = Purger(store, self._purging, self._forget_decoded)
        # Decoded answers of the last requests; reading LMDB costs microseconds and the interpreter lock.
        self._entries: dict[bytes, Entry | None] = {}
        self._places: dict[int, tuple[int, bytes]] = {}
        self._held = HeldNames(clock)
        self._changing = Counter()

    def get(self, parent: int, name: bytes) -> Entry | None:
        """Return the entry of a name, fresh or not."""
        key = U64.pack(parent) + name
        entry = self._entries.get(key)
        if entry is None and (key not in self._entries or parent in self._changing):
            value = self._store.get(Table.NAMES, key)
            if len(self._entries) >= ENTRIES_KEPT:
                self._entries.clear()
            entry = None if value is None else distrusted(self._decoded(value), self.believe_from_s)
            self._entries[key] = entry
        return entry

    def _decoded(self, value: bytes) -> Entry:
        try:
            return decode_entry(value)
        except msgspec.DecodeError as exc:
            raise self._store.doubt(exc) from exc

    def locate(self, inode: int) -> tuple[int, bytes] | None:
        """Return (parent, name) of an inode number that is or was in use; None if unknown."""
        place = self._places.get(inode)
        if place is None and (value := self._store.get(Table.INODES, U64.pack(inode))) is not None:
            if len(self._places) >= ENTRIES_KEPT:
                self._places.clear()
            place = self._places[inode] = (U64.unpack(value[:8])[0], value[8:])
        return place

    @property
    def next_inode(self) -> int:
        """The lowest inode number that was never given."""
        return self._numbers.next

    def former_name(self, inode: int) -> bytes | None:
        """Return the name that an inode number no longer in use had, if that is remembered."""
        return self._numbers.former_name(inode)

    def number_now(self, inode: int) -> int:
        """Return the number of what had this one; another one where `renumber` has replaced it in this run."""
        return self._numbers.now(inode)

    def _retire(self, inode: int, name: bytes) -> None:
        self._places.pop(inode, None)
        self._numbers.retire(inode, name)

    def after(self, directory: int, name: bytes, limit: int, *, keep: bool = False) -> list[tuple[bytes, Entry]]:
        """Return up to ``limit`` (name, entry) in byte order of names after ``name`` (b"": from the first).

        ``keep``: they are about to be asked for by `get`.
        """
        prefix = U64.pack(directory)
        start = prefix + name + b"\0" if name else prefix
        stored = self._store.names(start, limit)
        try:
            found = [(key[8:], decode_entry(value)) for key, value in stored]
        except msgspec.DecodeError as exc:
            raise self._store.doubt(exc) from exc
        if keep:
            if len(self._entries) + len(found) > ENTRIES_KEPT:
                self._entries.clear()
            for known, entry in found:
                self._entries.setdefault(prefix + known, distrusted(entry, self.believe_from_s))
        return found

    def names_in(self, directory: int, limit: int) -> list[bytes]:
        """Return the first ``limit`` names of a directory."""
        return [key[8:] for key, _ in self._store.names(U64.pack(directory), limit)]

    def stays(self, parent: int, name: bytes, entry: Entry, began_s: float) -> bool:
        """Whether a name that a listing since ``began_s`` has not brought outlives it: looked up or changed since."""
        newer = began_s <= entry.checked_s <= self._clock()
        return newer or self._held.ignores(U64.pack(parent) + name, began_s) or self._is_needed(entry)

    @property
    def evidence(self) -> tuple[int, bool]:
        """The evidence of whether the store's objects carry attributes, for `core.evidence`."""
        stored = self._store.get(Table.META, b"evidence")
        return (stored[0], bool(stored[1])) if stored else (0, False)

    def put_evidence(self, in_vain: int, found: bool) -> None:
        """Record it. Raises OSError if the index takes no changes."""
        self._store.put(Table.META, b"evidence", bytes((in_vain, found)))

    @property
    def manifest(self) -> bytes:
        """What manifest was taken up last, as `note_manifest` was told."""
        return self._store.get(Table.META, b"manifest") or b""

    def note_manifest(self, which: bytes) -> None:
        """Record that. Raises OSError if the index takes no changes."""
        self._store.put(Table.META, b"manifest", which)

    # -- changes, at once: all of one is made, or none of it and OSError raised

    def put(self, parent: int, name: bytes, entry: Entry) -> None:
        """Change an entry whose inode number stays. A change during a listing outlives it."""
        records: Records = {}
        self._refer(records, parent, name, entry)
        self._apply(records)
        self._entries[U64.pack(parent) + name] = entry

    def create(
        self,
        parent: int,
        name: bytes,
        kind: Kind,
        *,
        attributes: Attributes | None,
        size: int = 0,
        version: str = "",
        mtime_ns: int,
        checked_s: float,
        also: tuple[int, bytes, Entry] | None = None,
    ) -> Entry:
        """Record an entry that was made here, under a new inode number. The one that had the name is gone.

        ``also``: what another name (its parent, itself, and the entry) is from now on, in the same change, as with `put`.
        """
        found = Found(name, kind, size, version, mtime_ns)
        return self._replace(parent, name, self.get(parent, name), found, checked_s, attributes, described_ns=0, also=also)

    def erase(self, parent: int, name: bytes) -> None:
        """Forget a name, whatever the store says; it need not exist."""
        self._erase(parent, name, here=True)

    def _erase(self, parent: int, name: bytes, *, here: bool) -> None:
        """Forget a name: it was removed ``here``, or in the store."""
        key = U64.pack(parent) + name
        old = self.get(parent, name)
        records: Records = {(Table.NAMES, key): None}
        if old is not None:
            self._drop(records, old)
        self._apply(records, gone=key if here else b"")
        self._entries.pop(key, None)
        if old is not None:
            self._retire(old.inode, name)

    def move(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> Entry:
        """Give an entry another name; it keeps its inode number, and a directory its entries.

        The entry that had the new name is gone. Raises KeyError if there is no entry.
        """
        key, new_key = U64.pack(parent) + name, U64.pack(new_parent) + new_name
        entry = self.get(parent, name)
        if entry is None:
            raise KeyError(name)
        if key == new_key:
            return entry
        old = self.get(new_parent, new_name)
        records: Records = {(Table.NAMES, key): None}
        if old is not None:
            self._drop(records, old)
        self._refer(records, new_parent, new_name, entry)
        self._apply(records, gone=key, to=new_key)
        if old is not None:
            self._retire(old.inode, new_name)
        self._entries.pop(key, None)
        self._entries[new_key] = entry
        self._places[entry.inode] = (new_parent, new_name)
        return entry

    def assign(
        self, parent: int, name: bytes, found: Found, checked_s: float, attributes: Attributes | None, now_s: float
    ) -> Entry | None:
        """Record the store's word of ``checked_s`` on one name; returns its entry: the same inode for the same version.

        A slow answer does not undo what a listing that began later has found, nor what was changed here: then the
        entry is returned as it is, None if the name was removed here.
        """
        old = self.get(parent, name)
        if self._held.ignores(U64.pack(parent) + name, checked_s):
            return old
        if old is not None and not same(old, found) and self._is_needed(old):
            return old
        newer = old is not None and checked_s < old.checked_s <= now_s
        if old is not None and same(old, found):
            old.checked_s = old.checked_s if newer else checked_s
            if attributes is not None:
                describe(old, attributes, found.mtime_ns, checked_s)
            old.size = found.size
            self.put(parent, name, old)
            return old
        if old is not None and newer:
            return old
        return self._replace(parent, name, old, found, checked_s, attributes, described_ns=found.mtime_ns)

    def describe(self, told: Iterable[Described], now_s: float) -> list[Entry | None]:
        """Record answers to other questions, all or none of them; returns the entry of each name.

        None, and nothing is recorded, if the name is another version here, or was changed here, or is known better. Where
        no attributes are known, the name was changed for something else: what stood for it besides is to be removed, say.
        """
        entries: list[Entry | None] = []
        records: Records = {}
        for one in told:
            parent, name = one.directory, one.found.name
            old = self.get(parent, name)
            if old is not None:
                shown = old.size, old.attributes or NOTHING_SAID
                if not self._takes(old, U64.pack(parent) + name, one, now_s):
                    old = None
                else:
                    describe(old, one.attributes, one.found.mtime_ns, one.checked_s)
                    if (old.size, old.attributes) != shown:  # else what is answered for the name still holds
                        self.told.revoke(parent, name)
                    self._refer(records, parent, name, old, same_number=True)
            entries.append(old)
        if records:
            self._make(records)
        return entries

    def _takes(self, old: Entry, key: bytes, told: Described, now_s: float) -> bool:
        """Whether a description is to be recorded in an entry; then its time and size are."""
        found, checked_s = told.found, told.checked_s
        if not same(old, found):
            return False
        changed_here = self._held.ignores(key, checked_s)
        if changed_here and old.attributes is not None:
            return False
        if old.kind is Kind.DIRECTORY:  # its marker does not tell whether it is there
            return not checked_s < old.described_s <= now_s
        if changed_here:
            return True  # it tells nothing of the name
        if checked_s < old.checked_s <= now_s:
            return old.attributes is None and old.mtime_ns // 10**9 == found.mtime_ns // 10**9
        old.checked_s, old.size = checked_s, found.size
        return True

    def remove(self, parent: int, name: bytes, checked_s: float, now_s: float) -> Entry | None:
        """Forget a name that was gone at ``checked_s``; returns its entry if a later listing knows better.

        Or if it was changed here since: the entry as it is.
        """
        old = self.get(parent, name)
        if old is None:
            return None
        if checked_s < old.checked_s <= now_s or self._held.ignores(U64.pack(parent) + name, checked_s):
            return old
        if self._is_needed(old):
            return old
        self._erase(parent, name, here=False)
        return None

    def make_again(self, key: bytes, new_key: bytes) -> None:
        """Remove a name by its key, or move it; see `NameChanges.make_again`."""
        place = U64.unpack(key[:8])[0], key[8:]
        if self.get(*place) is None:
            return
        if new_key:
            self.move(*place, U64.unpack(new_key[:8])[0], new_key[8:])
        else:
            self.erase(*place)

    def relocate(self, parent: int, name: bytes) -> None:
        """Let the inode number of a name lead to it again."""
        entry = self.get(parent, name)
        if entry is not None:
            self._places.pop(entry.inode, None)
            self.put(parent, name, entry)

    def drop_double(self, parent: int, name: bytes) -> None:
        """Forget a name whose inode number is another name's, and stays."""
        self._apply({(Table.NAMES, U64.pack(parent) + name): None})
        self._entries.pop(U64.pack(parent) + name, None)

    def renumber(self, parent: int, name: bytes) -> None:
        """Give an entry another inode number."""
        old = self.get(parent, name)
        if old is None:
            return
        entry = msgspec.structs.replace(old, inode=self._numbers.new())
        records: Records = {}
        self._drop(records, old)
        self._numbers.note_highest(records)
        self._refer(records, parent, name, entry)
        self._apply(records)
        self._retire(old.inode, name)
        self._numbers.replace(old.inode, entry.inode)
        self._entries[U64.pack(parent) + name] = entry

    def _replace(
        self,
        parent: int,
        name: bytes,
        old: Entry | None,
        found: Found,
        checked_s: float,
        attributes: Attributes | None,
        described_ns: int,
        also: tuple[int, bytes, Entry] | None = None,
    ) -> Entry:
        """Give a name what was found, under a new number. ``old``: the entry that had the name; ``also``: see `create`."""
        serial = old.listing if old is not None else self.listings.serial(parent)
        entry = Entry(self._numbers.new(), found.kind, found.size, found.version, found.mtime_ns, checked_s, serial)
        describe(entry, attributes, described_ns, checked_s)
        records: Records = {}
        if old is not None:
            self._drop(records, old)
        self._numbers.note_highest(records)
        self._refer(records, parent, name, entry)
        if also is not None:
            self._refer(records, *also)
        self._apply(records)
        if old is not None:
            self._retire(old.inode, name)
        self._entries[U64.pack(parent) + name] = entry
        if also is not None:
            self._entries[U64.pack(also[0]) + also[1]] = also[2]
        return entry

    def _refer(self, records: Records, parent: int, name: bytes, entry: Entry, *, same_number: bool = False) -> None:
        """Add the records that make a name refer to an entry.

        INODES too where the number stays, as a merge that runs now may be about to give the name another one.
        """
        key = U64.pack(parent) + name
        running = self.listings.serials.get(parent, 0)
        entry.listing = max(entry.listing, running)
        records[Table.NAMES, key] = encode(entry)
        if running or not same_number:
            records[Table.INODES, U64.pack(entry.inode)] = key
        if parent != ROOT_INODE and self.locate(parent) is None:
            records[Table.REMOVED, U64.pack(parent)] = b""

    def _drop(self, records: Records, old: Entry) -> None:
        records[Table.INODES, U64.pack(old.inode)] = None
        if old.kind is Kind.DIRECTORY:
            records[Table.REMOVED, U64.pack(old.inode)] = b""

    def _apply(self, records: Records, *, gone: bytes = b"", to: bytes = b"") -> None:
        """Make changes. ``gone``: the key of a name that is removed or, with ``to``, moved here."""
        number = self.changes.number(gone) if gone and self.changes is not None else 0
        if number:
            records[Table.META, MADE] = U64.pack(number)
        for table, key in records:
            if table is Table.NAMES:
                self.told.revoke(U64.unpack(key[:8])[0], key[8:])
        self._make(records)
        if number and self.changes is not None:
            self.changes.note(number, gone, to)

    def _make(self, records: Records) -> None:
        """Make changes of names that are not answered for any more, or still as they are."""
        self._store.apply(records)
        for table, _ in records:
            if table is Table.REMOVED:
                self.purger.wake()
                break

    # -- names that the store does not show as they are here

    def hold(self, parent: int, name: bytes) -> None:
        """Leave a name as it is here, whether it exists or not, whatever the store says, until `settle`."""
        key = U64.pack(parent) + name
        self.told.revoke(parent, name)
        if parent in self.listings.serials:
            # A merge that runs now may have looked at the name already: what it made of it must not stay.
            entry = self.get(parent, name)
            records: Records = {(Table.NAMES, key): None}
            if entry is not None:
                self._refer(records, parent, name, entry)
            self._apply(records)
        self._held.hold(key)

    def settle(self, parent: int, name: bytes) -> None:
        """The store shows a held name as it is here: believe what it is asked for from now on."""
        self._held.settle(U64.pack(parent) + name, self._place)

    def is_held(self, parent: int, name: bytes) -> bool:
        """Whether a name is held, and not settled."""
        return self._held.holds(U64.pack(parent) + name)

    def _place(self, inode: bytes) -> bytes | None:
        return self._store.get(Table.INODES, inode)

    def _is_needed(self, entry: Entry) -> bool:
        """Whether names somewhere below a directory are held."""
        return entry.kind is Kind.DIRECTORY and U64.pack(entry.inode) in self._held.directories(self._place)

    def _purging(self) -> None:
        self.told.revoke_all()

    def _forget_decoded(self) -> None:
        self._entries.clear()
        self._places.clear()
        self.listings.forget_decoded()
