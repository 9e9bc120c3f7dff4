"""The tree of names against itself: names, the inode numbers that lead back to them, and listings of directories.

Found in one transaction, in a thread; believed only if it is still so in the event loop, as names change meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from luxfuse.index.audit import TOLD, breathing
from luxfuse.index.entries import decode_entry
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.index.store import IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Table
from luxfuse.types import Kind


@dataclass(slots=True)
class TreeAudit:
    """The mistakes that were found, as keys of the index."""

    lost: list[bytes] = field(default_factory=list)
    """Names whose inode number leads nowhere, or to another name."""
    stray: list[bytes] = field(default_factory=list)
    """Names in a directory that is none, and that is not being removed."""
    dangling: list[bytes] = field(default_factory=list)
    """Inode numbers whose name is not there, or has another one."""
    unlisted: list[bytes] = field(default_factory=list)
    """Directories of which only a listing is recorded."""


class TreeAuditor:
    """Compares, and corrects. All that is corrected comes back from the under-store."""

    def __init__(self, store: IndexStore, names: Names) -> None:
        self._store = store
        self._names = names

    async def run(self) -> TreeAudit:
        """Compare all names; what is found is so now."""
        await self._store.flush()
        found = await self._store.view(_audit)
        return TreeAudit(
            [key for key in found.lost if self._is_lost(key)],
            [key for key in found.stray if self._is_stray(key)],
            [key for key in found.dangling if self._is_dangling(key)],
            [key for key in found.unlisted if self._is_unlisted(key)],
        )

    def path_of(self, key: bytes) -> str:
        """Return the path of a name, for the eye: "(17)/name" where the directory 17 is not known."""
        inode, last = _split(key)
        parts, seen = [last], set[int]()
        while inode != ROOT_INODE:
            place = None if inode in seen else self._names.locate(inode)
            if place is None:
                parts.append(b"(%d)" % inode)
                break
            seen.add(inode)
            inode, name = place
            parts.append(name)
        return b"/".join(reversed(parts)).decode(errors="replace")

    def _is_lost(self, key: bytes) -> bool:
        value = self._store.get(Table.NAMES, key)
        return value is not None and self._store.get(Table.INODES, U64.pack(decode_entry(value).inode)) != key

    def _is_stray(self, key: bytes) -> bool:
        return self._store.get(Table.NAMES, key) is not None and not _exists(self._store, key[:8])

    def _is_dangling(self, inode: bytes) -> bool:
        place = self._store.get(Table.INODES, inode)
        if place is None:
            return False
        value = self._store.get(Table.NAMES, place)
        return value is None or U64.pack(decode_entry(value).inode) != inode

    def _is_unlisted(self, directory: bytes) -> bool:
        return not _exists(self._store, directory) and self._store.get(Table.LISTINGS, directory) is not None

    # -- corrections; False, with nothing done, where the name waits for the store, or the index takes no changes now

    def find_again(self, key: bytes) -> bool:
        """Let the inode number of a name lead back to it; one that is another name's, too, is forgotten with the name."""
        parent, name = _split(key)
        try:
            if not self._is_lost(key):
                return True
            if not self._is_taken(key):
                self._names.relocate(parent, name)
                return True
            if self._names.is_held(parent, name):
                return False
            self._names.listings.forget(parent)
            self._names.drop_double(parent, name)
        except OSError:
            return False
        return True

    def _is_taken(self, key: bytes) -> bool:
        """Whether another name has the inode number of this one, and the number leads there."""
        value = self._store.get(Table.NAMES, key)
        number = U64.pack(decode_entry(value).inode) if value is not None else b""
        return self._store.get(Table.INODES, number) is not None and not self._is_dangling(number)

    def forget(self, key: bytes) -> bool:
        """Forget a name that is in no directory."""
        parent, name = _split(key)
        if self._names.is_held(parent, name):
            return False
        try:
            if self._is_stray(key):
                self._names.erase(parent, name)
        except OSError:
            return False
        return True

    def drop_number(self, inode: bytes) -> bool:
        """Remove an inode number that is no name's."""
        return self._drop(Table.INODES, inode, still=self._is_dangling(inode))

    def drop_listing(self, directory: bytes) -> bool:
        """Remove the listing of a directory that is none."""
        return self._drop(Table.LISTINGS, directory, still=self._is_unlisted(directory))

    def _drop(self, table: Table, key: bytes, *, still: bool) -> bool:
        try:
            if still:
                self._store.delete(table, key)
        except OSError:
            return False
        return True


def _audit(txn: Transaction) -> TreeAudit:
    found = TreeAudit()
    known: tuple[bytes, bool] = (b"", False)
    for key, value in breathing(txn, Table.NAMES):
        entry = decode_entry(value)
        if txn.get(Table.INODES, U64.pack(entry.inode)) != key:
            _note(found.lost, key)
        if key[:8] != known[0]:
            known = key[:8], _exists(txn, key[:8])
        if not known[1]:
            _note(found.stray, key)
    for inode, place in breathing(txn, Table.INODES):
        named = txn.get(Table.NAMES, place)
        if named is None or U64.pack(decode_entry(named).inode) != inode:
            _note(found.dangling, inode)
    for directory, _ in breathing(txn, Table.LISTINGS):
        if not _exists(txn, directory):
            _note(found.unlisted, directory)
    return found


def _split(key: bytes) -> tuple[int, bytes]:
    return U64.unpack(key[:8])[0], key[8:]


def _exists(index: IndexStore | Transaction, directory: bytes) -> bool:
    """Whether a directory is there, or is being removed with all that is below it."""
    if directory == U64.pack(ROOT_INODE) or index.get(Table.REMOVED, directory) is not None:
        return True
    place = index.get(Table.INODES, directory)
    value = index.get(Table.NAMES, place) if place is not None else None
    return value is not None and decode_entry(value).kind is Kind.DIRECTORY


def _note(found: list[bytes], key: bytes) -> None:
    if len(found) < TOLD:
        found.append(key)
