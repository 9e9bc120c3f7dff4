"""Inodes, names and listings.

Keys: NAMES ``parent inode (8 bytes) + name`` -> `Entry`; INODES ``inode (8 bytes)`` -> the NAMES key; LISTINGS
``inode (8 bytes)`` -> `Listing`; REMOVED ``inode (8 bytes)`` -> nothing. An entry's inode number stands for one version
of the object: when the object is replaced, the name gets a new inode number, as after ``mv new old``. Numbers are never
reused.

A directory that goes, or that is written to after it went, is noted in REMOVED in the same transaction; `purger` removes
what is recorded below it, some rows at a time, and then the note. A directory that comes back has another number.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import trio

from luxfuse.core.names import wins
from luxfuse.index.store import U64, IndexStore, Table, Transaction
from luxfuse.types import Kind

log = logging.getLogger(__name__)

ROOT_INODE = 1
FIRST_INODE = 16
ENTRIES_KEPT = 8192
FORMER_KEPT = 100_000
"""Numbers no longer in use whose names are remembered, for readers of directories that stand at them."""

PURGE_ROWS = 5_000
"""Names of removed directories that are forgotten in one transaction."""
PURGE_PAUSE_S = 0.05
PURGE_RETRY_S = 60.0


class Attributes(msgspec.Struct, frozen=True, array_like=True):
    """What object metadata says of a file; None where it says nothing."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


class Entry(msgspec.Struct, array_like=True):
    """One name. ``checked_s``: wall-clock time of the store's last word on it. ``listing``: the one that last had it.

    A time in the future (the clock was set back since) counts as the oldest.
    """

    inode: int
    kind: Kind
    size: int
    version: str
    mtime_ns: int
    checked_s: float
    listing: int = 0
    attributes: Attributes | None = None


class Listing(msgspec.Struct, array_like=True, frozen=True):
    """A complete listing of a directory: its serial number (rising), when it began, how many entries it had."""

    serial: int
    fetched_s: float
    entries: int


@dataclass(slots=True)
class Changes:
    """What a merged part of a listing changed. ``names``: what the kernel has to forget."""

    names: list[bytes] = field(default_factory=list)
    shadowed: int = 0
    """Entries that lost their name to another kind (see core/names)."""
    deferred: list[Found] = field(default_factory=list)
    """Entries to be merged last: a kind that wins over theirs had the name, and may still turn up."""
    retired: list[tuple[int, bytes]] = field(default_factory=list)
    """Inode numbers no longer in use, and their names; `Names` takes note of them once they are committed."""
    orphans: bool = False
    """Whether there is something for `Names.purger` to do."""


_encode = msgspec.msgpack.Encoder().encode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_decode_listing = msgspec.msgpack.Decoder(Listing).decode


class Found(msgspec.Struct, gc=False):
    """One entry as a listing brings it."""

    name: bytes
    kind: Kind
    size: int = 0
    version: str = ""
    mtime_ns: int = 0


