"""Servers of HTTP in the process of a test: what they answer is up to their handlers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

POLL_S = 0.02


class HttpServer(ThreadingHTTPServer):
    """A server on a free loopback port, with a thread for each connection."""

    request_queue_size = 128  # of more connections that wait, the kernel drops the next: it is tried again after a second
    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, *_arguments: Any) -> None:
        """Say nothing of clients that went away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


Server = TypeVar("Server", bound=HttpServer)


@contextmanager
def answering(server: Server) -> Iterator[Server]:
    """Have it answer while the block runs."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=[POLL_S], daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
