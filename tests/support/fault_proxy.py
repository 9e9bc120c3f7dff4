"""An HTTP proxy in front of any server that misbehaves on demand, from a seed.

`Faults` says what happens to every request, with probabilities; `FaultProxy.next` scripts the very next requests.
One thread per client connection, one upstream connection for each, kept alive on both sides. Decisions are drawn in
the order in which requests arrive, so one client at a time with one seed sees one sequence of faults.
"""

from __future__ import annotations

import dataclasses
import random
import re
import socket
import struct
import threading
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, ClassVar, Literal, Self

from tests.support.ports import claim_port

Fault = Literal["error", "reset", "stall", "truncate"]
Headers = list[tuple[str, str]]

BLOCK_BYTES = 1 << 16
BACKLOG = 128
BODILESS = (204, 304)
_KEY = re.compile("Credential=([^/]+)/")
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 507: "XMinioStorageFull"}
REASONS = {
    400: "Bad Request", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error",
    502: "Bad Gateway", 503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Faults:
    """What may happen to a request. Probabilities are per request; the first of error, reset, stall, truncate that
    strikes is the one that happens. The last three send half of the body first: a reset then sends RST, a stall sends
    nothing more but keeps the connection, a truncation closes it although Content-Length promised more."""

    latency_s: float = 0.0
    hold: bool = False  # nothing happens until `release` or `clear`; then the request is served
    byte_s: float = 0.0  # each byte of a body takes so long, until `release` or `clear`; the rest then comes at once
    error_probability: float = 0.0
    reset_probability: float = 0.0
    stall_probability: float = 0.0
    truncate_probability: float = 0.0
    error_status: int = 503
    error_code: str | None = None  # the S3 error code, if not the usual one of the status
    retry_after_s: int | None = None
    wrong_etag: str | None = None  # replaces the ETag of every response that has one
    drop_if_match: bool = False  # the server then ignores If-Match


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as it arrived; ``path`` is without the query, ``key`` is the one that S3 requests are signed with."""

    method: str
    path: str
    query: str
    range: str | None
    agent: str | None = None
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Fate:
    """What happens to one request; ``released`` ends a stall, even if it is set before the stall begins."""

    faults: Faults
    released: threading.Event
    fault: Fault | None = None
    status: int = 0


class _Closed(Exception):
    pass


class _Reset(Exception):
    pass


class FaultProxy:
    """Use as a context manager; ``endpoint`` is what clients talk to."""

    troubled: ClassVar[set[str]] = set()
    """The endpoints that have ever been told to misbehave: those who use them may find them to be away."""

    def __init__(self, upstream: str, *, seed: int = 0, faults: Faults | None = None, host: str = "127.0.0.1") -> None:
        self.host = host
        parts = urllib.parse.urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._random = random.Random(seed)
        self._faults = faults or Faults()
        self._only: Callable[[Request], bool] | None = None
        self._scripted: deque[tuple[Fault, int]] = deque()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._clients: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._listener: socket.socket | None = None
        self._log: list[Request] = []
        self._delayed = self.most_delayed = 0
        self._injected: Counter[str] = Counter()
        self.port = 0
        self._claim: socket.socket | None = None
        self.closing = threading.Event()
        """Set when nobody is to wait for it any more."""

    # life -----------------------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self.port, self._claim = claim_port()
        self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(BACKLOG)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def _start(self, target: Callable[[socket.socket], None], argument: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(argument,), daemon=True, name="fault-proxy")
        self._threads.add(thread)
        thread.start()

    def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            except OSError:
                pass
            listener.close()
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            _arm_reset(client)
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.release()
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(5)
        self._threads.clear()

    def close(self) -> None:
        self.closing.set()
        self._refuse()
        if self._claim is not None:
            self._claim.close()

    # programming ----------------------------------------------------------------------------------------------------

    def set(self, **changes: object) -> None:
        """Changes fields of `Faults`, from the next request on."""
        self.troubled.add(self.endpoint)
        with self._lock:
            self._faults = dataclasses.replace(self._faults, **changes)  # type: ignore[arg-type]

    def clear(self) -> None:
        """No faults any more; stalled connections are closed."""
        with self._lock:
            self._faults = Faults()
            self._only = None
            self._scripted.clear()
        self.release()

    def only(self, matches: Callable[[Request], bool] | None) -> None:
        """Restricts all faults to the requests for which ``matches`` is true (None: to no subset)."""
        with self._lock:
            self._only = matches

    def next(self, fault: Fault, count: int = 1, *, status: int = 503) -> None:
        """The next ``count`` requests (that `only` lets through) suffer ``fault``, after those scripted before."""
        with self._lock:
            self._scripted.extend([(fault, status)] * count)

    def release(self) -> None:
        """Closes the connections that are stalled now, and serves what is held."""
        with self._lock:
            released, self._released = self._released, threading.Event()
        released.set()

    def outage(self, on: bool) -> None:
        """On: open connections are reset and new ones refused. Off: back at the same address."""
        if on:
            self.troubled.add(self.endpoint)
            self._refuse()
        elif self._listener is None:
            self._listen()

    def recover(self) -> None:
        """No faults and no outage any more."""
        self.clear()
        self.outage(False)

    # observation ----------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order of arrival."""
        with self._lock:
            return list(self._log)

    def counts(self) -> Counter[tuple[str, str]]:
        """Requests by (method, path)."""
        return Counter((r.method, r.path) for r in self.requests)

    def ranges(self) -> Counter[tuple[str, str | None]]:
        """GETs by (path, Range header)."""
        return Counter((r.path, r.range) for r in self.requests if r.method == "GET")

    def injected(self) -> Counter[str]:
        """Faults that struck, by name."""
        with self._lock:
            return Counter(self._injected)

    def count(self, fault: str) -> None:
        """One more that struck, of those that a subclass adds."""
        with self._lock:
            self._injected[fault] += 1

    def reset_counts(self) -> None:
        with self._lock:
            self._log.clear()
            self._injected.clear()

    # serving --------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self._listener is not listener:
                client.close()
                return
            try:
                client = self.secured(client)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._clients.add(client)
            self._start(self._serve, client)

    def secured(self, client: socket.socket) -> socket.socket:
        """What is spoken through with a client that has connected, without waiting for it. OSError cuts it off."""
        return client

    def _serve(self, client: socket.socket) -> None:
        exchange = _Exchange(self, client)
        try:
            while exchange.one():
                pass
        except _Reset:
            _arm_reset(client)
        except (_Closed, OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._clients.discard(client)
                self._threads.discard(threading.current_thread())
            exchange.close()

    def decide(self, request: Request) -> Fate:
        """Logs the request and draws its fate."""
        with self._lock:
            self._log.append(request)
            faults = self._faults
            if self._only is not None and not self._only(request):
                return Fate(Faults(), self._released)
            if self._scripted:
                fault, status = self._scripted.popleft()
                self._injected[fault] += 1
                return Fate(faults, self._released, fault, status)
            chances: tuple[tuple[Fault, float], ...] = (
                ("error", faults.error_probability), ("reset", faults.reset_probability),
                ("stall", faults.stall_probability), ("truncate", faults.truncate_probability),
            )  # fmt: skip
            for fault, chance in chances:
                if chance > 0 and self._random.random() < chance:
                    self._injected[fault] += 1
                    return Fate(faults, self._released, fault, faults.error_status)
            return Fate(faults, self._released)

    def delay(self, latency_s: float) -> bool:
        """Waits, and counts so: ``most_delayed`` is the most requests that did so at once. Returns whether all is over."""
        with self._lock:
            self._delayed += 1
            self.most_delayed = max(self.most_delayed, self._delayed)
        try:
            return self.closing.wait(latency_s)
        finally:
            with self._lock:
                self._delayed -= 1

    def connect(self) -> socket.socket:
        upstream = socket.create_connection(self._upstream, timeout=120)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream


class _Exchange:
    """The requests of one client connection, one after another."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy = proxy
        self._client = client
        self._from_client = client.makefile("rb")
        self._upstream: socket.socket | None = None
        self._from_upstream: BinaryIO | None = None

    def close(self) -> None:
        for thing in (self._from_client, self._client):
            thing.close()
        self._drop_upstream()

    def _drop_upstream(self) -> None:
        for thing in (self._from_upstream, self._upstream):
            if thing is not None:
                thing.close()
        self._upstream = self._from_upstream = None

    def one(self) -> bool:
        line, headers = _read_head(self._from_client)
        method, target, _version = line.split(" ", 2)
        path, _, query = target.partition("?")
        signed = _KEY.search(_get(headers, "authorization") or "")
        request = Request(
            method, urllib.parse.unquote(path), query, _get(headers, "range"), _get(headers, "user-agent"),
            signed[1] if signed else None,
        )  # fmt: skip
        fate = self._proxy.decide(request)
        faults = fate.faults
        if faults.latency_s > 0 and self._proxy.delay(faults.latency_s):
            raise _Closed
        if faults.hold:
            fate.released.wait()
        if (_get(headers, "expect") or "").lower() == "100-continue":
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            headers = _without(headers, "expect")
        body = _read_body(self._from_client, headers)
        keep = (_get(headers, "connection") or "").lower() != "close"
        if fate.fault == "error":
            self._send_error(method, fate.status, faults)
            return keep
        if faults.drop_if_match:
            headers = _without(headers, "if-match")
        if body:
            headers = [*_without(headers, "transfer-encoding", "content-length"), ("Content-Length", str(len(body)))]
        status_line, answer = self._ask(line, headers, body)
        if faults.wrong_etag is not None:
            answer = [(k, faults.wrong_etag if k.lower() == "etag" else v) for k, v in answer]
        self._client.sendall(_head(status_line, answer))
        self._relay_body(method, int(status_line.split(" ", 2)[1]), answer, fate)
        if (_get(answer, "connection") or "").lower() == "close":
            return False
        return keep

    def _send_error(self, method: str, status: int, faults: Faults) -> None:
        code = faults.error_code or CODES.get(status, "SlowDown")
        body = b"" if method == "HEAD" else (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
            "<Message>injected</Message></Error>"
        ).encode()  # fmt: skip
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        if faults.retry_after_s is not None:
            headers.append(("Retry-After", str(faults.retry_after_s)))
        self._client.sendall(_head(f"HTTP/1.1 {status} {REASONS.get(status, 'Injected')}", headers) + body)

    def _ask(self, line: str, headers: Headers, body: bytes) -> tuple[str, Headers]:
        """Sends the request on; once more on a new connection if the kept one turns out to be closed."""
        for kept in (self._upstream is not None, False):
            if self._upstream is None:
                self._upstream = self._proxy.connect()
                self._from_upstream = self._upstream.makefile("rb")
            assert self._from_upstream is not None
            try:
                self._upstream.sendall(_head(line, headers) + body)
                while True:
                    status_line, answer = _read_head(self._from_upstream)
                    if status_line.split(" ", 2)[1] != "100":
                        return status_line, answer
            except (_Closed, OSError):
                self._drop_upstream()
                if not kept:
                    raise
        raise AssertionError("unreachable")

    def _relay_body(self, method: str, status: int, headers: Headers, fate: Fate) -> None:
        assert self._from_upstream is not None
        size = _get(headers, "content-length")
        if method == "HEAD" or status in BODILESS:
            self._misbehave(fate)
            return
        if (_get(headers, "transfer-encoding") or "").lower() == "chunked":
            if fate.fault is not None:
                self._misbehave(fate)
            self._relay_chunks()
            return
        remaining = -1 if size is None else int(size)
        if fate.fault is not None:
            remaining = max(remaining, 0) // 2
        while remaining != 0:
            data = self._from_upstream.read1(BLOCK_BYTES if remaining < 0 else min(BLOCK_BYTES, remaining))  # type: ignore[attr-defined]
            if not data:
                raise _Closed
            self._send_slowly(data, fate)
            remaining -= len(data) if remaining > 0 else 0
        self._misbehave(fate)

    def _send_slowly(self, data: bytes, fate: Fate) -> None:
        sent = 0
        while fate.faults.byte_s > 0 and sent < len(data) and not fate.released.wait(fate.faults.byte_s):
            self._client.sendall(data[sent : sent + 1])
            sent += 1
        self._client.sendall(data[sent:])

    def _relay_chunks(self) -> None:
        assert self._from_upstream is not None
        while True:
            line = self._from_upstream.readline()
            data = self._from_upstream.read(int(line.split(b";")[0], 16) + 2)
            self._client.sendall(line + data)
            if data == b"\r\n":
                return

    def _misbehave(self, fate: Fate) -> None:
        if fate.fault == "stall":
            fate.released.wait()
            raise _Closed
        if fate.fault == "reset":
            raise _Reset
        if fate.fault == "truncate":
            raise _Closed


def _arm_reset(sock: socket.socket) -> None:
    """Makes close() send RST instead of FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass


def _read_head(stream: BinaryIO) -> tuple[str, Headers]:
    line = stream.readline()
    if not line:
        raise _Closed
    headers: Headers = []
    while (field := stream.readline()) not in (b"\r\n", b"\n"):
        if not field:
            raise _Closed
        name, _, value = field.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    return line.decode("latin-1").rstrip("\r\n"), headers


def _read_body(stream: BinaryIO, headers: Headers) -> bytes:
    if (_get(headers, "transfer-encoding") or "").lower() == "chunked":
        blocks = []
        while (size := int(stream.readline().split(b";")[0], 16)) > 0:
            blocks.append(stream.read(size + 2)[:-2])
        while stream.readline() not in (b"\r\n", b"\n", b""):
            pass
        return b"".join(blocks)
    return stream.read(int(_get(headers, "content-length") or 0))


def _head(line: str, headers: Headers) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"{line}\r\n{fields}\r\n".encode("latin-1")


def _get(headers: Headers, name: str) -> str | None:
    return next((v for k, v in headers if k.lower() == name), None)


def _without(headers: Headers, *names: str) -> Headers:
    return [(k, v) for k, v in headers if k.lower() not in names]
