"""Pages between nodes over loopback, with TLS and without."""

from __future__ import annotations

import pytest

from luxfuse.errors import PeerFailed, PeerRefused, Refusal
from luxfuse.peers.client import Client, Fetched
from luxfuse.types import PAGE_BYTES
from tests.support.peer_nodes import CLIENT, SERVER, content, keys_of, running, sums_of, want

both = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
places = pytest.mark.parametrize("in_files", [True, False], ids=["file", "memory"])


@both
@places
async def test_pages_arrive(tls, in_files) -> None:
    data, small = content(3 * PAGE_BYTES + 12345), content(1000, seed=1)
    async with running({"big": data, "small": small}, tls=tls, in_files=in_files) as node:
        whole, middle, little = await node.fetch(
            want("big", len(data)), want("big", len(data), 1, 2), want("small", 1000), fetch=True
        )
        assert whole == Fetched(memoryview(data), sums_of(data))
        assert middle.data == data[PAGE_BYTES : 3 * PAGE_BYTES]
        assert little == Fetched(memoryview(small), sums_of(small))
        assert [fetch for _, fetch in node.provider.asked] == [True] * 3
        assert (await node.fetch(want("small", 1000)))[0] == little
        assert node.server.counters.connections == 1
    assert node.provider.given == node.provider.released == 4


@both
async def test_each_want_has_its_own_outcome(tls) -> None:
    async with running({"a": content(10), "b": content(20)}, tls=tls) as node:
        changed = want("b", 20)
        changed = type(changed)(changed.source, "b", "v0", 20, 0, 1)
        first, missing, other = await node.fetch(want("a", 10), want("c", 5), changed)
        assert first.data == content(10)
        assert isinstance(missing, PeerRefused)
        assert missing.reason is Refusal.NOT_HERE
        assert isinstance(other, PeerRefused)
        assert other.reason is Refusal.CHANGED
        assert str(other) == "b is v1"


@both
async def test_node_of_another_name_or_cluster_is_refused(tls) -> None:
    async with running({"a": content(10)}, tls=tls) as node:
        node.info = type(node.info)(CLIENT, *node.server.address)
        with pytest.raises(PeerFailed, match=f"it is node {SERVER}|another key"):
            await node.fetch(want("a", 10))
        node.info = type(node.info)(SERVER, *node.server.address)
        stranger = Client(keys_of(CLIENT, b"two"), tls=tls)
        with pytest.raises(PeerFailed, match=r"TLS failed|another key"):
            await node.fetch(want("a", 10), client=stranger)
        stranger.close()
        assert node.provider.asked == []


@both
async def test_messages_are_answered(tls) -> None:
    async with running({}, tls=tls) as node:

        async def reverse(peer: str, body: bytes) -> bytes:
            if not body:
                raise ValueError("nothing")
            return peer.encode() + body[::-1]

        node.server.handle("/v1/reverse", reverse)
        address = node.server.address
        assert await node.client.request(address, "/v1/reverse", b"abc", name=SERVER) == CLIENT.encode() + b"cba"
        assert await node.client.request(address, "/v1/reverse", b"x" * 999) == CLIENT.encode() + b"x" * 999
        with pytest.raises(PeerRefused, match="no such request"):
            await node.client.request(address, "/v1/other", b"abc")
        with pytest.raises(PeerFailed, match="400: nothing"):
            await node.client.request(address, "/v1/reverse", b"")


@both
async def test_files_are_sent(tls, tmp_path) -> None:
    data = content(3 * PAGE_BYTES + 7)
    (tmp_path / "f").write_bytes(data)
    got = []
    async with running({}, tls=tls) as node:

        async def take(peer: str, header: bytes, parts) -> bytes:
            received = b"".join([part async for part in parts])
            got.append((peer, header, received))
            return b"done"

        node.server.handle_file("/v1/file", take)
        with (tmp_path / "f").open("rb") as f:
            for _ in range(2):
                answer = await node.client.send_file(
                    node.server.address, "/v1/file", b"head", f.fileno(), len(data), name=SERVER, timeout_s=60
                )
                assert answer == b"done"
        assert got == [(CLIENT, b"head", data)] * 2
        assert node.server.counters.connections == 1
