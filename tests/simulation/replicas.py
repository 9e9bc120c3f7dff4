"""A cluster in virtual time for `test_takeover`: real replication on every node, a store that can fail, and a checker.

What is real: `cluster.replication`, `cluster.takeover`, `cluster.replicas` with files on disk, `core.takeover`. What is
modelled: the journal and the pushes of a writer (`Node`), in the order of steps of `vfs.replicas` and `vfs.pushing`;
membership; the transport. Everything random comes from one seed, and no thread runs, so a run is repeated by its seed.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.cluster.replication import Replication
from luxfuse.cluster.replicator import Replicator
from luxfuse.core.members import Member, MemberState, NodeInfo
from luxfuse.core.replicas import MOST_HOLDERS, Outcome, Write, write_of
from luxfuse.errors import LuxError, NotFound, NotReplicated, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ObjectInfo

SOURCE = b"source-1"
DETECTION_S = 5.0
START_S = 1_800_000_000.0


@dataclass
class Put:
    """A write that had effect: ``by`` a node, or "" for another program; ``over``: the version that it replaced."""

    key: str
    write: Write | None
    content: bytes
    version: str
    over: str
    by: str


class Cluster:
    """Nodes, the network between them, and the store. Faults are on until `heal`."""

    def __init__(self, seed: int, path: Path, *, nodes: int, copies: int) -> None:
        self.rng = random.Random(seed)
        self.path = path
        self.copies = copies
        self.faults = True
        self.cut: set[frozenset[str]] = set()
        """Pairs that do not reach each other; a node and "store", too."""
        self.cut_s: dict[frozenset[str], float] = {}
        self.objects: dict[str, tuple[bytes, str, dict[str, str]]] = {}
        self.puts: list[Put] = []
        self.acknowledged: dict[tuple[str, int], tuple[int, bytes, str]] = {}
        """By writer and number: generation, content and key of what was acknowledged last."""
        self.removed: set[tuple[str, int]] = set()
        self.saved: set[bytes] = set()
        """Foreign contents that an author has kept aside before it replaced them."""
        self.nodes = [Node(self, f"{number:016x}") for number in range(1, nodes + 1)]
        self.by_name = {node.name: node for node in self.nodes}

    async def pause(self, most_s: float = 0.02) -> None:
        await trio.sleep(self.rng.random() * most_s)

    def reaches(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self.cut

    def sever(self, one: str, other: str) -> None:
        self.cut.add(frozenset((one, other)))
        self.cut_s.setdefault(frozenset((one, other)), trio.current_time())

    def heal(self) -> None:
        self.cut.clear()
        self.cut_s.clear()

    def place(self, key: str, content: bytes, metadata: Mapping[str, str], by: str) -> str:
        over = self.objects[key][1] if key in self.objects else ""
        version = f"v{len(self.puts) + 1}"
        self.objects[key] = content, version, dict(metadata)
        self.puts.append(Put(key, write_of(metadata, key), content, version, over, by))
        return version


class FaultyStore:
    """The store as one node reaches it."""

    abilities = SimpleNamespace(metadata=True, conditional=True, multipart=False)

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    async def _ask(self) -> None:
        await self._cluster.pause(0.2)
        if not self._cluster.reaches(self._name, "store"):
            await trio.sleep(5)
            raise StoreUnavailable("cut off")
        if self._cluster.faults and self._cluster.rng.random() < 0.05:
            raise StoreUnavailable("fake: 503")

    async def _answer(self) -> None:
        lost = self._cluster.faults and self._cluster.rng.random() < 0.05
        await self._cluster.pause(0.2)
        if lost:
            raise StoreUnavailable("the answer got lost")

    async def head(self, key: str) -> ObjectInfo:
        await self._ask()
        if key not in self._cluster.objects:
            raise NotFound(key)
        content, version, metadata = self._cluster.objects[key]
        return ObjectInfo(key, len(content), version, 0, metadata)

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str], *, expect: str | None = None) -> ObjectInfo:
        await self._ask()
        found = self._cluster.objects[key][1] if key in self._cluster.objects else ""
        if expect is not None and found != expect:
            raise VersionChanged(key)
        version = self._cluster.place(key, bytes(data), metadata, self._name)
        await self._answer()
        return ObjectInfo(key, len(data), version, 0, dict(metadata))

    async def read(self, key: str, start: int, end: int, version: str) -> bytes:
        await self._ask()
        if key not in self._cluster.objects or self._cluster.objects[key][1] != version:
            raise VersionChanged(key)
        return self._cluster.objects[key][0][start:end]

    async def delete(self, keys: list[str]) -> dict[str, StoreError]:
        await self._ask()
        for key in keys:
            self._cluster.objects.pop(key, None)
        return {}


class Wire:
    """Requests of one node to others; the handler runs on the other node, and dies with it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    async def request(
        self, address: tuple[str, int], path: str, body: bytes, *, name: str | None = None, timeout_s: float = 5
    ) -> bytes:
        return await self._call(address[0], lambda node: node.replication.order(self._name, body), timeout_s)

    async def send_file(
        self,
        address: tuple[str, int],
        path: str,
        header: bytes,
        fd: int,
        length: int,
        *,
        name: str | None,
        timeout_s: float,
    ) -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, length, 8):
                await self._cluster.pause()
                yield os.pread(fd, min(8, length - start), start)

        return await self._call(
            address[0], lambda node: node.replication.holder.receive(self._name, header, chunks()), timeout_s
        )

    async def _call(self, name: str, handle: Callable[[Node], Awaitable[bytes]], timeout_s: float) -> bytes:
        other = self._cluster.by_name[name]
        await self._cluster.pause()
        answers: list[bytes] = []
        over = trio.Event()

        async def serve() -> None:
            try:
                answers.append(await handle(other))
            finally:
                over.set()

        with trio.move_on_after(timeout_s):
            if self._cluster.reaches(self._name, name) and other.nursery is not None:
                other.nursery.start_soon(serve)
                await over.wait()
                await self._cluster.pause()
            else:
                await trio.sleep_forever()
            lost = self._cluster.faults and self._cluster.rng.random() < 0.05
            if answers and not lost and self._cluster.reaches(self._name, name):
                return answers[0]
        raise LuxError(f"node {name} does not answer")


