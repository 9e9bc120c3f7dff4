"""The writer thread's changes of names in one transaction: parts of listings, ends of listings, purges.

Meanwhile the event loop may change the same names; its changes are committed later and so win. `Names` removes the
remains of such a race (an INODES record of a number that nobody uses) when the transaction is over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from luxfuse.core.names import wins
from luxfuse.index.entries import (
    Changes,
    Entry,
    Found,
    Listing,
    decode_entry,
    distrusted,
    encode,
    is_described,
    same,
)
from luxfuse.index.held import HeldNames
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Table
from luxfuse.types import Kind

ROOT_INODE = 1
_name_of = attrgetter("name")


class Part:
    """Part of listing ``serial`` of a directory, which began at ``checked_s``."""

    def __init__(
        self,
        directory: int,
        serial: int,
        checked_s: float,
        *,
        last: bool,
        held: HeldNames,
        new_inode: Callable[[], int],
        believe_from_s: float,
        by_time: bool,
        came_as: dict[bytes, Kind] | None = None,
    ) -> None:
        """``by_time``: attributes are forgotten where the time of an object's last change says that they may be others.

        ``came_as`` gets, before they change, the names that the same listing had brought as another kind, which loses them.
        """
        self._directory = directory
        self._serial = serial
        self._checked_s = checked_s
        self._last = last
        self._held = held
        self._new_inode = new_inode
        self._believe_from_s = believe_from_s
        self._by_time = by_time
        self._came_as: dict[bytes, Kind] = {} if came_as is None else came_as

    def merge(self, txn: Transaction, found: Iterable[Found], now_s: float) -> Changes:
        """Record it. ``now_s``: later than every lookup in this transaction."""
        changes = Changes()
        prefix = U64.pack(self._directory)
        records: dict[bytes, bytes] = {}
        needed = _Needed(txn, self._held)
        empty = changes.was_empty = next(txn.items(Table.NAMES, prefix, prefix), None) is None
        new_inode, given = self._new_inode, changes.given
        ignores = self._held.ignores if len(self._held) else None  # what is held from now on is put by the loop, too
        for item in _winners_first(found):
            key = prefix + item.name
            if ignores is not None and ignores(key, self._checked_s):
                continue
            stored = records.get(key) or (None if empty else txn.get(Table.NAMES, key))
            if stored is not None:
                old = distrusted(decode_entry(stored), self._believe_from_s)
                if not self._wins(old, item, changes):
                    continue
                if self._confirm(old, item, now_s, changes) or needed.has(old):
                    records[key] = encode(old)
                    continue
                _drop_number(txn, old, item.name, changes)
                changes.names.append(item.name)
            inode = new_inode()
            records[key] = encode(
                Entry(inode, item.kind, item.size, item.version, item.mtime_ns, self._checked_s, self._serial, None)
            )
            given.append((U64.pack(inode), key))
        txn.put_many(Table.NAMES, sorted(records.items()))
        txn.put_many(Table.INODES, changes.given)
        _check_in_use(txn, self._directory, changes)
        return changes

    def _wins(self, old: Entry, item: Found, changes: Changes) -> bool:
        """Whether the item may have the name; notes it if it may not, or not yet."""
        if old.kind is Kind.SPECIAL:
            return True
        if old.listing == self._serial and old.kind != item.kind:
            changes.shadowed += 1
            if not wins(item.kind, old.kind):
                return False
            self._came_as.setdefault(item.name, old.kind)
            return True
        if wins(old.kind, item.kind) and not self._last:
            changes.deferred.append(item)
            return False
        return True

    def _confirm(self, old: Entry, item: Found, now_s: float, changes: Changes) -> bool:
        """Whether the entry stays: it is the same, or a lookup since the listing began knows better."""
        newer = self._checked_s < old.checked_s <= now_s
        if not newer and not same(old, item):
            return False
        if not newer and old.kind is not Kind.DIRECTORY and self._by_time:
            self._compare_times(old, item, changes)
        old.checked_s = old.checked_s if newer else self._checked_s
        old.listing = self._serial
        return True

    @staticmethod
    def _compare_times(old: Entry, item: Found, changes: Changes) -> None:
        if not is_described(old, item):
            changes.names.append(item.name)
            old.attributes = None
        if item.mtime_ns // 10**9 != old.mtime_ns // 10**9:  # answers for single objects have whole seconds
            old.mtime_ns = item.mtime_ns
        old.described_s = item.mtime_ns // 10**9 if old.attributes is not None else 0.0


def complete(
    txn: Transaction, directory: int, serial: int, fetched_s: float, held: HeldNames, now_s: float, *, fresh: bool = False
) -> Changes:
    """End listing ``serial``: forget the names that it did not have, unless looked up or changed since it began.

    ``fresh``: the directory was empty at the listing's first part, so whatever is in it now is of this listing or newer.
    """
    changes = Changes()
    prefix = U64.pack(directory)
    if fresh:
        txn.put(Table.LISTINGS, prefix, encode(Listing(serial, fetched_s, txn.count_from(Table.NAMES, prefix))))
        _check_in_use(txn, directory, changes)
        return changes
    needed = _Needed(txn, held)
    gone = []
    entries = 0
    for key, value in txn.items(Table.NAMES, prefix, prefix):
        entry = decode_entry(value)
        stays = entry.listing >= serial or fetched_s <= entry.checked_s <= now_s
        if stays or held.ignores(key, fetched_s) or needed.has(entry):
            entries += 1
        else:
            gone.append((key, entry))
    for key, entry in gone:
        txn.delete(Table.NAMES, key)
        _drop_number(txn, entry, key[8:], changes)
        changes.names.append(key[8:])
    txn.put(Table.LISTINGS, prefix, encode(Listing(serial, fetched_s, entries)))
    _check_in_use(txn, directory, changes)
    return changes


def removed(txn: Transaction, limit: int) -> tuple[list[bytes], bool]:
    """Return up to ``limit`` removed directories, and whether there are names below any of them."""
    directories = [directory for directory, _ in itertools.islice(txn.items(Table.REMOVED, b""), limit)]
    return directories, any(next(txn.items(Table.NAMES, each, each), None) is not None for each in directories)


def purge(txn: Transaction, directories: list[bytes], limit: int) -> bool:
    """Remove up to about ``limit`` records below some directories that are removed; returns whether there are more."""
    left = limit
    for directory in directories:
        if left <= 0:
            return True
        if txn.get(Table.INODES, directory) is None:  # else a lookup gave the number back to its name meanwhile
            below = list(itertools.islice(txn.items(Table.NAMES, directory, directory), left))
            for key, value in below:
                entry = decode_entry(value)
                txn.delete(Table.NAMES, key)
                txn.delete(Table.INODES, U64.pack(entry.inode))
                if entry.kind is Kind.DIRECTORY:
                    txn.put(Table.REMOVED, U64.pack(entry.inode), b"")
            if len(below) == left:
                return True
            left -= len(below) + 1
            txn.delete(Table.LISTINGS, directory)
        txn.delete(Table.REMOVED, directory)
    return next(txn.items(Table.REMOVED, b""), None) is not None


def _winners_first(found: Iterable[Found]) -> Iterator[Found]:
    """Yield what is found by kind and name, those first that win their names: they keep their numbers between listings."""
    of_kind: dict[Kind, list[Found]] = {Kind.DIRECTORY: [], Kind.FILE: [], Kind.SYMLINK: []}
    for item in found:
        of_kind[item.kind].append(item)
    for items in of_kind.values():
        items.sort(key=_name_of)  # as a rule they are in order
        yield from items


class _Needed:
    """The directories that have held names below them, found out when it first matters."""

    def __init__(self, txn: Transaction, held: HeldNames) -> None:
        self._txn = txn
        self._held = held
        self._inodes: set[bytes] | None = None

    def has(self, entry: Entry) -> bool:
        """Whether the entry is one of them."""
        if entry.kind is not Kind.DIRECTORY:
            return False
        if self._inodes is None:
            self._inodes = self._held.directories(lambda inode: self._txn.get(Table.INODES, inode))
        return U64.pack(entry.inode) in self._inodes


def _drop_number(txn: Transaction, entry: Entry, name: bytes, changes: Changes) -> None:
    inode = U64.pack(entry.inode)
    txn.delete(Table.INODES, inode)
    changes.retired.append((entry.inode, name))
    if entry.kind is Kind.DIRECTORY:
        txn.put(Table.REMOVED, inode, b"")
        changes.orphans = True


def _check_in_use(txn: Transaction, directory: int, changes: Changes) -> None:
    """Remove the entries of a directory that went meanwhile, too."""
    inode = U64.pack(directory)
    if directory != ROOT_INODE and txn.get(Table.INODES, inode) is None:
        txn.put(Table.REMOVED, inode, b"")
        changes.orphans = True
