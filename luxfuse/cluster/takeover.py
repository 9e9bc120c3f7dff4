"""The replicas whose writers are gone: when this node brings them to the store, and whether another has done so.

A holder uploads only if the store has what the writer meant to replace (`core.takeover.judge`), and before it begins it
notes durably that it does (`State.TAKEN`). A writer that is back asks first: uploads that are under way then it waits
for; all other files are its own again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from luxfuse.cluster.completer import Completer, HolderStatistics, Place
from luxfuse.cluster.members import Members, present
from luxfuse.cluster.replica_paths import ORDERS_PATH
from luxfuse.cluster.replicas import HeldReplica, ReplicaFiles
from luxfuse.core.replicas import Ask, FileId, State, Write, decode_answer, encode
from luxfuse.core.takeover import Absences, takes_over_in_s
from luxfuse.core.writeback import retry_delay_s
from luxfuse.errors import LuxError
from luxfuse.peers.client import Rpc
from luxfuse.steps import reached
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

HEARD_S = 10.0
"""A writer that has said something to us so lately is here, whatever is believed of it."""
CONCURRENT_UPLOADS = 4
ASK_DEADLINE_S = 3.0


class Takeover:
    """The uploads of one node for writers that are gone."""

    def __init__(
        self, files: ReplicaFiles, threads: Threads, completer: Completer, *,
        members: Members, rpc: Rpc, clock: Callable[[], float], counts: HolderStatistics,
    ) -> None:  # fmt: skip
        """``threads``: for work on ``files``. ``clock``: wall-clock seconds; ``counts``: to add to."""
        self._files = files
        self._threads = threads
        self._completer = completer
        self._name = members.info.name
        self._members = members
        self._rpc = rpc
        self._clock = clock
        self._counts = counts
        self._places: dict[bytes, Place] = {}
        self._absences = Absences()
        self._heard_s: dict[str, float] = {}
        """When a writer, of which something is held, said something itself."""
        self._uploading: set[FileId] = set()
        self._again: dict[FileId, tuple[float, int]] = {}
        """When a failed upload is tried again, and how often it has failed."""
        self._wanted: set[FileId] = set()
        """Files that their writer has lost, and wants us to bring to the store."""

    def serve(self, source: bytes, place: Place) -> None:
        """Bring replicas of an under-store to ``place`` from now on."""
        self._places[source] = place

    def withdraw(self, source: bytes) -> None:
        """Bring nothing more to an under-store."""
        self._places.pop(source, None)

    def serves(self, source: bytes) -> bool:
        """Whether replicas of an under-store can be brought to it."""
        return source in self._places

    def hear(self, peer: str) -> None:
        """A writer has said something: it is here, whatever is believed of it."""
        self._heard_s[peer] = trio.current_time()

    def want(self, files: Iterable[FileId]) -> None:
        """Their writer has lost these: bring them to the store."""
        self._wanted.update(files)

    def is_uploading(self, file: FileId) -> bool:
        """Whether a file is being brought to the store at the moment."""
        return file in self._uploading

    async def give_back(self, held: HeldReplica) -> HeldReplica | None:
        """An upload that failed is the writer's business again; whether it had an effect, the store will tell."""
        self._again.pop(held.replica.write.file, None)
        await self._threads.run(self._files.settle, held, State.HELD, self._clock())
        return self._files.holdings.get(held.replica.write.file)

    def look(self, nursery: trio.Nursery) -> None:
        """Begin the uploads that are due."""
        now_s = trio.current_time()
        holdings = list(self._files.holdings.values())
        self._absences.look({held.replica.write.file.writer for held in holdings}, self._is_writer_here, now_s)
        for held in holdings:
            if len(self._uploading) >= CONCURRENT_UPLOADS:
                return
            if self._is_due(held, now_s):
                self._uploading.add(held.replica.write.file)
                nursery.start_soon(self._take_over_quietly, held)

    def _is_due(self, held: HeldReplica, now_s: float) -> bool:
        file = held.replica.write.file
        if held.state not in (State.HELD, State.TAKEN) or held.replica.source not in self._places:
            return False
        if file in self._uploading or now_s < self._again.get(file, (0.0, 0))[0]:
            return False
        if file in self._wanted:
            return True
        gone_s = self._absences.gone_s(file.writer, now_s)
        wait_s = takes_over_in_s(self._name, held.replica.holders, gone_s, self.is_here)
        return wait_s is not None and wait_s <= 0

    def is_here(self, name: str) -> bool:
        """Whether a node is here, for all that is known."""
        return name == self._name or present(self._members.member(name))

    def _is_writer_here(self, name: str) -> bool:
        heard_s = self._heard_s.get(name)
        return self.is_here(name) or (heard_s is not None and trio.current_time() - heard_s < HEARD_S)

    async def _take_over_quietly(self, held: HeldReplica) -> None:
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
        self._counts.failures += 1
        failures = self._again.get(file, (0.0, 0))[1]
        self._again[file] = trio.current_time() + retry_delay_s(failures), failures + 1

    async def _take_over(self, held: HeldReplica) -> None:
        replica, file = held.replica, held.replica.write.file
        if held.state is State.HELD:
            if not await self._threads.run(self._files.settle, held, State.TAKEN, self._clock()):
                return
            held = self._files.holdings[file]
        reached("takeover.taken")
        place = self._places.get(replica.source)
        if place is None or await self._others_have_done(held):
            return
        if not await self._threads.run(self._files.is_whole, held):
            await self._completer.keep(held, place, "its replica here is damaged")
            return
        log.info("taking over %r of node %s, which is gone", replica.key, file.writer)
        await self._completer.bring(held, place)

    async def _others_have_done(self, held: HeldReplica) -> bool:
        """Ask the other holders that are here whether one of them has brought it to the store."""
        write = held.replica.write
        for name in held.replica.holders:
            member = self._members.member(name)
            if name == self._name or member is None or not self.is_here(name):
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
                    await self._completer.settle(held, State.DONE, outcome.version)
                    return True
        return False


def _covers(other: Write, write: Write) -> bool:
    return other.file == write.file and other.generation >= write.generation
