"""Replicas of what is cached, of all volumes of a mount: ties rules, enforcement and copies to the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from luxfuse.cache.placing import Copies
from luxfuse.cluster.holding import HOLD_PATH, CacheShelf, Holding
from luxfuse.cluster.members import Members
from luxfuse.cluster.peer_source import Holders
from luxfuse.cluster.replica_rules import RULES_PATH, RuleExchange, RulesRefused, RuleStore
from luxfuse.cluster.replicating import Replicating
from luxfuse.cluster.stock import VolumeStock
from luxfuse.core.members import RANGE_PAGES, Member
from luxfuse.core.rng import Rng
from luxfuse.core.spans import page_count
from luxfuse.core.units import format_count
from luxfuse.orders.inventory import Nodes
from luxfuse.peers.client import Rpc
from luxfuse.peers.server import Server
from luxfuse.volume.parts import VolumeParts

LOCATED_RANGES = 4096
"""Of an object, which `locate` tells of: 256 GiB."""


@dataclass(slots=True)
class _Volume:
    parts: VolumeParts
    store: RuleStore
    stock: VolumeStock
    replicating: Replicating
    shelf: CacheShelf
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class CleanReplicas:
    """The rules of replicas of this node, and their enforcement.

    `heard` is for `Membership.on_heard`, `members_changed` for ``on_change``.
    """

    def __init__(self, members: Members, rpc: Rpc, holders: Holders, rng: Rng, clock: Callable[[], float]) -> None:
        """``clock``: wall-clock seconds."""
        self._members = members
        self._rpc = rpc
        self._holders = holders
        self._clock = clock
        self._volumes: dict[bytes, _Volume] = {}
        self._stores: dict[bytes, RuleStore] = {}
        self._nursery: trio.Nursery | None = None
        self._exchange = RuleExchange(self._stores, members, rpc, rng, self._rules_changed)
        self._holding = Holding(self._shelf_of)
        self.heard = self._exchange.heard

    def register(self, server: Server) -> None:
        """Answer other nodes."""
        server.handle(RULES_PATH, self._exchange.answer)
        server.handle(HOLD_PATH, self._holding.answer)

    async def run(self) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._exchange.run)
                nursery.start_soon(self._holding.run)
                for volume in self._volumes.values():
                    nursery.start_soon(self._run_volume, volume)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @staticmethod
    async def _run_volume(volume: _Volume) -> None:
        with volume.scope:
            await volume.replicating.run()

    def add(self, source: bytes, parts: VolumeParts) -> None:
        """A volume takes part from now on."""
        store = RuleStore(parts.objects, self._clock)
        stock = VolumeStock(
            store=store,
            objects=parts.objects,
            cache=parts.cache,
            names=parts.names,
            inventory=parts.inventory,
            retention=parts.retention,
            holders=self._holders,
        )
        replicating = Replicating(source, stock, self._members, self._holders, self._rpc)
        volume = self._volumes[source] = _Volume(parts, store, stock, replicating, CacheShelf(parts.cache))
        self._stores[source] = store
        if self._nursery is not None:
            self._nursery.start_soon(self._run_volume, volume)

    def remove(self, source: bytes) -> None:
        """End what `add` began."""
        volume = self._volumes.pop(source)
        del self._stores[source]
        volume.scope.cancel()

    def members_changed(self, _member: Member) -> None:
        """A member came, went, or says something else of itself."""
        for volume in self._volumes.values():
            volume.replicating.members_changed()

    def _rules_changed(self, source: bytes) -> None:
        self._volumes[source].replicating.rules_changed()

    def copies_of(self, source: bytes) -> Copies:
        """Return what other nodes hold of the objects of a volume, while that takes part."""
        return _CopiesOf(self._volumes, source)

    def nodes_for(self, source: bytes) -> Nodes:
        """Return what tells a volume, while that takes part, which nodes hold its objects."""
        return _NodesFor(self, source)

    def takes_part(self, source: bytes) -> bool:
        """Whether a volume does."""
        return source in self._volumes

    def _shelf_of(self, source: bytes) -> CacheShelf | None:
        volume = self._volumes.get(source)
        return None if volume is None else volume.shelf

    # -- for the operator

    async def order(
        self, parts: VolumeParts, paths: Sequence[str], least: int, most: int | None
    ) -> tuple[list[str], list[str]]:
        """Have what is at and below paths of a volume held by so many nodes, or end that (``least`` 0).

        Returns a line for each that failed, and notes. Raises `RulesRefused`, OSError.
        """
        source = next((source for source, volume in self._volumes.items() if volume.parts is parts), None)
        if source is None:
            raise RulesRefused("this under-store does not take part in the cluster: the mount has too many of them")
        failures = await self._stores[source].order(paths, least, most, self._members.info.name)
        self._exchange.changed(source)
        nodes = 1 + sum(source in member.info.sources for member in self._members.alive())
        notes = []
        if len(failures) < len(paths) and nodes < least:
            notes.append(f"only {format_count(nodes, 'node')} of the cluster can hold it now; what is missing comes later")
        return failures, notes

    def nodes_of(self, oid: bytes, size: int) -> list[dict[str, object]]:
        """Return which other nodes hold an object, and how many ranges of it: see `luxfuse.control.orders`."""
        ranges = min(LOCATED_RANGES, -(-page_count(size) // RANGE_PAGES))
        counts: dict[str, int] = {}
        for number in range(ranges):
            for name in self._holders.holders(oid, number):
                counts[name] = counts.get(name, 0) + 1
        found = []
        for name, count in counts.items():
            member = self._members.member(name)
            label = member.info.label if member is not None else ""
            found.append({"node": name, "label": label or name, "ranges": count, "of": ranges})
        return sorted(found, key=lambda node: (str(node["label"]), str(node["node"])))

    def statistics(self) -> dict[str, int]:
        """Return counters, from the start on, and how many rules there are."""
        counters = [volume.replicating.counters for volume in self._volumes.values()]
        return {
            "rules": sum(len(store.rules) for store in self._stores.values()),
            "copies_ordered": sum(each.ordered for each in counters),
            "copies_taken": sum(each.taken for each in counters),
            "copies_dropped": sum(each.dropped for each in counters),
            "copies_accepted": self._holding.accepted,
            "copies_refused": self._holding.refused,
        }


class _CopiesOf:
    def __init__(self, volumes: Mapping[bytes, _Volume], source: bytes) -> None:
        self._volumes = volumes
        self._source = source

    def held_elsewhere(self, oid: bytes) -> bool:
        volume = self._volumes.get(self._source)
        return volume is not None and volume.stock.held_elsewhere(oid)

    def counted_on(self, oid: bytes) -> bool:
        volume = self._volumes.get(self._source)
        return volume is not None and volume.stock.counted_on(oid)


class _NodesFor:
    def __init__(self, replicas: CleanReplicas, source: bytes) -> None:
        self._replicas = replicas
        self._source = source

    def nodes_of(self, oid: bytes, size: int) -> list[dict[str, object]]:
        return self._replicas.nodes_of(oid, size) if self._replicas.takes_part(self._source) else []
