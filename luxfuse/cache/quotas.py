"""Quotas: how many bytes of the paths that a rule matches may be cached, in all directories together.

What is used is counted where the index changes; what is promised to fetches on their way is reserved here, beside the room
in a directory. A full quota makes room among its own objects, from the one that stands lowest on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import trio

from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.space import Space
from luxfuse.core.eviction import SEGMENTS
from luxfuse.core.ledger import Ledger, allocated_bytes
from luxfuse.index.objects import ObjectRecord, Objects

INTERVAL_S = 1.0
SCAN_OBJECTS = 500
MOST_SCANNED = 20_000
"""Objects looked at to make room once: where a quota has fewer than that below all others, it makes none."""


class Quotas:
    """The quotas of one mount. ``rule_of`` tells which one an object (its key) counts for; None: for none."""

    def __init__(self, objects: Objects, hierarchy: Hierarchy) -> None:
        self._objects = objects
        self._hierarchy = hierarchy
        self._ledgers: list[Ledger] = []
        self._rule_of: Callable[[str], int | None] = lambda _key: None
        self._counted: bytes | None = None
        """While all objects are counted: the last one that was. Those after it are still to come."""
        self._making_room = trio.Lock()

    def of(self, key: str) -> Ledger | None:
        """Return the books of the quota that an object counts for."""
        if not self._ledgers:
            return None
        number = self._rule_of(key)
        return None if number is None else self._ledgers[number]

    async def replace(self, limits: Sequence[int], rule_of: Callable[[str], int | None]) -> None:
        """From now on these quotas hold, in bytes; what there is is counted anew."""
        self._ledgers = [Ledger(limit) for limit in limits]
        self._rule_of = rule_of
        if self._changed in self._objects.on_change:
            self._objects.on_change.remove(self._changed)
        if not limits:
            return
        self._objects.on_change.append(self._changed)
        self._counted = b""
        try:
            while found := self._objects.scan(self._counted, SCAN_OBJECTS):
                for oid, record in found:
                    self._counted = oid
                    self._count(record, 1)
                await trio.lowlevel.checkpoint()
        finally:
            self._counted = None
        for ledger in self._ledgers:
            await self.make_room(ledger, 0)

    def _changed(self, oid: bytes, record: ObjectRecord, sign: int) -> None:
        if self._counted is None or oid <= self._counted:
            self._count(record, sign)

    def _count(self, record: ObjectRecord, sign: int) -> None:
        if (ledger := self.of(record.key)) is not None:
            ledger.used_bytes = max(0, ledger.used_bytes + sign * record.allocated_bytes)

    async def make_room(self, ledger: Ledger, wanted_bytes: int) -> bool:
        """Drop objects of a quota until ``wanted_bytes`` fit; False if that cannot be done now. Nothing is reserved."""
        wanted = allocated_bytes(wanted_bytes)
        async with self._making_room:
            if ledger.shortage(wanted):
                async with aclosing(self._lowest_first(ledger)) as candidates:
                    async for oid, space in candidates:
                        if oid in self._hierarchy.removing or not self._hierarchy.hooks.release(oid):
                            continue
                        if await space.remove(oid) is None:
                            break
                        space.evictions += 1
                        if not ledger.shortage(wanted):
                            break
        return not ledger.shortage(wanted)

    async def run(self) -> None:
        """Make up for what came in without asking, as published files do; until cancelled."""
        while True:
            await trio.sleep(INTERVAL_S)
            for ledger in list(self._ledgers):
                if ledger.shortage(0):
                    await self.make_room(ledger, 0)

    async def _lowest_first(self, ledger: Ledger) -> AsyncGenerator[tuple[bytes, Space], None]:
        await self._objects.settle()
        scanned = 0
        for space in reversed(self._hierarchy.spaces):
            for segment in SEGMENTS:
                for cached in self._objects.ordered(space.number, segment):
                    scanned += 1
                    if scanned > MOST_SCANNED:
                        return
                    if scanned % SCAN_OBJECTS == 0:
                        await trio.lowlevel.checkpoint()
                    record = self._objects.record(cached.oid)
                    if record is not None and self.of(record.key) is ledger:
                        yield cached.oid, space
