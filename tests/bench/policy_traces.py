"""Traces for `tests.bench.policies`: which object is read next, how large each is, and what counts. All from a seed."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import NamedTuple

PAGE = 1 << 20


class Trace(NamedTuple):
    """Numbers of objects in the order of their reading, and the size of each; 1 for a read that counts, 0 for others."""

    reads: list[int]
    sizes: list[int]
    counted: bytes

    @property
    def total_bytes(self) -> int:
        """The size of all objects."""
        return sum(self.sizes)


def equal_sizes(objects: int) -> list[int]:
    """One page each."""
    return [PAGE] * objects


def mixed_sizes(objects: int, seed: int) -> list[int]:
    """Log-normal with median 4 pages, from 1 to 64 pages: the largest tenth holds nearly half of the bytes."""
    rng = random.Random(seed)
    return [min(64, max(1, round(rng.lognormvariate(1.4, 1.4)))) * PAGE for _ in range(objects)]


def _epochs(objects: int, count: int, rng: random.Random | None) -> list[int]:
    order = list(range(objects))
    reads: list[int] = []
    for _ in range(count):
        if rng is not None:
            rng.shuffle(order)
        reads += order
    return reads


def _flags(uncounted: int, counted: int) -> bytes:
    return bytes(uncounted) + b"\1" * counted


def shuffled(sizes: list[int], epochs: int, seed: int) -> Trace:
    """Each object once an epoch, each time in another order. The first, cold epoch does not count."""
    reads = _epochs(len(sizes), epochs, random.Random(seed))
    return Trace(reads, sizes, _flags(len(sizes), len(reads) - len(sizes)))


def sequential(sizes: list[int], epochs: int) -> Trace:
    """Each object once an epoch, always in the same order. The first, cold epoch does not count."""
    reads = _epochs(len(sizes), epochs, None)
    return Trace(reads, sizes, _flags(len(sizes), len(reads) - len(sizes)))


def another_data_set(objects: int, epochs: int, seed: int) -> Trace:
    """Shuffled epochs of one set, then as many of another of the same size. Of those, the fourth on count."""
    rng = random.Random(seed)
    reads = _epochs(objects, epochs, rng) + [objects + number for number in _epochs(objects, epochs, rng)]
    counted = objects * (epochs - 3)
    return Trace(reads, equal_sizes(2 * objects), _flags(len(reads) - counted, counted))


def zipf(sizes: list[int], reads: int, seed: int, *, exponent: float = 0.9, shifts: int = 0) -> Trace:
    """Independent reads by popularity, which is dealt anew ``shifts`` times. The first fifth does not count."""
    rng = random.Random(seed)
    objects = list(range(len(sizes)))
    weights = list(accumulate((place + 1) ** -exponent for place in objects))
    out: list[int] = []
    for part in range(1, shifts + 2):
        rng.shuffle(objects)
        out += rng.choices(objects, cum_weights=weights, k=reads * part // (shifts + 1) - len(out))
    return Trace(out, sizes, _flags(reads // 5, reads - reads // 5))


def scan(hot: int, scanned: int, seed: int, *, beside: int = 0) -> Trace:
    """A hot set read ten times over at random, then as many other objects as ``scanned`` once each, then the hot set.

    While the scan goes on, one of the hot set is read for every ``beside`` objects of it (0: none). What counts
    are reads of the hot set from the beginning of the scan on, one each at least.
    """
    rng = random.Random(seed)
    reads = rng.choices(range(hot), k=10 * hot)
    counted = bytearray(len(reads))
    for number in range(scanned):
        reads.append(hot + number)
        counted.append(0)
        if beside and number % beside == 0:
            reads.append(rng.randrange(hot))
            counted.append(1)
    reads += rng.sample(range(hot), hot)
    counted += b"\1" * hot
    return Trace(reads, equal_sizes(hot + scanned), bytes(counted))
