"""A server of objects that says by an object's key how oddly it is answered, down to the bytes of the head.

Key ``KIND-NUMBER-SIZE``: ``SIZE`` bytes that count up from ``NUMBER``, in the version ``"vNUMBER"``; of a range those that
it has. The query of a listing may end like that, too; any address may end with a query ``sig=``.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType

DATE = "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT"
MODIFIED_S = 1_704_067_200
_COUNTING = bytes(range(256)) * (1 + (3 << 20) // 256)


def body_of(number: int, size: int) -> bytes:
    """The content of an object."""
    return _COUNTING[number % 256 : number % 256 + size]


def answer_to(kind: str, number: int, total: int, *, head: bool = False, asked: range | None = None) -> tuple[bytes, bool]:
    """The bytes of an answer, and whether the connection is closed after it; ``asked``: the range."""
    start, size = (0, total) if asked is None else (asked.start, len(asked))
    body, tag = body_of(number + start, size), f'ETag: "v{number}"'
    last = start + size - 1
    span, length = f"Content-Range: bytes {start}-{last}/{total}", f"Content-Length: {size}"
    part = "206 Partial Content"
    good = [part, tag, length, span, DATE]
    error = b"<Error><Code>Odd</Code></Error>"
    told = f"Content-Length: {len(error)}"
    answers: dict[str, tuple[list[str], bytes | memoryview]] = {
        "good": (good, body),
        "whole": (["200 OK", tag.upper().replace("V", "v"), length, DATE], body),
        "meta": ([*good, "x-amz-meta-Mode:33188", "X-Amz-Meta-Me:  you "], body),
        "interim": (["100 Continue", 'ETag: "none"', "", f"HTTP/1.1 {part}", *good[1:]], body),
        "gzipped": ([*good, "Content-Encoding: gzip"], body),
        "short": (good, memoryview(body)[: size // 2]),
        "cut": (good, memoryview(body)[: size // 2]),
        "no-length": (["200 OK", tag, DATE], body),
        "giant": ([*good, "x-amz-meta-a: " + "a" * 400_000], body),
        "less": ([part, tag, f"Content-Length: {size - 1}", span, DATE], memoryview(body)[1:]),
        "chunked": (["200 OK", tag, "Transfer-Encoding: chunked", DATE], body),
        "noetag": ([part, length, span, DATE], body),
        "weak": ([part, tag.replace('"v', 'W/"v'), length, span, DATE], body),
        "other": ([part, 'ETag: "v"', length, span, DATE], body),
        "heads": ([*good, *(f"x-amz-meta-{n}: {'a' * 1000}" for n in range(20))], body),
        "moved": (["301 Moved Permanently", "Location: http://127.0.0.1:1/bucket/good-1-1", told], error),
        "other-region": (["307 Temporary Redirect", "Location: http://127.0.0.1:1/", told], error),
        "slow": (["503 Slow Down", told], error),
        "missing": (["404 Not Found", f"Content-Length: {1 << 20}"], bytes(1 << 20)),
        "part": ([part, tag, length, f"Content-Range: bytes {start}-{last}/{total + 1}", DATE], body),
        "shifted": ([part, tag, length, f"Content-Range: bytes {start + 1}-{last + 1}/{total + 1}", DATE], body),
        "two-lengths": ([*good, f"Content-Length: {size + 1}"], body),
        "no-date": ([part, tag, length, span], body),
        "empty": (["200 OK", tag, "Content-Length: 0", DATE], b""),
        "foreign": ([*good, "x-amz-meta-name: größe"], body),
    }  # fmt: skip
    if kind in ("silent", "garbage"):
        return (b"" if kind == "silent" else b"\x00\xff\x01 no HTTP at all\r\n\r\n" + body[:100]), True
    lines, content = answers[kind]
    if head:
        lines = [line.replace(part, "200 OK") for line in lines if line != span]
        return ("HTTP/1.1 " + "\r\n".join([*lines, "", ""])).encode(), kind == "giant"
    if kind == "chunked":
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    answer = b"HTTP/1.1 %b\r\n\r\n%b" % ("\r\n".join(lines).encode(), content)
    return answer, kind in ("short", "cut", "no-length", "giant", "two-lengths", "missing")


class OddGets:
    """Use as a context manager; ``host`` is HOST:PORT. ``heads`` are those of the requests that came."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> OddGets:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                connection.close()

    def interject(self, data: bytes) -> None:
        """Say something on all connections, unasked; more than fits into those that the client does not read stays away."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.send(data, socket.MSG_DONTWAIT)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while self._one(connection):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _one(self, connection: socket.socket) -> bool:
        """Answer one request; returns whether the connection stays."""
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(65536)
            if not part:
                return False
            head += part
        self.heads.append(head.decode())
        found = re.match(r"(GET|HEAD) \S*(?:[/=]|%2F)([a-z-]+)-(\d+)-(\d+)/*(?:[?&]sig=\S*)? ", head.decode())
        assert found is not None, head
        span = re.search(r"\r\nRange: bytes=(\d+)-(\d+)\r\n", head.decode())
        asked = range(int(span[1]), int(span[2]) + 1) if span is not None else None
        answer, closes = answer_to(found[2], int(found[3]), int(found[4]), head=found[1] == "HEAD", asked=asked)
        connection.sendall(answer)
        if found[2] == "cut":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not closes
