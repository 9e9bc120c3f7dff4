"""Several trees on one store with `durable_replicas`: the writer is killed, a holder uploads, the writer comes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from luxfuse import steps
from luxfuse.cache import upload
from luxfuse.cluster import completer, takeover
from luxfuse.cluster import holder as holding
from luxfuse.cluster.replication import Replication
from luxfuse.core import takeover as rules
from luxfuse.core.members import Member, MemberState, NodeInfo
from luxfuse.core.replicas import State, write_of
from luxfuse.errors import LuxError, StoreRejected, StoreUnavailable
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE
from luxfuse.understore.retrying import Store
from luxfuse.vfs import pace
from luxfuse.volume.neighbours import Neighbours
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, Options, mounted, random_bytes, until

pytestmark = AWAY

SOURCE = b"source-1"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead writers are replaced at once, and files go up by themselves only if a test waits for it."""
    monkeypatch.setattr(rules, "TAKEOVER_S", 0.0)
    monkeypatch.setattr(takeover, "HEARD_S", 0.0)
    monkeypatch.setattr(holding, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(pace, "WRITE_BACK_DELAY_S", 3600.0)


class Peers:
    """Nodes that are there, and requests between them."""

    def __init__(self, path: Path, driver: FakeStore, copies: int = 1) -> None:
        self.path = path
        self.driver = driver
        self.copies = copies
        self.nodes: dict[str, Replication] = {}
        self.dead: set[str] = set()

    def member(self, name: str) -> Member:
        state = MemberState.ALIVE if name in self.nodes and name not in self.dead else MemberState.DEAD
        return Member(NodeInfo(name, name, 1, sources=(SOURCE,)), state, 1, 0.0)

    def node_of(self, address: tuple[str, int]) -> Replication:
        name = address[0]
        if name in self.dead or name not in self.nodes:
            raise LuxError(f"{name} does not answer")
        return self.nodes[name]

    @asynccontextmanager
    async def node(self, number: int, *, clean_end: bool = True) -> AsyncIterator[Mount]:
        """A daemon in ``async-through``."""
        name = f"{number:016x}"
        rpc = Wire(self, name)

        def neighbours(store: Store, journal: Journal) -> Neighbours:
            self.nodes[name] = replication = Replication(
                root=self.path / name / "replicas",
                capacity_bytes=1 << 20,
                members=Others(self, name),
                rpc=rpc,
            )
            return Neighbours(replication.replicator(SOURCE, store=store, journal=journal, copies=self.copies))

        def join(mount: Mount) -> None:
            replication = self.nodes[name]
            replication.serve(
                SOURCE, store=mount.store, recovered=mount.recovered, uploader=mount.uploader, cache=mount.cache
            )
            self.dead.discard(name)
            mount.nursery.start_soon(replication.run)

        options = Options(write_mode="async-through", neighbours=neighbours, on_built=join)
        (self.path / name).mkdir(exist_ok=True)
        try:
            async with mounted(self.path / name, self.driver, options, clean_end=clean_end) as mount:
                yield mount
        finally:
            self.nodes.pop(name, None)


class Others:
    """The other nodes, as one of them knows them."""

    def __init__(self, peers: Peers, name: str) -> None:
        self._peers = peers
        self.info = NodeInfo(name, name, 1)
        self.member = peers.member

    def alive(self) -> list[Member]:
        peers = self._peers
        return [peers.member(other) for other in peers.nodes if other != self.info.name and other not in peers.dead]


class Wire:
    """Requests of one node."""

    def __init__(self, peers: Peers, name: str) -> None:
        self._peers = peers
        self._name = name

    async def request(
        self, address: tuple[str, int], path: str, body: bytes, *, name: str | None = None, timeout_s: float = 5
    ) -> bytes:
        return await self._peers.node_of(address).order(self._name, body)

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
            for start in range(0, length, 1000):
                yield os.pread(fd, min(1000, length - start), start)

        return await self._peers.node_of(address).holder.receive(self._name, header, chunks())


async def put(m: Mount, name: bytes, data: bytes) -> None:
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name)
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.close(m.fs, handle)


