"""The default eviction policy: cached objects stay, unless one that comes in proves to be used more often.

An epoch of training is a scan in random order. With a cache that holds the fraction f of the data, LRU then hits far
less than f; keeping what one has hits f, and nothing that does not know the future hits more. So this is W-TinyLFU
(Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM Transactions on Storage 13(4),
2017): a new object enters a small *window*, in order of last use; when it leaves that, it takes the place of an object of
the *main* segment only if the frequency sketch (`frequency.py`) counts more uses of it; else it is dropped itself.
While there is room, objects go straight to the main segment, so an empty cache fills without contest.

The differences from the paper were needed. Figures are hit ratios in ``python -m tests.bench.policies``, without the change
and with it:

*Ties are for the cached.* The use that brought the newcomer in does not count for it, and it must lead by more than
`MARGIN`, which covers what halving, collisions, and the order within an epoch add to one and not to the other (shuffled
epochs, f = 0.1: 0.082 without the margin, 0.098 with it). There is one main segment rather than a protected and a
probationary one: instead of the oldest, the least used of the `POOL` oldest defends its place (Zipf with shifts: 0.498,
0.513), and a use does not move objects about.

*Nothing comes in for free.* Room must be made before an object is there to compete, so a burst, or one large object,
takes it from the main segment. Room that is lost so is not refilled at once, or each large object would replace a piece of
what is kept: the main segment's limit stays down (by an eighth at most), and rises again as the whole content is
turned over `RELAX_TURNOVERS` times (objects of 1 to 64 pages, shuffled, f = 0.1: 0.025, 0.096; sequential: 0.000, 0.096).

*What is not used any more goes.* Counts alone would defend the last job's data against the next one's for many epochs.
The rank is the tick of the last use; so each hit tells a gap between two uses. A running high quantile of the gaps that
are longer than the cache (stochastic approximation, Robbins and Monro, 1951) says how long an object may rest. One
that has rested a quarter longer loses to any newcomer that was seen before, which the objects of a mere scan were not.
Until hits have taught better, that is `PATIENCE` times the number of objects. The sketch remembers as far back. (After a
change to another data set, from the fourth epoch on, f = 0.5: 0.006, 0.490.)

*A burst is one use* (correlated references: O'Neil, O'Neil and Weikum, LRU-K, 1993): uses again within a sixteenth
of the cache's objects are not counted (each file opened five times in a row, f = 0.1: 0.011, 0.098). In the main segment
they do not change the rank either, which saves the store a write.

Not done: adapting the window's size by hill climbing (Einziger, Eytan, Friedman and Manes, "Adaptive Software Cache
Management", 2018). It wins where popularity changes as fast as the content is turned over a few times, where LRU is
better by a tenth; but it tries sizes out, and an epoch loses what the window takes, where there is a twentieth to lose.

Cost: O(1) for a use or insertion (four counters, and at times 4 KiB of the sketch halved; only when the objects have
doubled it is copied). In memory, 16 bytes of sketch an entry, so at most 32 bytes for each cached object, which has at
least a page, up to 16 MiB; nothing else grows.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator

from luxfuse.core.eviction import MAIN, MAX_RANK, WINDOW, Cached, Choice, Order, Standing
from luxfuse.core.frequency import FrequencySketch

WINDOW_DIVISOR = 100
"""The window takes a hundredth."""
POOL = 16
MARGIN = 2
"""The sketch's error, in uses."""
SLACK_DIVISOR = 8
RELAX_TURNOVERS = 16
"""How much of the main segment stays empty of what was not admitted, and for how long; see above."""
MAX_MOVES = 1024
"""Objects that move to the main segment in one round because there is room: a change to the store each."""
PATIENCE = 32
SAMPLE = 10
"""The sketch remembers at least so many uses for each object."""
CORRELATED_DIVISOR = 16
GAP_UP_SHIFT, GAP_DOWN_SHIFT = 3, 9
"""The quantile goes up by an eighth, or down by a 512th: in balance when 1.5 % of the gaps are longer."""


