"""The sums of a node's entries, as they are stored: in groups, changed in one transaction with the entries."""

from __future__ import annotations

import struct
from typing import Any

import xxhash

from luxfuse.core.holdings import BUCKETS, BucketSums, bucket_of

_GROUP = 128
_GROUP_SUMS = struct.Struct(f"<{_GROUP}Q")


def new_sums(encoded: bytes | None = None) -> BucketSums:
    """Return sums with the hash that all nodes use."""
    return BucketSums(xxhash.xxh3_64_intdigest, encoded)


def stored_sums(txn: Any, table: Any, number: int) -> BucketSums:
    """Return the sums of a node's entries."""
    groups = [txn.get(_sums_key(number, group), db=table) for group in range(BUCKETS // _GROUP)]
    return new_sums(b"".join(stored or bytes(8 * _GROUP) for stored in groups))


def forget_sums(txn: Any, table: Any, number: int) -> None:
    """Remove what is stored of a node."""
    for group in range(BUCKETS // _GROUP):
        txn.delete(_sums_key(number, group), db=table)


class SumsChange:
    """The sums of a node in one transaction."""

    def __init__(self, txn: Any, table: Any, number: int) -> None:
        self._txn = txn
        self._table = table
        self._number = number
        self.toggled = 0
        """The value to add to the sum over all buckets."""
        self._groups: dict[int, list[int]] = {}

    def toggle(self, entry: bytes) -> None:
        """Add an entry, or take it out."""
        group, place = divmod(bucket_of(entry), _GROUP)
        sums = self._groups.get(group)
        if sums is None:
            stored = self._txn.get(_sums_key(self._number, group), db=self._table)
            sums = self._groups[group] = list(_GROUP_SUMS.unpack(stored or bytes(8 * _GROUP)))
        value = xxhash.xxh3_64_intdigest(entry)
        sums[place] ^= value
        self.toggled ^= value

    def store(self) -> None:
        """Write what has changed."""
        for group, sums in self._groups.items():
            self._txn.put(_sums_key(self._number, group), _GROUP_SUMS.pack(*sums), db=self._table)


def _sums_key(number: int, group: int) -> bytes:
    return number.to_bytes(2, "big") + bytes((group,))
