"""The holdings of a volume that rules of replicas speak of, for these rules and for eviction."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cluster.peer_source import Holders
from luxfuse.cluster.replica_rules import RuleStore
from luxfuse.cluster.replicating import HeldObject
from luxfuse.core.names import path_of
from luxfuse.core.replication import ReplicaRule
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.objects import Objects
from luxfuse.orders.inventory import Inventory
from luxfuse.orders.retention import Retention

SLICE = 200
"""Objects looked at in one go, and then ..."""
PAUSE_S = 0.02
"""... this long others go first, and for up to `BUSY_S` as long as programs wait for pages."""
BUSY_S = 1.0


class VolumeStock:
    """Implements `luxfuse.cluster.replicating.Stock`."""

    def __init__(
        self, *, store: RuleStore, objects: Objects, cache: PageCache, names: Names, inventory: Inventory,
        retention: Retention, holders: Holders,
    ) -> None:  # fmt: skip
        self._store = store
        self._objects = objects
        self._cache = cache
        self._names = names
        self._inventory = inventory
        self._retention = retention
        self._holders = holders

    @property
    def any_rule(self) -> bool:
        """Whether the volume has a rule at all."""
        return len(self._store.rules) > 0

    def rule_of(self, key: str) -> ReplicaRule | None:
        """Return the rule for an object."""
        return self._store.rules.of(path_of(key))

    async def objects(self) -> AsyncGenerator[HeldObject, None]:
        """Yield the objects that a rule speaks of, with pauses while programs read."""
        async with aclosing(self._inventory.scan()) as held:
            number = 0
            async for oid, record in held:
                number += 1
                if number % SLICE == 0:
                    await self._give_way()
                if self.rule_of(record.key) is None or self._is_replaced(record):
                    continue
                ranges = tuple(self._objects.ranges(oid, record))
                if ranges:
                    yield HeldObject(oid, record.key, record.version, record.size, ranges)

    async def _give_way(self) -> None:
        await trio.sleep(PAUSE_S)
        with trio.move_on_after(BUSY_S):
            while not self._cache.budget.idle:  # noqa: ASYNC110 (an event would be set at the end of every request)
                await trio.sleep(PAUSE_S)

    def _is_replaced(self, record: ObjectRecord) -> bool:
        """Whether another version of an object is known, without asking for it."""
        inode = ROOT_INODE
        entry = None
        for name in os.fsencode(path_of(record.key)).split(b"/"):
            entry = self._names.get(inode, name)
            if entry is None:
                return False
            inode = entry.inode
        return entry is not None and entry.version != record.version

    async def drop(self, oid: bytes) -> bool:
        """Drop an object, unless it is in use or pinned; returns whether it was."""
        record = self._cache.record_of(oid)
        if record is None or self._retention.is_pinned(path_of(record.key)):
            return False
        return await self._inventory.drop(oid)

    # -- for eviction: see `luxfuse.cache.placing.Copies`; the first range of an object speaks for all

    def held_elsewhere(self, oid: bytes) -> bool:
        """Whether another node that lives holds an object."""
        return bool(self._holders.holders(oid, 0))

    def counted_on(self, oid: bytes) -> bool:
        """Whether no more nodes hold an object than a rule says at least."""
        if not self.any_rule or (record := self._cache.record_of(oid)) is None:
            return False
        rule = self.rule_of(record.key)
        return rule is not None and len(self._holders.holders(oid, 0)) + 1 <= rule.least
