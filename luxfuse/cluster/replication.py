"""Writes that other nodes hold until the store has them (``--durable-replicas``).

`Replication` is a node's: it answers other nodes, holds their replicas (`takeover.Holder`), and makes a `Replicator` for
each under-store that is served here. A `Replicator` sends what was promised of a file to peers, tells them when it is not
needed any more, and asks them what became of it, when the store has something unexpected or this is a new run.

To drop what is in the store is best effort, repeated: a holder that does not hear of it asks by itself (`Needed`), and one
that uploads what the store has already finds that out. To drop what was *removed* is waited for, for a moment: a holder
that does not hear of it would bring the file back, should we die; if it does that while we live, it is removed again.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.upload import Uploader
from luxfuse.cluster.replicas import ReplicaFiles
from luxfuse.cluster.takeover import BATCH, ORDERS_PATH, PATH, Holder, HolderStatistics, Place
from luxfuse.core.members import Member, MemberState
from luxfuse.core.replicas import (
    WRITE_METADATA,
    Answer,
    Ask,
    Describe,
    Drop,
    FileId,
    Needed,
    Outcome,
    Replica,
    State,
    Write,
    decode_answer,
    decode_message,
    encode,
    write_of,
)  # fmt: skip
from luxfuse.core.takeover import ranked
from luxfuse.errors import LuxError, NotFound, NotReplicated, StoreError
from luxfuse.index.journal import Journal
from luxfuse.peers.client import Rpc
from luxfuse.steps import reached
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

SEND_DEADLINE_S = 10.0
SEND_BYTES_S = 8 << 20
"""A replica gets the deadline, and a second more for each so many bytes."""
RELEASE_INTERVAL_S = 0.5
RELEASES_BOUND = 100_000
RELEASE_RETRIES = 20
"""How often a holder is told to drop something; after that it has to ask."""
RETRACT_DEADLINE_S = 2.0
TAKEN_PATIENCE_S = 10.0
TAKEN_POLL_S = 0.25


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
        name: str,
        rack: str,
        root: Path,
        capacity_bytes: int,
        rpc: Rpc,
        alive: Callable[[], Sequence[Member]],
        member: Callable[[str], Member | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``name``, ``rack``: of this node. ``root``: directory for others' replicas of ``capacity_bytes`` at most.

        ``alive``, ``member``: as `peers.membership` has them. Blocks. Raises OSError, `ConfigError`.
        """
        self.name = name
        self.rack = rack
        self.rpc = rpc
        self.alive = alive
        self.member = member
        self.clock = clock
        self.holder = Holder(name=name, files=ReplicaFiles(root, capacity_bytes), rpc=rpc, member=member, clock=clock)
        self._volumes: dict[bytes, Replicator] = {}
        self.sent = 0
        self.fallbacks = 0
        self.degraded: str | None = None

    def register(self, server: Server) -> None:
        """Answer other nodes through ``server``."""
        server.handle_file(PATH, self.holder.receive)
        server.handle(ORDERS_PATH, self.order)

    def volume(
        self,
        source: bytes,
        *,
        store: Store,
        recovered: Recovered,
        journal: Journal,
        uploader: Uploader,
        cache: PageCache,
        copies: int,
    ) -> Replicator:
        """Serve an under-store: hold replicas of it for others, and have ``copies`` of its writes held by others."""
        replicator = Replicator(self, source=source, store=store, journal=journal, copies=copies)
        self._volumes[source] = replicator
        self.holder.serve(source, Place(store, recovered, uploader, cache))
        return replicator

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
        """Take over what others have left, and tell holders what is not needed any more, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.holder.run)
            while True:
                await trio.sleep(RELEASE_INTERVAL_S)
                for volume in list(self._volumes.values()):
                    await volume.tell_holders()

    def statistics(self) -> ReplicationStatistics:
        """Return counts since the start, and what is held now."""
        files = self.holder.files
        return ReplicationStatistics(
            self.sent, self.fallbacks, self.degraded, len(files.holdings), files.used_bytes, self.holder.counts
        )


@dataclass(slots=True)
class _Release:
    """A holder is to drop what it has up to ``generation``; ``removed``: because the file is."""

    generation: int
    removed: bool
    tries: int = 0


class Replicator:
    """The writes of one under-store that others hold: a `luxfuse.vfs.replicator.Replicator`."""

    def __init__(self, node: Replication, *, source: bytes, store: Store, journal: Journal, copies: int) -> None:
        self._node = node
        self._source = source
        self._store = store
        self._journal = journal
        self.copies = copies
        self._releases: defaultdict[str, dict[FileId, _Release]] = defaultdict(dict)
        """By holder."""
        self._lost: set[int] = set()
        self._unaware: dict[str, None] = {}
        """Those who may hold what was removed."""

    def write(self, number: int, generation: int) -> Write:
        """Return the name of what was promised of a file of our journal."""
        return Write(FileId(self._node.name, self._journal.identity, number), generation)

    def described(self, metadata: Mapping[str, str], number: int, generation: int, key: str) -> dict[str, str]:
        """Return object metadata with the write id."""
        return {**metadata, WRITE_METADATA: self.write(number, generation).text(key)}

    def plan(self, number: int, keep: Sequence[str]) -> tuple[str, ...]:
        """Return the peers that are to hold a file: those that do, as long as they are here, then the best others."""
        return tuple(self._candidates(number, keep)[: self.copies])

    def _candidates(self, number: int, keep: Sequence[str]) -> list[str]:
        fit = [
            (member.info.name, member.info.rack)
            for member in self._node.alive()
            if member.state is MemberState.ALIVE
            and self._source in member.info.sources
            and member.info.name != self._node.name
        ]
        return ranked(self.write(number, 0).file, self._node.rack, fit, keep)

    # -- sending

    async def replicate(
        self,
        write: Write,
        key: str,
        metadata: Mapping[str, str],
        expect: str | None,
        holders: tuple[str, ...],
        fd: int,
        size: int,
        content: int,
    ) -> tuple[str, ...]:
        """Have enough peers hold the first ``size`` bytes of ``fd``; returns who does. Raises `NotReplicated`.

        ``holders``: as `plan` has it. ``content``: generation of the same content that they hold already, or 0. ``fd`` -1:
        they are only told what it has become.
        """
        replica = Replica(
            self._source,
            write,
            key,
            size,
            self.described(metadata, write.file.number, write.generation, key),
            expect,
            holders,
            self._node.clock(),
        )
        left = self._candidates(write.file.number, holders)
        took: list[str] = []
        reasons: list[str] = []

        async def send(name: str) -> None:
            try:
                await self._send(name, replica, fd, content)
                took.append(name)
            except (LuxError, OSError, ValueError) as exc:
                reasons.append(f"{name}: {exc}")

        with trio.move_on_after(SEND_DEADLINE_S + size / SEND_BYTES_S):
            while len(took) < self.copies and len(left) >= self.copies - len(took):
                batch = [left.pop(0) for _ in range(self.copies - len(took))]
                async with trio.open_nursery() as nursery:
                    for name in batch:
                        nursery.start_soon(send, name)
        if len(took) < self.copies:
            self._node.fallbacks += 1
            why = "; ".join(reasons) or f"{len(took) + len(left)} peers are there"
            self._node.degraded = f"{len(took)} of {self.copies} replicas of {key!r} were made ({why})"
            raise NotReplicated(self._node.degraded)
        self._node.sent += len(took)
        self._node.degraded = None
        reached("replicate.acknowledged")
        return tuple(took)

    async def _send(self, name: str, replica: Replica, fd: int, content: int) -> None:
        member = self._node.member(name)
        if member is None:
            raise NotReplicated("it is gone")
        address = member.info.address
        if content or fd < 0:
            body = encode(Describe(replica, content))
            answer = decode_answer(await self._node.rpc.request(address, ORDERS_PATH, body, name=name))
            if not answer.refused:
                return
            if fd < 0:
                raise NotReplicated(answer.refused)
        timeout_s = SEND_DEADLINE_S + replica.size / SEND_BYTES_S
        answer = decode_answer(await self._node.rpc.send_file(
            address, PATH, encode(replica), fd, replica.size, name=name, timeout_s=timeout_s
        ))  # fmt: skip
        if answer.refused:
            raise NotReplicated(answer.refused)

    # -- what is not needed any more

    def release(self, number: int, generation: int, holders: Sequence[str], *, removed: bool = False) -> None:
        """Let holders drop what they have of a file up to ``generation``, soon. ``removed``: nobody wants it any more."""
        file = self.write(number, generation).file
        for name in holders:
            releases = self._releases[name]
            if file not in releases and len(releases) >= RELEASES_BOUND:
                releases.pop(next(iter(releases)))  # it will ask
            if removed:
                self._unaware[name] = None
            before = releases.get(file)
            releases[file] = _Release(generation, removed or (before is not None and before.removed))

    async def retract(self) -> None:
        """Wait a moment until holders have dropped what was removed; those that do not answer are told later."""

        async def tell(name: str) -> None:
            releases = self._releases[name]
            left = len(releases) + 1
            while 0 < len(releases) < left:
                left = len(releases)
                await self._tell(name)
            if not any(release.removed for release in releases.values()):
                self._unaware.pop(name, None)

        if not self._unaware:
            return
        with trio.move_on_after(RETRACT_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for name in list(self._unaware):
                    nursery.start_soon(tell, name)

    async def tell_holders(self) -> None:
        """Tell each holder what it may drop."""
        async with trio.open_nursery() as nursery:
            for name, releases in self._releases.items():
                if releases:
                    nursery.start_soon(self._tell, name)

    async def _tell(self, name: str) -> None:
        releases = self._releases[name]
        member = self._node.member(name)
        batch = dict(list(releases.items())[:BATCH])
        if not batch:
            return
        try:
            if member is None or member.state not in (MemberState.ALIVE, MemberState.SUSPECT):
                raise NotReplicated("it is not here")
            writes = tuple(Write(file, release.generation) for file, release in batch.items())
            body = encode(Drop(writes))
            answer = decode_answer(await self._node.rpc.request(member.info.address, ORDERS_PATH, body, name=name))
        except (LuxError, ValueError) as exc:
            self._tell_again(name, batch, exc)
            return
        busy = {outcome.write.file for outcome in answer.outcomes if outcome.state is State.TAKEN}
        for file, release in batch.items():
            if file not in busy and releases.get(file) is release:
                del releases[file]
        for outcome in answer.outcomes:
            told = batch.get(outcome.write.file)
            if told is not None and told.removed and outcome.effective:
                await self.remove_again(outcome)

    def _tell_again(self, name: str, batch: Mapping[FileId, _Release], why: Exception) -> None:
        releases = self._releases[name]
        for file, release in batch.items():
            release.tries += 1
            if releases.get(file) is release and release.tries >= RELEASE_RETRIES and not release.removed:
                del releases[file]
                log.info("node %s is not told any more to drop a replica: %s", name, why)

    async def remove_again(self, outcome: Outcome) -> None:
        """A holder that took us for dead has brought a file to the store which was removed, or renamed, here."""
        try:
            info = await self._store.head(outcome.key)
            if info.version == outcome.version or write_of(info.metadata, outcome.key) == outcome.write:
                await self._store.delete([outcome.key])
                log.info("%r was removed here while another node uploaded it: it is removed again", outcome.key)
        except NotFound:
            pass
        except StoreError as exc:
            log.warning("%r was removed here while another node uploaded it, and is there again: %s", outcome.key, exc)

    def note_lost(self, number: int) -> None:
        """The content of a file that the journal knows is not here any more: its holders are to bring it to the store."""
        self._lost.add(number)

    def needed(self, peer: str, outcomes: Sequence[Outcome]) -> Answer:
        """Say which of the replicas that ``peer`` has of our files it need not keep, and which it is to bring up."""
        found, wanted = [], []
        for outcome in outcomes:
            file = outcome.write.file
            if (file.writer, file.journal) != (self._node.name, self._journal.identity):
                continue
            record = self._journal.files.get(file.number)
            if record is not None and file.number in self._lost:
                if outcome.state in (State.DONE, State.KEPT) and outcome.write.generation >= record.generation:
                    self._lost.discard(file.number)
                    self._journal.drop_file(file.number)
                elif outcome.state is State.HELD:
                    wanted.append(file)
                continue
            moved = record is not None and record.generation > outcome.write.generation and peer not in record.holders
            if record is None or not record.content or moved:
                found.append(file)
        return Answer(unneeded=tuple(found), wanted=tuple(wanted))

    # -- what became of it

    async def outcome(self, number: int, holders: Sequence[str]) -> Outcome | None:
        """Ask the holders that are here what became of a file; returns the latest that one of them brought to the store.

        What one of them is just uploading is waited for, for a while.
        """
        file, outcomes = self.write(number, 0).file, list[Outcome]()
        with trio.move_on_after(TAKEN_PATIENCE_S):
            while True:
                outcomes = await self._ask(file, holders)
                if not any(outcome.state is State.TAKEN for outcome in outcomes):
                    break
                await trio.sleep(TAKEN_POLL_S)
        done = [outcome for outcome in outcomes if outcome.state is State.DONE and outcome.version]
        return max(done, key=lambda outcome: (outcome.write.generation, outcome.effective), default=None)

    async def _ask(self, file: FileId, holders: Sequence[str]) -> list[Outcome]:
        found: list[Outcome] = []

        async def ask(name: str) -> None:
            member = self._node.member(name)
            if member is None or member.state not in (MemberState.ALIVE, MemberState.SUSPECT):
                return
            try:
                body = encode(Ask((file,)))
                answer = decode_answer(await self._node.rpc.request(member.info.address, ORDERS_PATH, body, name=name))
                found.extend(outcome for outcome in answer.outcomes if outcome.write.file == file)
            except (LuxError, ValueError) as exc:
                log.info("node %s does not say what became of a replica: %s", name, exc)

        async with trio.open_nursery() as nursery:
            for name in holders:
                nursery.start_soon(ask, name)
        return found
