"""Which cached objects make room: the interface of eviction policies, and the plain ones.

A policy does not hold the order of the objects. It gives each a small *standing*, which is kept in an ordered store
(the `Order`; on disk, so that nothing about cold objects is in memory), and reads that order when room is needed. A use
costs a new standing, which depends on nothing but the old one and on what little the policy holds.

There is no clock here: a *tick* is one insertion or use. A policy that finds an order made by another one goes on from
it: see `Policy.resume`.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, Protocol

WINDOW = 0
"""Where what is new is on probation."""
MAIN = 1
"""Where all else is."""
SEGMENTS = (WINDOW, MAIN)
MAX_RANK = (1 << 64) - 1


class Standing(NamedTuple):
    """Where an object stands: its segment (of `SEGMENTS`), and its rank there (64 bits); the lowest goes first."""

    segment: int
    rank: int


class Cached(NamedTuple):
    """One object as an `Order` gives it."""

    rank: int
    oid: bytes
    allocated_bytes: int


class Order(Protocol):
    """The standings of all cached objects."""

    @property
    def count(self) -> int:
        """How many objects there are."""

    def bytes_in(self, segment: int) -> int:
        """Return the allocated bytes of a segment. Costs nothing: it is asked at each insertion."""

    def ascending(self, segment: int) -> Iterator[Cached]:
        """Give a segment's objects from the lowest rank on; read as far as needed, while nothing changes."""


class Choice(NamedTuple):
    """How to make room: objects to drop, and new standings of others."""

    victims: list[bytes]
    moves: list[tuple[bytes, Standing]]


class Policy(Protocol):
    """An eviction policy. Its methods cost O(1), but for `choose`: O(what is dropped or moved)."""

    def on_insert(self, oid: bytes, allocated_bytes: int, order: Order, *, used: bool) -> Standing:
        """Return the standing of an object that comes into the cache; not ``used`` if it was fetched ahead."""

    def on_use(self, oid: bytes, standing: Standing) -> Standing:
        """Return the standing of a cached object after one use."""

    def choose(self, order: Order, in_use: Collection[bytes], needed_bytes: int) -> Choice:
        """Choose objects whose files free ``needed_bytes``, none of ``in_use``; all others if they do not suffice."""

    def resume(self, order: Order, highest_rank: int) -> None:
        """Go on with an order that is there, after `load` or without: give ranks above its highest from now on."""

    def state(self) -> bytes:
        """Return what `load` takes after a restart. Losing it costs hits, no more."""

    def load(self, state: bytes) -> bool:
        """Take over a state; False, and nothing is changed, if it is of another version or policy."""


def choose_victims(oldest_first: Iterable[tuple[bytes, int]], in_use: Collection[bytes], needed_bytes: int) -> list[bytes]:
    """Return the ids of the objects to drop so that ``needed_bytes`` become free.

    ``oldest_first`` gives (object id, allocated bytes) from the least recently used on; objects of ``in_use`` (open,
    with a live backing id, or being filled) are left alone. If all the rest is not enough, all the rest is returned:
    the caller sees by the bytes that it fell short.
    """
    victims = []
    freed = 0
    for object_id, allocated_bytes in oldest_first:
        if freed >= needed_bytes:
            break
        if object_id in in_use:
            continue
        victims.append(object_id)
        freed += allocated_bytes
    return victims


NEXT = 16
"""So many of the next to go are looked at together."""
SPARED_BOUND = 128
"""So many are passed over in one round; further ones go as their rank says."""
EASY, PLAIN, LAST = range(3)
"""How readily an object goes: others hold it as well; as its rank says; after all else, because others count on it."""


