"""Quotas: how many bytes of the paths that a rule matches may be cached, in all directories together.

What is used is counted where the index changes; what is promised to fetches on their way is reserved here, beside the room
in a directory. A full quota makes room among its own objects, from the one that stands lowest on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import trio

from luxfuse.cache.contents import Contents
from luxfuse.cache.space import Space
from luxfuse.core.eviction import SEGMENTS
from luxfuse.core.ledger import Ledger, allocated_bytes
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.objects import Objects

INTERVAL_S = 1.0
SCAN_OBJECTS = 500
MOST_SCANNED = 20_000
"""Objects looked at to make room once: where a quota has fewer than that below all others, it makes none."""


class _Counting:
    """Counts all objects while they change: in the order of their ids, and changes behind that as they come."""

    def __init__(self, count: Callable[[str, int], None]) -> None:
        """``count`` is told of keys, and of bytes that come or (less than 0) go."""
        self._count = count
        self._done = b""
        """The last object that was counted."""
        self._fresh: dict[bytes, tuple[str, int]] = {}
        """Objects after that one that have changed since: if they are new, the index may not give them in order yet."""

    def changed(self, oid: bytes, record: ObjectRecord, sign: int) -> None:
        """A record comes (1) or goes (-1)."""
        if oid <= self._done:
            self._count(record.key, sign * record.allocated_bytes)
        elif sign > 0:
            self._fresh[oid] = record.key, record.allocated_bytes
        else:
            self._fresh.pop(oid, None)

    async def run(self, objects: Objects) -> None:
        """Count everything once; `changed` must be told of all that changes from now on."""
        await objects.flush()
        while found := objects.scan(self._done, SCAN_OBJECTS):
            for oid, record in found:
                self._fresh.pop(oid, None)
                self._count(record.key, record.allocated_bytes)
            self._done = found[-1][0]
            for oid in [oid for oid in self._fresh if oid <= self._done]:
                self._count(*self._fresh.pop(oid))
            await trio.lowlevel.checkpoint()
        for key, used_bytes in self._fresh.values():
            self._count(key, used_bytes)


class Quotas:
    """The quotas of one mount. ``rule_of`` tells which one an object (its key) counts for; None: for none."""

    def __init__(self, objects: Objects, contents: Contents) -> None:
        self._objects = objects
        self._contents = contents
        self._hierarchy = contents.hierarchy
        self._ledgers: list[Ledger] = []
        self._rule_of: Callable[[str], int | None] = lambda _key: None
        self._counting: _Counting | None = None
        """While all objects are counted for the ledgers."""
        self._recounting: _Counting | None = None
        """While they are counted to be compared with those."""
        self._making_room = trio.Lock()

    @property
    def any(self) -> bool:
        """Whether there are quotas."""
        return bool(self._ledgers)

    def of(self, key: str) -> Ledger | None:
        """Return the books of the quota that an object counts for."""
        if not self._ledgers:
            return None
        number = self._rule_of(key)
        return None if number is None else self._ledgers[number]

    async def replace(self, limits: Sequence[int], rule_of: Callable[[str], int | None]) -> None:
        """From now on these quotas hold, in bytes; all objects are counted anew."""
        self._ledgers = [Ledger(limit) for limit in limits]
        self._rule_of = rule_of
        if self._changed in self._objects.on_change:
            self._objects.on_change.remove(self._changed)
        if not limits:
            return
        self._objects.on_change.append(self._changed)
        self._counting = _Counting(self._count)
        try:
            await self._counting.run(self._objects)
        finally:
            self._counting = None
        for ledger in self._ledgers:
            await self.make_room(ledger, 0)

    def _changed(self, oid: bytes, record: ObjectRecord, sign: int) -> None:
        if self._counting is not None:
            self._counting.changed(oid, record, sign)
        else:
            self._count(record.key, sign * record.allocated_bytes)
        if self._recounting is not None:
            self._recounting.changed(oid, record, sign)

    def _count(self, key: str, more_bytes: int) -> None:
        if (ledger := self.of(key)) is not None:
            ledger.used_bytes = max(0, ledger.used_bytes + more_bytes)

    async def recount(self) -> set[tuple[Ledger, int]]:
        """Return the books that are wrong, and what is recorded more than they count, as it is when this returns."""
        ledgers, used = self._ledgers, dict.fromkeys(self._ledgers, 0)
        if not ledgers or self._counting is not None or self._recounting is not None:
            return set()

        def count(key: str, more_bytes: int) -> None:
            if (ledger := self.of(key)) is not None:
                used[ledger] = used.get(ledger, 0) + more_bytes

        self._recounting = _Counting(count)
        try:
            await self._recounting.run(self._objects)
        finally:
            self._recounting = None
        if ledgers is not self._ledgers:
            return set()  # the rules have changed meanwhile
        return {(ledger, used[ledger] - ledger.used_bytes) for ledger in ledgers if used[ledger] != ledger.used_bytes}

    async def make_room(self, ledger: Ledger, wanted_bytes: int) -> bool:
        """Drop objects of a quota until ``wanted_bytes`` fit; False if that cannot be done now. Nothing is reserved."""
        wanted = allocated_bytes(wanted_bytes)
        async with self._making_room:
            if ledger.shortage(wanted):
                async with aclosing(self._lowest_first(ledger)) as candidates:
                    async for oid, space in candidates:
                        if oid in self._hierarchy.removing or not self._contents.let_go(oid):
                            continue
                        if not (await space.evict([oid])).complete:
                            break
                        if not ledger.shortage(wanted):
                            break
        return not ledger.shortage(wanted)

    async def run(self) -> None:
        """Make up for objects that came in without asking, as published files do; until cancelled."""
        while True:
            await trio.sleep(INTERVAL_S)
            for ledger in list(self._ledgers):
                if ledger.shortage(0):
                    await self.make_room(ledger, 0)

    async def _lowest_first(self, ledger: Ledger) -> AsyncGenerator[tuple[bytes, Space], None]:
        await self._objects.commit()
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
