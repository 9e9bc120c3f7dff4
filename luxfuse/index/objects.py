"""The cache objects of all cache directories: their records, pages and standings, and how many bytes they come to."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from types import MappingProxyType

import msgspec

from luxfuse.core.eviction import SEGMENTS, Cached
from luxfuse.core.spans import page_count
from luxfuse.index.object_records import (
    ALL_SEGMENTS,
    DIRECTORIES,
    TOTALS,
    ObjectRecord,
    decode_record,
    encode_record,
    standing_key,
    totals_key,
)
from luxfuse.index.pages import CHUNK_PAGES, RANGE_BYTES, Pages, chunk_key, ranges_of_chunk, whole_ranges
from luxfuse.index.store import IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Changes, Table

log = logging.getLogger(__name__)

SCAN_FIRST, SCAN_BATCH = 32, 256
"""Standings that are read at once: eviction looks at few of them, as a rule."""
ABSENT_KEPT = 8192
CLEAR_BATCH = 2_000


class Objects:
    """The cache objects of all cache directories."""

    def __init__(self, store: IndexStore) -> None:
        self._store = store
        self._totals: dict[tuple[int, int], tuple[int, int]] = {}
        """Bytes and number of objects by directory and segment."""
        for directory in range(DIRECTORIES):
            for segment in ALL_SEGMENTS:
                if (stored := store.get(Table.META, totals_key(directory, segment))) is not None:
                    self._totals[directory, segment] = TOTALS.unpack(stored)
        self.on_change: list[Callable[[bytes, ObjectRecord, int], None]] = []
        """Told of each record that comes (1) or goes (-1), where somebody counts more than `totals` does."""
        self.on_held: list[Callable[[bytes, int, bool], None]] = []
        """Told of each range of `RANGE_PAGES` (its object, its number) that is all there from now on, or no more."""
        self._absent: set[bytes] = set()
        """Objects that were looked for lately, and are not recorded: reading LMDB passes the interpreter lock on."""
        self.refused = 0
        """Changes that were lost because the index took none."""

    @property
    def used_bytes(self) -> int:
        """Bytes that all files take."""
        return sum(used for used, _ in self._totals.values())

    @property
    def count(self) -> int:
        """Number of objects."""
        return sum(count for _, count in self._totals.values())

    def totals(self, directory: int, segment: int) -> tuple[int, int]:
        """Return bytes and number of the objects of one segment."""
        return self._totals.get((directory, segment), (0, 0))

    def used_bytes_in(self, directory: int) -> int:
        """Return the bytes that the files of a cache directory take."""
        return sum(self.totals(directory, segment)[0] for segment in ALL_SEGMENTS)

    def load(self, oid: bytes) -> tuple[ObjectRecord, Pages] | None:
        """Return the record and pages of an object; None if it is not cached."""
        record = self.record(oid)
        if record is None:
            return None
        pages = Pages(record.size)
        for number in range(-(-pages.total // CHUNK_PAGES)):
            if (chunk := self._store.get(Table.CHUNKS, chunk_key(oid, number))) is not None:
                pages.load(number, chunk)
        return record, pages

    def _recorded(self, oid: bytes) -> bytes | None:
        """Return the record of an object as it is stored."""
        if oid in self._absent:
            return None
        value = self._store.get(Table.OBJECTS, oid)
        if value is None:
            if len(self._absent) >= ABSENT_KEPT:
                self._absent.clear()
            self._absent.add(oid)
        return value

    async def flush(self) -> None:
        """Commit changes: they survive, and `scan` finds them. While the index cannot be written, they wait."""
        with contextlib.suppress(OSError):
            await self._store.flush()

    def scan(self, after: bytes, limit: int) -> list[tuple[bytes, ObjectRecord]]:
        """Return up to ``limit`` objects with the ids after ``after``, as they are recorded now."""
        start = after + b"\0" if after else b""
        return [(oid, decode_record(value)) for oid, value in self._store.current_items(Table.OBJECTS, start, b"", limit)]

    async def expect(self, oids: Iterable[bytes]) -> None:
        """Prepare for these objects to be loaded soon, and saved for the first time."""
        await self._store.warm(Table.OBJECTS, oids)

    @property
    def refusing(self) -> bool:
        """Whether the index takes no changes now."""
        return self._store.refusing

    @property
    def closed(self) -> bool:
        """Whether the index is closed."""
        return self._store.closed

    def save(self, oid: bytes, record: ObjectRecord, pages: Pages | None = None, changed: range | None = None) -> bool:
        """Store a record, and the chunks that hold the ``changed`` pages: all of it, or nothing and False."""
        before = self.record(oid)
        changes: Changes = {}
        if before is not None:
            changes[Table.STANDINGS, standing_key(before, oid)] = None
        changes[Table.OBJECTS, oid] = encode_record(record)
        changes[Table.STANDINGS, standing_key(record, oid)] = U64.pack(record.allocated_bytes)
        if pages is not None and changed is not None and len(changed):
            for number in range(changed.start // CHUNK_PAGES, (changed.stop - 1) // CHUNK_PAGES + 1):
                changes[Table.CHUNKS, chunk_key(oid, number)] = pages.chunk(number)
        deltas = [(record, 1)] if before is None else [(before, -1), (record, 1)]
        if before is not None and _counted_alike(before, record):
            deltas = []
        held = self._transitions(oid, before, record, changes) if self.on_held and pages is not None else ()
        return self._change(oid, changes, deltas, held)

    def save_new(self, objects: Sequence[tuple[bytes, ObjectRecord, Pages]]) -> bool:
        """Store whole objects of one range each, of which none is stored as a rule; False: not all of them are now."""
        absent = self._absent
        known = [each for each in objects if each[0] not in absent and self._recorded(each[0]) is not None]
        refused = [oid for oid, record, pages in known if not self.save(oid, record, pages, range(pages.total))]
        new = [each for each in objects if each not in known] if known else objects
        changes: Changes = {}
        totals: dict[tuple[int, int], tuple[int, int]] = {}
        for oid, record, pages in new:
            changes[Table.OBJECTS, oid] = encode_record(record)
            changes[Table.STANDINGS, standing_key(record, oid)] = U64.pack(record.allocated_bytes)
            changes[Table.CHUNKS, chunk_key(oid, 0)] = pages.chunk(0)
            where = record.directory, record.segment
            used, count = totals.get(where) or self._totals.get(where, (0, 0))
            totals[where] = used + record.allocated_bytes, count + 1
        if not self._apply(changes, totals):
            return False
        absent.difference_update([oid for oid, _, _ in new])
        if self.on_change or self.on_held:
            for oid, record, _ in new:
                self._tell(oid, [(record, 1)], [(0, True)])
        return not refused

    def save_all(self, records: Iterable[tuple[bytes, ObjectRecord]]) -> None:
        """Store the records of different objects, whose pages stay as they are, as one change."""
        changes: Changes = {}
        changed: dict[bytes, list[tuple[ObjectRecord, int]]] = {}
        for oid, record in records:
            before = self.record(oid)
            if before is not None:
                changes[Table.STANDINGS, standing_key(before, oid)] = None
            changes[Table.OBJECTS, oid] = encode_record(record)
            changes[Table.STANDINGS, standing_key(record, oid)] = U64.pack(record.allocated_bytes)
            if before is None:
                changed[oid] = [(record, 1)]
            else:
                changed[oid] = [] if _counted_alike(before, record) else [(before, -1), (record, 1)]
        self._change_all(changes, changed)

    def drop(self, oid: bytes) -> int | None:
        """Forget an object; returns the bytes that its file takes, None if the index takes no changes now."""
        return self._drop_all({oid: record} if (record := self.record(oid)) is not None else {})

    def drop_in(self, directory: int, oids: Iterable[bytes]) -> tuple[set[bytes], int]:
        """Forget objects, as one change, but for those that have their files in another directory.

        Returns these, and the bytes that the files of the others take; 0 if the index takes no changes now.
        """
        records = {oid: record for oid in oids if (record := self.record(oid)) is not None}
        elsewhere = {oid for oid, record in records.items() if record.directory != directory}
        freed_bytes = self._drop_all({oid: record for oid, record in records.items() if oid not in elsewhere})
        return elsewhere, freed_bytes or 0

    def _drop_all(self, records: Mapping[bytes, ObjectRecord]) -> int | None:
        changes: Changes = {}
        held = {}
        for oid, record in records.items():
            changes[Table.OBJECTS, oid] = None
            changes[Table.STANDINGS, standing_key(record, oid)] = None
            if self.on_held:
                held[oid] = [(number, False) for number in self.ranges(oid, record)]
            for number in range(-(-page_count(record.size) // CHUNK_PAGES)):
                changes[Table.CHUNKS, chunk_key(oid, number)] = None
        gone = {oid: [(record, -1)] for oid, record in records.items()}
        return sum(record.allocated_bytes for record in records.values()) if self._change_all(changes, gone, held) else None

    def ranges(self, oid: bytes, record: ObjectRecord) -> Iterable[int]:
        """Return the numbers of an object's ranges that are all there, ascending."""
        return whole_ranges(record, lambda number: self._store.get(Table.CHUNKS, chunk_key(oid, number)))

    def _transitions(
        self, oid: bytes, before: ObjectRecord | None, record: ObjectRecord, changes: Changes
    ) -> list[tuple[int, bool]]:
        """Return the ranges that are all there after these changes, or no more, and which of it.

        Of an object with one range the records say it; of others, the chunks that change are compared with what they were.
        """
        whole = before is not None and before.whole
        if whole and record.whole:
            return []
        if record.size <= RANGE_BYTES:
            return [(0, record.whole)] if whole != record.whole and record.size else []
        found = []
        for (table, key), chunk in changes.items():
            if table is Table.CHUNKS and chunk is not None:
                number = int.from_bytes(key[16:], "big")
                old = None if before is None else self._store.get(table, key)
                was = ranges_of_chunk(record.size, number, old)
                found += [
                    (rng, held) for rng, held in ranges_of_chunk(record.size, number, chunk).items() if held != was[rng]
                ]
        return found

    def known(self, oid: bytes) -> bool:
        """Whether the object is recorded."""
        return self._recorded(oid) is not None

    def record(self, oid: bytes) -> ObjectRecord | None:
        """Return the record of an object; None if it is not cached."""
        value = self._recorded(oid)
        try:
            return None if value is None else decode_record(value)
        except msgspec.DecodeError as exc:
            self._store.doubt(exc)
            return None

    def directory_of(self, oid: bytes) -> int | None:
        """Return the number of the directory that has an object's file; None if the object is not cached."""
        record = self.record(oid)
        return None if record is None else record.directory

    async def commit(self) -> None:
        """Commit changes, so that `ordered` gives them in order. Raises OSError."""
        await self._store.flush()

    def ordered(self, directory: int, segment: int) -> Iterator[Cached]:
        """Give the objects of a segment from the lowest rank on, without those dropped meanwhile; `commit` before."""
        prefix = bytes((directory, segment))
        start, batch = prefix, SCAN_FIRST
        while items := self._store.current_items(Table.STANDINGS, start, prefix, batch):
            for key, value in items:
                yield Cached(U64.unpack_from(key, 2)[0], key[10:], U64.unpack(value)[0])
            start, batch = items[-1][0] + b"\0", min(SCAN_BATCH, 2 * batch)

    def highest_rank(self, directory: int) -> int:
        """Return the highest rank of a directory's objects; 0 if there are none. Nothing may be uncommitted."""
        keys = [self._store.last_committed_key(Table.STANDINGS, bytes((directory, segment))) for segment in SEGMENTS]
        return max((U64.unpack_from(key, 2)[0] for key in keys if key is not None), default=0)

    def correct_totals(self, differences: Mapping[tuple[int, int], tuple[int, int]]) -> bool:
        """Add bytes and objects to the totals of directories and segments; False if the index takes no changes now."""
        totals = {}
        for where, (used, count) in differences.items():
            counted_used, counted = self.totals(*where)
            totals[where] = max(0, counted_used + used), max(0, counted + count)
        return self._apply({}, totals)

    def marks(self) -> bytes:
        """Return what `keep_marks` kept; empty if nothing."""
        return self._store.get(Table.META, b"marks") or b""

    async def keep_marks(self, marks: bytes) -> None:
        """Keep what operators asked for, durably enough for a crash of the daemon. Raises OSError."""
        self._store.put(Table.META, b"marks", marks)
        await self._store.flush()

    def replica_rules(self) -> bytes:
        """Return what `keep_replica_rules` kept; empty if nothing."""
        return self._store.get(Table.META, b"replica_rules") or b""

    async def keep_replica_rules(self, rules: bytes) -> None:
        """Keep how many nodes are to hold what, as `keep_marks` does. Raises OSError."""
        self._store.put(Table.META, b"replica_rules", rules)
        await self._store.flush()

    def policy_state(self, directory: int) -> bytes:
        """Return what `keep_policy_state` kept last; empty if nothing."""
        return self._store.get(Table.META, _policy_key(directory)) or b""

    def keep_policy_state(self, directory: int, state: bytes) -> None:
        """Keep the state of the eviction policy of a directory."""
        try:
            self._store.put(Table.META, _policy_key(directory), state)
        except OSError as exc:
            log.info("the state of the eviction policy is not kept: %s", exc)

    async def clear(self, directory: int) -> None:
        """Forget every object of a directory, because it is another one now, or was emptied."""
        prefix = bytes((directory,))
        told = bool(self.on_change or self.on_held)

        def forget(txn: Transaction) -> tuple[int, list[tuple[bytes, ObjectRecord, list[int]]]]:
            records = []
            gone = list(islice(txn.items(Table.STANDINGS, prefix, prefix), CLEAR_BATCH))
            for key, _ in gone:
                oid = key[10:]
                value = txn.get(Table.OBJECTS, oid)
                if value is not None:
                    record = decode_record(value)
                    if told:
                        records.append((oid, record, list(whole_ranges(record, partial(_stored_chunk, txn, oid)))))
                    for number in range(-(-page_count(record.size) // CHUNK_PAGES)):
                        txn.delete(Table.CHUNKS, chunk_key(oid, number))
                    txn.delete(Table.OBJECTS, oid)
                txn.delete(Table.STANDINGS, key)
            return len(gone), records

        more = 1
        while more:
            more, records = await self._store.run(forget)
            self._store.cool()
            for oid, record, ranges in records:
                self._tell(oid, [(record, -1)], [(number, False) for number in ranges])
        for segment in ALL_SEGMENTS:
            self._totals.pop((directory, segment), None)
            self._store.delete(Table.META, totals_key(directory, segment))

    def _change(
        self,
        oid: bytes,
        changes: Changes,
        deltas: Sequence[tuple[ObjectRecord, int]],
        held: Sequence[tuple[int, bool]],
    ) -> bool:
        """Make ``changes`` and count them, records that come (1) and go (-1); False if the index takes none.

        What it describes is only a cache.
        """
        return self._change_all(changes, {oid: deltas}, {oid: held} if held else {})

    def _change_all(
        self,
        changes: Changes,
        deltas: Mapping[bytes, Sequence[tuple[ObjectRecord, int]]],
        held: Mapping[bytes, Sequence[tuple[int, bool]]] = MappingProxyType({}),
    ) -> bool:
        """As `_change`, of many objects."""
        if not changes:
            return True
        if not self._apply(changes, self._totals_after(chain.from_iterable(deltas.values()))):
            return False
        self._absent.difference_update(deltas)
        if self.on_change or held:
            for oid, each in deltas.items():
                self._tell(oid, each, held.get(oid, ()))
        return True

    def _totals_after(self, deltas: Iterable[tuple[ObjectRecord, int]]) -> dict[tuple[int, int], tuple[int, int]]:
        """Return the totals that change when records come (1) and go (-1)."""
        totals: dict[tuple[int, int], tuple[int, int]] = {}
        for record, sign in deltas:
            where = record.directory, record.segment
            used, count = totals.get(where) or self._totals.get(where, (0, 0))
            totals[where] = max(0, used + sign * record.allocated_bytes), max(0, count + sign)
        return totals

    def _tell(self, oid: bytes, deltas: Sequence[tuple[ObjectRecord, int]], held: Sequence[tuple[int, bool]]) -> None:
        for listener in self.on_change:
            for record, sign in deltas:
                listener(oid, record, sign)
        for told in self.on_held:
            for number, is_held in held:
                told(oid, number, is_held)

    def _apply(self, changes: Changes, totals: Mapping[tuple[int, int], tuple[int, int]]) -> bool:
        for where, total in totals.items():
            if total != self._totals.get(where, (0, 0)):
                changes[Table.META, totals_key(*where)] = TOTALS.pack(*total)
        try:
            self._store.apply(changes)
        except OSError as exc:
            if not self.refused:
                log.warning("what changes in the cache is not recorded: %s", exc)
            self.refused += 1
            return False
        self._totals.update(totals)
        return True


def _counted_alike(before: ObjectRecord, record: ObjectRecord) -> bool:
    """Whether a record counts as it did before, and only says something else of the object."""
    return (before.allocated_bytes, before.directory, before.segment) == (
        record.allocated_bytes, record.directory, record.segment,
    )  # fmt: skip


def _policy_key(directory: int) -> bytes:
    return b"policy" + bytes((directory,))


def _stored_chunk(txn: Transaction, oid: bytes, number: int) -> bytes | None:
    return txn.get(Table.CHUNKS, chunk_key(oid, number))
