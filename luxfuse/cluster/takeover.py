"""Replicas that this node holds for other writers: taking them, answering for them, and completing uploads of the dead.

A holder uploads only if the store has what the writer meant to replace (`core.takeover.judge`), and before it begins it
notes durably that it does (`State.TAKEN`). A writer that is back asks first: what is being uploaded at that moment it waits
for; what is not, is its own again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import trio

from luxfuse.cache.checksums import has_same_content, page_checksums
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.upload import Uploader
from luxfuse.cache.upload_source import Source
from luxfuse.cluster.replicas import Arrival, Holding, Refused, ReplicaFiles
from luxfuse.core.members import Member, MemberState
from luxfuse.core.parts import SINGLE_BYTES
from luxfuse.core.replicas import (
    Answer,
    Ask,
    Describe,
    Drop,
    FileId,
    Needed,
    Outcome,
    State,
    Write,
    decode_answer,
    decode_replica,
    encode,
    write_of,
)  # fmt: skip
from luxfuse.core.takeover import Absences, Verdict, judge, takes_over_in_s
from luxfuse.core.writeback import retry_delay_s
from luxfuse.errors import LuxError, NotFound, StoreError, VersionChanged
from luxfuse.peers.client import Rpc
from luxfuse.steps import reached
from luxfuse.tiers.directory import read_exact
from luxfuse.types import ABSENT, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

PATH = "/v1/replicas"
ORDERS_PATH = "/v1/replicas/orders"
HEARD_S = 10.0
"""A writer that has said something to us so lately is here, whatever is believed of it."""
LOOK_INTERVAL_S = 1.0
SWEEP_INTERVAL_S = 60.0
OLD_S = 120.0
"""So old is a replica when its writer is asked whether it still needs it."""
TOMBSTONE_S = 30 * 86400.0
"""For how long what became of a replica is remembered for a writer that does not come back."""
BATCH = 500
CONCURRENT_UPLOADS = 4
ROUNDS = 5
IO_THREADS = 8
ASK_DEADLINE_S = 3.0
ABORT_DEADLINE_S = 5.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Place:
    """Where replicas of one under-store are brought to."""

    store: Store
    recovered: Recovered
    uploader: Uploader
    cache: PageCache


@dataclass(slots=True)
class HolderStatistics:
    """Counts since the start: replicas brought to the store here, found there, kept aside; failed tries."""

    uploaded: int = 0
    found: int = 0
    kept: int = 0
    failures: int = 0


class Holder:
    """The replicas of one node."""

    def __init__(
        self,
        *,
        name: str,
        files: ReplicaFiles,
        rpc: Rpc,
        member: Callable[[str], Member | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``name``: of this node. ``member``: what is believed of another one. ``clock``: wall-clock seconds."""
        self._name = name
        self.files = files
        self._rpc = rpc
        self._member = member
        self._clock = clock
        self._places: dict[bytes, Place] = {}
        self._absences = Absences()
        self._heard_s: dict[str, float] = {}
        """When a writer, of which something is held, said something itself."""
        self._uploading: set[FileId] = set()
        self._again: dict[FileId, tuple[float, int]] = {}
        """When a failed upload is tried again, and how often it has failed."""
        self._wanted: set[FileId] = set()
        """What its writer has lost, and wants us to bring to the store."""
        self._limiter = trio.CapacityLimiter(IO_THREADS)
        self._threads = Threads(IO_THREADS)
        self.counts = HolderStatistics()

    def serve(self, source: bytes, place: Place) -> None:
        """Take replicas of an under-store from now on."""
        self._places[source] = place

    def withdraw(self, source: bytes) -> None:
        """Take no more, and upload nothing, of an under-store; what is held stays."""
        self._places.pop(source, None)

    # -- what others ask

    async def receive(self, peer: str, header: bytes, chunks: AsyncIterator[bytes]) -> bytes:
        """Take a replica; the answer says whether it is durable here."""
        arrival: Arrival | None = None
        try:
            replica = decode_replica(header)
            if replica.write.file.writer != peer:
                raise Refused("a node sends replicas of its own files only")
            if replica.source not in self._places:
                raise Refused("that under-store is not served here")
            self._hear(peer)
            arrival = await self._run(self.files.begin, replica)
            async for chunk in chunks:
                await self._run(arrival.write, chunk)
            await self._run(arrival.commit, self._clock())
            reached("holder.received")
        except (ValueError, Refused, OSError) as exc:
            log.info("a replica from %s is not taken: %s", peer, exc)
            async for _ in chunks:  # the connection would break before the answer is read
                pass
            return encode(Answer(refused=str(exc)))
        finally:
            if arrival is not None:
                with trio.CancelScope(shield=True):
                    await self._run(arrival.abort)
        return encode(Answer())

    async def describe(self, peer: str, order: Describe) -> Answer:
        """Take a new description of content that is here."""
        if order.replica.write.file.writer != peer or not order.replica.is_sound:
            return Answer(refused="a node describes its own files only")
        self._hear(peer)
        try:
            await self._run(self.files.describe, order.replica, order.content, self._clock())
        except (Refused, OSError) as exc:
            return Answer(refused=str(exc))
        return Answer()

    async def drop(self, peer: str, order: Drop) -> Answer:
        """Forget what a writer does not need any more. Returns what is being uploaded, and what was uploaded by us."""
        self._hear(peer)
        outcomes = []
        for write in order.writes:
            held = self.files.holdings.get(write.file)
            if write.file.writer != peer or held is None:
                continue
            if write.file in self._uploading:
                outcomes.append(held.outcome)
                continue
            if held.effective:
                outcomes.append(held.outcome)
            await self._forget(write.file, write.generation)
        return Answer(outcomes=tuple(outcomes))

    async def ask(self, peer: str, order: Ask) -> Answer:
        """Tell what became of files. What a writer asks for is its own again, unless it is just being uploaded."""
        self._hear(peer)
        outcomes = []
        for file in order.files:
            held = self.files.holdings.get(file)
            if held is not None and held.state is State.TAKEN and file.writer == peer and file not in self._uploading:
                held = await self._give_back(held)
            if held is not None:
                outcomes.append(held.outcome)
        return Answer(outcomes=tuple(outcomes))

    async def _forget(self, file: FileId, generation: int) -> None:
        held = self.files.holdings.get(file)
        if held is not None and held.state is State.TAKEN:
            await self._give_back(held)
        await self._run(self.files.drop, file, generation)

    async def _give_back(self, held: Holding) -> Holding | None:
        """An upload that failed is the writer's business again; what it may have done, the store will tell."""
        self._again.pop(held.replica.write.file, None)
        await self._run(self.files.settle, held, State.HELD, self._clock())
        return self.files.holdings.get(held.replica.write.file)

    def _hear(self, peer: str) -> None:
        self._heard_s[peer] = trio.current_time()

    async def _run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)

    # -- in the background

    async def run(self) -> None:
        """Take over what has to be, and forget what need not be held, until cancelled."""
        sweep_s = trio.current_time() + SWEEP_INTERVAL_S
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_INTERVAL_S)
                self.look(nursery)
                if trio.current_time() >= sweep_s:
                    await self.sweep()
                    sweep_s = trio.current_time() + SWEEP_INTERVAL_S

    def look(self, nursery: trio.Nursery) -> None:
        """Begin the uploads that are due."""
        now_s = trio.current_time()
        holdings = list(self.files.holdings.values())
        self._absences.look({held.replica.write.file.writer for held in holdings}, self._is_writer_here, now_s)
        for held in holdings:
            if len(self._uploading) >= CONCURRENT_UPLOADS:
                return
            if self._is_due(held, now_s):
                self._uploading.add(held.replica.write.file)
                nursery.start_soon(self._take_over_quietly, held)

    def _is_due(self, held: Holding, now_s: float) -> bool:
        file = held.replica.write.file
        if held.state not in (State.HELD, State.TAKEN) or held.replica.source not in self._places:
            return False
        if file in self._uploading or now_s < self._again.get(file, (0.0, 0))[0]:
            return False
        if file in self._wanted:
            return True
        gone_s = self._absences.gone_s(file.writer, now_s)
        wait_s = takes_over_in_s(self._name, held.replica.holders, gone_s, self._is_here)
        return wait_s is not None and wait_s <= 0

    def _is_here(self, name: str) -> bool:
        member = self._member(name)
        return name == self._name or (member is not None and member.state in (MemberState.ALIVE, MemberState.SUSPECT))

    def _is_writer_here(self, name: str) -> bool:
        heard_s = self._heard_s.get(name)
        return self._is_here(name) or (heard_s is not None and trio.current_time() - heard_s < HEARD_S)

    async def _take_over_quietly(self, held: Holding) -> None:
        file = held.replica.write.file
        try:
            await self._take_over(held)
            self._again.pop(file, None)
            self._wanted.discard(file)
        except (LuxError, OSError) as exc:
            self._fail(file)
            log.warning("%r, left by node %s, cannot be uploaded yet: %s", held.replica.key, file.writer, exc)
        except Exception:
            self._fail(file)
            log.exception("uploading %r, left by node %s, failed in an unexpected way", held.replica.key, file.writer)
        finally:
            self._uploading.discard(file)

    def _fail(self, file: FileId) -> None:
        self.counts.failures += 1
        failures = self._again.get(file, (0.0, 0))[1]
        self._again[file] = trio.current_time() + retry_delay_s(failures), failures + 1

    async def _take_over(self, held: Holding) -> None:
        replica, file = held.replica, held.replica.write.file
        if held.state is State.HELD:
            if not await self._run(self.files.settle, held, State.TAKEN, self._clock()):
                return
            held = self.files.holdings[file]
        reached("takeover.taken")
        place = self._places.get(replica.source)
        if place is None or await self._others_have_done(held):
            return
        if not await self._run(self.files.is_whole, held):
            await self._keep(held, place, "its replica here is damaged")
            return
        log.info("taking over %r of node %s, which is gone", replica.key, file.writer)
        await self._bring(held, place)

    async def _others_have_done(self, held: Holding) -> bool:
        """Ask the other holders that are here; what one of them has brought to the store is done."""
        write = held.replica.write
        for name in held.replica.holders:
            member = self._member(name)
            if name == self._name or member is None or not self._is_here(name):
                continue
            try:
                answer = decode_answer(await self._rpc.request(
                    member.info.address, ORDERS_PATH, encode(Ask((write.file,))), name=name, timeout_s=ASK_DEADLINE_S
                ))  # fmt: skip
            except (LuxError, ValueError) as exc:
                log.info("node %s does not say what became of %r: %s", name, held.replica.key, exc)
                continue
            for outcome in answer.outcomes:
                if outcome.state is State.DONE and _covers(outcome.write, write):
                    await self._settle(held, State.DONE, outcome.version)
                    return True
        return False

    async def _bring(self, held: Holding, place: Place) -> None:
        """Make the store have it, if nobody else has written the object meanwhile. Raises `StoreError`, OSError."""
        replica = held.replica
        tried = False
        for _ in range(ROUNDS):
            info = await _head(place.store, replica.key)
            version = info.version if info is not None else ABSENT
            found = write_of(info.metadata, replica.key) if info is not None else None
            judgement = judge(replica.write, replica.expect, version, found)
            if judgement.verdict is Verdict.UPLOAD:
                tried = True
                reached("takeover.judged")
                try:
                    uploaded = await self._upload(place, held, judgement.expect)
                except (VersionChanged, NotFound):  # somebody else; or we, and the answer got lost
                    continue
                reached("takeover.stored")
                self.counts.uploaded += 1
                await self._settle(held, State.DONE, uploaded.version, effective=True)
                return
            if judgement.verdict is Verdict.FOREIGN and (info is None or not await self._is_same(place, held, info)):
                await self._keep(held, place, "somebody else has written it meanwhile")
                return
            self.counts.found += 1
            await self._settle(held, State.DONE, version, effective=tried and found == replica.write)
            return
        raise StoreError(f"{replica.key!r} changes again and again in the under-store")

    async def _is_same(self, place: Place, held: Holding, info: ObjectInfo) -> bool:
        size = held.replica.size
        if info.size != size:
            return False
        sums = await self._run(_checksums, str(self.files.path_of(held)), size)
        return await has_same_content(place.store, info, sums, size)

    async def _keep(self, held: Holding, place: Place, why: str) -> None:
        path = await self._run(place.recovered.keep_file, self.files.path_of(held), held.replica.key)
        reached("takeover.kept")
        self.counts.kept += 1
        log.warning(
            "%r of node %s, which is gone, is not uploaded: %s; it is kept as %s",
            held.replica.key,
            held.replica.write.file.writer,
            why,
            path,
        )
        await self._settle(held, State.KEPT)

    async def _settle(self, held: Holding, state: State, version: str = "", *, effective: bool = False) -> None:
        await self._run(lambda: self.files.settle(held, state, self._clock(), version=version, effective=effective))
        reached("takeover.settled")

    async def _upload(self, place: Place, held: Holding, expect: str) -> ObjectInfo:
        replica, path = held.replica, self.files.path_of(held)
        if replica.size > SINGLE_BYTES:
            return await self._upload_large(place, held, expect)
        fd = await self._run(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = await self._run(read_exact, fd, replica.size, 0)
        finally:
            os.close(fd)
        return await place.store.put(replica.key, data, replica.metadata, expect=expect)

    async def _upload_large(self, place: Place, held: Holding, expect: str) -> ObjectInfo:
        """Send it as what is written here is sent: within the same limits, and the journal knows of the open upload."""
        replica, path = held.replica, self.files.path_of(held)
        fd = await self._run(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        data = StagedBytes(fd, path, cache=place.cache, threads=self._threads)
        source = Source(replica.key, data)
        try:
            return (await place.uploader.upload(source, replica.metadata, expect)).info
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(ABORT_DEADLINE_S):
                await place.uploader.parts.give_up_open(source)
            data.abandon()

    # -- what need not be held any more

    async def sweep(self) -> None:
        """Ask writers that are here which of their older replicas they need; forget old tombstones."""
        now_s = self._clock()
        old: dict[tuple[str, bytes], list[Outcome]] = {}
        for file, held in list(self.files.holdings.items()):
            if held.state in (State.DONE, State.KEPT) and now_s - held.changed_s > TOMBSTONE_S:
                await self._run(self.files.drop, file, held.replica.write.generation)
            elif now_s - held.changed_s > OLD_S and self._is_here(file.writer):
                old.setdefault((file.writer, held.replica.source), []).append(held.outcome)
        for (writer, source), outcomes in old.items():
            for start in range(0, len(outcomes), BATCH):
                await self._ask_whether_needed(writer, source, outcomes[start : start + BATCH])

    async def _ask_whether_needed(self, writer: str, source: bytes, outcomes: Collection[Outcome]) -> None:
        member = self._member(writer)
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
        self._wanted.update(file for file in answer.wanted if file in generations and file in self.files.holdings)
        for file in answer.unneeded:
            if file in generations and file not in self._uploading:
                await self._forget(file, generations[file])


def _covers(other: Write, write: Write) -> bool:
    return other.file == write.file and other.generation >= write.generation


async def _head(store: Store, key: str) -> ObjectInfo | None:
    try:
        return await store.head(key)
    except NotFound:
        return None


def _checksums(path: str, size: int) -> dict[int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return page_checksums(fd, 0, size)
    finally:
        os.close(fd)
