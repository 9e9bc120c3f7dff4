"""What those who connect to a node can do to it: be answered, refused or cut off."""

from __future__ import annotations

import os
import ssl
import time

import h11
import msgspec
import pytest
import trio
import trio.testing

from luxfuse.errors import PeerFailed, PeerRefused, Refusal
from luxfuse.peers import requests, server, streams
from luxfuse.peers.client import Client, Fetched
from luxfuse.peers.signing import MAC, Signer
from luxfuse.peers.wire import LENGTH, PAGES_PATH, Exchange, PagesRequest, encoded
from luxfuse.types import PAGE_BYTES
from tests.support.peer_nodes import CLIENT, SERVER, Node, content, keys_of, running, want

BODY = encoded(PagesRequest([want("a", 10)], False, 5.0))


def proven(body: bytes = BODY, *, path: str = PAGES_PATH, to: str = SERVER, ahead_s: float = 0, cluster=b"one"):
    """A request with its proof: headers and bytes."""
    signer = Signer(keys_of(CLIENT, cluster), lambda: time.time() + ahead_s)
    headers = [(LENGTH, b"%d" % len(body))]
    signer.request(path, to, headers, requests._sha256(body))
    return headers, Exchange(h11.CLIENT).request(path, "peer", headers) + body


async def say(node: Node, data: bytes) -> bytes:
    """Send bytes on a new connection and return the answer, up to its end."""
    stream = await trio.open_tcp_stream(*node.server.address)
    async with stream:
        with trio.fail_after(60):
            await stream.send_all(data)
            return await everything(stream)


async def everything(stream: trio.SocketStream) -> bytes:
    received = b""
    try:
        while part := await stream.receive_some():
            received += part
    except trio.BrokenResourceError:
        pass
    return received


def a_request(body: bytes, path: str = PAGES_PATH) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body


