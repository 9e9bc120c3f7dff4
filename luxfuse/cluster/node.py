"""A mount as a node of a cluster: owns the membership, the server and the client, and ties volumes to them."""

from __future__ import annotations

import heapq
import logging
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from luxfuse import __version__
from luxfuse.cache.page_cache import PageCache
from luxfuse.cluster import LOCATIONS, locations
from luxfuse.cluster.announcements import Announcements, Listener
from luxfuse.cluster.copies import CleanReplicas
from luxfuse.cluster.locations import Locations
from luxfuse.cluster.peer_source import Peers, PeerSource
from luxfuse.cluster.replication import Replication
from luxfuse.cluster.serving import Serving
from luxfuse.config import Settings
from luxfuse.core.members import Address, Member, MemberState, NodeInfo
from luxfuse.core.swim.config import SwimConfig
from luxfuse.core.swim.swim import Swim
from luxfuse.index.journal import Journal
from luxfuse.index.locations import LocationTable
from luxfuse.index.objects import Objects
from luxfuse.peers.client import Client
from luxfuse.peers.identity import Identity
from luxfuse.peers.join import Seeds
from luxfuse.peers.listening import Listening, advertised, listen
from luxfuse.peers.membership import PUSH_PULL_PATH, Membership
from luxfuse.peers.server import Server
from luxfuse.understore.retrying import Store
from luxfuse.volume.neighbours import Neighbours
from luxfuse.volume.parts import VolumeParts

if TYPE_CHECKING:
    from luxfuse.peers.credentials import Credentials

log = logging.getLogger(__name__)

GIB = 1 << 30
MOST_SOURCES = 24
"""Under-stores of one mount that other nodes are told of: the description of a node is of bounded length."""
SWEEP_INTERVAL_S = 10.0
RECONCILE_AFTER_S = 2.0
"""So long after a volume came, or went, the ranges held are compared with those that others are told of."""
DOUBTS_INTERVAL_S = 60.0
SCANNED = 500
REPLICAS = "replicas"
REPLICAS_BYTES = 16 << 30
"""Of replicas of others: the rest they have to leave to other nodes, or to bring to the store at once."""
CLOSE_S = 10.0
LAST_WORDS_S = 2.0


