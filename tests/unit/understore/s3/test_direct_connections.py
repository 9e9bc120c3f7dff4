"""Connections of direct requests that never come about: their descriptors are soon those of other sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from luxfuse.understore.s3 import direct

pytestmark = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")

CONNECT_MS = 15
TIMED_OUT = (3, 0, direct.TIMED_OUT)
NOT_THERE = (2, 404, 0)


class FullListener:
    """A server that is there, but takes no connection until it is to answer."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._fill = [stack.enter_context(socket.socket()) for _ in range(4)]
        for one in self._fill:
            one.setblocking(False)
            one.connect_ex(self._listener.getsockname())

    def answer(self) -> None:
        """Take connections from now on; there is no object."""
        for one in self._fill:
            one.close()
        self._listener.listen(16)
        thread = threading.Thread(target=self._serve)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(self._listener.shutdown, socket.SHUT_RDWR)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(5)
                with connection, suppress(OSError):
                    if connection.recv(65536):
                        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def full_listener() -> Iterator[FullListener]:
    with ExitStack() as stack:
        yield FullListener(stack)


def pool_of(host: str) -> Any:
    return direct._gets.Pool(
        url=f"http://{host}/bucket", path="/bucket", host=host, region="us-east-1", condition="If-Match",
        version="etag", metadata="x-amz-meta-", agent="test", bundle="/dev/null",
        connect_ms=CONNECT_MS, timeout_ms=10_000, silence_s=10, most=8,
    )  # fmt: skip


def read(pool: Any) -> tuple[int, int, int]:
    return pool.read("key", '"v"', 0, 1000, None)[:3]  # type: ignore[no-any-return]


def test_requests_go_on_after_many_connections_that_timed_out() -> None:
    with full_listener() as server:
        pool = pool_of(server.host)
        assert {read(pool) for _ in range(40)} == {TIMED_OUT}
        server.answer()
        assert any(read(pool) == NOT_THERE for _ in range(100))


def test_sockets_of_others_that_have_the_descriptors_now_are_left_alone() -> None:
    with full_listener() as server, ExitStack() as stack:
        pool = pool_of(server.host)
        for _ in range(3):
            assert read(pool) == TIMED_OUT
        pairs = [pair for _ in range(4) for pair in socket.socketpair()]
        for one in pairs:
            stack.enter_context(one)
            one.send(b"something to be read")
        assert read(pool) == TIMED_OUT
        for one in pairs:
            one.send(b", and more")
        for one in pairs:
            assert one.recv(100) == b"something to be read, and more"
