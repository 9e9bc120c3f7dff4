"""Inode numbers: none is given twice, and the names of those that are no longer in use are remembered for a while."""

from __future__ import annotations

import itertools
import threading

from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import U64, Changes, Table

FIRST_INODE = 16
ANEW_SHIFT = 32
"""Far more than one index gives, and below the 40 bits of a volume's numbers (`vfs.shares`)."""
FORMER_KEPT = 100_000
"""Numbers no longer in use whose names are remembered, for readers of directories that stand at them."""


def begin_anew(store: IndexStore, times: int) -> None:
    """An index begins anew under a kernel that knows numbers of the one before: give none of these again.

    ``times``: how often that has happened to the mount.
    """
    store.put(Table.META, b"next_inode", U64.pack((times << ANEW_SHIFT) + FIRST_INODE))


class Numbers:
    """The inode numbers of one mount. META ``next_inode`` -> the lowest that was never given (8 bytes)."""

    def __init__(self, store: IndexStore) -> None:
        self._lock = threading.Lock()
        stored = store.get(Table.META, b"next_inode")
        first = U64.unpack(stored)[0] if stored else FIRST_INODE
        self._next = itertools.count(first)
        self._highest = first - 1
        self._former: dict[int, bytes] = {}
        self._instead: dict[int, int] = {}
        """By number that was replaced, though what had it is the same: the number given instead."""

    def new(self) -> int:
        """Return a number that was never given."""
        with self._lock:  # the loop and the writer thread both take numbers
            self._highest = next(self._next)
            return self._highest

    @property
    def next(self) -> int:
        """The lowest number that was never given."""
        return self._highest + 1

    @property
    def record(self) -> tuple[Table, bytes, bytes]:
        """Table, key and value of the record of which numbers were given."""
        return Table.META, b"next_inode", U64.pack(self._highest + 1)

    def note_highest(self, changes: Changes) -> None:
        """Add that record to changes of the index."""
        changes[Table.META, b"next_inode"] = U64.pack(self._highest + 1)

    def former_name(self, inode: int) -> bytes | None:
        """Return the name that a number no longer in use had, if that is remembered."""
        return self._former.get(inode)

    def replace(self, inode: int, number: int) -> None:
        """What had the first number has the second one now, and is the same in all else."""
        self._instead[inode] = number
        if len(self._instead) > FORMER_KEPT:
            del self._instead[next(iter(self._instead))]

    def now(self, inode: int) -> int:
        """Return the number of what had this one, which is another one where that was replaced in this run."""
        while inode in self._instead:
            inode = self._instead[inode]
        return inode

    def retire(self, inode: int, name: bytes) -> None:
        """A number is no longer in use: remember the name that it had."""
        self._former[inode] = name
        if len(self._former) > FORMER_KEPT:
            del self._former[next(iter(self._former))]