class Cluster:
    """This node in its cluster."""

    def __init__(
        self, settings: Settings, identity: Identity, credentials: Credentials, listening: Listening, seeds: Seeds,
        address: Address, table: LocationTable, directory: Path,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._credentials = credentials
        self._volumes: dict[bytes, VolumeParts] = {}
        info = NodeInfo(
            name=identity.name, host=address[0], port=address[1], rack=settings.rack, version=__version__,
            label=f"{socket.gethostname()}:{settings.mountpoint}"[:64],
        )  # fmt: skip
        self._client = Client(credentials, tls=settings.peer_tls)
        self.serving = Serving(self._cache_of)
        self._server = Server(listening.connections, credentials, tls=settings.peer_tls, provider=self.serving)
        now_s = trio.current_time()
        rng = random.Random()  # noqa: S311 (which node to probe)
        swim = Swim(info, incarnation=identity.incarnation, config=SwimConfig(), rng=rng, now_s=now_s)
        self.membership = Membership(
            swim, credentials, self._client, listening.datagrams, info=info, seeds=seeds, identity=identity, rng=rng
        )
        self._server.handle(PUSH_PULL_PATH, self.membership.handle_push_pull)
        self.announcements = Announcements(self.membership, self._listener_of)
        self.locations = Locations(table, self._client, self.membership, os.urandom(8))
        self._server.handle(locations.PATH, self.locations.answer)
        self.peers = Peers(self.membership, self._client, self.locations, cooperative=settings.cooperative, rng=rng)
        self._reconcile = trio.Event()
        self.replication = Replication(
            root=directory / REPLICAS,
            capacity_bytes=REPLICAS_BYTES,
            members=self.membership,
            rpc=self._client,
        )
        self._peer_sources: dict[bytes, PeerSource] = {}
        self._announced: set[bytes] = set()
        """Volumes whose changes others are told of."""
        self.replication.register(self._server)
        self.replicas = CleanReplicas(self.membership, self._client, self.locations, rng, time.time)
        self.replicas.register(self._server)
        self.membership.on_heard += [self.locations.heard, self.announcements.heard, self.replicas.heard]
        self.membership.on_change += [self._changed, self.replicas.members_changed]

    def _cache_of(self, source: bytes) -> PageCache | None:
        volume = self._volumes.get(source)
        return volume.cache if volume is not None else None

    def _listener_of(self, source: bytes) -> Listener | None:
        volume = self._volumes.get(source)
        return volume.namespace.news if volume is not None else None

    def _changed(self, member: Member) -> None:
        if member.state in (MemberState.DEAD, MemberState.LEFT):
            self._client.forget(member.info.address)
        self.peers.changed(member)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._server.run)
                await nursery.start(self.membership.run)
                nursery.start_soon(self.announcements.run)
                nursery.start_soon(self.peers.run)
                nursery.start_soon(self._sweep)
                nursery.start_soon(self._keep_true)
                nursery.start_soon(self.replication.run)
                nursery.start_soon(self.replicas.run)
                await nursery.start(self.locations.run)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await self.locations.close()
            self.peers.close()
            self._client.close()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            self._client.sweep()

    async def _keep_true(self) -> None:
        """Compare the ranges that others are told of with those held, where they may differ."""
        while True:
            with trio.move_on_after(DOUBTS_INTERVAL_S) as asleep:
                await self._reconcile.wait()
            if asleep.cancelled_caught and not self.locations.doubtful:
                continue
            await trio.sleep(RECONCILE_AFTER_S)
            self._reconcile = trio.Event()
            try:
                wrong = await self.locations.reconcile(self._held())
            except OSError as exc:
                log.info("what is held here cannot be compared with what other nodes are told: %s", exc)
            else:
                if wrong:
                    log.info("%d ranges were held here, or not, other than other nodes were told", wrong)

    async def _held(self) -> AsyncGenerator[tuple[bytes, int], None]:
        """Give all ranges that are held, in order."""
        volumes = list(self._volumes.values())
        for parts in volumes:
            await parts.objects.flush()
        each = [_ranges(parts.objects) for parts in volumes]
        for number, held in enumerate(heapq.merge(*each)):
            yield held
            if number % SCANNED == 0:
                await trio.lowlevel.checkpoint()

    # -- volumes

    def add(self, source: bytes, parts: VolumeParts) -> bool:
        """Let a volume ask peers, and be there for them; False if there are too many."""
        if source in self._volumes or len(self._volumes) >= MOST_SOURCES:
            log.warning("an under-store takes no part in the cluster: %d of this mount do, which is the most", MOST_SOURCES)
            return False
        self._volumes[source] = parts
        self._announced.add(source)
        self._peer_sources[source].taking_part = True
        parts.objects.on_held.append(self.locations.transition)
        self.replicas.add(source, parts)
        self._reconcile.set()
        self._tell()
        return True

    def remove(self, settings: Settings) -> None:
        """Let a volume take part no more, if it still does."""
        source = source_of(settings)
        parts = self._volumes.pop(source, None)
        if parts is None:
            return
        self._peer_sources[source].taking_part = False
        parts.objects.on_held.remove(self.locations.transition)
        self.replicas.remove(source)
        if self._volumes:  # else all ends, and the cached objects will be there again
            self._reconcile.set()
        self._tell()

    def _tell(self) -> None:
        """Tell others which under-stores are served here now, and with how large a cache."""
        spaces = [space for parts in self._volumes.values() for space in parts.hierarchy]
        capacity = sum(space.capacity_bytes or space.directory.space().total_bytes for space in spaces)
        sources, weight = tuple(sorted(self._volumes)), max(1, capacity // GIB)
        self.membership.update(msgspec.structs.replace(self.membership.info, sources=sources, weight=weight))
        self.peers.changed()

    def on_changed(self, settings: Settings) -> Callable[[str, bool], None]:
        """Return the listener to each key of an under-store that was written, or is gone."""
        source = source_of(settings)

        def changed(key: str, gone: bool) -> None:
            if source in self._announced:
                self.announcements.changed(source, key, gone)

        return changed

    @asynccontextmanager
    async def prepared(self, settings: Settings, store: Store, journal: Journal) -> AsyncIterator[Neighbours]:
        """A volume exists for the block. At its end others are told, for a moment, which replicas they may drop."""
        source = source_of(settings)
        replicator = self.replication.replicator(source, store=store, journal=journal, copies=settings.durable_replicas)
        peers = self._peer_sources[source] = self.peers.source(source)
        try:
            yield Neighbours(replicator, peers, self.replicas.copies_of(source), self.replicas.nodes_for(source))
        finally:
            with trio.move_on_after(LAST_WORDS_S, shield=True):
                await replicator.tell_holders()
            self.replication.end_volume(source)
            del self._peer_sources[source]
            self._announced.discard(source)

    def serve(self, settings: Settings, parts: VolumeParts) -> None:
        """Hold replicas of a volume for others, until it ends."""
        self.replication.serve(
            source_of(settings), store=parts.store, recovered=parts.recovered, uploader=parts.uploader, cache=parts.cache
        )

    @contextmanager
    def enlisted(self, settings: Settings, parts: VolumeParts) -> Iterator[None]:
        """A volume takes part for the block, unless there are too many."""
        source = source_of(settings)
        if not self.add(source, parts):
            yield
            return
        try:
            yield
        finally:
            self.remove(settings)

    # -- for the operator

    async def check_keys(self) -> None:
        """Raise `ConfigError` if the key file cannot be used."""
        await trio.to_thread.run_sync(self._credentials.check)

    async def reread(self) -> bool:
        """Take up a changed key file; returns whether it had changed. Raises `ConfigError`."""
        return await trio.to_thread.run_sync(self._credentials.reread)

    def statistics(self) -> dict[str, int]:
        """Return counts of requests to others, and by others, from the start on."""
        said, replicas = self.announcements, self.replication.statistics()
        return {
            **self.peers.statistics(), "provided_bytes": self.serving.provided_bytes, "refused": self.serving.refused,
            "notices_sent": said.sent, "notices_received": said.received,
            "datagrams_rejected": sum(self.membership.rejections.counts.values()),
            "replicas_sent": replicas.sent, "replicas_forgone": replicas.fallbacks,
            "replicas_held": replicas.held_files, "replicas_held_bytes": replicas.held_bytes, **self.replicas.statistics(),
        }  # fmt: skip

    def degraded(self) -> list[str]:
        """Return what does not work as it should, a line each."""
        why = self.replication.sends.degraded
        return [f"what is written goes to the under-store at once: {why}"] if why else []

    def describe(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return this node and the others, as `status` has them."""
        own = {self.membership.info.name: self.locations.statistics().own}
        return self.membership.describe_self(own), self.membership.describe(self.locations.counts())


def _ranges(objects: Objects) -> Iterator[tuple[bytes, int]]:
    """Give the ranges that a volume holds, in order."""
    after = b""
    while found := objects.scan(after, SCANNED):
        for oid, record in found:
            for number in objects.ranges(oid, record):
                yield oid, number
            after = oid


def source_of(settings: Settings) -> bytes:
    """Return the id of an under-store as nodes tell it each other, 8 bytes."""
    return bytes.fromhex(settings.source_id)


def _read_credentials(key_file: str, identity: Identity) -> Credentials:
    # Only here, as cryptography takes 0.1 s, which a mount without a cluster need not wait for.
    from luxfuse.peers.credentials import Credentials

    return Credentials.read(key_file, name=identity.name, stamp_ns=identity.stamp_ns)


@asynccontextmanager
async def taking_part(settings: Settings, key_file: str, directory: Path) -> AsyncIterator[Cluster]:
    """Run this node in the cluster of ``key_file`` for the block. ``directory``: its state. Raises `ConfigError`."""
    identity = await trio.to_thread.run_sync(Identity.open, directory)
    credentials = await trio.to_thread.run_sync(_read_credentials, key_file, identity)
    listening = await trio.to_thread.run_sync(listen, settings.listen)
    try:
        seeds = Seeds(settings.join, family=listening.family)
        address = await advertised(listening, settings.advertise, await seeds.resolve())
        table = await trio.to_thread.run_sync(LocationTable, directory / LOCATIONS)
        cluster = Cluster(settings, identity, credentials, listening, seeds, address, table, directory)
    except BaseException:
        listening.close()
        raise
    async with trio.open_nursery() as nursery:
        await nursery.start(cluster.run)
        log.info("node %s at %s:%d", identity.name, *address)
        try:
            yield cluster
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await cluster.membership.leave()
            nursery.cancel_scope.cancel()
