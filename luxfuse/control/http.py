"""HTTP/1.1 and 1.0 on accepted connections, by h11. It knows nothing of orders.

A connection is a task of the event loop. Connections, heads and bodies have bounds, and a client has a deadline for each
thing that it has to do. An error is {"error": "one line"}.
"""

from __future__ import annotations

import contextlib
import errno
import http
import json
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import unquote

import h11
import trio

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 256
"""Further ones wait in the kernel until one ends."""
HEAD_MAX_BYTES = 16 << 10
IDLE_S = 60.0
"""A connection is kept for so long without a request."""
HEAD_S = 10.0
"""For a head, from its first byte on."""
BODY_S = 30.0
"""For a body; one that is too large is received, and dropped, for so long."""
TAKE_S = 300.0
"""For the client to take a part of an answer; a command that was stopped by Ctrl-Z may go on within that time."""
LINGER_S = 1.0
GRACE_S = 1.0
"""For requests that are being answered when the server is cancelled."""
_CHUNK_BYTES = 64 << 10
_AHEAD_MAX_BYTES = 2 * _CHUNK_BYTES
"""Of requests that come before the last one is answered."""
_GONE = (trio.BrokenResourceError, trio.TooSlowError)


@dataclass(frozen=True, slots=True)
class Request:
    """``path``: without the query, decoded. ``headers``: by names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Callable[[int], Awaitable[bytes]]
    """Receives the body, once: of so many bytes at most. Raises `TooLarge`, `NotReceived`."""


@dataclass(frozen=True, slots=True)
class Response:
    """``content``: all of it; or its parts, asked for one by one until the client hangs up."""

    content: bytes | AsyncGenerator[bytes, None]
    media_type: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


class NotReceived(Exception):
    """The request did not arrive, or cannot be understood. The text is one line for the client, ``status`` that of HTTP."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class TooLarge(NotReceived):
    """The body has more bytes than it may have."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"the body of the request has more than {most_bytes} bytes", 413)


def json_response(content: object, status: int = 200) -> Response:
    """Return an object as JSON. Text that is no UTF-8 is escaped, as `json` does it."""
    return Response(json.dumps(content).encode(), "application/json", status)


def error(status: int, text: str) -> Response:
    """Return an error with one line of text."""
    return json_response({"error": " ".join(text.split())}, status)


async def serve(
    listener: socket.socket,
    handler: Handler,
    *,
    most_connections: int | None = None,
    take_s: float | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests on a listening socket, which is closed at the end, until cancelled. Raises OSError.

    ``most_connections``, ``take_s``: instead of `MOST_CONNECTIONS` and `TAKE_S`.
    A request that is being answered then gets `GRACE_S`. An error of ``handler`` is logged and answered with 500, but for
    `NotReceived`.
    """
    listener.setblocking(False)
    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    server = _Server(handler, most_connections or MOST_CONNECTIONS, take_s or TAKE_S)
    async with accepting, trio.open_nursery() as nursery:
        try:
            task_status.started()
            while True:
                await server.free.acquire()
                nursery.start_soon(server.converse, await _accept(accepting))
        finally:
            accepting.socket.close()
            server.end()


async def _accept(accepting: trio.SocketListener) -> trio.SocketStream:
    while True:
        try:
            return await accepting.accept()
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            log.warning("cannot accept connections: %s", exc.strerror)
            await trio.sleep(1.0)


