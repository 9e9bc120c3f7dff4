"""HTTP itself, spoken with a server on real sockets."""

from __future__ import annotations

import socket
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tests.unit.control.conversing import GET, HEAD, MOST_BODY_BYTES, Client, listen_at, post, serving


async def test_requests_follow_each_other_on_a_connection(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        assert await client.ask(GET) == (200, b"GET /hello")
        assert await client.ask(post("/a%20b?c=d&e", b"body")) == (200, b"POST /a b")
        assert served.handler.asked[1].query == "c=d&e"
        assert served.handler.asked[1].headers == {"host": "x", "content-length": "4"}
        assert served.handler.bodies == [b"", b"body"]
        await client.send(GET)
        status, headers, _ = await client.answer()
        assert (status, headers[b"content-type"], headers[b"content-length"]) == (200, b"text/plain", b"10")
        assert b"date" in headers
        assert b"connection" not in headers
        assert served.connections() == 1
    assert len(served.handler.asked) == 3


async def test_requests_in_one_piece_are_answered_in_order(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(post("/1", b"x" * 100_000) + GET + b"GET /count?3 HTTP/1.1\r\nHost: x\r\n\r\n" + post("/4", b""))
        bodies = [(await client.answer())[2] for _ in range(4)]
        assert bodies == [b"POST /1", b"GET /hello", b"1\n2\n3\n", b"POST /4"]


async def test_a_request_that_comes_during_an_answer_in_parts(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(b"GET /count/slowly?30 HTTP/1.1\r\nHost: x\r\n\r\n")
        while not served.handler.counting:
            await trio.sleep(0.001)
        await client.send(GET)
        assert (await client.answer())[2].endswith(b"\n30\n")
        assert (await client.answer())[2] == b"GET /hello"


async def test_a_client_that_goes_on_asking_during_an_answer_is_cut_off(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(60):
            await client.say_until_cut_off(GET, 0)
        await served.all_ended()
        assert served.handler.counting == 0
        assert len(served.handler.asked) == 1


async def test_a_request_byte_by_byte(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        for byte in post("/slow", b"body"):
            await client.send(bytes([byte]))
            await wait_all_tasks_blocked()
        assert (await client.answer())[2] == b"POST /slow"
        assert served.handler.bodies == [b"body"]


async def test_a_body_in_chunks(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        for pieces in ([b"4\r\nbody\r\n0\r\n\r\n"], [b"2;x=y\r\nbo\r\n", b"2\r\ndy\r", b"\n0\r\n", b"Trailer: t\r\n\r\n"]):
            await client.send(post("/chunks", b"", "Transfer-Encoding: chunked"))
            for piece in pieces:
                await wait_all_tasks_blocked()
                await client.send(piece)
            assert (await client.answer())[0] == 200
            assert served.handler.bodies.pop() == b"body"
        await client.send(post("/chunks", b"zz\r\n", "Transfer-Encoding: chunked"))
        assert (await client.answer())[0] == 400
        assert await client.closed()


async def test_the_body_has_a_bound(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        assert (await client.ask(post("/", b"x" * MOST_BODY_BYTES)))[0] == 200
        assert (await client.ask(post("/", b"x" * (MOST_BODY_BYTES + 1))))[0] == 413
        chunk = b"40000\r\n" + b"x" * 0x40000 + b"\r\n"
        assert (await client.ask(post("/", 5 * chunk + b"0\r\n\r\n", "Transfer-Encoding: chunked")))[0] == 413
        assert (await client.ask(post("/unread", b"x" * 5 * MOST_BODY_BYTES)))[0] == 200
        assert await client.ask(GET) == (200, b"GET /hello")  # all was received
        assert [len(body) for body in served.handler.bodies] == [MOST_BODY_BYTES, 0]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (16 << 10) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 4000 + b"\r\n",
        b"GET /" + b"x" * (17 << 10),
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 20),
    ],
)
async def test_the_head_has_a_bound(listener: socket.socket, head: bytes) -> None:
    async with serving(listener) as served:
        for piece_bytes in (1 << 30, 1000):
            async with served.client() as client:
                try:
                    for start in range(0, len(head), piece_bytes):
                        await client.send(head[start : start + piece_bytes])
                except trio.BrokenResourceError:  # cut off, with an answer
                    pass
                assert (await client.answer())[0] == 431
        assert served.handler.asked == []


async def test_expect_continue(listener: socket.socket) -> None:
    async with serving(listener) as served:
        async with served.client() as client:
            await client.send(post("/", b"", "Content-Length: 4", "Expect: 100-continue"))
            assert (await client.answer())[0] == 100
            assert await client.ask(b"body") == (200, b"POST /")
            assert served.handler.bodies == [b"body"]
            await client.send(post("/", b"", f"Content-Length: {MOST_BODY_BYTES + 1}", "Expect: 100-continue"))
            status, headers, _ = await client.answer()
            assert (status, headers[b"connection"]) == (413, b"close")
            assert await client.closed()
        async with served.client() as client:
            await client.send(post("/unread", b"", "Content-Length: 4", "Expect: 100-continue"))
            assert (await client.answer())[0] == 200
            assert await client.closed()
        for waits in (False, True):  # it hangs up before the 100, or without having read it, which is a reset
            async with served.client() as client:
                await client.send(post("/", b"", "Content-Length: 4", "Expect: 100-continue"))
                if waits:
                    await wait_all_tasks_blocked()
            await served.all_ended()


async def test_http_1_0(listener: socket.socket) -> None:
    async with serving(listener) as served:
        for path, body in (("/hello", b"GET /hello"), ("/count?3", b"1\n2\n3\n")):
            async with served.client() as client:
                await client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                status, headers, found = await client.answer()
                assert (status, found) == (200, body)
                assert headers[b"connection"] == b"close"
                assert b"transfer-encoding" not in headers
                assert await client.closed()


async def test_connection_close(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET)
        assert (await client.answer())[1][b"connection"] == b"close"
        assert await client.closed()
        assert len(served.handler.asked) == 1


async def test_head_has_no_body(listener: socket.socket) -> None:
    async with serving(listener) as served, served.client() as client:
        for path in ("/hello", "/count?3"):
            await client.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await client.answer("HEAD"))[::2] == (200, b"")
        assert await client.ask(GET) == (200, b"GET /hello")
        await client.send(b"HEAD / HTTP/9.9\r\n\r\n")
        assert (await client.answer("HEAD"))[::2] == (505, b"")
        assert served.handler.counting == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400), (b"\r\n\r\n", 400), (b"\x16\x03\x01\x02" * 9, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n", 400), (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET / HTTP/9.9\r\n\r\n", 505), (HEAD + b"garbage\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)  # fmt: skip
async def test_a_garbled_request_is_refused_and_the_connection_closed(
    listener: socket.socket, sent: bytes, status: int
) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(sent + b"POST / HTTP/1.1\r\n" * 1000)
        if sent.startswith(HEAD):
            assert (await client.answer("HEAD"))[0] == 200
            served.handler.asked.clear()
        found, headers, body = await client.answer()
        assert (found, headers[b"connection"]) == (status, b"close")
        assert body.startswith(b'{"error": "')
        assert await client.closed()
        assert served.handler.asked == []


@pytest.mark.parametrize("request_line", ["OPTIONS *", "GET http://x/y", "BREW /pot"])
async def test_odd_requests_are_the_handlers(listener: socket.socket, request_line: str) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(f"{request_line} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n".encode())
        assert (await client.answer())[0] == 200
        assert [f"{request.method} {request.path}" for request in served.handler.asked] == [request_line]
        async with served.client() as other:
            assert await other.ask(GET) == (200, b"GET /hello")


async def test_a_failure_of_the_handler(listener: socket.socket, expected_logs: list[str]) -> None:
    expected_logs.append("request /fail failed")
    async with serving(listener) as served, served.client() as client:
        status, body = await client.ask(post("/fail", b"body"))
        assert status == 500
        assert b"secret" not in body
        assert await client.ask(GET) == (200, b"GET /hello")


async def test_a_failure_in_the_course_of_an_answer(listener: socket.socket, expected_logs: list[str]) -> None:
    expected_logs.append("a connection failed")
    async with serving(listener) as served, served.client() as client:
        assert await client.broken_answer(b"GET /count/fail HTTP/1.1\r\nHost: x\r\n\r\n")
        await served.all_ended()
        async with served.client() as other:
            assert await other.ask(GET) == (200, b"GET /hello")


async def test_a_client_that_hangs_up_ends_the_answer(listener: socket.socket) -> None:
    async with serving(listener) as served:
        async with served.client() as client:
            await client.send(b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n")
            while served.handler.counted < 3:
                await client.stream.receive_some(10)
        await served.all_ended()
        assert served.handler.counting == 0


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", GET[:-2], post("/", b"", "Content-Length: 5"), post("/", b"5\r\nb", "Transfer-Encoding: chunked")],
)
async def test_hanging_up_in_the_middle(listener: socket.socket, sent: bytes) -> None:
    async with serving(listener) as served:
        async with served.client() as client:
            await client.send(sent)
        await served.all_ended()
        async with served.client() as client:  # half: it still listens
            await client.send(sent)
            await client.stream.send_eof()
            assert (await client.answer())[0] == (400 if sent else 0)
        assert served.handler.bodies == []


async def test_tcp() -> None:
    """The same on the loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    async with serving(listener) as served, served.client() as client:
        assert await client.ask(GET) == (200, b"GET /hello")
        assert (await client.ask(post("/", b"x" * (3 * MOST_BODY_BYTES))))[0] == 413
        await client.send(b"garbage\r\n\r\n")
        for _ in range(3):  # it is refused already, and still talks
            await wait_all_tasks_blocked()
            await client.send(b"more " * 100_000)
        assert (await client.answer())[0] == 400
        await client.stream.send_eof()
        assert await client.closed()


# -- anything

_pieces = st.one_of(
    st.sampled_from([
        b"GET /hello HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"HEAD /count?3 HTTP/1.0\r\n", b"GET /count HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n", b"Content-Length: 99999999999\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n",
        b"\r\n", b"\r\n", b"\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"ffffffffff\r\n", b"abc", GET, b"x" * 20_000,
    ]),
    st.binary(max_size=40),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(_pieces, max_size=12), st.booleans())
def test_nothing_that_is_said_breaks_it(pieces: list[bytes], half: bool) -> None:
    async def say(path: Path) -> None:
        async with serving(listen_at(path)) as served:
            async with served.client() as client:
                await _say(client, pieces, half)
            await served.all_ended()
            assert served.handler.counting == 0
            async with served.client() as client:
                assert await client.ask(GET) == (200, b"GET /hello")

    with TemporaryDirectory() as directory:
        trio.run(say, Path(directory, "s"))


async def _say(client: Client, pieces: list[bytes], half: bool) -> None:
    try:
        for piece in pieces:
            await client.send(piece)
            await trio.sleep(0)
        if half:
            await client.stream.send_eof()
            with trio.fail_after(60):
                while await client.stream.receive_some(65536):
                    pass
    except trio.BrokenResourceError:  # it was cut off
        pass