async def gone(peers: Peers, work: Callable[[Mount], Awaitable[None]]) -> None:
    """Let a writer do something and die."""
    async with peers.node(1, clean_end=False) as writer:
        await work(writer)


def stored(driver: FakeStore, key: str) -> bytes | None:
    return driver.objects[key][0] if key in driver.objects else None


@pytest.mark.parametrize("size", [0, 11, 100_000])
async def test_a_holder_uploads_what_a_dead_writer_has_acknowledged(tmp_path: Path, size: int):
    peers, data = Peers(tmp_path, FakeStore()), random_bytes(size, 1)
    async with peers.node(2) as holder:
        await gone(peers, lambda m: put(m, b"file", data))
        await until(lambda: stored(peers.driver, "file") == data)
        assert await holder.read_all("file") == data
        async with peers.node(1) as writer:
            await writer.drain()
            assert await writer.read_all("file") == data
            assert not writer.recovered.count()
            await until(lambda: not peers.nodes[f"{2:016x}"].holder.files.holdings)
        assert peers.driver.writes == [("put", "file")]


@pytest.mark.parametrize("size", [11, 100_000], ids=["in-one", "in-parts"])
async def test_a_takeover_keeps_to_the_limits_of_uploads_and_notes_what_is_open(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
):
    for module in (completer, upload):
        monkeypatch.setattr(module, "SINGLE_BYTES", 1000)
    peers, data = Peers(tmp_path, FakeStore()), random_bytes(size, 1)
    noted: list[set[str]] = []
    turns: list[tuple[str, str, int]] = []
    async with peers.node(2) as holder:
        turn = holder.store.turn

        async def counted(kind: str, key: str, size_bytes: int, *, background: bool = False) -> None:
            turns.append((kind, key, size_bytes))
            await turn(kind, key, size_bytes, background=background)

        def note(step: str) -> None:
            if step == "upload.parts":
                noted.append({key for key, _ in holder.journal.uploads.open})

        monkeypatch.setattr(holder.store, "turn", counted)
        await gone(peers, lambda m: put(m, b"file", data))
        steps.install(note)
        try:
            await until(lambda: stored(peers.driver, "file") == data)
            await until(lambda: all(h.state is State.DONE for h in peers.nodes[f"{2:016x}"].holder.files.holdings.values()))
        finally:
            steps.install(None)
        assert turns == [("put", "file", size)]
        assert noted == ([{"file"}] if size > 1000 else [])
        assert not holder.journal.uploads.open
        assert not peers.driver.uploads


@pytest.mark.expected_logs("cannot be uploaded yet")
async def test_a_takeover_that_fails_leaves_no_upload_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (completer, upload):
        monkeypatch.setattr(module, "SINGLE_BYTES", 1000)
    peers, data = Peers(tmp_path, FakeStore()), random_bytes(100_000, 1)
    peers.driver.fail_next(1, lambda: StoreRejected("fake: 403"), "complete_upload")
    async with peers.node(2) as holder:
        await gone(peers, lambda m: put(m, b"file", data))
        counts = peers.nodes[f"{2:016x}"].holder.counts
        await until(lambda: counts.failures >= 1)
        assert not holder.journal.uploads.open
        assert not peers.driver.uploads
        await until(lambda: stored(peers.driver, "file") == data)


async def test_what_the_store_has_need_not_be_held(tmp_path: Path):
    peers = Peers(tmp_path, FakeStore(), copies=2)
    async with peers.node(2), peers.node(3), peers.node(1) as writer:
        await put(writer, b"file", b"content")
        files = [peers.nodes[f"{number:016x}"].holder.files for number in (2, 3)]
        assert [len(each.holdings) for each in files] == [1, 1]
        assert "file" not in peers.driver.objects
        await writer.drain()
        write = write_of(peers.driver.objects["file"][3], "file")
        assert write is not None
        assert write.generation == 1
        await until(lambda: not any(each.holdings for each in files))


