"""Answers other nodes: pages of what is cached here, and control messages.

A connection is a task of the event loop, which waits for requests without costing more than itself; the bytes of pages are
sent by threads. There are limits to connections, requests in hand, their bytes and threads; what exceeds them is
answered with 503. A client that is slow to say something is cut off, one that says garbage gets 400 and no further request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import trio

from luxfuse.core.members import Address
from luxfuse.errors import LuxError, PeerRefused, Refusal
from luxfuse.peers.provider import Provided, Provider
from luxfuse.peers.requests import FILE_CHUNK_BYTES, HEAD_S, Request
from luxfuse.peers.signing import Keys, Signer, Unproven
from luxfuse.peers.streams import Stream, peer_name, set_up
from luxfuse.peers.wire import (
    HEAD_MAX_BYTES,
    LENGTH,
    META,
    META_MAX_BYTES,
    PAGES_MAX_BYTES,
    PAGES_PATH,
    TEXT_MAX,
    Headers,
    Malformed,
    Outcome,
    PageAnswer,
    PagesRequest,
    bounded,
    decode_request,
    encoded,
)

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 4096
MOST_REQUESTS = 256
"""In hand at once."""
MOST_BYTES = 4 * PAGES_MAX_BYTES
"""That requests in hand ask for, or have as bodies."""
MOST_THREADS = 16
IDLE_S = 60.0
"""A connection is kept for so long without a request. A client's must be shorter."""
HANDSHAKE_S = HEAD_S
HANDLER_S = 30.0
PROVIDE_MAX_S = 60.0
RETRY_AFTER_S = 1

Handler = Callable[[str, bytes], Awaitable[bytes]]
FileHandler = Callable[[str, bytes, AsyncIterator[bytes]], Awaitable[bytes]]


@dataclass(slots=True)
class ServerCounters:
    """All rise from the start on; ``sent_bytes`` are those of pages."""

    connections: int = 0
    requests: int = 0
    pages_sent: int = 0
    sent_bytes: int = 0
    busy: int = 0
    malformed: int = 0
    unproven: int = 0
    broken_off: int = 0


