"""One request to a node and its answer: blocking, for worker threads."""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Callable
from types import TracebackType

import h11

from luxfuse.core.members import Address
from luxfuse.errors import PeerFailed, PeerRefused, Refusal
from luxfuse.peers.links import Link, Pool, connect
from luxfuse.peers.signing import MAC, Keys, Signer, Unproven
from luxfuse.peers.streams import CHUNK_BYTES
from luxfuse.peers.wire import (
    HEAD_MAX_BYTES,
    LENGTH,
    META,
    META_MAX_BYTES,
    PAGES_MAX_BYTES,
    Exchange,
    Head,
    Headers,
    Malformed,
    raise_unless_ok,
)


class Caller:
    """The state that all calls of a node share."""

    def __init__(self, keys: Keys, *, tls: bool, clock: Callable[[], float]) -> None:
        self.keys = keys
        self.tls = tls
        self.signer = None if tls else Signer(keys, clock)
        self.pool = Pool()


class Call:
    """A context manager: an error in its block is raised as `PeerFailed`, and the connection is not used again."""

    def __init__(self, caller: Caller, address: Address, name: str | None, timeout_s: float) -> None:
        """``name``: the node that must answer; None: any node."""
        self._caller = caller
        self._address = address
        self._name = name
        self._give_up_at_s = time.monotonic() + timeout_s
        self._who = f"node {name or ''} at {address[0]}:{address[1]}".replace("  ", " ")
        self._link: Link | None = None
        self._nonce = b""
        self._head = Head("", 0, {}, b"")
        self._rest = memoryview(b"")
        self.left = 0
        """Bytes of the answer's body that were not received yet."""

    def __enter__(self) -> Call:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        link, self._link = self._link, None
        if link is not None:
            if self.left or self._head.status == 0 or self._head.headers.get(b"connection", b"").lower() == b"close":
                link.close()
            else:
                self._caller.pool.put(self._address, link)
        if isinstance(error, TimeoutError | BlockingIOError):
            raise PeerFailed(f"{self._who} does not answer in time") from None
        if isinstance(error, EOFError):
            raise PeerFailed(f"{self._who} broke off") from None
        if isinstance(error, ssl.SSLError):
            raise PeerFailed(f"{self._who}: TLS failed: {error.reason or error}") from None
        if isinstance(error, Malformed | Unproven):
            raise PeerFailed(f"{self._who} gave no proper answer: {error}") from None
        if isinstance(error, OSError):
            raise PeerFailed(f"{self._who}: {error.strerror or error}") from None

    def ask(self, path: str, headers: Headers, body: bytes, content: Callable[[Link, bytes], None] | None = None) -> Head:
        """Send a request and return the head of the answer. A kept connection that turns out closed is replaced once.

        ``content``: sends the rest of the body on the link; it gets the nonce of the request.
        """
        self._link = self._kept()
        if self._link is not None:
            try:
                return self._ask_once(self._link, path, list(headers), body, content)
            except TimeoutError:
                raise
            except (OSError, EOFError):
                if self._rest:
                    raise  # it had begun to answer
                self._link.close()
        self._link = self._new()
        return self._ask_once(self._link, path, list(headers), body, content)

    def _kept(self) -> Link | None:
        while (link := self._caller.pool.take(self._address)) is not None:
            if not self._caller.tls or self._name in (None, link.peer):
                return link
            link.close()
        return None

    def _new(self) -> Link:
        caller = self._caller
        link = connect(self._address, caller.keys, tls=caller.tls, timeout_s=self._give_up_at_s - time.monotonic())
        if caller.tls and self._name not in (None, link.peer):
            link.close()
            raise Malformed(f"it is node {link.peer}")
        return link

    def _ask_once(
        self, link: Link, path: str, headers: Headers, body: bytes, content: Callable[[Link, bytes], None] | None
    ) -> Head:
        link.until(self._give_up_at_s)
        exchange = Exchange(h11.CLIENT)
        if all(name != LENGTH for name, _ in headers):
            headers.append((LENGTH, b"%d" % len(body)))
        if self._caller.signer is not None:
            digest = hashlib.sha256(body).digest()
            self._nonce = self._caller.signer.request(path, self._name or "", headers, digest)
        head = exchange.request(path, self._address[0], headers)
        try:
            link.send(head + body)
            if content is not None:
                content(link, self._nonce)
        except (BrokenPipeError, ConnectionResetError) as exc:
            if content is None:
                raise
            return self._receive_head(link, exchange, exc)  # it may have said why it does not want the rest
        return self._receive_head(link, exchange, None)

    def _receive_head(self, link: Link, exchange: Exchange, broken: OSError | None) -> Head:
        while True:
            data = link.receive(HEAD_MAX_BYTES)
            if not data and not self._rest:
                raise broken or EOFError("closed before the answer")
            self._rest = memoryview(data)
            head = exchange.feed(data)
            if head is not None:
                break
        self._head = head
        self._rest = memoryview(head.rest)
        self.left = head.number(LENGTH, META_MAX_BYTES + PAGES_MAX_BYTES)
        if len(self._rest) > self.left:
            raise Malformed("there is more than the answer")
        return head

    def receive_into(self, view: memoryview) -> None:
        """Fill ``view`` with what comes next of the body."""
        assert self._link is not None
        assert len(view) <= self.left
        count = min(len(self._rest), len(view))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._link.receive_into(view[count:])
        self.left -= len(view)

    def first_part(self, length: int) -> bytearray:
        """Return the first bytes of the body, which the answer's proof covers. Raises what an answer but 200 means.

        Such a one, and the whole body of a control message, is covered whole: then ``length`` must be all.
        """
        if self._head.status != 200:
            length = min(self.left, META_MAX_BYTES)
        if length > self.left:
            raise Malformed("the answer is shorter than its parts")
        part = bytearray(length)
        self.receive_into(memoryview(part))
        if self._caller.signer is not None:
            self._check_unproven()
            name = self._caller.signer.check_answer(self._nonce, self._head, hashlib.sha256(part).digest())
            if self._name not in (None, name):
                raise Malformed(f"it is node {name}")
        raise_unless_ok(self._head, part, self._who)
        return part

    def _check_unproven(self) -> None:
        """Raise what an answer means that the node gave before it knew which node asked: that can be no more than no."""
        if self._head.status != 200 and MAC not in self._head.headers:
            if self._head.status == 503:
                raise PeerRefused(Refusal.BUSY)
            if self._head.status == 401:
                raise Unproven("it does not accept our proof: it has another key, or one of the clocks is off")
            raise Malformed(f"status {self._head.status}")

    def whole(self, most_bytes: int) -> bytes:
        """Return the body of a control message. Raises as `first_part` does."""
        if self.left > most_bytes:
            raise Malformed(f"the answer has {self.left} bytes")
        return bytes(self.first_part(self.left))

    def meta(self) -> bytearray:
        """Return the block before the bytes of pages. Raises as `first_part` does."""
        return self.first_part(self._head.number(META, META_MAX_BYTES))


def send_content(link: Link, fd: int, length: int, proof: Callable[[bytes], bytes] | None) -> None:
    """Send the first ``length`` bytes of a file and, if asked for, the proof of what they are. Raises OSError."""
    hasher = hashlib.sha256()
    view = memoryview(bytearray(min(CHUNK_BYTES, length)))
    offset = 0
    while offset < length:
        count = os.preadv(fd, [view[: min(len(view), length - offset)]], offset)
        if not count:
            raise EOFError("the file is shorter than it was")
        if proof is not None:
            hasher.update(view[:count])
        link.send(view[:count])
        offset += count
    if proof is not None:
        link.send(proof(hasher.digest()))
