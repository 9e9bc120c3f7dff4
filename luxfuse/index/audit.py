"""The index against itself: the records of objects, and the standings and totals that are kept beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from luxfuse.index.object_records import TOTALS, decode_record, standing_key, totals_key
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Table

TOLD = 10_000
"""Records of each kind that one audit tells of by name."""
BREATH_RECORDS = 256
BREATH_S = 0.0005
"""After so many records the thread rests, so that the event loop gets the interpreter lock."""


@dataclass(slots=True)
class Audit:
    """The mistakes that were found. ``totals``: by directory and segment, bytes and objects to add to what is counted."""

    totals: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    unranked: list[bytes] = field(default_factory=list)
    """Objects whose standing is missing or counts other bytes: eviction does not see them as they are."""
    dangling: list[bytes] = field(default_factory=list)
    """Keys of standings that are no object's."""


class Auditor:
    """Compares, and corrects."""

    def __init__(self, store: IndexStore, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def run(self) -> Audit:
        """Compare all that is committed, as it is at one instant."""
        await self._objects.flush()
        return await self._store.view(_audit)

    def correct_totals(self, found: Audit) -> bool:
        """Set the totals right; what changed since the audit counts. False if the index takes no changes now."""
        return self._objects.correct_totals(found.totals)

    def correct_standing(self, oid: bytes) -> bool:
        """Give an object the standing that its record tells of. False if the index takes no changes now."""
        record = self._objects.record(oid)
        return record is None or self._objects.save(oid, record)

    def drop_standing(self, key: bytes) -> bool:
        """Remove a standing unless it is an object's by now. False if the index takes no changes now."""
        oid = key[10:]
        record = self._objects.record(oid)
        if record is None or standing_key(record, oid) != key:
            try:
                self._store.delete(Table.STANDINGS, key)
            except OSError:
                return False
        return True


def _audit(txn: Transaction) -> Audit:
    found = Audit()
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    ranked = 0
    for oid, value in breathing(txn, Table.OBJECTS):
        record = decode_record(value)
        where = record.directory, record.segment
        used, count = sums.get(where, (0, 0))
        sums[where] = used + record.allocated_bytes, count + 1
        standing = txn.get(Table.STANDINGS, standing_key(record, oid))
        ranked += standing is not None
        if standing != U64.pack(record.allocated_bytes) and len(found.unranked) < TOLD:
            found.unranked.append(oid)
    found.totals = _differences(txn, sums)
    if txn.count(Table.STANDINGS) != ranked:
        found.dangling = _dangling(txn)
    return found


def _differences(txn: Transaction, sums: dict[tuple[int, int], tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    prefix = totals_key(0, 0)[:-2]
    counted = {(key[-2], key[-1]): TOTALS.unpack(value) for key, value in txn.items(Table.META, prefix, prefix)}
    wrong = {}
    for where in sums.keys() | counted.keys():
        used, count = sums.get(where, (0, 0))
        counted_used, counted_count = counted.get(where, (0, 0))
        if (used, count) != (counted_used, counted_count):
            wrong[where] = used - counted_used, count - counted_count
    return wrong


def _dangling(txn: Transaction) -> list[bytes]:
    dangling: list[bytes] = []
    for key, _ in breathing(txn, Table.STANDINGS):
        oid = key[10:]
        value = txn.get(Table.OBJECTS, oid)
        if value is None or standing_key(decode_record(value), oid) != key:
            dangling.append(key)
            if len(dangling) >= TOLD:
                break
    return dangling


def breathing(txn: Transaction, table: Table) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of a whole table in key order, and rest now and then. Waits: for a thread."""
    for number, item in enumerate(txn.items(table, b"")):
        if number % BREATH_RECORDS == BREATH_RECORDS - 1:
            time.sleep(BREATH_S)
        yield item
