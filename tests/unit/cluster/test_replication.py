"""Replicas over a real connection: taken, refused before they were sent, described anew, asked for, dropped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from luxfuse.cache.recovered import Recovered
from luxfuse.cluster.replication import Replication
from luxfuse.core.members import Member, MemberState, NodeInfo
from luxfuse.core.replicas import State
from luxfuse.errors import NotReplicated
from luxfuse.index.journal import Journal
from luxfuse.understore.retrying import Store
from tests.support.fake_store import FakeStore
from tests.support.peer_nodes import CLIENT, SERVER, content, running

SOURCE = b"source-1"
SIZE = (3 << 20) + 7


class Peers:
    """A cluster of one other node, as the node ``name`` knows it."""

    def __init__(self, name: str, other: Member) -> None:
        self.info = NodeInfo(name, name, 1)
        self._other = other

    def alive(self) -> list[Member]:
        return [self._other]

    def member(self, name: str) -> Member | None:
        return self._other if name == SERVER else None


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_replicas_go_over_the_wire(tls: bool, tmp_path: Path):
    (tmp_path / "file").write_bytes(content(SIZE))
    journal = Journal(tmp_path / "journal")
    store = Store(FakeStore(), request_timeout_s=60, max_requests=2, rng=random.Random(0))
    recovered = Recovered(tmp_path / "recovered")
    async with running({}, tls=tls) as node:
        member = Member(NodeInfo(SERVER, *node.server.address, sources=(SOURCE,)), MemberState.ALIVE, 1, 0.0)

        def replication(name: str) -> Replication:
            return Replication(
                root=tmp_path / name,
                capacity_bytes=SIZE,
                members=Peers(name, member),
                rpc=node.client,
            )

        peer, ours = replication(SERVER), replication(CLIENT)
        peer.register(node.server)
        peer.serve(SOURCE, store=store, recovered=recovered, uploader=None, cache=None)
        volume = ours.replicator(SOURCE, store=store, journal=journal, copies=1)
        with (tmp_path / "file").open("rb") as file:

            async def send(number: int, generation: int, key: str, fd: int, same: int = 0) -> tuple[str, ...]:
                return await volume.replicate(
                    volume.write(number, generation), key, {"mode": "0100644"}, "", (SERVER,), fd, SIZE, same
                )

            assert await send(1, 1, "key", file.fileno()) == (SERVER,)
            files = peer.holder.files
            held = files.holdings[volume.write(1, 1).file]
            assert files.path_of(held).read_bytes() == content(SIZE)
            with pytest.raises(NotReplicated, match="there is no room for"):
                await send(2, 1, "other", file.fileno())
            assert ours.statistics().degraded
            assert await send(1, 2, "renamed", -1, 1) == (SERVER,)
        assert [outcome.state for outcome in await volume._ask(held.replica.write.file, [SERVER])] == [State.HELD]
        assert files.holdings[held.replica.write.file].replica.key == "renamed"
        volume.release(1, 2, [SERVER], removed=True)
        await volume.retract()
        assert not files.holdings
        assert files.used_bytes == 0
    journal.close()
    store.close()
