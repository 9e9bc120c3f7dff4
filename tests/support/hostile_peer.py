"""A node that has the keys of the cluster and answers as a test says: late, wrongly, endlessly, or not at all."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType

from luxfuse.core.members import NodeInfo
from luxfuse.peers.credentials import Credentials
from luxfuse.peers.wire import PageAnswer, encoded

Script = Callable[[ssl.SSLSocket], None]


def pages_answer(answers: list[PageAnswer], body: bytes, length: int | None = None) -> bytes:
    """A whole answer to a request for pages; ``length``: what it says instead of its length."""
    meta = encoded(answers)
    total = len(meta) + len(body) if length is None else length
    head = f"HTTP/1.1 200 \r\nContent-Length: {total}\r\nluxfuse-meta: {len(meta)}\r\n\r\n"
    return head.encode() + meta + body


class HostilePeer:
    """Listens on loopback with TLS; each connection is one request, the answer to which ``script`` sends."""

    def __init__(self, keys: Credentials, script: Script) -> None:
        self.connections = 0
        self._context = keys.server_context()
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.info = NodeInfo(keys.name, *self._listener.getsockname())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> HostilePeer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def wait(self) -> None:
        """Say nothing until the test is over."""
        self._stop.wait(120)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(10)
            self.connections += 1
            try:
                with self._context.wrap_socket(raw, server_side=True) as conn:
                    conn.recv(65536)
                    self._script(conn)
            except OSError:
                continue
