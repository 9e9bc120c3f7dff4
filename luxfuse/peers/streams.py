"""A node's side of a connection that it accepted.

Small messages are received and sent in the event loop, without blocking; large ones in threads, with blocking calls.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import trio

from luxfuse.peers.provider import Provided

STALL_S = 10.0
"""A connection on which nothing moves for so long is given up."""
SLOWEST_BYTES_PER_S = 256 << 10
"""A receiver that takes bytes more slowly than this, after `STALL_S`, is cut off."""
CHUNK_BYTES = 256 << 10
"""Encrypted, or received, at a time: stays in the processor's cache."""
SENDFILE_BYTES = 4 << 20

_NAME = re.compile(r"[0-9a-f]{16}")

Socket = socket.socket | ssl.SSLSocket


def set_up(sock: socket.socket) -> None:
    """Prepare a connected socket, of either side: no delays, and time-outs for calls that block in the kernel."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stall = struct.pack("ll", int(STALL_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)


class Secured(Protocol):
    """A TLS connection, whatever carries it."""

    def getpeercert(self) -> Mapping[str, Any] | None:
        """Return the certificate of the other side; empty or None if there was none."""


def peer_name(connection: Secured) -> str:
    """Return the name of the node at the other end, once the handshake is over. Raises `ssl.CertificateError`."""
    subject = (connection.getpeercert() or {}).get("subject", ())
    names = [value for part in subject for kind, value in part if kind == "commonName"]
    if len(names) != 1 or _NAME.fullmatch(names[0]) is None:
        raise ssl.CertificateError("the certificate of the other side names no node")
    return str(names[0])


class Stream:
    """One accepted connection. One task uses it, and a thread only while that task waits for it."""

    def __init__(self, sock: Socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        """The name in the certificate of the other side; "" without TLS."""

    async def receive(self, most: int) -> bytes:
        """Return what is there, as soon as something is; b"" at the end. Raises OSError."""
        while True:
            try:
                return self.sock.recv(most)
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(self.sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.sock)

    async def wait_receivable(self) -> None:
        """Wait until `receive_now` can give something."""
        if not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
            await trio.lowlevel.wait_readable(self.sock)

    def receive_now(self, most: int) -> bytes:
        """Return what is there, maybe nothing, up to ``most`` bytes. Raises OSError; EOFError at the end."""
        data = bytearray()
        while len(data) < most:
            try:
                part = self.sock.recv(most - len(data))
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    async def receive_exactly(self, first: bytes, length: int) -> bytearray:
        """Return ``length`` bytes, the first of which were received already. Raises OSError, EOFError."""
        data = bytearray(first)
        while len(data) < length:
            part = await self.receive(min(length - len(data), CHUNK_BYTES))
            if not part:
                raise EOFError
            data += part
            await trio.lowlevel.checkpoint()
        return data

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises OSError."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view[:CHUNK_BYTES]) :]
                await trio.lowlevel.checkpoint()
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self.sock)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.sock)

    def send_parts(self, start: bytes, parts: Sequence[Provided]) -> None:
        """Send ``start`` and then the parts. Blocks: call it in a thread. Raises OSError."""
        give_up_at = time.monotonic() + STALL_S + sum(part.length for part in parts) / SLOWEST_BYTES_PER_S
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(STALL_S)
            try:
                _send_encrypted(self.sock, start, parts, give_up_at)
            finally:
                self.sock.setblocking(False)
            return
        self.sock.setblocking(True)
        try:
            _send_plain(self.sock, start, parts, give_up_at)
        except BlockingIOError:  # the kernel's time-out, see `set_up`
            raise TimeoutError("the other side takes nothing") from None
        finally:
            self.sock.setblocking(False)


def _check_time(give_up_at: float) -> None:
    if time.monotonic() > give_up_at:
        raise TimeoutError("the other side takes too little")


def _send_plain(sock: socket.socket, start: bytes, parts: Sequence[Provided], give_up_at: float) -> None:
    sock.sendall(start, socket.MSG_MORE if parts else 0)
    for part in parts:
        if part.data is not None:
            for position in range(0, part.length, SENDFILE_BYTES):
                sock.sendall(part.data[position : min(part.length, position + SENDFILE_BYTES)])
                _check_time(give_up_at)
            continue
        offset, end = part.offset, part.offset + part.length
        while offset < end:
            sent = os.sendfile(sock.fileno(), part.fd, offset, min(SENDFILE_BYTES, end - offset))
            if not sent:
                raise OSError("a cache file is shorter than what is recorded of it")
            offset += sent
            _check_time(give_up_at)


class _Buffer(threading.local):
    """A buffer for each thread."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(CHUNK_BYTES))


_buffer = _Buffer()


def _send_encrypted(sock: ssl.SSLSocket, start: bytes, parts: Sequence[Provided], give_up_at: float) -> None:
    """Small parts go out together with what is before them: each call makes records, and a packet, of its own."""
    view = _buffer.view
    filled = 0

    def flush() -> None:
        nonlocal filled
        sock.sendall(view[:filled])
        filled = 0
        _check_time(give_up_at)

    view[: len(start)] = start
    filled = len(start)
    for part in parts:
        position = 0
        while position < part.length:
            if filled == CHUNK_BYTES:
                flush()
            room = view[filled : filled + min(CHUNK_BYTES - filled, part.length - position)]
            if part.data is not None:
                room[:] = part.data[position : position + len(room)]
                taken = len(room)
            else:
                taken = os.preadv(part.fd, [room], part.offset + position)
                if not taken:
                    raise OSError("a cache file is shorter than what is recorded of it")
            position += taken
            filled += taken
    flush()
