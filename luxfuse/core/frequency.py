"""How often objects were used lately, approximately and in little memory.

A count-min sketch (Cormode and Muthukrishnan, 2005) of 4-bit counters with conservative update: each of `ROWS` rows
has one counter for an object, the least of them is its estimate, and only those that equal the least are raised. So an
estimate is never too low, and too high only where all rows collide. After a number of
uses all counters are halved, so that what was popular once is forgotten (Einziger, Friedman and Manes, TinyLFU, 2017).

An entry costs `BYTES_PER_ENTRY`; as the number of entries is a power of two, an object costs at most twice that. A use
costs `ROWS` look-ups. Halving 16 MiB at once would take some 50 ms; so a hand goes over the table, `SWEEP_BYTES` with each
use, and what is ahead of it is read as if it had been halved. Growing copies the table, as often as the objects double.
"""

from __future__ import annotations

import struct

ROWS = 4
COUNTERS_PER_ENTRY = 8
"""In each row. The ids in question are those of the working set, of which the cache may hold a tenth only."""
BYTES_PER_ENTRY = ROWS * COUNTERS_PER_ENTRY // 2
MIN_ENTRIES = 1 << 9
MAX_ENTRIES = 1 << 20
"""16 MiB. With more objects than that, estimates get coarser: with four times as many, epochs still hit 0.97 f."""
MAX_COUNT = 15
MIN_SAMPLE = 100
SWEEP_BYTES = 4096

_HALVED = bytes((byte >> 1) & 0x77 for byte in range(256))
_HEADER = struct.Struct(">BBBxIIQ")
_VERSION = 1


class FrequencySketch:
    """Estimates, between 0 and `MAX_COUNT`, how often an id was added lately.

    Ids are 16 bytes and uniformly distributed (they are hashes): each row uses 4 of them.
    """

    __slots__ = ("_additions", "_mask", "_sample", "_swept", "_table", "entries")

    def __init__(self, entries: int = MIN_ENTRIES) -> None:
        self.entries = MIN_ENTRIES
        while self.entries < min(entries, MAX_ENTRIES):
            self.entries *= 2
        self._table = bytearray(self.entries * BYTES_PER_ENTRY)
        self._mask = self.entries * COUNTERS_PER_ENTRY - 1
        self._swept = len(self._table)
        """The hand: counters in bytes from here on are still to be halved."""
        self._additions = 0
        self._sample = MIN_SAMPLE

    def fit(self, objects: int, sample: int) -> None:
        """Adjust to a cache of ``objects`` objects, by growing if need be, and halve after ``sample`` uses from now on.

        A counter's position is its hash modulo the row's length; so a row that is appended to itself has, for each id,
        the old value at the new place.
        """
        self._sample = max(sample, MIN_SAMPLE)
        if self.entries >= min(objects, MAX_ENTRIES):
            return
        self._sweep(len(self._table))
        while self.entries < min(objects, MAX_ENTRIES):
            row = len(self._table) // ROWS
            self._table = bytearray().join(2 * self._table[start : start + row] for start in range(0, ROWS * row, row))
            self.entries *= 2
        self._mask = self.entries * COUNTERS_PER_ENTRY - 1
        self._swept = len(self._table)

    def add(self, oid: bytes) -> None:
        """Count one use."""
        places = self._places(oid)
        counts = [self._count(place) for place in places]
        least = min(counts)
        if least < MAX_COUNT:
            for place, count in zip(places, counts, strict=True):
                if count == least:
                    self._raise(place)
        self._additions += 1
        if self._swept < len(self._table):
            self._sweep(SWEEP_BYTES)
        elif self._additions >= self._sample:
            self._swept = 0
            self._additions //= 2

    def estimate(self, oid: bytes) -> int:
        """Return about how often the id was added lately."""
        return min(map(self._count, self._places(oid)))

    def _count(self, place: int) -> int:
        count = (self._table[place >> 1] >> ((place & 1) << 2)) & MAX_COUNT
        return count if place >> 1 < self._swept else count >> 1

    def _raise(self, place: int) -> None:
        """Count one, or two if half of it is going to be taken away; up to the most that fits."""
        shift = (place & 1) << 2
        count = (self._table[place >> 1] >> shift) & MAX_COUNT
        step = 1 if place >> 1 < self._swept else 2
        self._table[place >> 1] += min(step, MAX_COUNT - count) << shift

    def _places(self, oid: bytes) -> tuple[int, int, int, int]:
        mask = self._mask
        width = mask + 1
        bits = int.from_bytes(oid)
        return (
            bits & mask,
            (bits >> 32 & mask) + width,
            (bits >> 64 & mask) + 2 * width,
            (bits >> 96 & mask) + 3 * width,
        )

    def _sweep(self, size_bytes: int) -> None:
        end = min(len(self._table), self._swept + size_bytes)
        self._table[self._swept : end] = self._table[self._swept : end].translate(_HALVED)
        self._swept = end

    def state(self) -> bytes:
        """Return what `load` takes."""
        header = _HEADER.pack(_VERSION, ROWS, COUNTERS_PER_ENTRY, self.entries, self._swept, self._additions)
        return header + self._table

    @classmethod
    def load(cls, state: bytes) -> FrequencySketch | None:
        """Return the sketch that gave ``state``; None if that is of another version or damaged."""
        if len(state) < _HEADER.size:
            return None
        version, rows, counters, entries, swept, additions = _HEADER.unpack_from(state)
        sketch = cls(entries)
        table = state[_HEADER.size :]
        if (version, rows, counters, entries, len(table)) != (
            _VERSION, ROWS, COUNTERS_PER_ENTRY, sketch.entries, len(sketch._table),
        ):  # fmt: skip
            return None
        sketch._table = bytearray(table)
        sketch._swept = min(swept, len(table))
        sketch._additions = additions
        return sketch
