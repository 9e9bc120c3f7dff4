"""A cache in which nothing is stored: it runs eviction policies on traces and counts hits, by bytes."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

import xxhash

from luxfuse.core.eviction import SEGMENTS, Cached, Choice, Order, Policy, Standing
from tests.bench.policy_traces import Trace

NEVER = 1 << 60


class MemoryOrder:
    """The order of cached objects, as the index keeps it on disk."""

    def __init__(self) -> None:
        self.standings: dict[bytes, Standing] = {}
        self._sizes: dict[bytes, int] = {}
        self._ranked: dict[int, list[Cached]] = {segment: [] for segment in SEGMENTS}
        self._bytes = dict.fromkeys(SEGMENTS, 0)

    @property
    def count(self) -> int:
        """See `Order`."""
        return len(self.standings)

    @property
    def total_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._bytes.values())

    def bytes_in(self, segment: int) -> int:
        """See `Order`."""
        return self._bytes[segment]

    def ascending(self, segment: int) -> Iterator[Cached]:
        """See `Order`."""
        return iter(self._ranked[segment])

    def size_of(self, oid: bytes) -> int:
        """Allocated bytes of an object."""
        return self._sizes[oid]

    def place(self, oid: bytes, standing: Standing, size_bytes: int | None = None) -> None:
        """Insert an object, or give it another standing."""
        if oid in self.standings:
            if self.standings[oid] == standing:
                return
            size_bytes = self.remove(oid)
        assert size_bytes is not None
        self.standings[oid], self._sizes[oid] = standing, size_bytes
        insort(self._ranked[standing.segment], Cached(standing.rank, oid, size_bytes))
        self._bytes[standing.segment] += size_bytes

    def remove(self, oid: bytes) -> int:
        """Remove an object; returns its bytes."""
        standing, size_bytes = self.standings.pop(oid), self._sizes.pop(oid)
        ranked = self._ranked[standing.segment]
        del ranked[bisect_left(ranked, (standing.rank, oid))]
        self._bytes[standing.segment] -= size_bytes
        return size_bytes

    def apply(self, choice: Choice) -> int:
        """Do what a policy chose; returns the bytes that were freed."""
        for oid, standing in choice.moves:
            self.place(oid, standing)
        return sum(self.remove(oid) for oid in choice.victims)


class Random:
    """Drops whatever it draws."""

    def __init__(self) -> None:
        self._rng = random.Random(7)
        self._cached: list[bytes] = []

    def on_insert(self, oid: bytes, allocated_bytes: int, order: Order, *, used: bool) -> Standing:
        """See `Policy`."""
        self._cached.append(oid)
        return Standing(SEGMENTS[0], 0)

    def on_use(self, oid: bytes, standing: Standing) -> Standing:
        """See `Policy`."""
        return standing

    def choose(self, order: Order, in_use: Collection[bytes], needed_bytes: int) -> Choice:
        """See `Policy`."""
        assert isinstance(order, MemoryOrder)
        assert not in_use
        victims = []
        while needed_bytes > 0 and self._cached:
            place = self._rng.randrange(len(self._cached))
            self._cached[place], self._cached[-1] = self._cached[-1], self._cached[place]
            victims.append(self._cached.pop())
            needed_bytes -= order.size_of(victims[-1])
        return Choice(victims, [])


def object_ids(trace: Trace) -> list[bytes]:
    """Ids as the index makes them."""
    return [xxhash.xxh3_128_digest(number.to_bytes(8)) for number in range(len(trace.sizes))]


def hit_ratio(policy: Policy | Random, trace: Trace, capacity_bytes: int) -> float:
    """Run a trace; returns the share of the counted bytes that was in the cache.

    As in the cache, room is made for somewhat more than one object at a time: a hundredth of the capacity.
    """
    order = MemoryOrder()
    ids = object_ids(trace)
    counted_bytes = hit_bytes = 0
    for number, counts in zip(trace.reads, trace.counted, strict=True):
        oid, size_bytes = ids[number], trace.sizes[number]
        counted_bytes += counts * size_bytes
        if (standing := order.standings.get(oid)) is not None:
            hit_bytes += counts * size_bytes
            order.place(oid, policy.on_use(oid, standing))
            continue
        if (shortage_bytes := order.total_bytes + size_bytes - capacity_bytes) > 0:
            order.apply(policy.choose(order, (), shortage_bytes + capacity_bytes // 100))
            assert order.total_bytes + size_bytes <= capacity_bytes
        order.place(oid, policy.on_insert(oid, size_bytes, order, used=True), size_bytes)
    return hit_bytes / counted_bytes


def optimal_hit_ratio(trace: Trace, capacity_bytes: int) -> float:
    """What Belady's rule hits: drop what is used the farthest in the future, if need be the object just read.

    The optimum for objects of equal size; for mixed sizes close to it.
    """
    next_use = [NEVER] * len(trace.reads)
    seen: dict[int, int] = {}
    for place in reversed(range(len(trace.reads))):
        next_use[place] = seen.get(trace.reads[place], NEVER)
        seen[trace.reads[place]] = place
    cached: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    used_bytes = counted_bytes = hit_bytes = 0
    for number, counts, following in zip(trace.reads, trace.counted, next_use, strict=True):
        size_bytes = trace.sizes[number]
        counted_bytes += counts * size_bytes
        if number in cached:
            hit_bytes += counts * size_bytes
        else:
            used_bytes += size_bytes
        cached[number] = following
        heapq.heappush(farthest, (-following, number))
        while used_bytes > capacity_bytes:
            use, candidate = heapq.heappop(farthest)
            if cached.get(candidate) == -use:
                del cached[candidate]
                used_bytes -= trace.sizes[candidate]
    return hit_bytes / counted_bytes