class Names:
    """The tree of names of one mount."""

    def __init__(self, store: IndexStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._numbers = threading.Lock()
        self._running: dict[int, int] = {}
        stored = store.get(Table.META, b"next_inode")
        self._next_inode = itertools.count(U64.unpack(stored)[0] if stored else FIRST_INODE)
        self._highest = (U64.unpack(stored)[0] if stored else FIRST_INODE) - 1
        stored = store.get(Table.META, b"serial")
        self._last_serial = U64.unpack(stored)[0] if stored else 0
        self._former: dict[int, bytes] = {}
        # Decoded answers of the last requests; reading LMDB costs microseconds and the interpreter lock.
        self._entries: dict[bytes, Entry] = {}
        self._places: dict[int, tuple[int, bytes]] = {}
        self._orphans = trio.Event()
        if store.committed_items(Table.REMOVED, b"", b"", 1):
            self._orphans.set()

    def _new_inode(self) -> int:
        with self._numbers:  # the loop and the writer thread both take numbers
            self._highest = next(self._next_inode)
            return self._highest

    def get(self, parent: int, name: bytes) -> Entry | None:
        """Return the entry of a name, fresh or not."""
        key = U64.pack(parent) + name
        entry = self._entries.get(key)
        if entry is None and (value := self._store.get(Table.NAMES, key)) is not None:
            if len(self._entries) >= ENTRIES_KEPT:
                self._entries.clear()
            entry = self._entries[key] = _decode_entry(value)
        return entry

    def locate(self, inode: int) -> tuple[int, bytes] | None:
        """Return (parent, name) of an inode number that is or was in use; None if unknown."""
        place = self._places.get(inode)
        if place is None and (value := self._store.get(Table.INODES, U64.pack(inode))) is not None:
            if len(self._places) >= ENTRIES_KEPT:
                self._places.clear()
            place = self._places[inode] = (U64.unpack(value[:8])[0], value[8:])
        return place

    def former_name(self, inode: int) -> bytes | None:
        """Return the name that an inode number no longer in use had, if that is remembered."""
        return self._former.get(inode)

    def _retire(self, inode: int, name: bytes) -> None:
        self._places.pop(inode, None)
        self._former[inode] = name
        if len(self._former) > FORMER_KEPT:
            del self._former[next(iter(self._former))]

    def put(self, parent: int, name: bytes, entry: Entry) -> None:
        """Change an entry whose inode number stays. What is recorded during a listing outlives it."""
        entry.listing = max(entry.listing, self._running.get(parent, 0))
        key = U64.pack(parent) + name
        self._store.put(Table.NAMES, key, _encode(entry))
        self._entries[key] = entry
        if parent != ROOT_INODE and self.locate(parent) is None:
            self._note_removed(parent)

    def assign(
        self, parent: int, name: bytes, found: Found, checked_s: float, attributes: Attributes | None, now_s: float
    ) -> Entry:
        """Record the store's word of ``checked_s`` on one name; returns its entry: the same inode for the same version.

        A slow answer does not undo what a listing that began later has found.
        """
        old = self.get(parent, name)
        newer = old is not None and checked_s < old.checked_s <= now_s
        if old is not None and _same(old, found):
            old.checked_s = old.checked_s if newer else checked_s
            old.attributes = attributes if attributes is not None else old.attributes
            old.size = found.size
            self.put(parent, name, old)
            # A merge that runs now may be about to give the name another number; this one is in use.
            self._store.put(Table.INODES, U64.pack(old.inode), U64.pack(parent) + name)
            return old
        if old is not None and newer:
            return old
        serial = old.listing if old is not None else self._serial(parent)
        entry = Entry(
            self._new_inode(), found.kind, found.size, found.version, found.mtime_ns, checked_s, serial, attributes
        )
        if old is not None:
            self._drop(old, name)
        self.put(parent, name, entry)
        self._store.put(Table.INODES, U64.pack(entry.inode), U64.pack(parent) + name)
        self._note_highest()
        return entry

    def _note_highest(self) -> None:
        self._store.put(Table.META, b"next_inode", U64.pack(self._highest + 1))

    def remove(self, parent: int, name: bytes, checked_s: float, now_s: float) -> Entry | None:
        """Forget a name that was gone at ``checked_s``; returns its entry if a later listing knows better."""
        old = self.get(parent, name)
        if old is None:
            return None
        if checked_s < old.checked_s <= now_s:
            return old
        self._drop(old, name)
        self._store.delete(Table.NAMES, U64.pack(parent) + name)
        self._entries.pop(U64.pack(parent) + name, None)
        return None

    def _drop(self, old: Entry, name: bytes) -> None:
        self._store.delete(Table.INODES, U64.pack(old.inode))
        self._retire(old.inode, name)
        if old.kind is Kind.DIRECTORY:
            self._note_removed(old.inode)

    def _note_removed(self, directory: int) -> None:
        self._store.put(Table.REMOVED, U64.pack(directory), b"")
        self._orphans.set()

    def _serial(self, directory: int) -> int:
        listing = self.listing(directory)
        return listing.serial if listing else 0

    # -- listings

    def listing(self, directory: int) -> Listing | None:
        """Return the last complete listing of a directory, fresh or not."""
        value = self._store.get(Table.LISTINGS, U64.pack(directory))
        return None if value is None else _decode_listing(value)

    def forget_listing(self, directory: int) -> None:
        """Make the next use of the directory list it again."""
        listing = self.listing(directory)
        if listing is not None:
            self._store.put(Table.LISTINGS, U64.pack(directory), _encode(Listing(listing.serial, 0.0, listing.entries)))

    def begin_listing(self, directory: int) -> int:
        """Return the serial number of a listing that begins now; `end_listing` must follow, whatever happens.

        No number comes twice: entries of a listing that failed half-way must not pass for ones of the next.
        """
        serial = self._last_serial = max(self._serial(directory), self._last_serial) + 1
        self._store.put(Table.META, b"serial", U64.pack(serial))
        self._running[directory] = serial
        return serial

    def end_listing(self, directory: int) -> None:
        """The listing is over, complete or not."""
        self._running.pop(directory, None)

    async def merge(
        self, directory: int, serial: int, found: Iterable[Found], checked_s: float, *, last: bool = True
    ) -> Changes:
        """Record part of listing ``serial`` that began at ``checked_s``; returns the names that changed.

        What it returns as deferred belongs into the ``last`` call.
        """
        try:
            changes = await self._store.run(lambda txn: self._merge(txn, directory, serial, found, checked_s, last))
            self._note_highest()  # a lookup meanwhile may have noted a lower one
            self._apply(changes)
            return changes
        finally:
            self._forget_decoded()

    def _merge(
        self, txn: Transaction, directory: int, serial: int, found: Iterable[Found], checked_s: float, last: bool
    ) -> Changes:
        changes = Changes()
        now_s = self._clock()  # later than every lookup in this transaction
        prefix = U64.pack(directory)
        records: dict[bytes, bytes] = {}
        inodes = []
        empty = next(txn.items(Table.NAMES, prefix, prefix), None) is None
        # Those that win their names first, and so they keep their inode numbers from listing to listing.
        for item in sorted(found, key=lambda f: (f.kind is not Kind.DIRECTORY, f.kind, f.name)):
            key = prefix + item.name
            stored = records.get(key) or (None if empty else txn.get(Table.NAMES, key))
            old = None if stored is None else _decode_entry(stored)
            if old is not None:
                if old.listing == serial and old.kind != item.kind:
                    changes.shadowed += 1
                    if not wins(item.kind, old.kind):
                        continue
                elif wins(old.kind, item.kind) and not last:
                    changes.deferred.append(item)
                    continue
                newer = checked_s < old.checked_s <= now_s  # a lookup since the listing began knows better
                if newer or _same(old, item):
                    old.checked_s = old.checked_s if newer else checked_s
                    old.listing = serial
                    records[key] = _encode(old)
                    continue
                _drop_number(txn, old, item.name, changes)
                changes.names.append(item.name)
            entry = Entry(self._new_inode(), item.kind, item.size, item.version, item.mtime_ns, checked_s, serial, None)
            records[key] = _encode(entry)
            inodes.append((U64.pack(entry.inode), key))
        txn.put_many(Table.NAMES, sorted(records.items()))
        txn.put_many(Table.INODES, inodes)
        txn.put(Table.META, b"next_inode", U64.pack(self._highest + 1))
        _check_in_use(txn, directory, changes)
        return changes

    def _apply(self, changes: Changes) -> None:
        for inode, name in changes.retired:
            self._retire(inode, name)
        changes.retired = []
        if changes.orphans:
            self._orphans.set()

    async def complete(self, directory: int, serial: int, fetched_s: float) -> Changes:
        """End listing ``serial``: forget the names that it did not have, unless looked up since it began."""
        try:
            changes = await self._store.run(lambda txn: self._complete(txn, directory, serial, fetched_s))
            self._apply(changes)
            return changes
        finally:
            self._forget_decoded()

    def _complete(self, txn: Transaction, directory: int, serial: int, fetched_s: float) -> Changes:
        changes = Changes()
        now_s = self._clock()
        prefix = U64.pack(directory)
        gone = []
        entries = 0
        for key, value in txn.items(Table.NAMES, prefix, prefix):
            entry = _decode_entry(value)
            if entry.listing < serial and not fetched_s <= entry.checked_s <= now_s:
                gone.append((key, entry))
            else:
                entries += 1
        for key, entry in gone:
            txn.delete(Table.NAMES, key)
            _drop_number(txn, entry, key[8:], changes)
            changes.names.append(key[8:])
        txn.put(Table.LISTINGS, prefix, _encode(Listing(serial, fetched_s, entries)))
        _check_in_use(txn, directory, changes)
        return changes

    # -- what removed directories leave behind

    async def purger(self) -> None:
        """Forget in the background what is recorded below removed directories, until cancelled."""
        while True:
            await self._orphans.wait()
            self._orphans = trio.Event()
            try:
                while await self._store.run(self._purge):
                    self._forget_decoded()
                    await trio.sleep(PURGE_PAUSE_S)
            except OSError as exc:
                log.info("what removed directories left in the index stays for now: %s", exc)
                await trio.sleep(PURGE_RETRY_S)
                self._orphans.set()
            finally:
                self._forget_decoded()

    def _purge(self, txn: Transaction) -> bool:
        """Remove up to about `PURGE_ROWS` rows; returns whether there are more."""
        left = PURGE_ROWS
        for directory, _ in list(itertools.islice(txn.items(Table.REMOVED, b""), PURGE_ROWS)):
            if left <= 0:
                return True
            if txn.get(Table.INODES, directory) is None:  # else a lookup gave the number back to its name meanwhile
                rows = list(itertools.islice(txn.items(Table.NAMES, directory, directory), left))
                for key, value in rows:
                    entry = _decode_entry(value)
                    txn.delete(Table.NAMES, key)
                    txn.delete(Table.INODES, U64.pack(entry.inode))
                    if entry.kind is Kind.DIRECTORY:
                        txn.put(Table.REMOVED, U64.pack(entry.inode), b"")
                if len(rows) == left:
                    return True
                left -= len(rows) + 1
                txn.delete(Table.LISTINGS, directory)
            txn.delete(Table.REMOVED, directory)
        return next(txn.items(Table.REMOVED, b""), None) is not None

    def _forget_decoded(self) -> None:
        self._entries.clear()
        self._places.clear()

    def after(self, directory: int, name: bytes, limit: int) -> list[tuple[bytes, Entry]]:
        """Return up to ``limit`` committed (name, entry) in byte order of names after ``name`` (b"": from the first)."""
        prefix = U64.pack(directory)
        start = prefix + name + b"\0" if name else prefix
        return [
            (key[8:], _decode_entry(value))
            for key, value in self._store.committed_items(Table.NAMES, start, prefix, limit)
        ]


def _same(entry: Entry, found: Found) -> bool:
    return entry.kind == found.kind and (found.kind is Kind.DIRECTORY or entry.version == found.version)


def _drop_number(txn: Transaction, entry: Entry, name: bytes, changes: Changes) -> None:
    inode = U64.pack(entry.inode)
    txn.delete(Table.INODES, inode)
    changes.retired.append((entry.inode, name))
    if entry.kind is Kind.DIRECTORY:
        txn.put(Table.REMOVED, inode, b"")
        changes.orphans = True


def _check_in_use(txn: Transaction, directory: int, changes: Changes) -> None:
    """What is recorded in a directory that went meanwhile has to go, too."""
    inode = U64.pack(directory)
    if directory != ROOT_INODE and txn.get(Table.INODES, inode) is None:
        txn.put(Table.REMOVED, inode, b"")
        changes.orphans = True
