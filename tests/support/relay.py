"""A port that leads to one server or another, as it is told; what was connected before is cut off then."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.support.ports import claim_port


class Relay:
    """``url`` of the server that it leads to first, with the relay's own address."""

    def __init__(self, url: str) -> None:
        self._port, self._claim = claim_port()
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._to = urlsplit(url).port or 0
        self.url = f"{urlsplit(url).scheme}://127.0.0.1:{self._port}"
        threading.Thread(target=self._accept, daemon=True, name="relay").start()

    def lead_to(self, url: str | None) -> None:
        """Lead to another server from now on; None: cut off each connection at once."""
        with self._lock:
            self._to = urlsplit(url).port or 0 if url is not None else 0
        self._cut()

    def close(self) -> None:
        """Serve nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        self._claim.close()

    def _cut(self) -> None:
        with self._lock:
            connections = list(self._open)
        for each in connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            with self._lock:
                self._open.add(client)
                to = self._to
            threading.Thread(target=self._serve, args=(client, to), daemon=True, name="relay").start()

    def _serve(self, client: socket.socket, to: int) -> None:
        with client, contextlib.suppress(OSError):
            if to:
                with socket.create_connection(("127.0.0.1", to)) as server:
                    back = threading.Thread(target=_copy, args=(server, client), daemon=True, name="relay")
                    back.start()
                    _copy(client, server)
                    back.join()
        with self._lock:
            self._open.discard(client)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """Run a relay, which leads to ``url`` first."""
    made = Relay(url)
    try:
        yield made
    finally:
        made.close()
