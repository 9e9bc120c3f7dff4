"""Three nodes with all that is real: key file, sockets, TLS or signatures, membership, server and client."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from luxfuse.core.members import Address, NodeInfo
from luxfuse.core.swim.swim import Swim
from luxfuse.errors import PeerFailed
from luxfuse.peers import keyfile, membership
from luxfuse.peers.client import Client
from luxfuse.peers.credentials import Credentials
from luxfuse.peers.identity import Identity
from luxfuse.peers.join import Seeds
from luxfuse.peers.listening import advertised, listen
from luxfuse.peers.membership import PUSH_PULL_PATH, Membership
from luxfuse.peers.server import Server
from tests.unit.peers.nodes import CALM, until

both = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALONE_S", "TOGETHER_S"):
        monkeypatch.setattr(membership, name, 0.1)


@dataclass
class Node:
    credentials: Credentials
    membership: Membership
    client: Client

    @property
    def address(self) -> Address:
        return self.membership.info.address

    async def greet(self, other: Node) -> bytes:
        """Ask another node by a new connection, as whom it sees us."""
        self.client.forget(other.address)
        return await self.client.request(other.address, "/v1/greet", b"", name=other.credentials.name)


async def greeted(peer: str, body: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return b"hello " + peer.encode()


@asynccontextmanager
async def running(directory: Path, key_file: Path, *joined: Address, tls: bool) -> AsyncIterator[Node]:
    """Run a node with its state in ``directory``, assembled as a mount assembles it."""
    directory.mkdir(exist_ok=True)
    identity = Identity.open(directory)
    credentials = Credentials.read(key_file, name=identity.name, stamp_ns=identity.stamp_ns)
    opened = listen("127.0.0.1:0")
    seeds = Seeds([f"{host}:{port}" for host, port in joined], family=opened.family)
    host, port = await advertised(opened, None, await seeds.resolve())
    info, rng = NodeInfo(identity.name, host, port, directory.name), random.Random(1)
    client, server = Client(credentials, tls=tls), Server(opened.connections, credentials, tls=tls)
    swim = Swim(info, incarnation=identity.incarnation, config=CALM, rng=rng, now_s=trio.current_time())
    members = Membership(swim, credentials, client, opened.datagrams, info=info, seeds=seeds, rng=rng, identity=identity)
    server.handle(PUSH_PULL_PATH, members.handle_push_pull)
    server.handle("/v1/greet", greeted)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            await nursery.start(members.run)
            yield Node(credentials, members, client)
            nursery.cancel_scope.cancel()
    finally:
        client.close()
        opened.close()


def together(*nodes: Node) -> bool:
    return all(len(node.membership.alive()) == len(nodes) - 1 for node in nodes)


@both
async def test_three_nodes_find_each_other_and_talk(tmp_path: Path, tls: bool) -> None:
    key_file = tmp_path / "key"
    keyfile.write_new(key_file)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running(tmp_path / "one", key_file, tls=tls))
        two = await stack.enter_async_context(running(tmp_path / "two", key_file, one.address, tls=tls))
        three = await stack.enter_async_context(running(tmp_path / "three", key_file, two.address, tls=tls))
        await until(lambda: together(one, two, three))
        for node in (one, two, three):
            for other in (one, two, three):
                if other is not node:
                    assert await node.greet(other) == b"hello " + node.credentials.name.encode()
        assert one.membership.statistics().rejected == {}


@both
async def test_keys_change_while_nodes_talk(tmp_path: Path, tls: bool) -> None:
    old, new = "1" * 64, "2" * 64
    key_file = tmp_path / "key"
    keyfile.write_new(key_file)
    key_file.write_text(old)
    async with (
        running(tmp_path / "one", key_file, tls=tls) as one,
        running(tmp_path / "two", key_file, one.address, tls=tls) as two,
    ):
        await until(lambda: together(one, two))
        for keys in (f"{old}\n{new}", f"{new}\n{old}", new):
            key_file.write_text(keys)
            for changed in (one, two):
                assert await trio.to_thread.run_sync(changed.credentials.reread)
                for node, other in ((one, two), (two, one)):
                    assert await node.greet(other) == b"hello " + node.credentials.name.encode()
                heard = one.membership.statistics().received
                await until(lambda heard=heard: one.membership.statistics().received > heard + 2)
        assert one.membership.statistics().rejected == two.membership.statistics().rejected == {}


@both
@pytest.mark.expected_logs("sealed with a key that is not in our key file")
async def test_a_node_of_another_cluster_is_left_out(tmp_path: Path, tls: bool) -> None:
    for name in ("key", "other"):
        keyfile.write_new(tmp_path / name)
    async with (
        running(tmp_path / "one", tmp_path / "key", tls=tls) as one,
        running(tmp_path / "two", tmp_path / "other", one.address, tls=tls) as two,
    ):
        await until(lambda: two.membership.statistics().failed_push_pulls)
        for node, other in ((one, two), (two, one)):
            with pytest.raises(PeerFailed):
                await node.greet(other)
        assert one.membership.members() == two.membership.members() == []


async def test_a_node_that_starts_again_is_the_same_one_at_another_address(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    keyfile.write_new(key_file)
    async with running(tmp_path / "one", key_file, tls=True) as one:
        lives: list[NodeInfo] = []
        for _ in range(3):
            async with running(tmp_path / "two", key_file, one.address, tls=True) as two:
                await until(lambda two=two: [each.info for each in one.membership.alive()] == [two.membership.info])
                await until(lambda two=two: together(one, two))
                lives.append(two.membership.info)
        assert len({info.name for info in lives}) == 1
        assert len(one.membership.members()) == 1
        assert one.membership.statistics().rejected == {}
        assert one.membership._swim.statistics().conflicts == 0
