"""Several mounts without FUSE that read one store as nodes of a cluster: real servers and clients, no gossip."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cluster.peer_source import Peers, PeerSource
from luxfuse.cluster.serving import Serving
from luxfuse.core.hedging import Hedging
from luxfuse.core.members import Member, MemberState, NodeInfo
from luxfuse.peers.client import Client
from luxfuse.peers.server import Server, listen
from luxfuse.volume.neighbours import Neighbours
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted
from tests.support.peer_nodes import SOURCE, keys_of


class NoHedging(Hedging):
    """Is never due, however long an answer takes."""

    def delay_s(self, size_bytes: int) -> float:
        return 1e9


@dataclass
class Everyone:
    """The membership and the directory of one node, as a test has them."""

    info: NodeInfo
    others: dict[str, Member] = field(default_factory=dict)
    holding: dict[tuple[bytes, int], list[str]] = field(default_factory=dict)

    def alive(self) -> list[Member]:
        return list(self.others.values())

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        return self.holding.get((oid, range_number), [])


@dataclass
class ClusterNode:
    """One node."""

    mount: Mount
    everyone: Everyone
    server: Server
    client: Client
    serving: Serving
    peers: Peers
    source: PeerSource
    """How its mount sees the peers."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled, the node answers nobody any more."""

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.server.run(task_status)

    @property
    def name(self) -> str:
        return self.everyone.info.name

    def forget(self, other: ClusterNode) -> None:
        """The other one is gone, for this one."""
        self.everyone.others.pop(other.name, None)
        self.peers.changed()


@asynccontextmanager
async def clustered(
    path: Path, driver: FakeStore, count: int, *, cooperative: bool = True, **options: object
) -> AsyncIterator[list[ClusterNode]]:
    """Run so many nodes."""
    nodes: list[ClusterNode] = []
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for number in range(count):
            name = f"{number:016x}"
            keys = keys_of(name)
            caches: dict[bytes, PageCache] = {}
            serving = Serving(caches.get)
            server = Server(listen(("127.0.0.1", 0)), keys, tls=False, provider=serving)
            info = NodeInfo(name, *server.address, sources=(SOURCE,))
            client, everyone = Client(keys, tls=False), Everyone(info)
            stack.callback(client.close)
            peers = Peers(everyone, client, everyone, cooperative=cooperative, rng=random.Random(number))
            stack.callback(peers.close)
            peers._hedging = {fetch: NoHedging() for fetch in (False, True)}  # how often the store is asked is counted
            source = peers.source(SOURCE)
            source.taking_part = True
            neighbours = Neighbours(peers=source)
            mount = await stack.enter_async_context(
                mounted(path / str(number), driver, neighbours=lambda _store, _journal, own=neighbours: own, **options)
            )
            caches[SOURCE] = mount.cache
            node = ClusterNode(mount, everyone, server, client, serving, peers, source)
            await nursery.start(node.serve)
            nursery.start_soon(peers.run)
            nodes.append(node)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.everyone.others[other.name] = Member(other.everyone.info, MemberState.ALIVE, 1, 0.0)
        yield nodes
        nursery.cancel_scope.cancel()
