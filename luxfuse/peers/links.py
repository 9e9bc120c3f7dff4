"""A node's side of the connections that it makes: blocking, with deadlines, for worker threads; and those that are kept."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections import deque

from luxfuse.core.members import Address
from luxfuse.peers.signing import Keys
from luxfuse.peers.streams import Socket, peer_name, set_up

CONNECT_S = 3.0
"""For a connection and its handshake."""
IDLE_S = 30.0
"""A connection is kept for so long without a request: shorter than the server keeps it."""
MOST_IDLE_OF_PEER = 8
MOST_IDLE = 256


class Link:
    """A connection to a node; one thread uses it at a time. Its methods raise OSError, EOFError."""

    def __init__(self, sock: Socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        """The name in the node's certificate; "" without TLS."""
        self.used = False
        """Whether it carried a request before."""
        self.idle_since_s = 0.0
        self.give_up_at_s = 0.0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def until(self, give_up_at_s: float) -> None:
        """Let all that follows raise TimeoutError once it is later than this, by the monotonic clock."""
        self.give_up_at_s = give_up_at_s

    def _arm(self) -> None:
        left_s = self.give_up_at_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self.sock.settimeout(left_s)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        self._arm()
        self.sock.sendall(data)

    def receive(self, most: int) -> bytes:
        """Return what comes next; b"" at the end."""
        self._arm()
        return self.sock.recv(most)

    def receive_into(self, view: memoryview) -> None:
        """Fill ``view``."""
        while view:
            self._arm()
            count = self.sock.recv_into(view)
            if not count:
                raise EOFError("the connection was closed")
            view = view[count:]

    def is_stale(self) -> bool:
        """Whether a connection that should be silent has something to say: most often that it was closed."""
        unread = self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0
        return bool(unread or self._poll.poll(0))

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def connect(address: Address, keys: Keys, *, tls: bool, timeout_s: float) -> Link:
    """Return a new connection. Raises OSError."""
    give_up_at_s = time.monotonic() + min(timeout_s, CONNECT_S)
    sock: Socket = socket.create_connection(address, timeout=max(0.001, give_up_at_s - time.monotonic()))
    try:
        set_up(sock)
        peer = ""
        if tls:
            sock.settimeout(max(0.001, give_up_at_s - time.monotonic()))
            sock = keys.client_context().wrap_socket(sock)
            peer = peer_name(sock)
        return Link(sock, peer)
    except BaseException:
        sock.close()
        raise


class Pool:
    """Connections that are kept for the next request, the last used first. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Address, deque[Link]] = {}
        self._count = 0
        self._closed = False

    @property
    def count(self) -> int:
        """How many connections are kept."""
        return self._count

    def take(self, address: Address) -> Link | None:
        """Return a kept connection that is not known to be closed, or None."""
        while True:
            with self._lock:
                links = self._idle.get(address)
                if not links:
                    return None
                link = links.pop()
                self._count -= 1
                if not links:
                    del self._idle[address]
            if time.monotonic() - link.idle_since_s < IDLE_S and not link.is_stale():
                return link
            link.close()

    def put(self, address: Address, link: Link) -> None:
        """Keep a connection, or close the one that was used least lately, or this one."""
        link.used, link.idle_since_s = True, time.monotonic()
        surplus = []
        with self._lock:
            if self._closed:
                surplus.append(link)
            else:
                links = self._idle.setdefault(address, deque())
                links.append(link)
                self._count += 1
                if len(links) > MOST_IDLE_OF_PEER:
                    surplus.append(links.popleft())
                    self._count -= 1
                elif self._count > MOST_IDLE:
                    surplus.append(self._oldest())
        for each in surplus:
            each.close()

    def _oldest(self) -> Link:
        address = min(self._idle, key=lambda each: self._idle[each][0].idle_since_s)
        link = self._idle[address].popleft()
        if not self._idle[address]:
            del self._idle[address]
        self._count -= 1
        return link

    def sweep(self) -> None:
        """Close what was idle for too long."""
        surplus = []
        with self._lock:
            oldest_s = time.monotonic() - IDLE_S
            for address in list(self._idle):
                links = self._idle[address]
                while links and links[0].idle_since_s < oldest_s:
                    surplus.append(links.popleft())
                    self._count -= 1
                if not links:
                    del self._idle[address]
        for each in surplus:
            each.close()

    def forget(self, address: Address) -> None:
        """Close the connections to a node."""
        with self._lock:
            links = self._idle.pop(address, deque())
            self._count -= len(links)
        for each in links:
            each.close()

    def close(self) -> None:
        """Close all; connections in use are closed when they come back."""
        with self._lock:
            self._closed = True
            links = [link for each in self._idle.values() for link in each]
            self._idle.clear()
            self._count = 0
        for each in links:
            each.close()