class _Server:
    def __init__(self, handler: Handler, most_connections: int, take_s: float) -> None:
        self._handler = handler
        self._take_s = take_s
        self._answering: set[trio.CancelScope] = set()
        self.free = trio.Semaphore(most_connections)

    def end(self) -> None:
        for scope in self._answering:
            scope.deadline = trio.current_time() + GRACE_S

    async def converse(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection."""
        try:
            async with stream:
                connection = _Connection(stream, self._take_s)
                while await self._exchange(connection):
                    pass
        except _GONE as exc:
            log.debug("a connection ended: %r", exc)
        except Exception:
            log.exception("a connection failed")
        finally:
            self.free.release()

    async def _exchange(self, connection: _Connection) -> bool:
        """Answer one request; returns whether another one may follow."""
        try:
            request = await connection.request()
        except NotReceived as exc:
            return await connection.answer(error(exc.status, str(exc)), last=True)
        if request is None:
            return False
        with trio.CancelScope(shield=True) as scope:
            self._answering.add(scope)
            try:
                return await connection.answer(await self._response(request))
            finally:
                self._answering.discard(scope)
        return False

    async def _response(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except NotReceived as exc:
            return error(exc.status, str(exc))
        except Exception:
            log.exception("request %s failed", request.path)
            return error(500, "unexpected error in the daemon; see its log")


class _Connection:
    def __init__(self, stream: trio.SocketStream, take_s: float) -> None:
        self._stream = stream
        self._take_s = take_s
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        self._method = ""
        self._declared_bytes = 0
        self._late = False

    async def request(self) -> Request | None:
        """Return the next request, None when there is none. Raises `NotReceived`: the answer to that is the last."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._method = ""
        if not self._h11.trailing_data[0]:
            with trio.move_on_after(IDLE_S) as waiting:
                await self._receive()
            if waiting.cancelled_caught:
                return None
        with self._in_time(HEAD_S, "head"):
            event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        self._method = event.method.decode("latin-1")
        if event.http_version not in (b"1.0", b"1.1"):
            raise NotReceived("HTTP/1.1 is spoken here", 505)
        if self._method == "CONNECT":
            raise NotReceived("this is no proxy", 405)
        if _head_bytes(event) > HEAD_MAX_BYTES:
            raise NotReceived(f"the head of the request has more than {HEAD_MAX_BYTES} bytes", 431)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        self._declared_bytes = int(headers.get("content-length", 0))
        path, _, query = event.target.decode("latin-1").partition("?")
        return Request(self._method, unquote(path), query, headers, self._body)

    async def _body(self, most_bytes: int) -> bytes:
        if self._h11.they_are_waiting_for_100_continue:
            if self._declared_bytes > most_bytes:
                raise TooLarge(most_bytes)
            try:
                await self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            except _GONE:
                raise NotReceived("the client hung up") from None
        raw = bytearray()
        size = 0
        with self._in_time(BODY_S, "body"):
            while isinstance(event := await self._event(), h11.Data):
                size += len(event.data)
                if size <= most_bytes:  # else it is received all the same: a client that still sends hears no answer
                    raw += event.data
        if size > most_bytes:
            raise TooLarge(most_bytes)
        return bytes(raw)

    async def _drop_body(self) -> None:
        """Receive a body that nobody asked for, so that the client hears the answer; unless it waits, or is too slow."""
        if not self._late and not self._h11.they_are_waiting_for_100_continue:
            with contextlib.suppress(NotReceived):
                await self._body(0)

    async def answer(self, response: Response, *, last: bool = False) -> bool:
        """Send an answer, the ``last`` on this connection or not; returns whether another request may follow."""
        if self._h11.their_state is h11.SEND_BODY and not last:
            await self._drop_body()
        last = last or self._h11.their_state in (h11.SEND_BODY, h11.ERROR)
        headers = [("content-type", response.media_type), ("date", formatdate(usegmt=True)), *response.headers]
        if last:
            headers.append(("connection", "close"))
        if isinstance(response.content, bytes):
            headers.append(("content-length", str(len(response.content))))
            await self._send(_head(response.status, headers), *self._data(response.content), h11.EndOfMessage())
        else:
            async with aclosing(response.content) as parts:
                await self._send(_head(response.status, headers))
                if self._method != "HEAD" and not await self._send_parts(parts):
                    return False
                await self._send(h11.EndOfMessage())
        if last:
            await self._linger()
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    def _data(self, content: bytes) -> list[h11.Data]:
        return [] if self._method == "HEAD" else [h11.Data(data=content)]

    async def _send_parts(self, parts: AsyncGenerator[bytes, None]) -> bool:
        """Return whether all of them were sent; the client may hang up."""
        sent = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            async for part in parts:
                try:
                    await self._send(h11.Data(data=part))
                except _GONE:
                    break
            else:
                sent = True
            nursery.cancel_scope.cancel()
        return sent

    async def _watch(self, sending: trio.CancelScope) -> None:
        """Cancel ``sending`` when the client hangs up, or goes on asking."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some(_CHUNK_BYTES):
                self._h11.receive_data(data)
                if len(self._h11.trailing_data[0]) > _AHEAD_MAX_BYTES:
                    break
        sending.cancel()

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._h11.send(event) or b"" for event in events)
        with trio.fail_after(self._take_s):
            await self._stream.send_all(data)

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(_CHUNK_BYTES)
        except trio.BrokenResourceError:
            data = b""
        self._h11.receive_data(data)

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                await self._receive()
        except h11.RemoteProtocolError as exc:
            raise NotReceived(f"the request is garbled: {exc}", exc.error_status_hint) from None
        return event

    @contextlib.contextmanager
    def _in_time(self, seconds: float, part: str) -> Iterator[None]:
        with trio.move_on_after(seconds) as receiving:
            yield
        if receiving.cancelled_caught:
            self._late = True
            raise NotReceived(f"the {part} of the request did not arrive within {seconds:g} s", 408)

    async def _linger(self) -> None:
        """Receive for a moment: to close at once would reset the connection, and the answer might be lost."""
        await self._stream.send_eof()
        with trio.move_on_after(LINGER_S):
            while await self._stream.receive_some(_CHUNK_BYTES):
                pass


def _head_bytes(request: h11.Request) -> int:
    """Return about how long a head is: one that comes at once may be longer than h11 would wait for."""
    return len(request.target) + sum(len(name) + len(value) + len(": \r\n") for name, value in request.headers)


def _head(status: int, headers: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=headers, reason=http.HTTPStatus(status).phrase.encode())
