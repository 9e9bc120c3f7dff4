"""Deadlines of clients, many connections, and the end of the server. Only the clock waits for the deadlines."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from luxfuse.control import http
from tests.unit.control.conversing import GET, post, serving


async def test_a_client_that_says_nothing_is_cut_off(listener: socket.socket, autojump_clock: MockClock) -> None:
    async with serving(listener) as served, served.client() as client:
        started_s = trio.current_time()
        assert await client.closed()
        assert trio.current_time() - started_s == pytest.approx(http.IDLE_S)
    assert served.handler.asked == []


async def test_a_connection_without_a_further_request_ends(listener: socket.socket, autojump_clock: MockClock) -> None:
    async with serving(listener) as served, served.client() as client:
        for _ in range(2):
            assert await client.ask(GET) == (200, b"GET /hello")
            await trio.sleep(http.IDLE_S - 1)
        await trio.sleep(2)
        assert await client.closed()


@pytest.mark.parametrize(
    ("start", "deadline_s"),
    [
        (b"GET / HTTP/1.1\r\n", http.HEAD_S),
        (post("/", b"", "Content-Length: 1000"), http.BODY_S),
        (post("/unread", b"", "Content-Length: 1000"), http.BODY_S),
        (post("/", b"", "Transfer-Encoding: chunked"), http.BODY_S),
    ],
)
async def test_slow_clients_are_cut_off(
    listener: socket.socket, start: bytes, deadline_s: float, autojump_clock: MockClock
) -> None:
    """One byte a second, which is something each time."""
    async with serving(listener) as served, served.client() as client:
        await client.send(start)
        started_s = trio.current_time()
        await client.say_until_cut_off(b"1", 1)
        assert deadline_s < trio.current_time() - started_s <= deadline_s + http.LINGER_S + 1
        status, headers, _ = await client.answer()
        assert (status, headers[b"connection"]) == (200 if b"unread" in start else 408, b"close")
        assert served.connections() == 0
        assert served.handler.bodies == []


@pytest.mark.parametrize("path", ["/count/much", "/much"])
async def test_a_client_that_does_not_take_the_answer(
    listener: socket.socket, path: str, autojump_clock: MockClock
) -> None:
    async with serving(listener) as served, served.client() as client:
        await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await trio.sleep(http.TAKE_S - 1)
        assert served.connections() == 1
        await trio.sleep(2)
        assert served.connections() == 0
        assert served.handler.counting == 0


async def test_two_hundred_connections(listener: socket.socket) -> None:
    async with serving(listener) as served, trio.open_nursery() as nursery:
        answers = []
        together = trio.Event()

        async def ask() -> None:
            async with served.client() as client:
                answers.append(await client.ask(GET))
                if len(answers) == 200:
                    assert served.connections() == 200
                    together.set()
                await together.wait()
                assert await client.ask(GET) == (200, b"GET /hello")

        with trio.fail_after(60):
            for _ in range(200):
                nursery.start_soon(ask)
                await trio.sleep(0)
    assert answers == [(200, b"GET /hello")] * 200


async def test_connections_are_bounded(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 3)
    async with serving(listener) as served:
        async with served.client() as first, served.client(), served.client(), served.client() as waiting:
            assert await first.ask(GET) == (200, b"GET /hello")
            await waiting.send(GET)
            await trio.sleep(0.05)
            assert served.connections() == 3
            assert len(served.handler.asked) == 1
            await first.stream.aclose()
            assert (await waiting.answer())[0] == 200
        await served.all_ended()


async def test_a_lack_of_descriptors_passes(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, expected_logs: list[str], autojump_clock: MockClock
) -> None:
    expected_logs.append("cannot accept connections: Too many open files")
    accept, failures = trio.SocketListener.accept, iter([1, 2])

    async def failing(self: trio.SocketListener) -> trio.SocketStream:
        if next(failures, None):
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", failing)
    async with serving(listener) as served, served.client() as client:
        assert await client.ask(GET) == (200, b"GET /hello")
        assert trio.current_time() >= 2


@pytest.mark.parametrize(("path", "served_s"), [("/sleep/0.5", 0.5), ("/sleep/5", http.GRACE_S), ("/count", http.GRACE_S)])
async def test_an_answer_gets_a_moment_at_the_end(
    listener: socket.socket, path: str, served_s: float, autojump_clock: MockClock
) -> None:
    async with serving(listener) as served, served.client() as idle, served.client() as client:
        assert (await idle.ask(GET))[0] == 200
        await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + GET)
        await wait_all_tasks_blocked()
        served.stop.cancel()
        cancelled_s = trio.current_time()
        await trio.sleep(0)
        assert await idle.closed()
        assert trio.current_time() == cancelled_s
        with pytest.raises(OSError, match="refused"):
            async with served.client():
                pass
        await served.stopped.wait()
        assert trio.current_time() - cancelled_s == pytest.approx(served_s)
        assert served.handler.counting == 0
        if served_s == 0.5:
            assert (await client.answer())[::2] == (200, b"GET /sleep/0.5")
        assert len(served.handler.asked) == 2  # what else was said is not looked at