@dataclass
class Record:
    """What the journal has of a file."""

    number: int
    key: str
    data: bytes
    expect: str | None
    generation: int = 0
    holders: tuple[str, ...] = ()
    content: bool = True
    resumed: bool = False
    replicated: int = 0
    described: bytes = b""
    lock: trio.Lock = field(default_factory=trio.Lock)


class Node:
    """A daemon: its state outlives it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.path = cluster.path / name
        self.path.mkdir()
        self.info = NodeInfo(name, name, 1, sources=(SOURCE,))
        self.journal = SimpleNamespace(identity="0000000a", files={})
        self.next_number = 1
        self.known: dict[str, str] = {}
        """The version that this node has seen last, by key: the index."""
        self.store = FaultyStore(cluster, name)
        self.scope: trio.CancelScope | None = None
        self.nursery: trio.Nursery | None = None
        self.down_s = trio.current_time()
        self.replication: Replication
        self.volume: Replicator
        self.incarnation = 0

    @property
    def up(self) -> bool:
        return self.nursery is not None

    async def live(self) -> None:
        """Run until killed."""
        with trio.CancelScope() as self.scope:
            self.replication = Replication(
                root=self.path / "replicas",
                capacity_bytes=10_000,
                members=self,  # type: ignore[arg-type]  # nobody gossips here
                rpc=Wire(self.cluster, self.name),
                clock=lambda: START_S + trio.current_time(),
                threads=self,  # type: ignore[arg-type]  # a thread would not end in virtual time
            )
            self.volume = self.replication.replicator(
                SOURCE, store=self.store, journal=self.journal, copies=self.cluster.copies
            )
            self.replication.serve(
                SOURCE,
                store=self.store,
                recovered=Recovered(self.path / "recovered"),  # type: ignore[arg-type]
                uploader=None,  # type: ignore[arg-type]  # what is written there goes in one request
                cache=None,  # type: ignore[arg-type]
            )
            for record in self.journal.files.values():
                record.resumed, record.replicated, record.lock = True, 0, trio.Lock()
            self.incarnation += 1
            try:
                async with trio.open_nursery() as self.nursery:
                    self.nursery.start_soon(self.replication.run)
                    await self._push_all()
            finally:
                self.nursery = None
                self.down_s = trio.current_time()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        await self.cluster.pause(0.01)
        return function(*arguments)

    def kill(self) -> None:
        if self.scope is not None:
            self.scope.cancel()

    def member(self, name: str) -> Member | None:
        other, now_s = self.cluster.by_name[name], trio.current_time()
        pair = frozenset((self.name, name))
        since_s = self.cluster.cut_s.get(pair) if pair in self.cluster.cut else other.down_s if not other.up else None
        state = MemberState.ALIVE
        if since_s is not None:
            state = MemberState.DEAD if now_s - since_s > DETECTION_S else MemberState.SUSPECT
        return Member(other.info, state, 1, now_s)

    def alive(self) -> list[Member]:
        members = [self.member(node.name) for node in self.cluster.nodes if node is not self]
        return [m for m in members if m is not None and m.state in (MemberState.ALIVE, MemberState.SUSPECT)]

    # -- writing, in the steps of `vfs.replicas`

    async def write(self, key: str, data: bytes) -> None:
        """Write a whole file, and note what was acknowledged."""
        record = next((r for r in self.journal.files.values() if r.key == key), None)
        if record is None:
            record = Record(self.next_number, key, data, self.known.get(key, ""))
            self.next_number += 1
        self._promise(record, data)
        await self.cluster.pause()
        await self._acknowledge(record, record.generation, data)

    async def rename(self, key: str, new_key: str) -> None:
        """Rename a file that the store does not have yet to a name that nothing has."""
        record = next((r for r in self.journal.files.values() if r.key == key), None)
        if record is None or record.lock.locked() or new_key in self.known or record.expect != "" or record.resumed:
            return
        if any(r.key == new_key for r in self.journal.files.values()):
            return
        acknowledged = self.cluster.acknowledged.get((self.name, record.number))
        record.key = new_key
        record.generation += 1
        generation, data = record.generation, record.data
        if acknowledged is not None and acknowledged[1] == data:
            await self._acknowledge(record, generation, data)

    async def remove(self, key: str) -> None:
        """Remove a file that the store does not have yet."""
        record = next((r for r in self.journal.files.values() if r.key == key), None)
        if record is None or record.lock.locked() or record.expect != "" or record.resumed:
            return
        self.cluster.removed.add((self.name, record.number))
        del self.journal.files[record.number]
        self.volume.release(record.number, record.generation, record.holders, removed=True)
        await self.volume.retract()

    def _promise(self, record: Record, data: bytes) -> None:
        planned = self.volume.plan(record.number, record.holders)
        record.data, record.content = data, True
        record.generation += 1
        record.holders = (*planned, *(name for name in record.holders if name not in planned))[:MOST_HOLDERS]
        self.journal.files[record.number] = record

    async def _acknowledge(self, record: Record, generation: int, data: bytes) -> None:
        try:
            await self._replicate(record, generation, data)
        except NotReplicated:
            try:
                await self._push(record)
            except StoreError:
                return
        before = self.cluster.acknowledged.get((self.name, record.number), (0, b"", ""))
        if before[0] < generation:
            self.cluster.acknowledged[self.name, record.number] = generation, data, record.key

    async def _replicate(self, record: Record, generation: int, data: bytes) -> None:
        fd = os.open(self.path, os.O_TMPFILE | os.O_RDWR)
        try:
            os.pwrite(fd, data, 0)
            same = record.replicated if record.described == data else 0
            took = await self.volume.replicate(
                self.volume.write(record.number, generation),
                record.key,
                {"mode": "0100644"},
                record.expect,
                record.holders[: self.cluster.copies],
                fd,
                len(data),
                same,
            )
        finally:
            os.close(fd)
        others = tuple(name for name in record.holders if name not in took)
        record.holders, record.replicated, record.described = (*took, *others), generation, data
        gone = record.number not in self.journal.files
        unneeded = record.holders if gone or not record.content else others
        self.volume.release(record.number, generation, unneeded, removed=gone)

    # -- pushing, in the steps of `vfs.pushing`

    async def _push_all(self) -> None:
        while True:
            await trio.sleep(1 + self.cluster.rng.random())
            for record in list(self.journal.files.values()):
                try:
                    await self._push(record)
                except StoreError:
                    await self.cluster.pause(5)

    async def _push(self, record: Record) -> None:
        async with record.lock:
            asked = False
            while record.content and self.journal.files.get(record.number) is record:
                generation, data, key = record.generation, record.data, record.key
                outcome = await self._taken_over(record, generation) if record.resumed and not asked else None
                asked = True
                version = outcome.version if outcome else await self._bring(record, generation, data, key)
                if version is None:
                    continue
                self.known[key] = record.expect = version
                self.volume.release(record.number, generation, record.holders)
                record.resumed = False
                if record.generation == generation:
                    record.content = False
                    self.journal.files.pop(record.number, None)

    async def _bring(self, record: Record, generation: int, data: bytes, key: str) -> str | None:
        metadata = self.volume.described({"mode": "0100644"}, record.number, generation, key)
        try:
            return (await self.store.put(key, data, metadata, expect=record.expect)).version
        except VersionChanged:
            return await self._resolve(record, generation, data, key)

    async def _resolve(self, record: Record, generation: int, data: bytes, key: str) -> str | None:
        try:
            info = await self.store.head(key)
            content = await self.store.read(key, 0, info.size, info.version)
        except NotFound:
            record.expect = ""
            return None
        except VersionChanged:
            return None
        if content == data:
            return info.version
        found = write_of(info.metadata, key)
        if found is not None and found.file == self.volume.write(record.number, 0).file:
            record.expect = info.version
            return None
        outcome = await self._taken_over(record, generation)
        if outcome is not None:
            return outcome.version
        if info.version != record.expect:
            self.cluster.saved.add(content)
            record.expect = info.version
        return None

    async def _taken_over(self, record: Record, generation: int) -> Outcome | None:
        outcome = await self.volume.outcome(record.number, record.holders)
        if outcome is None:
            return None
        if outcome.key != record.key:
            await self.volume.remove_again(outcome)
            return None
        if outcome.write.generation != generation:
            record.expect = outcome.version
            return None
        return outcome


def recovered(cluster: Cluster) -> set[bytes]:
    """Contents in the recovered directories of all nodes."""
    return {path.read_bytes() for path in cluster.path.glob("*/recovered/*")}


def check_order(cluster: Cluster) -> None:
    """No write has effect twice, and none comes after a later one of its writer.

    But where another program has replaced what a holder brought up, and the writer cannot ask that holder when it is back,
    that is a conflict like any other: theirs is kept aside, and the writer's put in its place.
    """
    effects: set[Write] = set()
    foreign = {put.version: put.content for put in cluster.puts if not put.by}
    latest: dict[tuple[str, str], tuple[int, int]] = {}
    for put in cluster.puts:
        if put.write is None:
            continue
        if put.write in effects:
            conflict = put.by == put.write.file.writer and foreign.get(put.over) in cluster.saved
            assert conflict, f"{put.write} had effect twice"
            continue
        effects.add(put.write)
        place, order = (put.key, put.write.file.writer), (put.write.file.number, put.write.generation)
        assert latest.get(place, (0, 0)) < order, f"{put.write} came after {latest[place]} under {put.key!r}"
        latest[place] = order


def check_kept(cluster: Cluster) -> None:
    """What was acknowledged is in the store, or was replaced there by what came after it, or is kept aside."""
    aside = recovered(cluster)
    stored = {(put.write.file.writer, put.write.file.number): put.write.generation for put in cluster.puts if put.write}
    for (writer, number), (generation, content, key) in cluster.acknowledged.items():
        if (writer, number) in cluster.removed:
            continue
        there = stored.get((writer, number), 0) >= generation or content in aside
        assert there, f"{content!r} of {key!r}, acknowledged by {writer}, is lost"


def check_foreign(cluster: Cluster) -> None:
    """What another program wrote is still there, was kept aside, or was replaced by somebody who knew it."""
    by_version = {put.version: put for put in cluster.puts}
    known = {version for node in cluster.nodes for version in node.known.values()}
    for put in cluster.puts:
        over = by_version.get(put.over)
        if over is None or over.by or not put.by:
            continue
        assert over.content in cluster.saved or over.version in known, f"{over.content!r} was replaced by {put.content!r}"
