"""Replicas that this node holds for other writers: taking them, answering for them, and forgetting them.

Those whose writer is gone are the business of `takeover`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection

import trio

from luxfuse.cluster.completer import Completer, HolderStatistics, Place
from luxfuse.cluster.members import Members
from luxfuse.cluster.replica_paths import BATCH, ORDERS_PATH
from luxfuse.cluster.replicas import Arrival, Refused, ReplicaFiles
from luxfuse.cluster.takeover import Takeover
from luxfuse.core.replicas import (
    Answer,
    Ask,
    Describe,
    Drop,
    FileId,
    Needed,
    Outcome,
    State,
    decode_answer,
    decode_replica,
    encode,
)  # fmt: skip
from luxfuse.errors import LuxError
from luxfuse.peers.client import Rpc
from luxfuse.steps import reached
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
SWEEP_INTERVAL_S = 60.0
OLD_S = 120.0
"""So old is a replica when its writer is asked whether it still needs it."""
TOMBSTONE_S = 30 * 86400.0
"""For how long what became of a replica is remembered for a writer that does not come back."""


class Holder:
    """The replicas of one node."""

    def __init__(
        self, files: ReplicaFiles, threads: Threads, *, members: Members, rpc: Rpc, clock: Callable[[], float]
    ) -> None:
        """``threads``: for work on ``files``. ``clock``: wall-clock seconds."""
        self.files = files
        self._threads = threads
        self._members = members
        self._rpc = rpc
        self._clock = clock
        self.counts = HolderStatistics()
        completer = Completer(files, threads, clock, self.counts)
        self._takeover = Takeover(files, threads, completer, members=members, rpc=rpc, clock=clock, counts=self.counts)

    def serve(self, source: bytes, place: Place) -> None:
        """Take replicas of an under-store from now on."""
        self._takeover.serve(source, place)

    def withdraw(self, source: bytes) -> None:
        """Take no more, and upload nothing, of an under-store; replicas held stay."""
        self._takeover.withdraw(source)

    # -- what others ask

    async def receive(self, peer: str, header: bytes, chunks: AsyncIterator[bytes]) -> bytes:
        """Take a replica; the answer says whether it is durable here."""
        arrival: Arrival | None = None
        try:
            replica = decode_replica(header)
            if replica.write.file.writer != peer:
                raise Refused("a node sends replicas of its own files only")
            if not self._takeover.serves(replica.source):
                raise Refused("that under-store is not served here")
            self._takeover.hear(peer)
            arrival = await self._threads.run(self.files.begin, replica)
            async for chunk in chunks:
                await self._threads.run(arrival.write, chunk)
            await self._threads.run(arrival.commit, self._clock())
            reached("holder.received")
        except (ValueError, Refused, OSError) as exc:
            log.info("a replica from %s is not taken: %s", peer, exc)
            async for _ in chunks:  # the connection would break before the answer is read
                pass
            return encode(Answer(refused=str(exc)))
        finally:
            if arrival is not None:
                with trio.CancelScope(shield=True):
                    await self._threads.run(arrival.abort)
        return encode(Answer())

    async def describe(self, peer: str, order: Describe) -> Answer:
        """Take a new description of content that is here."""
        if order.replica.write.file.writer != peer or not order.replica.is_sound:
            return Answer(refused="a node describes its own files only")
        self._takeover.hear(peer)
        try:
            await self._threads.run(self.files.describe, order.replica, order.content, self._clock())
        except (Refused, OSError) as exc:
            return Answer(refused=str(exc))
        return Answer()

    async def drop(self, peer: str, order: Drop) -> Answer:
        """Forget replicas that a writer does not need any more. Returns those being uploaded, and those uploaded by us."""
        self._takeover.hear(peer)
        outcomes = []
        for write in order.writes:
            held = self.files.holdings.get(write.file)
            if write.file.writer != peer or held is None:
                continue
            if self._takeover.is_uploading(write.file):
                outcomes.append(held.outcome)
                continue
            if held.effective:
                outcomes.append(held.outcome)
            await self._forget(write.file, write.generation)
        return Answer(outcomes=tuple(outcomes))

    async def ask(self, peer: str, order: Ask) -> Answer:
        """Tell what became of files. A writer's file is its own again when it asks, unless it is just being uploaded."""
        self._takeover.hear(peer)
        outcomes = []
        for file in order.files:
            held = self.files.holdings.get(file)
            if (
                held is not None
                and held.state is State.TAKEN
                and file.writer == peer
                and not self._takeover.is_uploading(file)
            ):
                held = await self._takeover.give_back(held)
            if held is not None:
                outcomes.append(held.outcome)
        return Answer(outcomes=tuple(outcomes))

    async def _forget(self, file: FileId, generation: int) -> None:
        held = self.files.holdings.get(file)
        if held is not None and held.state is State.TAKEN:
            await self._takeover.give_back(held)
        await self._threads.run(self.files.drop, file, generation)

    # -- in the background

    async def run(self) -> None:
        """Take over the replicas of dead writers, and forget those that need not be held, until cancelled."""
        sweep_s = trio.current_time() + SWEEP_INTERVAL_S
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_INTERVAL_S)
                self._takeover.look(nursery)
                if trio.current_time() >= sweep_s:
                    await self.sweep()
                    sweep_s = trio.current_time() + SWEEP_INTERVAL_S

    # -- what need not be held any more

    async def sweep(self) -> None:
        """Ask writers that are here which of their older replicas they need; forget old tombstones."""
        now_s = self._clock()
        old: dict[tuple[str, bytes], list[Outcome]] = {}
        for file, held in list(self.files.holdings.items()):
            if held.state in (State.DONE, State.KEPT) and now_s - held.changed_s > TOMBSTONE_S:
                await self._threads.run(self.files.drop, file, held.replica.write.generation)
            elif now_s - held.changed_s > OLD_S and self._takeover.is_here(file.writer):
                old.setdefault((file.writer, held.replica.source), []).append(held.outcome)
        for (writer, source), outcomes in old.items():
            for start in range(0, len(outcomes), BATCH):
                await self._ask_whether_needed(writer, source, outcomes[start : start + BATCH])

    async def _ask_whether_needed(self, writer: str, source: bytes, outcomes: Collection[Outcome]) -> None:
        member = self._members.member(writer)
        if member is None:
            return
        try:
            answer = decode_answer(await self._rpc.request(
                member.info.address, ORDERS_PATH, encode(Needed(source, tuple(outcomes))), name=writer
            ))  # fmt: skip
        except (LuxError, ValueError) as exc:
            log.info("node %s does not say which replicas it still needs: %s", writer, exc)
            return
        generations = {outcome.write.file: outcome.write.generation for outcome in outcomes}
        self._takeover.want(file for file in answer.wanted if file in generations and file in self.files.holdings)
        for file in answer.unneeded:
            if file in generations and not self._takeover.is_uploading(file):
                await self._forget(file, generations[file])