async def test_with_too_few_peers_a_close_waits_for_the_store(tmp_path: Path, expected_logs: list[str]):
    peers = Peers(tmp_path, FakeStore(), copies=2)
    async with peers.node(2) as _, peers.node(1) as writer:
        await put(writer, b"file", b"content")
        assert stored(peers.driver, "file") == b"content"
        statistics = peers.nodes[f"{1:016x}"].statistics()
        assert statistics.fallbacks == 1
        assert "0 of 2 replicas" in (statistics.degraded or "")
        peers.driver.fail_next(100, lambda: StoreUnavailable("fake: 503"), "put")
        with pytest.raises(StoreUnavailable), writer.impatient():
            await put(writer, b"other", b"content")
        peers.driver._failures.clear()


async def test_a_refusing_peer_is_replaced_by_another(tmp_path: Path):
    peers = Peers(tmp_path, FakeStore())
    async with peers.node(2), peers.node(3), peers.node(1) as writer:
        for number in (2, 3):
            node = peers.nodes[f"{number:016x}"]
            for name in (b"a", b"b", b"c", b"d"):
                node.holder.files.capacity_bytes = 0
                await put(writer, name + b"%d" % number, b"content")
            node.holder.files.capacity_bytes = 1000
        assert not peers.driver.objects
        assert peers.nodes[f"{1:016x}"].statistics().fallbacks == 0
        await writer.drain()


async def test_a_renamed_file_is_completed_under_its_new_name_and_a_removed_one_not_at_all(tmp_path: Path):
    peers = Peers(tmp_path, FakeStore())

    async def work(m: Mount) -> None:
        for name in (b"new", b"gone"):
            await put(m, name, b"content of " + name)
        await m.fs.rename(ROOT_INODE, b"new", ROOT_INODE, b"renamed", 0)
        await m.fs.unlink(ROOT_INODE, b"gone")

    async with peers.node(2) as _:
        await gone(peers, work)
        await until(lambda: bool(peers.driver.objects))
        await until(lambda: all(h.state is State.DONE for h in peers.nodes[f"{2:016x}"].holder.files.holdings.values()))
        assert {key: what[0] for key, what in peers.driver.objects.items()} == {"renamed": b"content of new"}
        async with peers.node(1) as writer:
            await writer.drain()
        assert {key: what[0] for key, what in peers.driver.objects.items()} == {"renamed": b"content of new"}


async def test_a_writer_that_was_only_cut_off_finds_its_own_content(tmp_path: Path):
    peers, name = Peers(tmp_path, FakeStore()), f"{1:016x}"
    async with peers.node(2), peers.node(1) as writer:
        await put(writer, b"file", b"first")
        peers.dead.add(name)
        await until(lambda: stored(peers.driver, "file") == b"first")
        peers.dead.discard(name)
        handle = await writer.kernel.open(writer.fs, await writer.inode("file"), os.O_RDWR)
        await writer.kernel.write(writer.fs, handle, 0, b"other")
        await writer.kernel.close(writer.fs, handle)
        await writer.drain()
        assert stored(peers.driver, "file") == b"other"
        assert not writer.recovered.count()
        assert writer.writeback.pusher.conflicts == 0


async def test_what_others_wrote_after_a_takeover_is_not_overwritten_by_the_writer(tmp_path: Path):
    peers = Peers(tmp_path, FakeStore())
    async with peers.node(2):
        await gone(peers, lambda m: put(m, b"file", b"content"))
        await until(lambda: stored(peers.driver, "file") == b"content")
        peers.driver.place("file", b"by another program")
        async with peers.node(1) as writer:
            await writer.drain()
            assert stored(peers.driver, "file") == b"by another program"
            assert writer.writeback.pusher.conflicts == 0
            assert not writer.recovered.count()


@pytest.mark.expected_logs("is not uploaded: somebody else has written it meanwhile; it is kept as")
async def test_a_holder_keeps_aside_what_would_overwrite_others(tmp_path: Path):
    peers = Peers(tmp_path, FakeStore())
    async with peers.node(2) as holder:

        async def work(m: Mount) -> None:
            await put(m, b"file", b"content")
            peers.driver.place("file", b"by another program")

        await gone(peers, work)
        await until(lambda: holder.recovered.count() == 1)
        assert next(iter(holder.recovered.directory.iterdir())).read_bytes() == b"content"
        assert stored(peers.driver, "file") == b"by another program"