MALFORMED = {
    "garbage": b"\x00\xff\r\n\r\n" * 10,
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "another method": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "no length": b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
    "chunks": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    "negative": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "huge": b"POST /v1/pages HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n",
    "endless head": b"POST / HTTP/1.1\r\nx: " + b"y" * 40_000,
    "two at once": a_request(BODY) * 2,
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_malformed_requests_are_the_last(case) -> None:
    async with running({"a": content(10)}, tls=False) as node:
        assert (await say(node, MALFORMED[case])).startswith(b"HTTP/1.1 400 ")
        assert node.server.counters.malformed == 1
        assert isinstance((await node.fetch(want("a", 10)))[0], Fetched)


WANTS = {
    "none": [],
    "too many": [want("a", 10)] * 65,
    "too large": [want("a", 64 * PAGE_BYTES), want("a", 10)],
    "too many pages": [want("a", 100 * PAGE_BYTES, 0, 65)],
    "beyond the end": [want("a", 10, 1, 1)],
    "no pages": [want("a", 10, 0, 0)],
    "before the start": [want("a", 10, -1, 1)],
    "a source that is none": [msgspec.structs.replace(want("a", 10), source=b"short")],
}


@pytest.mark.parametrize("case", WANTS)
async def test_wants_have_limits(case) -> None:
    async with running({"a": content(10)}, tls=False) as node:
        body = encoded(PagesRequest(WANTS[case], False, 5.0))
        assert (await say(node, proven(body)[1])).startswith(b"HTTP/1.1 400 ")
        assert (await say(node, proven(b"\xc1")[1])).startswith(b"HTTP/1.1 400 ")
        assert node.provider.asked == []
        with pytest.raises(ValueError, match=r"cannot be asked for|in one request"):
            await node.fetch(*WANTS[case])


async def test_requests_must_be_proven() -> None:
    async with running({"a": content(10)}, tls=False) as node:
        headers, good = proven()
        mac = dict(headers)[MAC]
        changed = mac[:-1] + (b"0" if mac[-1:] != b"0" else b"1")
        for bad in (
            a_request(BODY),
            good.replace(mac, changed),
            good.replace(mac, b"zz"),
            good.replace(b"a", b"b", 1),
            good[:-1] + b"\x01",
            proven(to=CLIENT)[1],
            proven(ahead_s=100)[1],
            proven(ahead_s=-100)[1],
            proven(cluster=b"two")[1],
        ):
            assert bad != good
            assert (await say(node, bad)).startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
        assert node.provider.asked == []
        stream = await trio.open_tcp_stream(*node.server.address)
        async with stream:
            await stream.send_all(good)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert (await say(node, good)).startswith(b"HTTP/1.1 401 ")  # a second time
        assert node.server.counters.unproven >= 8


async def test_nonces_are_remembered_for_the_window_only() -> None:
    now_s = [1000.0]
    signer = Signer(keys_of(SERVER), lambda: now_s[0])
    for number in range(10):
        signer._note(b"%d" % number)
        now_s[0] += 100
    assert len(signer._seen) + len(signer._seen_before) <= 4


async def test_answers_must_be_proven() -> None:
    async with running({"a": content(10)}, tls=False) as node:
        node.server._signer._keys = keys_of(SERVER, b"two")
        node.server._signer.check_request = lambda head, digest: (CLIENT, b"nonce")
        with pytest.raises(PeerFailed, match="the proof is wrong"):
            await node.fetch(want("a", 10))
        node.server._signer._keys = keys_of(SERVER)  # a proof for another request
        with pytest.raises(PeerFailed, match="the proof is wrong"):
            await node.fetch(want("a", 10))


async def test_certificates_of_another_cluster_are_refused() -> None:
    async with running({"a": content(10)}, tls=True) as node:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for each in (context, keys_of(CLIENT, b"two").client_context()):
            each.verify_mode = ssl.CERT_NONE
            raw = await trio.open_tcp_stream(*node.server.address)
            async with trio.SSLStream(raw, each, https_compatible=True) as stream:
                await stream.send_all(a_request(BODY))  # a client of TLS 1.3 learns that it is refused by the answer
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
        with trio.fail_after(60):
            while node.server.counters.broken_off < 2:
                await trio.sleep(0.01)
        assert node.provider.asked == []


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("said", [b"", b"POST /v1/pages HTT", a_request(BODY)[:-3]])
async def test_who_is_slow_is_cut_off(monkeypatch, tls, said) -> None:
    for module, name in ((server, "IDLE_S"), (server, "HANDSHAKE_S"), (requests, "HEAD_S"), (requests, "BODY_S")):
        monkeypatch.setattr(module, name, 0.1)
    async with running({"a": content(10)}, tls=tls) as node:
        assert await say(node, said) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert not node.server._streams


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stalls"])
async def test_pages_are_released_if_they_are_not_taken(monkeypatch, tls, closes) -> None:
    monkeypatch.setattr(streams, "STALL_S", 1 if not tls else 0.3)
    data = content(16 * PAGE_BYTES)
    async with running({"a": data}, tls=tls, in_files=True) as node:
        body = encoded(PagesRequest([want("a", len(data))], False, 5.0))
        raw = await trio.open_tcp_stream(*node.server.address)
        stream = trio.SSLStream(raw, keys_of(CLIENT).client_context(), https_compatible=True) if tls else raw
        await stream.send_all(a_request(body) if tls else proven(body)[1])
        assert await stream.receive_some(10)
        if closes:
            await trio.aclose_forcefully(stream)
        with trio.fail_after(60):
            while node.provider.released < 1:
                await trio.sleep(0.01)
        await trio.aclose_forcefully(stream)
        assert node.server._in_hand == node.server._bytes_in_hand == 0


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_too_many_requests_are_refused(monkeypatch, tls) -> None:
    monkeypatch.setattr(server, "MOST_REQUESTS", 2)
    async with running({"a": content(10)}, tls=tls) as node, trio.open_nursery() as nursery:
        node.provider.gate = trio.Event()
        nursery.start_soon(node.fetch, want("a", 10))
        nursery.start_soon(node.fetch, want("a", 10))
        while len(node.provider.asked) < 2:
            await trio.sleep(0.005)
        with pytest.raises(PeerRefused) as caught:
            await node.fetch(want("a", 10))
        assert caught.value.reason is Refusal.BUSY
        assert caught.value.retry_after_s == server.RETRY_AFTER_S
        node.provider.gate.set()


async def test_too_many_bytes_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(server, "MOST_BYTES", 100)
    async with running({"a": content(101)}, tls=False) as node:
        with pytest.raises(PeerRefused, match="too many"):
            await node.fetch(want("a", 101))
        with pytest.raises(PeerRefused):
            await node.client.request(node.server.address, "/v1/other", b"x" * 101)


async def test_too_many_connections_are_closed(monkeypatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 1)
    async with running({"a": content(10)}, tls=False) as node:
        assert isinstance((await node.fetch(want("a", 10)))[0], Fetched)
        assert await say(node, b"") == b""
        assert isinstance((await node.fetch(want("a", 10)))[0], Fetched)


async def test_what_is_not_provided_in_time_is_busy(monkeypatch) -> None:
    monkeypatch.setattr(server, "PROVIDE_MAX_S", 0.2)
    async with running({"a": content(10)}, tls=True) as node:
        node.provider.gate = trio.Event()
        (answer,) = await node.fetch(want("a", 10), fetch=True)
        assert isinstance(answer, PeerRefused)
        assert answer.reason is Refusal.BUSY


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_fifty_at_once_and_nothing_stays_open(tls) -> None:
    before = len(os.listdir("/proc/self/fd"))
    objects = {str(number): content(100_000 + number, seed=number) for number in range(50)}
    async with running(objects, tls=tls) as node:

        async def check(key: str) -> None:
            (found,) = await node.fetch(want(key, len(objects[key])))
            assert found.data == objects[key]

        async with trio.open_nursery() as nursery:
            for key in objects:
                nursery.start_soon(check, key)
    assert node.provider.given == node.provider.released == 50
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_connection_that_the_server_closed_is_replaced(monkeypatch) -> None:
    async with running({"a": content(10)}, tls=True) as node:
        await node.fetch(want("a", 10))
        monkeypatch.setattr("luxfuse.peers.links.Link.is_stale", lambda _self: False)
        for sock in list(node.server._streams):
            server._shut_down(sock)
        assert isinstance((await node.fetch(want("a", 10)))[0], Fetched)
        assert node.server.counters.connections == 2


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_file_that_is_not_what_was_sent_is_not_believed(tls, tmp_path) -> None:
    (tmp_path / "f").write_bytes(content(100_000))
    failures = []
    async with running({}, tls=tls) as node:

        async def take(peer: str, header: bytes, parts) -> bytes:
            try:
                return b"".join([part async for part in parts])[:0]
            except PeerFailed as exc:
                failures.append(str(exc))
                raise

        node.server.handle_file("/v1/file", take)
        own = Client(keys_of(CLIENT), tls=tls)
        with (tmp_path / "f").open("rb") as f:
            if not tls:
                own._caller.signer.content = lambda nonce, digest: b"x" * 32
                with pytest.raises(PeerRefused, match="breaks off"):
                    await own.send_file(
                        node.server.address, "/v1/file", b"", f.fileno(), 100_000, name=SERVER, timeout_s=60
                    )
            with pytest.raises(PeerFailed, match="broke off"):  # it is shorter than what is announced
                await own.send_file(node.server.address, "/v1/file", b"", f.fileno(), 100_001, name=SERVER, timeout_s=60)
            with trio.fail_after(60):
                while len(failures) < 1 + (not tls):
                    await trio.sleep(0.01)
        own.close()
