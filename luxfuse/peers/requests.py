"""One request on an accepted connection: reading it, knowing the node that made it, and answering."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

import h11
import trio

from luxfuse.errors import PeerFailed, PeerRefused
from luxfuse.peers.signing import PROOF_BYTES, Signer, Unproven
from luxfuse.peers.streams import STALL_S, Stream
from luxfuse.peers.wire import (
    BODY_MAX_BYTES,
    HEAD_MAX_BYTES,
    LENGTH,
    META,
    META_MAX_BYTES,
    REASON,
    REFUSAL_STATUS,
    TEXT_MAX,
    Exchange,
    Head,
    Headers,
    Malformed,
)
from luxfuse.types import Buffer

HEAD_S = 5.0
"""For a head, from its first byte on."""
BODY_S = 30.0
"""For a body that is read at once."""
LINGER_BYTES = 1 << 20
INLINE_BYTES = 256 << 10
"""So much is hashed in the event loop at once."""
FILE_MAX_BYTES = 1 << 40
FILE_CHUNK_BYTES = 1 << 20


class Request:
    """Made with the first bytes of a request. `read_head` first."""

    def __init__(self, stream: Stream, signer: Signer | None) -> None:
        self.stream = stream
        self._signer = signer
        self._exchange = Exchange(h11.SERVER)
        self._nonce = b""
        self._unread = 0
        self.head = Head("", 0, {}, b"")
        self.peer = stream.peer
        self.answered = False

    async def read_head(self, data: bytes) -> Head:
        """Raises `Malformed`, OSError, TooSlowError."""
        with trio.fail_after(HEAD_S):
            while (head := self._exchange.feed(data)) is None:
                data = await self.stream.receive(HEAD_MAX_BYTES)
        self.head = head
        self._unread = head.number(LENGTH, FILE_MAX_BYTES)
        if len(head.rest) > self._unread:
            raise Malformed("there is more than one request at a time")
        return head

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.head.number(LENGTH, FILE_MAX_BYTES)

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request after this one."""
        return self.answered and not self._unread and self.head.headers.get(b"connection", b"").lower() != b"close"

    async def read_body(self) -> bytearray:
        """Return the body. Raises `Malformed`, `Unproven`, OSError, EOFError, TooSlowError."""
        if self.length > BODY_MAX_BYTES:
            raise Malformed(f"the body has more than {BODY_MAX_BYTES} bytes")
        with trio.fail_after(BODY_S):
            body = await self.stream.receive_exactly(self.head.rest, self.length)
        self._unread = 0
        await self._prove(body)
        return body

    async def read_covered(self) -> bytearray:
        """Return what the proof of a request covers: its body, or the part before a file. Raises as `read_body` does."""
        if META not in self.head.headers:
            return await self.read_body()
        length = self.head.number(META, min(META_MAX_BYTES, self._unread))
        with trio.fail_after(BODY_S):
            meta = await self.stream.receive_exactly(self.head.rest[:length], length)
        await self._prove(meta)
        return meta

    async def _prove(self, covered: Buffer) -> None:
        if self._signer is None:
            return
        if len(covered) > INLINE_BYTES:
            digest = await trio.to_thread.run_sync(_sha256, covered)
        else:
            digest = _sha256(covered)
        self.peer, self._nonce = self._signer.check_request(self.head, digest)

    async def read_file(self, limiter: trio.CapacityLimiter) -> tuple[bytes, AsyncGenerator[bytes, None]]:
        """Return what a file is sent with, and its content. Raises as `read_body` does.

        The iterator raises `PeerFailed` if the content breaks off, stalls, or is not what was sent: it can only be
        believed at its end.
        """
        meta_bytes = self.head.number(META, META_MAX_BYTES)
        proof_bytes = PROOF_BYTES if self._signer is not None else 0
        content_bytes = self._unread - meta_bytes - proof_bytes
        if content_bytes < 0:
            raise Malformed("the body is shorter than its parts")
        meta = await self.read_covered()
        return bytes(meta), self._content(self.head.rest[meta_bytes:], content_bytes, proof_bytes, limiter)

    async def _content(
        self, first: bytes, content_bytes: int, proof_bytes: int, limiter: trio.CapacityLimiter
    ) -> AsyncGenerator[bytes, None]:
        hasher = hashlib.sha256()

        def take(most: int) -> bytes:
            """Receive what is there without waiting; in a thread, for it may have to be decrypted and is hashed."""
            data = self.stream.receive_now(most)
            if proof_bytes:
                hasher.update(data)
            return data

        try:
            if proof_bytes:
                hasher.update(first[:content_bytes])
            left = content_bytes - len(first)
            if first[:content_bytes]:
                yield first[:content_bytes]
            while left > 0:
                with trio.fail_after(STALL_S):
                    await self.stream.wait_receivable()
                    data = await trio.to_thread.run_sync(take, min(left, FILE_CHUNK_BYTES), limiter=limiter)
                left -= len(data)
                if data:
                    yield data
            with trio.fail_after(STALL_S):
                proof = await self.stream.receive_exactly(first[content_bytes:], proof_bytes)
            self._unread = 0
            if self._signer is not None:
                self._signer.check_content(self._nonce, hasher.digest(), bytes(proof))
        except (OSError, EOFError, trio.TooSlowError, Unproven) as exc:
            raise PeerFailed(f"the content that node {self.peer} sends breaks off: {exc!r}") from None

    def head_of_answer(self, status: int, headers: Headers, covered: Buffer) -> bytes:
        """Return the head of the answer; the caller sends it. ``covered``: the body, or the first part of that."""
        if self._signer is not None and self._nonce:
            self._signer.answer(self._nonce, status, headers, _sha256(covered))
        return self._exchange.answer(status, headers)

    async def answer(self, status: int, body: bytes, headers: Headers | None = None, *, last: bool = False) -> None:
        """Send an answer, the ``last`` on this connection or not. Raises OSError, TooSlowError."""
        headers = [(LENGTH, b"%d" % len(body)), *(headers or [])]
        if self._unread or last:
            headers.append((b"connection", b"close"))
        with trio.fail_after(BODY_S):
            await self.stream.send(self.head_of_answer(status, headers, body) + body)
            self.answered = True
            if self._unread:  # to close at once would reset the connection, and the answer might be lost
                await self._linger()

    async def _linger(self) -> None:
        taken = 0
        with trio.move_on_after(1.0):
            while taken < LINGER_BYTES and (data := await self.stream.receive(HEAD_MAX_BYTES)):
                taken += len(data)

    async def refuse(self, refusal: PeerRefused) -> None:
        """Answer that it is not done. Raises OSError, TooSlowError."""
        headers: Headers = [(REASON, b"%d" % refusal.reason)]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(refusal.retry_after_s))))
        await self.answer(REFUSAL_STATUS[refusal.reason], str(refusal)[:TEXT_MAX].encode(), headers)


def _sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()