async def test_a_later_content_takes_the_place_of_the_earlier_with_its_holder(tmp_path: Path):
    peers = Peers(tmp_path, FakeStore())

    async def work(m: Mount) -> None:
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"file")
        for data in (b"first", b"second content", b"third"):
            await m.kernel.write(m.fs, handle, 0, data)
            await m.kernel.fsync(m.fs, handle)
        await m.kernel.write(m.fs, handle, 0, b"never synced")

    async with peers.node(2), peers.node(3):
        await gone(peers, work)
        await until(lambda: stored(peers.driver, "file") == b"third" + b"d content")
        assert peers.driver.writes == [("put", "file")]


@pytest.mark.expected_logs("is not in the cache directory any more")
async def test_a_holder_uploads_what_the_writer_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(holding, "SWEEP_INTERVAL_S", 0.05)
    monkeypatch.setattr(holding, "OLD_S", -1.0)
    monkeypatch.setattr(rules, "TAKEOVER_S", 3600.0)
    peers, data = Peers(tmp_path, FakeStore()), random_bytes(100_000, 1)
    async with peers.node(2):
        await gone(peers, lambda m: put(m, b"file", data))
        shutil.rmtree(tmp_path / f"{1:016x}" / "cache")
        async with peers.node(1) as writer:
            assert writer.outcome.lost == 1
            await until(lambda: stored(peers.driver, "file") == data)
            await until(lambda: not writer.journal.files)
            await until(lambda: not peers.nodes[f"{2:016x}"].holder.files.holdings)
            writer.clock.advance(1000)
            assert await writer.read_all("file") == data


@pytest.mark.expected_logs("was written by somebody else meanwhile; their version is kept as")
async def test_what_replaced_an_earlier_content_that_was_taken_over_is_a_conflict_once(tmp_path: Path):
    peers, name = Peers(tmp_path, FakeStore()), f"{1:016x}"
    async with peers.node(2):

        async def work(m: Mount) -> None:
            await put(m, b"file", b"first")
            peers.dead.add(name)
            await until(lambda: stored(peers.driver, "file") == b"first")
            peers.dead.discard(name)
            peers.dead.add(f"{2:016x}")
            peers.driver.hold("put")
            handle = await m.kernel.open(m.fs, await m.inode("file"), os.O_RDWR)
            await m.kernel.write(m.fs, handle, 0, b"other")
            m.nursery.start_soon(m.kernel.fsync, m.fs, handle)  # has to go to the store, and does not get there
            await until(lambda: any(record.generation == 2 for record in m.journal.files.values()))
            await m.journal.commit()

        await gone(peers, work)
        peers.driver.place("file", b"by another program")
        peers.driver.release()
        peers.dead.clear()
        async with peers.node(1) as writer:
            await writer.drain()
            assert stored(peers.driver, "file") == b"other"
            assert writer.recovered.count() == writer.writeback.pusher.conflicts == 1


async def test_of_two_promises_at_a_time_others_hold_the_later_one(tmp_path: Path) -> None:
    """Under its number: else a holder would bring the earlier one up as what was acknowledged last."""
    peers, first, rest = Peers(tmp_path, FakeStore()), random_bytes(9000, 1), random_bytes(5000, 2)
    async with peers.node(2):
        async with peers.node(1, clean_end=False) as m:
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a")
            await m.kernel.write(m.fs, handle, 0, first)
            (dirty,) = m.dirty
            async with trio.open_nursery() as nursery:
                with m.durable.lock:  # no commit ends meanwhile
                    nursery.start_soon(m.kernel.fsync, m.fs, handle)
                    await until(lambda: dirty.replicas.generation == 1)
                    await m.kernel.write(m.fs, handle, len(first), rest)
                    nursery.start_soon(m.kernel.fsync, m.fs, handle)
                    await until(lambda: dirty.replicas.generation == 2)
        await until(lambda: stored(peers.driver, "a") is not None)
        assert stored(peers.driver, "a") == first + rest
