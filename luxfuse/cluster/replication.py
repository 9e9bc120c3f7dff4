"""Writes that other nodes hold until the store has them (``--durable-replicas``).

`Replication` is a node's: it answers other nodes, holds their replicas (`holder.Holder`), and makes a `Replicator` for
each under-store that is served here. A `Replicator` sends promised content of a file to peers, tells them when it is not
needed any more (`releases.Releases`), and asks them what became of it, when the store has something unexpected or this is
a new run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.upload import Uploader
from luxfuse.cluster.completer import HolderStatistics, Place
from luxfuse.cluster.holder import Holder
from luxfuse.cluster.members import Members
from luxfuse.cluster.replica_paths import ORDERS_PATH, PATH
from luxfuse.cluster.replicas import ReplicaFiles
from luxfuse.cluster.replicator import Replicator, SendCounts
from luxfuse.core.replicas import Answer, Ask, Describe, Drop, Needed, decode_message, encode
from luxfuse.index.journal import Journal
from luxfuse.peers.client import Rpc
from luxfuse.understore.retrying import Store
from luxfuse.workers import Threads

RELEASE_INTERVAL_S = 0.5
IO_THREADS = 8


class Server(Protocol):
    """Answers requests of other nodes."""

    def handle(self, path: str, handler: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        """Answer requests by ``handler(peer, body)``."""

    def handle_file(self, path: str, handler: Callable[[str, bytes, AsyncIterator[bytes]], Awaitable[bytes]]) -> None:
        """Take files by ``handler(peer, header, chunks)``, which need not read them to their end."""


@dataclass(frozen=True, slots=True)
class ReplicationStatistics:
    """``sent``: replicas that peers took; ``fallbacks``: writes uploaded at once because too few did, and why the last
    was, until one succeeds again; ``held_files``, ``held_bytes``: of others here; ``taken``: see `HolderStatistics`."""

    sent: int
    fallbacks: int
    degraded: str | None
    held_files: int
    held_bytes: int
    taken: HolderStatistics


class Replication:
    """The replicas of a node, its own and those of others."""

    def __init__(
        self,
        *,
        root: Path,
        capacity_bytes: int,
        members: Members,
        rpc: Rpc,
        clock: Callable[[], float] = time.time,
        threads: Threads | None = None,
    ) -> None:
        """``root``: directory for others' replicas of ``capacity_bytes`` at most. ``clock``: wall-clock seconds.

        ``threads``: for work on these files. Blocks. Raises OSError, `ConfigError`.
        """
        self._members = members
        self._rpc = rpc
        self._clock = clock
        self.holder = Holder(
            ReplicaFiles(root, capacity_bytes), threads or Threads(IO_THREADS), members=members, rpc=rpc, clock=clock
        )
        self._volumes: dict[bytes, Replicator] = {}
        self.sends = SendCounts()

    def register(self, server: Server) -> None:
        """Answer other nodes through ``server``."""
        server.handle_file(PATH, self.holder.receive)
        server.handle(ORDERS_PATH, self.order)

    def replicator(self, source: bytes, *, store: Store, journal: Journal, copies: int) -> Replicator:
        """Have ``copies`` of the writes of an under-store held by others."""
        replicator = Replicator(
            source, store, journal, copies, members=self._members, rpc=self._rpc, clock=self._clock, counts=self.sends
        )
        self._volumes[source] = replicator
        return replicator

    def serve(self, source: bytes, *, store: Store, recovered: Recovered, uploader: Uploader, cache: PageCache) -> None:
        """Hold replicas of an under-store for others."""
        self.holder.serve(source, Place(store, recovered, uploader, cache))

    def end_volume(self, source: bytes) -> None:
        """The under-store is not served any more."""
        self._volumes.pop(source, None)
        self.holder.withdraw(source)

    async def order(self, peer: str, body: bytes) -> bytes:
        """Answer a message of another node."""
        try:
            message = decode_message(body)
        except ValueError as exc:
            return encode(Answer(refused=str(exc)))
        match message:
            case Describe():
                answer = await self.holder.describe(peer, message)
            case Drop():
                answer = await self.holder.drop(peer, message)
            case Ask():
                answer = await self.holder.ask(peer, message)
            case Needed():
                volume = self._volumes.get(message.source)
                answer = volume.needed(peer, message.outcomes) if volume is not None else Answer()
        return encode(answer)

    async def run(self) -> None:
        """Take over the writes that others have left, and tell holders which replicas are not needed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.holder.run)
            while True:
                await trio.sleep(RELEASE_INTERVAL_S)
                for volume in list(self._volumes.values()):
                    await volume.tell_holders()

    def statistics(self) -> ReplicationStatistics:
        """Return counts since the start, and the replicas held now."""
        files = self.holder.files
        sends = self.sends
        return ReplicationStatistics(
            sends.sent, sends.fallbacks, sends.degraded, len(files.holdings), files.used_bytes, self.holder.counts
        )
