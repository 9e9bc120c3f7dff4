"""TODO"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator

from luxfuse.core.eviction import MAIN, WINDOW, Cached, Choice, Order, Standing
from luxfuse.core.frequency import FrequencySketch

WINDOW_DIVISOR = 100
MARGIN = 1
SLACK_DIVISOR = 8
RELAX = 16
POOL = 16
MAX_MOVES = 1024
UNLIMITED = (1 << 64) - 1


class TinyLfu:
    __slots__ = ("_main_limit", "_sketch", "_tick")
    _STATE = struct.Struct(">4sBQQ")

    def __init__(self) -> None:
        self._tick = 0
        self._main_limit = UNLIMITED
        self._sketch = FrequencySketch()

    def on_insert(self, oid: bytes, allocated_bytes: int, order: Order, *, used: bool) -> Standing:
        self._sketch.fit(order.count + 1)
        if used:
            self._sketch.add(oid)
        self._tick += 1
        has_room = order.bytes_in(MAIN) + allocated_bytes <= self._main_limit
        return Standing(MAIN if has_room else WINDOW, self._tick)

    def on_use(self, oid: bytes, standing: Standing) -> Standing:
        self._sketch.add(oid)
        self._tick += 1
        return Standing(standing.segment, self._tick)

    def choose(self, order: Order, in_use: Collection[bytes], needed_bytes: int) -> Choice:
        kept_bytes = max(0, order.bytes_in(WINDOW) + order.bytes_in(MAIN) - needed_bytes)
        window_limit = kept_bytes // WINDOW_DIVISOR
        ideal = kept_bytes - window_limit
        lowest = ideal - ideal // SLACK_DIVISOR
        self._main_limit = min(ideal, max(lowest, self._main_limit + (ideal - min(ideal, self._main_limit)) * needed_bytes // (RELAX * max(1, kept_bytes))))
        newcomers = (cached for cached in order.ascending(WINDOW) if cached.oid not in in_use)
        pool = _Pool((cached for cached in order.ascending(MAIN) if cached.oid not in in_use), self._sketch)
        room_bytes = self._main_limit - order.bytes_in(MAIN)
        leaving_bytes = order.bytes_in(WINDOW) - window_limit
        choice = Choice([], [])
        freed_bytes = 0
        while freed_bytes < needed_bytes:
            newcomer = next(newcomers, None) if leaving_bytes > 0 else None
            if newcomer is None:
                losers = pool.pop() or list(_one(newcomers))
                if not losers:
                    break
                room_bytes += losers[0].allocated_bytes
                self._main_limit = max(lowest, min(self._main_limit, self._main_limit - room_bytes))
                room_bytes = 0 if room_bytes > 0 and self._main_limit > lowest else room_bytes
            else:
                leaving_bytes -= newcomer.allocated_bytes
                losers = []
                if newcomer.allocated_bytes > room_bytes:
                    score = self._sketch.estimate(newcomer.oid) - 1 - MARGIN
                    losers = pool.pop_below(score, newcomer.allocated_bytes) or [newcomer]
                if losers != [newcomer]:
                    choice.moves.append((newcomer.oid, Standing(MAIN, newcomer.rank)))
                    room_bytes += sum(loser.allocated_bytes for loser in losers) - newcomer.allocated_bytes
            for loser in losers:
                choice.victims.append(loser.oid)
                freed_bytes += loser.allocated_bytes
        return choice


def _one(it):
    for x in it:
        return [x]
    return []


class _Pool:
    def __init__(self, oldest_first: Iterator[Cached], sketch: FrequencySketch) -> None:
        self._rest = oldest_first
        self._sketch = sketch
        self._heap: list[tuple[int, Cached]] = []

    def _fill(self) -> None:
        while len(self._heap) < POOL and (cached := next(self._rest, None)) is not None:
            heapq.heappush(self._heap, (self._sketch.estimate(cached.oid), cached))

    def pop(self) -> list[Cached]:
        self._fill()
        return [heapq.heappop(self._heap)[1]] if self._heap else []

    def pop_below(self, score: int, wanted_bytes: int) -> list[Cached]:
        taken = []
        while wanted_bytes > 0:
            self._fill()
            if not self._heap or self._heap[0][0] >= score:
                for item in taken:
                    heapq.heappush(self._heap, item)
                return []
            taken.append(heapq.heappop(self._heap))
            wanted_bytes -= taken[-1][1].allocated_bytes
        return [cached for _, cached in taken]
