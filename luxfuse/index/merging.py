"""The half of `names.Names` that records listings, in transactions of the writer thread (`bulk`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from luxfuse.index import bulk
from luxfuse.index.entries import Changes, Entry, Found
from luxfuse.index.held import HeldNames
from luxfuse.index.numbers import Numbers
from luxfuse.index.purging import Purger
from luxfuse.index.store import IndexStore
from luxfuse.index.told import Told
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Table
from luxfuse.index.uncommitted import Changes as Records
from luxfuse.types import Kind


class ListedNames:
    """Parts of listings, on what the other half has."""

    believe_from_s: float
    keeps_attributes: bool
    told: Told
    purger: Purger
    _store: IndexStore
    _clock: Callable[[], float]
    _held: HeldNames
    _numbers: Numbers
    _changing: Counter[int]
    """How many transactions of the writer thread are about to change names, or do, by directory."""

    def get(self, parent: int, name: bytes) -> Entry | None:
        """Return the entry of a name, fresh or not."""
        raise NotImplementedError

    def _apply(self, records: Records) -> None:
        raise NotImplementedError

    def _retire(self, inode: int, name: bytes) -> None:
        raise NotImplementedError

    def _forget_decoded(self) -> None:
        raise NotImplementedError

    async def merge(
        self,
        directory: int,
        serial: int,
        found: Iterable[Found],
        checked_s: float,
        *,
        last: bool = True,
        came_as: dict[bytes, Kind] | None = None,
    ) -> Changes:
        """Record part of listing ``serial`` that began at ``checked_s``; returns the names that changed.

        What it returns as deferred belongs into the ``last`` call, or into `complete`. ``came_as``: see `bulk.Part`; the
        writer thread changes it before anything that it commits is seen.
        """
        part = self._part(directory, serial, checked_s, last, came_as)

        def merge(txn: Transaction) -> Changes:
            changes = part.merge(txn, found, self._clock())
            txn.put(*self._numbers.record)
            return changes

        return await self._change(directory, merge)

    def _part(
        self, directory: int, serial: int, checked_s: float, last: bool, came_as: dict[bytes, Kind] | None
    ) -> bulk.Part:
        return bulk.Part(
            directory,
            serial,
            checked_s,
            last=last,
            held=self._held,
            new_inode=self._numbers.new,
            believe_from_s=self.believe_from_s,
            by_time=self.keeps_attributes,
            came_as=came_as,
        )

    async def complete(
        self,
        directory: int,
        serial: int,
        fetched_s: float,
        found: Sequence[Found] = (),
        *,
        fresh: bool | None = None,
        came_as: dict[bytes, Kind] | None = None,
    ) -> Changes:
        """Record the last part of listing ``serial``, and end it, in one transaction.

        The names that it did not have are forgotten, unless looked up or changed since it began. ``fresh``: whether its
        first part, if that was recorded before, said that the directory was empty. ``came_as``: as in `merge`.
        """
        part = self._part(directory, serial, fetched_s, True, came_as)

        def complete(txn: Transaction) -> Changes:
            changes, fresh_now = Changes(), fresh
            if found:
                changes = part.merge(txn, found, self._clock())
                txn.put(*self._numbers.record)
                fresh_now = changes.was_empty if fresh is None else fresh
            ended = bulk.complete(txn, directory, serial, fetched_s, self._held, self._clock(), fresh=bool(fresh_now))
            changes.names += ended.names
            changes.retired += ended.retired
            changes.orphans |= ended.orphans
            return changes

        return await self._change(directory, complete)

    def is_changing(self, directory: int) -> bool:
        """Whether the writer thread may change names of a directory now: then nothing of it is to be told."""
        return directory in self._changing or self.purger.running

    async def _change(self, directory: int, function: Callable[[Transaction], Changes]) -> Changes:
        """Let the writer thread change names of a directory, then bring what the loop knows in line with it.

        The loop sees the changes before it hears of them: what others would answer ends before, and begins after.
        """
        self._changing[directory] += 1
        self.told.revoke_below(directory)
        try:
            changes = await self._store.run(function)
        finally:
            self._changing[directory] -= 1
            if not self._changing[directory]:
                del self._changing[directory]
            self._forget_decoded()
        records: Records = {}
        self._numbers.note_highest(records)  # a lookup meanwhile may have noted a lower one
        self._drop_unused(records, directory, changes)
        self._apply(records)
        return changes

    def _drop_unused(self, records: Records, directory: int, changes: Changes) -> None:
        """Take note of the numbers that went; where the loop changed a name meanwhile, its number stays instead."""
        kept = {key for key in self._store.uncommitted_keys(Table.INODES, b"") if self._store.get(Table.INODES, key)}
        for inode, name in changes.retired:
            if U64.pack(inode) not in kept:
                self._retire(inode, name)
        changed = set(self._store.uncommitted_keys(Table.NAMES, U64.pack(directory)))
        for number, key in changes.given if changed else ():
            if key in changed:
                entry = self.get(directory, key[8:])
                if entry is None or U64.pack(entry.inode) != number:
                    records[Table.INODES, number] = None
                    self._retire(U64.unpack(number)[0], key[8:])
        changes.retired, changes.given = [], []
        if changes.orphans:
            self.purger.wake()