class TinyLfu:
    """W-TinyLFU with the changes above. See `Policy` for the methods."""

    __slots__ = ("_gap", "_main_limit", "_objects", "_sketch", "_tick")
    _STATE = struct.Struct(">8sBQQ")
    _NAME = b"tinylfu"
    _VERSION = 1

    def __init__(self) -> None:
        self._tick = 0
        self._gap = 0
        """How many ticks apart the uses of one object are at most, as far as we know; 0: nothing was evicted yet."""
        self._objects = 0
        self._main_limit = MAX_RANK
        """Bytes. After a restart unlimited again: the capacity may have changed."""
        self._sketch = FrequencySketch()

    def on_insert(self, oid: bytes, allocated_bytes: int, order: Order, *, used: bool) -> Standing:
        """A fetch-ahead is no use: it competes with one less than others, once it leaves the window."""
        self._observe(order.count + 1)
        if used:
            self._sketch.add(oid)
        self._tick += 1
        has_room = order.bytes_in(MAIN) + allocated_bytes <= self._main_limit
        return Standing(MAIN if has_room else WINDOW, self._tick)

    def on_use(self, oid: bytes, standing: Standing) -> Standing:
        """The same standing, if the last use was just before; but the window is in order of last use."""
        gap = self._tick - standing.rank
        if gap < self._objects // CORRELATED_DIVISOR:
            return Standing(WINDOW, self._tick) if standing.segment == WINDOW else standing
        if gap > self._objects and self._gap:
            longer = gap > self._gap
            self._gap += (self._gap >> GAP_UP_SHIFT) + 1 if longer else -(self._gap >> GAP_DOWN_SHIFT)
            self._gap = min(self._gap, PATIENCE * self._objects)
        self._sketch.add(oid)
        self._tick += 1
        return Standing(standing.segment, self._tick)

    def _observe(self, objects: int) -> None:
        self._objects = objects
        self._sketch.fit(objects, max(SAMPLE * objects, 2 * self._gap))

    def choose(self, order: Order, in_use: Collection[bytes], needed_bytes: int) -> Choice:
        self._gap = self._gap or PATIENCE * order.count
        self._observe(order.count)
        resting = max(2 * order.count, self._gap + self._gap // 4)
        pool = _Pool(_free(order, MAIN, in_use), self._sketch, self._tick - resting)
        a_round = _Round(order, needed_bytes, self._main_limit)
        newcomers = _free(order, WINDOW, in_use)
        while a_round.freed_bytes < needed_bytes:
            newcomer = next(newcomers, None) if a_round.window_is_over else None
            if newcomer is None:
                if (loser := pool.pop()) is not None:
                    a_round.give_up(loser)
                elif (loser := next(newcomers, None)) is not None:
                    a_round.drop(loser)
                else:
                    break
            elif a_round.has_room(newcomer):
                a_round.admit(newcomer, [])
            elif losers := pool.pop_below(self._sketch.estimate(newcomer.oid) - 1, newcomer.allocated_bytes):
                a_round.admit(newcomer, losers)
            else:
                a_round.drop(newcomer)
        self._main_limit = a_round.main_limit
        return a_round.choice()

    def resume(self, order: Order, highest_rank: int) -> None:
        self._tick = max(self._tick, highest_rank)
        self._observe(order.count)

    def state(self) -> bytes:
        return self._STATE.pack(self._NAME, self._VERSION, self._tick, self._gap) + self._sketch.state()

    def load(self, state: bytes) -> bool:
        if len(state) < self._STATE.size:
            return False
        name, version, tick, gap = self._STATE.unpack_from(state)
        sketch = FrequencySketch.load(state[self._STATE.size :])
        if name.rstrip(b"\0") != self._NAME or version != self._VERSION or sketch is None:
            return False
        self._tick, self._gap, self._sketch = tick, gap, sketch
        return True


def _free(order: Order, segment: int, in_use: Collection[bytes]) -> Iterator[Cached]:
    return (cached for cached in order.ascending(segment) if cached.oid not in in_use)


class _Round:
    """The books of one round of eviction: limits, and the objects that move or go."""

    def __init__(self, order: Order, needed_bytes: int, main_limit: int) -> None:
        self._main_bytes = order.bytes_in(MAIN)
        window_bytes = order.bytes_in(WINDOW)
        kept_bytes = max(0, window_bytes + self._main_bytes - needed_bytes)
        window_limit = kept_bytes // WINDOW_DIVISOR
        most = kept_bytes - window_limit
        self._least_limit = most - most // SLACK_DIVISOR
        slack_bytes = max(0, most - main_limit)
        relaxed_bytes = slack_bytes * needed_bytes // (RELAX_TURNOVERS * kept_bytes + 1)
        self.main_limit = min(most, max(self._least_limit, main_limit + relaxed_bytes))
        self._leaving_bytes = window_bytes - window_limit
        self._needed_bytes = needed_bytes
        self.freed_bytes = 0
        self._victims: list[bytes] = []
        self._admitted: list[Cached] = []

    @property
    def window_is_over(self) -> bool:
        """Whether objects have to leave the window, and may in this round."""
        return self._leaving_bytes > 0 and len(self._admitted) < MAX_MOVES

    def has_room(self, newcomer: Cached) -> bool:
        """Whether the main segment takes it without contest."""
        return self._main_bytes + newcomer.allocated_bytes <= self.main_limit

    def admit(self, newcomer: Cached, losers: list[Cached]) -> None:
        """Move an object from the window to the main segment, in the place of others."""
        self._admitted.append(newcomer)
        self._leaving_bytes -= newcomer.allocated_bytes
        self._main_bytes += newcomer.allocated_bytes
        for loser in losers:
            self._main_bytes -= loser.allocated_bytes
            self._drop(loser)

    def drop(self, newcomer: Cached) -> None:
        """Drop an object from the window."""
        self._leaving_bytes -= newcomer.allocated_bytes
        self._drop(newcomer)

    def give_up(self, loser: Cached) -> None:
        """Drop an object from the main segment although nothing won against it; its room is not to be refilled."""
        self._main_bytes -= loser.allocated_bytes
        self.main_limit = max(self._least_limit, min(self.main_limit, self._main_bytes))
        self._drop(loser)

    def _drop(self, cached: Cached) -> None:
        self._victims.append(cached.oid)
        self.freed_bytes += cached.allocated_bytes

    def choice(self) -> Choice:
        """Return the outcome. If all else did not suffice, what was admitted goes too."""
        while self.freed_bytes < self._needed_bytes and self._admitted:
            self._drop(self._admitted.pop())
        return Choice(self._victims, [(cached.oid, Standing(MAIN, cached.rank)) for cached in self._admitted])


class _Pool:
    """The least used of the `POOL` objects that rest the longest, one after the other."""

    def __init__(self, oldest_first: Iterator[Cached], sketch: FrequencySketch, rested_since: int) -> None:
        self._oldest_first = oldest_first
        self._sketch = sketch
        self._rested_since = rested_since
        self._heap: list[tuple[int, Cached]] = []

    def _fill(self) -> None:
        while len(self._heap) < POOL and (cached := next(self._oldest_first, None)) is not None:
            rested = cached.rank < self._rested_since
            heapq.heappush(self._heap, (0 if rested else self._sketch.estimate(cached.oid) + MARGIN, cached))

    def pop(self) -> Cached | None:
        """Return the weakest; None if there is no more."""
        self._fill()
        return heapq.heappop(self._heap)[1] if self._heap else None

    def pop_below(self, uses: int, wanted_bytes: int) -> list[Cached]:
        """Return the weakest that make up ``wanted_bytes``, if ``uses`` beats each of them; else nothing."""
        taken: list[tuple[int, Cached]] = []
        while wanted_bytes > 0:
            self._fill()
            if not self._heap or self._heap[0][0] >= uses:
                for entry in taken:
                    heapq.heappush(self._heap, entry)
                return []
            taken.append(heapq.heappop(self._heap))
            wanted_bytes -= taken[-1][1].allocated_bytes
        return [cached for _, cached in taken]
