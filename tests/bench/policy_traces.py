"""Traces for `tests.bench.policies`: which object is read next, and how large each is. All from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import xxhash

PAGE = 1 << 20


class Trace(NamedTuple):
    """Object numbers in the order of their reading; those before ``measured_from`` warm the cache up."""

    reads: list[int]
    sizes: list[int]
    measured_from: int


def object_ids(count: int) -> list[bytes]:
    """Ids as the index makes them: 16 bytes of a hash."""
    return [xxhash.xxh3_128_digest(number.to_bytes(8)) for number in range(count)]


def equal_sizes(count: int) -> list[int]:
    return [PAGE] * count


def mixed_sizes(count: int, seed: int) -> list[int]:
    """Log-normal, median 4 pages, mean about 11, at most 200: whole pages."""
    rng = random.Random(seed)
    return [min(200, max(1, round(rng.lognormvariate(1.4, 1.4)))) * PAGE for _ in range(count)]


def epochs(sizes: list[int], count: int, seed: int | None) -> Trace:
    """Every object once an epoch: in an order of its own each, or without a seed in one and the same order.

    Two epochs warm up: in the first all is cold, in the second policies still learn."""
    rng = random.Random(seed)
    order = list(range(len(sizes)))
    reads: list[int] = []
    for _ in range(count):
        if seed is not None:
            rng.shuffle(order)
        reads += order
    return Trace(reads, sizes, len(sizes))


def zipf(sizes: list[int], reads: int, seed: int, exponent: float = 0.9, shifts: int = 0) -> Trace:
    """Independent reads by popularity; ``shifts`` times, evenly spread, popularity is dealt anew."""
    rng = random.Random(seed)
    objects = list(range(len(sizes)))
    weights = list(accumulate((rank + 1) ** -exponent for rank in objects))
    out: list[int] = []
    for part in range(shifts + 1):
        rng.shuffle(objects)
        out += rng.choices(objects, cum_weights=weights, k=reads * (part + 1) // (shifts + 1) - len(out))
    return Trace(out, sizes, len(out) // 5)