class Grown:
    """An order in which objects are counted already that are about to come into it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.count = order.count
        self._bytes = {segment: order.bytes_in(segment) for segment in SEGMENTS}

    def add(self, segment: int, allocated_bytes: int) -> None:
        """Count one more."""
        self.count += 1
        self._bytes[segment] = self._bytes.get(segment, 0) + allocated_bytes

    def bytes_in(self, segment: int) -> int:
        return self._bytes.get(segment, 0)

    def ascending(self, segment: int) -> Iterator[Cached]:
        """Without them."""
        return self._order.ascending(segment)


class Spared:
    """An order in which, of the next few, those come first that go easily, and those are left out that are to go last.

    So policies choose as ever, from an order that is only a little different; it is the same where all are `PLAIN`. What
    comes is among the `NEXT` of the lowest rank at that time; what goes easily has the rank 0 in the main segment, so that
    policies that weigh several against each other let it go first, too. One round of eviction is made with it.
    """

    def __init__(self, order: Order, ease: Callable[[bytes], int]) -> None:
        """``ease``: how readily an object goes, `EASY` to `LAST`; asked once for each that is looked at."""
        self._order = order
        self._ease = ease
        self.left_out: list[tuple[bytes, Standing]] = []
        """The objects passed over: they go if all others do not suffice."""
        self._bytes: dict[bytes, int] = {}

    @property
    def count(self) -> int:
        return self._order.count

    def bytes_in(self, segment: int) -> int:
        return self._order.bytes_in(segment)

    def bytes_of(self, victims: Iterable[bytes]) -> int:
        """Return the allocated bytes of objects that were chosen from here."""
        return sum(self._bytes[oid] for oid in victims)

    def ascending(self, segment: int) -> Iterator[Cached]:
        """The ranks do not quite ascend."""
        easy: deque[Cached] = deque()
        plain: deque[Cached] = deque()
        rest = self._order.ascending(segment)
        while True:
            while len(easy) + len(plain) < NEXT and (cached := next(rest, None)) is not None:
                ease = self._ease(cached.oid)
                if ease == LAST and len(self.left_out) < SPARED_BOUND:
                    self.left_out.append((cached.oid, Standing(segment, cached.rank)))
                else:
                    (easy if ease == EASY else plain).append(cached)
            if not easy and not plain:
                return
            first = bool(easy) and segment == MAIN
            chosen = (easy or plain).popleft()
            self._bytes[chosen.oid] = chosen.allocated_bytes
            yield chosen._replace(rank=0) if first else chosen


class _ByRank:
    """The common part of policies whose order is that of the ranks alone. Holds one number, the tick."""

    __slots__ = ("_tick",)
    _NAME: bytes
    _PER_TICK = 1
    """By how much the rank of a new object rises with each tick."""
    _STATE = struct.Struct(">8sBQ")
    _VERSION = 1

    def __init__(self) -> None:
        self._tick = 0

    def _now(self) -> int:
        self._tick += 1
        return self._tick * self._PER_TICK

    def on_insert(self, oid: bytes, allocated_bytes: int, order: Order, *, used: bool) -> Standing:
        """An object that was fetched ahead stands as if it had been used."""
        return Standing(MAIN, self._now())

    def choose(self, order: Order, in_use: Collection[bytes], needed_bytes: int) -> Choice:
        return Choice(choose_victims(_lowest_first(order), in_use, needed_bytes), [])

    def resume(self, order: Order, highest_rank: int) -> None:
        self._tick = max(self._tick, -(-highest_rank // self._PER_TICK))

    def state(self) -> bytes:
        return self._STATE.pack(self._NAME, self._VERSION, self._tick)

    def load(self, state: bytes) -> bool:
        if len(state) != self._STATE.size:
            return False
        name, version, tick = self._STATE.unpack(state)
        if name.rstrip(b"\0") != self._NAME or version != self._VERSION:
            return False
        self._tick = tick
        return True


def _lowest_first(order: Order) -> Iterator[tuple[bytes, int]]:
    """Give (object id, allocated bytes) of all segments as if they were one."""
    for _, oid, allocated_bytes in heapq.merge(*map(order.ascending, SEGMENTS)):
        yield oid, allocated_bytes


class Lru(_ByRank):
    """Least recently used; the rank is the tick of the last use.

    Hits nothing when more than the cache holds is read over and over in the same order.
    """

    __slots__ = ()
    _NAME = b"lru"

    def on_use(self, oid: bytes, standing: Standing) -> Standing:
        return Standing(MAIN, self._now())


class Lrfu(_ByRank):
    """Least recently and frequently used (Lee and others, 2001), as in Alluxio 2, with its parameters.

    Each use counts F(x) = (1/ATTENUATION)^(STEP x) when it is x ticks ago; the sum over an object's uses is its CRF.
    All CRFs shrink by the same factor with each tick, so log2(CRF) + d*tick, with d = STEP*log2(ATTENUATION), keeps the
    order for ever: it is the rank, in fixed point, and holds all that is needed to compute the next one.
    """

    __slots__ = ()
    _NAME = b"lrfu"
    ATTENUATION = 2.0
    STEP = 0.25
    _UNIT = 1 << 24
    """1.0 in a rank: ranks last for 2^40 halvings of the CRF."""
    _PER_TICK = round(STEP * math.log2(ATTENUATION) * _UNIT)
    _NEGLIGIBLE = -64.0

    def on_use(self, oid: bytes, standing: Standing) -> Standing:
        now = self._now()
        log2_crf = max(self._NEGLIGIBLE, (standing.rank - now) / self._UNIT)
        return Standing(MAIN, now + round(math.log2(1.0 + 2.0**log2_crf) * self._UNIT))
