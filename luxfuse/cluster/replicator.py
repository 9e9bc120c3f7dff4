"""The writes of one under-store that other nodes hold until the store has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from luxfuse.cluster.members import Members, present
from luxfuse.cluster.releases import Releases
from luxfuse.cluster.replica_paths import ORDERS_PATH, PATH
from luxfuse.core.members import MemberState
from luxfuse.core.replicas import (
    WRITE_METADATA,
    Answer,
    Ask,
    Describe,
    FileId,
    Outcome,
    Replica,
    State,
    Write,
    decode_answer,
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
TAKEN_PATIENCE_S = 10.0
TAKEN_POLL_S = 0.25


@dataclass(slots=True)
class SendCounts:
    """Of a node since the start: replicas that peers took, writes uploaded at once because too few did; why the last."""

    sent: int = 0
    fallbacks: int = 0
    degraded: str | None = None


class Replicator:
    """The writes of one under-store that others hold: a `luxfuse.vfs.replicator.Replicator`."""

    def __init__(
        self, source: bytes, store: Store, journal: Journal, copies: int, *,
        members: Members, rpc: Rpc, clock: Callable[[], float], counts: SendCounts,
    ) -> None:  # fmt: skip
        """``clock``: wall-clock seconds; ``counts``: those of the node, to add to."""
        self._source = source
        self._store = store
        self._journal = journal
        self.copies = copies
        self._members = members
        self._rpc = rpc
        self._clock = clock
        self._counts = counts
        self._releases = Releases(members, rpc, self.remove_again)
        self.retract = self._releases.retract
        self.tell_holders = self._releases.tell_holders
        self._lost: set[int] = set()

    def write(self, number: int, generation: int) -> Write:
        """Return the name of a promised content of a file of our journal."""
        return Write(FileId(self._members.info.name, self._journal.identity, number), generation)

    def described(self, metadata: Mapping[str, str], number: int, generation: int, key: str) -> dict[str, str]:
        """Return object metadata with the write id."""
        return {**metadata, WRITE_METADATA: self.write(number, generation).text(key)}

    def plan(self, number: int, keep: Sequence[str]) -> tuple[str, ...]:
        """Return the peers that are to hold a file: those that do, as long as they are here, then the best others."""
        return tuple(self._candidates(number, keep)[: self.copies])

    def _candidates(self, number: int, keep: Sequence[str]) -> list[str]:
        fit = [
            (member.info.name, member.info.rack)
            for member in self._members.alive()
            if member.state is MemberState.ALIVE
            and self._source in member.info.sources
            and member.info.name != self._members.info.name
        ]
        return ranked(self.write(number, 0).file, self._members.info.rack, fit, keep)

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
        """Have enough peers hold the first ``size`` bytes of ``fd``; returns those that do. Raises `NotReplicated`.

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
            self._clock(),
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
            self._counts.fallbacks += 1
            why = "; ".join(reasons) or f"{len(took) + len(left)} peers are there"
            self._counts.degraded = f"{len(took)} of {self.copies} replicas of {key!r} were made ({why})"
            raise NotReplicated(self._counts.degraded)
        self._counts.sent += len(took)
        self._counts.degraded = None
        reached("replicate.acknowledged")
        return tuple(took)

    async def _send(self, name: str, replica: Replica, fd: int, content: int) -> None:
        member = self._members.member(name)
        if member is None:
            raise NotReplicated("it is gone")
        address = member.info.address
        if content or fd < 0:
            body = encode(Describe(replica, content))
            answer = decode_answer(await self._rpc.request(address, ORDERS_PATH, body, name=name))
            if not answer.refused:
                return
            if fd < 0:
                raise NotReplicated(answer.refused)
        timeout_s = SEND_DEADLINE_S + replica.size / SEND_BYTES_S
        answer = decode_answer(await self._rpc.send_file(
            address, PATH, encode(replica), fd, replica.size, name=name, timeout_s=timeout_s
        ))  # fmt: skip
        if answer.refused:
            raise NotReplicated(answer.refused)

    # -- files that are not needed any more, or are lost here

    def release(self, number: int, generation: int, holders: Sequence[str], *, removed: bool = False) -> None:
        """Let holders drop their replicas of a file up to ``generation``, soon. ``removed``: nobody wants it any more."""
        self._releases.release(self.write(number, generation).file, generation, holders, removed=removed)

    async def remove_again(self, outcome: Outcome) -> None:
        """A holder that took us for dead has brought a file to the store which was removed, or renamed, here."""
        try:
            await self._store.outlive([outcome.key], f"DELETE {outcome.key!r}")
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
            if (file.writer, file.journal) != (self._members.info.name, self._journal.identity):
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
            member = self._members.member(name)
            if member is None or not present(member):
                return
            try:
                body = encode(Ask((file,)))
                answer = decode_answer(await self._rpc.request(member.info.address, ORDERS_PATH, body, name=name))
                found.extend(outcome for outcome in answer.outcomes if outcome.write.file == file)
            except (LuxError, ValueError) as exc:
                log.info("node %s does not say what became of a replica: %s", name, exc)

        async with trio.open_nursery() as nursery:
            for name in holders:
                nursery.start_soon(ask, name)
        return found
