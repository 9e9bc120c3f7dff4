"""What a node that misbehaves can do to those who ask it: nothing but not give them what they want."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from luxfuse.errors import PeerCorrupt, PeerFailed
from luxfuse.peers import links
from luxfuse.peers.client import Client, Fetched
from luxfuse.peers.wire import Outcome, PageAnswer
from luxfuse.types import PAGE_BYTES
from tests.support.hostile_peer import HostilePeer, Script, pages_answer
from tests.support.mounted import wait_for
from tests.support.peer_nodes import CLIENT, SERVER, content, keys_of, sums_of, want

SIZE = PAGE_BYTES + 100
DATA = content(SIZE)
WANT = want("a", SIZE)
GOOD = [PageAnswer(Outcome.OK, sums_of(DATA))]


@pytest.fixture
def client() -> Iterator[Client]:
    before = len(os.listdir("/proc/self/fd"))
    client = Client(keys_of(CLIENT), tls=True)
    yield client
    client.close()
    assert len(os.listdir("/proc/self/fd")) == before


def sends(data: bytes) -> Script:
    return lambda conn: conn.sendall(data)


def for_ever(start: bytes, more: bytes) -> Script:
    def script(conn) -> None:
        conn.sendall(start)
        for _ in range((1 << 28) // len(more)):
            conn.sendall(more)
        raise AssertionError("the other side took 256 MiB")

    return script


NOT_PROPER = {
    "says nothing": (sends(b""), "broke off"),
    "garbage": (sends(b"\x00\xff" * 100), "no proper answer"),
    "another protocol": (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "no proper answer"),
    "endless head": (for_ever(b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"y" * 1000 + b"\r\n"), "no proper answer"),
    "endless line": (for_ever(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000), "no proper answer"),
    "endless interim answers": (for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "no proper answer"),
    "chunks": (
        for_ever(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "length of the body is not given",
    ),
    "until the end": (for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000), "length of the body is not given"),
    "a huge body": (sends(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n"), "is not a number up to"),
    "an endless refusal": (
        for_ever(b"HTTP/1.1 500 no\r\ncontent-length: 60000000\r\n\r\n", b"x" * 1000),
        "answered with status 500",
    ),
    "two lengths": (sends(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n"), "no proper answer"),
    "a huge block": (
        sends(b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\nluxfuse-meta: 2999999\r\n\r\n"),
        "luxfuse-meta is not a number up to",
    ),
    "a block beyond the body": (
        sends(b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\nluxfuse-meta: 31\r\n\r\n"),
        "shorter than its parts",
    ),
    "no block": (sends(b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n" + b"x" * 30), "no proper answer"),
    "more bytes than wanted": (sends(pages_answer(GOOD, DATA + b"x")), f"{SIZE + 1} bytes of pages where {SIZE}"),
    "fewer bytes than wanted": (sends(pages_answer(GOOD, DATA[:-1])), f"{SIZE - 1} bytes of pages where {SIZE}"),
    "more answers than wants": (sends(pages_answer(GOOD * 2, DATA * 2)), "2 answers to 1 wants"),
    "too few checksums": (
        sends(pages_answer([PageAnswer(Outcome.OK, sums_of(DATA)[:1])], DATA)),
        "1 checksums for 2 pages",
    ),
    "closes early": (sends(pages_answer(GOOD, DATA[:5000], len(DATA))), "bytes of pages where"),
    "closes in the middle": (sends(pages_answer(GOOD, DATA)[:-5]), "broke off"),
}


@pytest.mark.parametrize("case", NOT_PROPER)
def test_no_proper_answer_fails(client, case) -> None:
    script, text = NOT_PROPER[case]
    with HostilePeer(keys_of(SERVER), script) as peer, pytest.raises(PeerFailed, match=text):
        client.fetch(peer.info, [WANT], fetch=False, timeout_s=60)
    assert peer.connections == 1


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", pages_answer(GOOD, DATA)[:200], pages_answer(GOOD, DATA)[:-5]])
def test_who_stalls_is_given_up(client, sent) -> None:
    def script(conn) -> None:
        conn.sendall(sent)
        peer.wait()

    with HostilePeer(keys_of(SERVER), script) as peer:
        with pytest.raises(PeerFailed, match="does not answer in time"):
            client.fetch(peer.info, [WANT], fetch=False, timeout_s=0.2)
        wait_for("its connection is taken", lambda: peer.connections == 1)


def test_who_sends_a_byte_now_and_then_is_given_up(client) -> None:
    def script(conn) -> None:
        for byte in pages_answer(GOOD, DATA):
            conn.sendall(bytes([byte]))
            time.sleep(0.01)

    with HostilePeer(keys_of(SERVER), script) as peer, pytest.raises(PeerFailed, match="does not answer in time"):
        client.fetch(peer.info, [WANT], fetch=False, timeout_s=0.3)


def test_corrupt_page_is_told_from_a_good_one(client) -> None:
    wrong = bytearray(DATA)
    wrong[PAGE_BYTES + 50] ^= 1
    answer = pages_answer(GOOD * 2, bytes(wrong) + DATA)
    with HostilePeer(keys_of(SERVER), sends(answer)) as peer:
        bad, good = client.fetch(peer.info, [WANT, WANT], fetch=False, timeout_s=60)
    assert isinstance(bad, PeerCorrupt)
    assert good == Fetched(memoryview(DATA), sums_of(DATA))


def test_nothing_behind_an_answer_is_taken_for_the_next(client) -> None:
    answer = pages_answer(GOOD, DATA)
    with HostilePeer(keys_of(SERVER), sends(answer + pages_answer([PageAnswer(Outcome.NOT_HERE)], b""))) as peer:
        for _ in range(3):
            (found,) = client.fetch(peer.info, [WANT], fetch=False, timeout_s=60)
            assert isinstance(found, Fetched)
    assert peer.connections == 3


def test_text_of_a_refusal_is_bounded_and_printable(client) -> None:
    answer = b"HTTP/1.1 500 no\r\ncontent-length: 1000\r\n\r\n" + b"\x1b[31m\n" * 160 + b"x" * 40
    with HostilePeer(keys_of(SERVER), sends(answer)) as peer, pytest.raises(PeerFailed) as caught:
        client.fetch(peer.info, [WANT], fetch=False, timeout_s=60)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_who_is_not_of_the_cluster_learns_nothing(client) -> None:
    asked = []
    peer = HostilePeer(keys_of(SERVER, b"two"), asked.append)
    with peer, pytest.raises(PeerFailed, match="TLS failed"):
        client.fetch(peer.info, [WANT], fetch=False, timeout_s=60)
    assert asked == []


def test_nobody_there(client) -> None:
    with HostilePeer(keys_of(SERVER), sends(b"")) as peer:
        info = peer.info
    with pytest.raises(PeerFailed, match="refused"):
        client.fetch(info, [WANT], fetch=False, timeout_s=60)


def test_a_handshake_that_is_not_answered_ends(client, monkeypatch) -> None:
    monkeypatch.setattr(links, "CONNECT_S", 0.2)
    with HostilePeer(keys_of(SERVER), sends(b"")) as peer:
        peer._context = _Silent()
        with pytest.raises(PeerFailed, match="does not answer in time"):
            client.fetch(peer.info, [WANT], fetch=False, timeout_s=60)


class _Silent:
    """In place of a TLS context: says nothing."""

    def wrap_socket(self, raw, *, server_side: bool):
        with raw:
            while raw.recv(1000):
                pass
        raise OSError