def listen(address: Address) -> socket.socket:
    """Return a socket that accepts connections. Raises OSError."""
    host, port = address
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(1024)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Server:
    """Serves one listening socket, see `listen`. Requests are about paths, which `handle` gives a meaning."""

    def __init__(
        self,
        listener: socket.socket,
        keys: Keys,
        *,
        tls: bool,
        provider: Provider | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without ``tls``, each request and answer is proven by itself. ``provider``: of pages. ``clock``: wall-clock s."""
        self._listener = listener
        self._keys = keys
        self._signer = None if tls else Signer(keys, clock)
        self._threads = trio.CapacityLimiter(MOST_THREADS)
        self._handlers: dict[str, Handler] = {}
        self._file_handlers: dict[str, FileHandler] = {}
        self._streams: set[socket.socket] = set()
        self._in_hand = 0
        self._bytes_in_hand = 0
        self._provider = provider
        self.counters = ServerCounters()

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def handle(self, path: str, handler: Handler) -> None:
        """Let ``handler`` answer requests for ``path``: it gets the name of the peer and the body.

        It may raise `PeerRefused`, another `LuxError`, whose text goes to the peer, or ValueError for garbage.
        """
        self._handlers[path] = handler

    def handle_file(self, path: str, handler: FileHandler) -> None:
        """The same for requests whose body is a file: the handler gets the peer, what comes with it, and the content.

        The content raises `PeerFailed` if it is not all that was sent, and can only be believed at its end.
        """
        self._file_handlers[path] = handler

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                try:
                    while True:
                        await self._accept(nursery)
                finally:
                    for sock in self._streams:  # threads that send would keep us for long
                        _shut_down(sock)
        finally:
            self._listener.close()

    async def _accept(self, nursery: trio.Nursery) -> None:
        await trio.lowlevel.wait_readable(self._listener)
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as exc:
            if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            log.warning("cannot accept connections of other nodes: %s", exc.strerror)
            await trio.sleep(1.0)
            return
        if len(self._streams) >= MOST_CONNECTIONS:
            self.counters.busy += 1
            sock.close()
            return
        self.counters.connections += 1
        sock.setblocking(False)
        nursery.start_soon(self._converse, sock)

    async def _converse(self, sock: socket.socket) -> None:
        """Answer the requests of one connection."""
        self._streams.add(sock)
        try:
            set_up(sock)
            if self._signer is None:
                secured = self._keys.server_context().wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )  # it takes the descriptor over
                self._streams.discard(sock)
                sock = secured
                self._streams.add(sock)
                with trio.fail_after(HANDSHAKE_S):
                    stream = Stream(secured, await self._shake_hands(secured))
            else:
                stream = Stream(sock, "")
            while await self._serve_one(stream):
                pass
        except (OSError, EOFError, trio.TooSlowError) as exc:
            self.counters.broken_off += 1
            log.debug("a connection of another node ended: %r", exc)
        finally:
            self._streams.discard(sock)
            trio.lowlevel.notify_closing(sock)
            sock.close()

    async def _shake_hands(self, sock: ssl.SSLSocket) -> str:
        """Return the name of the other side. Computing is done in threads, waiting here."""
        while True:
            try:
                await trio.to_thread.run_sync(sock.do_handshake, limiter=self._threads)
                return peer_name(sock)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(sock)

    async def _serve_one(self, stream: Stream) -> bool:
        """Answer one request; returns whether the connection can be used for another one."""
        with trio.move_on_after(IDLE_S) as waiting:
            first = await stream.receive(HEAD_MAX_BYTES)
        if waiting.cancelled_caught or not first:
            return False
        request = Request(stream, self._signer)
        try:
            await request.read_head(first)
            await self._dispatch(request)
        except Malformed as exc:
            self.counters.malformed += 1
            await request.answer(400, str(exc).encode()[:TEXT_MAX], last=True)
            return False
        except Unproven as exc:
            self.counters.unproven += 1
            log.debug("a request without a valid proof: %s", exc)
            await request.answer(401, b"the request is not proven", last=True)
            return False
        except PeerRefused as exc:
            await request.refuse(exc)
        except LuxError as exc:
            await request.refuse(PeerRefused(Refusal.FAILED, str(exc)))
        except (OSError, EOFError, trio.TooSlowError):
            raise
        except Exception:
            log.exception("the request of node %s for %s failed", request.peer, request.head.target)
            await request.refuse(PeerRefused(Refusal.FAILED, "unexpected error; see the log of the node"))
        return request.reusable

    async def _dispatch(self, request: Request) -> None:
        path = request.head.target
        if path == PAGES_PATH and self._provider is not None:
            await self._pages(request, self._provider)
        elif path in self._handlers:
            await self._message(request, self._handlers[path])
        elif path in self._file_handlers:
            await self._file(request, self._file_handlers[path])
        else:
            await request.read_covered()
            raise PeerRefused(Refusal.NOT_HERE, "there is no such request; is the node of another version?")

    @contextlib.contextmanager
    def _admitted(self, size_bytes: int) -> Iterator[None]:
        """Count a request as in hand during the block. Raises `PeerRefused` if there are too many."""
        if self._in_hand >= MOST_REQUESTS or self._bytes_in_hand + size_bytes > MOST_BYTES:
            self.counters.busy += 1
            raise PeerRefused(Refusal.BUSY, "too many requests", retry_after_s=RETRY_AFTER_S)
        self.counters.requests += 1
        self._in_hand += 1
        self._bytes_in_hand += size_bytes
        try:
            yield
        finally:
            self._in_hand -= 1
            self._bytes_in_hand -= size_bytes

    async def _message(self, request: Request, handler: Handler) -> None:
        with self._admitted(request.length):
            body = bytes(await request.read_body())
            answer = await _in_time(handler(request.peer, body))
            await request.answer(200, answer)

    async def _file(self, request: Request, handler: FileHandler) -> None:
        with self._admitted(FILE_CHUNK_BYTES):
            header, content = await request.read_file(self._threads)
            async with aclosing(content):
                answer = await _as_refusals(handler(request.peer, header, content))
            await request.answer(200, answer)

    async def _pages(self, request: Request, provider: Provider) -> None:
        """Answer a request for pages: all wants at once are provided, and what there is is sent by a thread."""
        if request.length > META_MAX_BYTES:
            raise Malformed(f"the body has more than {META_MAX_BYTES} bytes")
        wanted, lengths = decode_request(await request.read_body())
        with self._admitted(sum(lengths)):
            found: list[Provided | PeerRefused] = [PeerRefused(Refusal.BUSY, "not in time") for _ in wanted.wants]
            try:
                await _provide_all(provider, wanted, lengths, found)
                parts = [each for each in found if isinstance(each, Provided)]
                meta = encoded([_answer_of(each) for each in found])
                total = len(meta) + sum(part.length for part in parts)
                headers: Headers = [(LENGTH, b"%d" % total), (META, b"%d" % len(meta))]
                start = request.head_of_answer(200, headers, meta) + meta
                await trio.to_thread.run_sync(request.stream.send_parts, start, parts, limiter=self._threads)
                request.answered = True
                self.counters.pages_sent += sum(len(part.checksums) for part in parts)
                self.counters.sent_bytes += total - len(meta)
            finally:
                for each in found:
                    if isinstance(each, Provided):
                        each.release()


async def _provide_all(
    provider: Provider, wanted: PagesRequest, lengths: Sequence[int], found: list[Provided | PeerRefused]
) -> None:
    """Put the outcome of each want into ``found``; that of one that is not there in time stays as it is."""

    async def provide(number: int) -> None:
        want = wanted.wants[number]
        try:
            provided = await provider.provide(want, fetch=wanted.fetch)
        except PeerRefused as exc:
            found[number] = exc
        except LuxError as exc:
            found[number] = PeerRefused(Refusal.FAILED, str(exc))
        except Exception:
            log.exception("pages for another node could not be provided")
            found[number] = PeerRefused(Refusal.FAILED, "unexpected error; see the log of the node")
        else:
            found[number] = provided
            if provided.length != lengths[number] or len(provided.checksums) != want.count:
                provided.release()
                log.error("%d bytes were provided where %d are wanted", provided.length, lengths[number])
                found[number] = PeerRefused(Refusal.FAILED, "unexpected error; see the log of the node")

    with trio.move_on_after(min(max(0.0, wanted.timeout_s), PROVIDE_MAX_S)):
        if len(wanted.wants) == 1:
            await provide(0)
            return
        async with trio.open_nursery() as nursery:
            for number in range(len(wanted.wants)):
                nursery.start_soon(provide, number)


def _answer_of(found: Provided | PeerRefused) -> PageAnswer:
    if isinstance(found, Provided):
        return PageAnswer(Outcome.OK, found.checksums, described=bounded(found.described))
    return PageAnswer(Outcome(found.reason), (), str(found)[:TEXT_MAX])


async def _in_time(answering: Awaitable[bytes]) -> bytes:
    """Wait for a handler of a control message. Raises `PeerRefused`, `LuxError`, `Malformed`."""
    with trio.move_on_after(HANDLER_S):
        return await _as_refusals(answering)
    raise PeerRefused(Refusal.BUSY, f"not done within {HANDLER_S:g} s", retry_after_s=RETRY_AFTER_S)


async def _as_refusals(answering: Awaitable[bytes]) -> bytes:
    try:
        return await answering
    except ValueError as exc:
        raise Malformed(str(exc)) from None


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of SSLSocket would let a thread go on without TLS
