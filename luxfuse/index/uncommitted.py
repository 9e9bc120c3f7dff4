"""Changes of the index that are not committed yet, with the names among them in order."""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from enum import IntEnum
from heapq import merge
from itertools import groupby

U64 = struct.Struct(">Q")


class Table(IntEnum):
    """The named databases.

    Keys and values are described in `names`, `listings`, `purging`, `object_records` and `pages`.
    """

    META = 0
    INODES = 1
    NAMES = 2
    LISTINGS = 3
    OBJECTS = 4
    CHUNKS = 5
    STANDINGS = 6
    REMOVED = 7


Changes = dict[tuple[Table, bytes], bytes | None]


class Uncommitted:
    """Records by table and key, None for those to be removed."""

    def __init__(self) -> None:
        self.records: Changes = {}
        self._names: dict[bytes, list[bytes]] = {}
        """The keys of NAMES among them, by directory (their first eight bytes), each in order."""

    def update(self, changes: Changes) -> None:
        """Make changes; later ones of the same key count."""
        for changed in changes:
            table, key = changed
            if table is Table.NAMES and changed not in self.records:
                insort(self._names.setdefault(key[:8], []), key)
        self.records.update(changes)

    def has_names(self, directory: bytes) -> bool:
        """Whether any name of a directory is changed."""
        return directory in self._names

    def names_from(self, start: bytes) -> Iterator[bytes]:
        """Yield the changed keys of NAMES of one directory, from ``start`` on; nothing may change meanwhile."""
        keys = self._names.get(start[:8], [])
        for number in range(bisect_left(keys, start), len(keys)):
            yield keys[number]


def overlaid(
    stored: Iterator[tuple[bytes, bytes]], layers: Sequence[Uncommitted], start: bytes
) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield NAMES of one directory in order, from ``start`` on: the ``stored`` records, with the changes of ``layers``.

    None as the value: it is removed. The first layer that has a key counts.
    """
    changed = groupby(merge(*(layer.names_from(start) for layer in layers)))
    key, _ = next(changed, (None, None))
    for stored_key, value in stored:
        while key is not None and key < stored_key:
            yield key, _newest(layers, key)
            key, _ = next(changed, (None, None))
        if key == stored_key:
            yield stored_key, _newest(layers, stored_key)
            key, _ = next(changed, (None, None))
        else:
            yield stored_key, value
    while key is not None:
        yield key, _newest(layers, key)
        key, _ = next(changed, (None, None))


def _newest(layers: Sequence[Uncommitted], key: bytes) -> bytes | None:
    changed = (Table.NAMES, key)
    return next(layer.records[changed] for layer in layers if changed in layer.records)
