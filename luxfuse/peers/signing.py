"""Proofs in the heads of requests and answers, for connections without TLS.

A request carries the sender's name, the time, a nonce and a MAC of these, the path, the receiver's name where it is known,
and the body; its answer carries a MAC of the nonce, status, sender's name and what the body begins with. Pages are only
covered by their checksums, which are part of that. A request whose time is off by more than `WINDOW_S` is refused, and one
whose nonce was seen within that time.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from typing import Protocol

from luxfuse.peers.wire import LENGTH, META, Head, Headers

WINDOW_S = 60
PROOF_BYTES = 32
MOST_NONCES = 200_000
"""Seen in a window: at about 100 bytes each. When there are more, requests are refused until the window is over."""


NAME, TO, TIME, NONCE, MAC = b"luxfuse-name", b"luxfuse-to", b"luxfuse-time", b"luxfuse-nonce", b"luxfuse-mac"


class Keys(Protocol):
    """A node's proof that it belongs to the cluster; see `credentials.Credentials`."""

    name: str

    def server_context(self) -> ssl.SSLContext:
        """Return what to serve a new connection with."""

    def client_context(self) -> ssl.SSLContext:
        """Return what to make a new connection with."""

    def sign(self, data: bytes) -> bytes:
        """Return a MAC of ``data``."""

    def verify(self, data: bytes, mac: bytes) -> bool:
        """Whether a node of the cluster made this MAC."""


class Unproven(Exception):
    """A message has no valid proof. The text is for the log."""


class Signer:
    """Makes and checks proofs. Requests are checked in the event loop only, the rest is for any thread."""

    def __init__(self, keys: Keys, clock: Callable[[], float]) -> None:
        """``clock``: seconds since 1970."""
        self._keys = keys
        self._clock = clock
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()
        self._turned_s = 0.0

    def request(self, path: str, to: str, headers: Headers, digest: bytes) -> bytes:
        """Add the proof to the headers of a request; returns its nonce. ``digest``: SHA-256 of its body, or a part."""
        nonce = secrets.token_hex(16).encode()
        headers += [
            (NAME, self._keys.name.encode()),
            (TO, to.encode()),
            (TIME, str(int(self._clock())).encode()),
            (NONCE, nonce),
        ]
        headers.append((MAC, self._keys.sign(_request_text(path, dict(headers), digest)).hex().encode()))
        return nonce

    def check_request(self, head: Head, digest: bytes) -> tuple[str, bytes]:
        """Return the name of the node that made a request, and the nonce. Raises `Unproven`."""
        headers = head.headers
        _verify(self._keys, _request_text(head.target, headers, digest), headers, (NAME, TO, TIME, NONCE, MAC))
        time_text, nonce = headers[TIME], headers[NONCE]
        if headers[TO] not in (b"", self._keys.name.encode()):
            raise Unproven("the request is for another node")
        if not time_text.isdigit() or abs(int(time_text[:12]) - self._clock()) > WINDOW_S:
            raise Unproven(f"the request was made more than {WINDOW_S} s ago, or by a clock that is off")
        self._note(nonce)
        return headers[NAME].decode("latin-1"), nonce

    def _note(self, nonce: bytes) -> None:
        now_s = self._clock()
        # A request is accepted during twice the window, from its being too new until it is too old.
        if abs(now_s - self._turned_s) > 2 * WINDOW_S:
            self._seen_before, self._seen, self._turned_s = self._seen, set(), now_s
        if nonce in self._seen or nonce in self._seen_before:
            raise Unproven("the request was made before")
        if len(self._seen) >= MOST_NONCES:
            raise Unproven(f"more than {MOST_NONCES} requests in {2 * WINDOW_S} s")
        self._seen.add(nonce)

    def answer(self, nonce: bytes, status: int, headers: Headers, digest: bytes) -> None:
        """Add the proof to the headers of an answer to the request with ``nonce``."""
        headers.append((NAME, self._keys.name.encode()))
        headers.append((MAC, self._keys.sign(_answer_text(nonce, status, dict(headers), digest)).hex().encode()))

    def check_answer(self, nonce: bytes, head: Head, digest: bytes) -> str:
        """Return the name of the node that made an answer. Raises `Unproven`."""
        _verify(self._keys, _answer_text(nonce, head.status, head.headers, digest), head.headers)
        return head.headers[NAME].decode("latin-1")

    def content(self, nonce: bytes, digest: bytes) -> bytes:
        """Return the proof that follows the content of a file in a request's body."""
        return self._keys.sign(b"luxfuse content 1\n" + nonce + b"\n" + digest)

    def check_content(self, nonce: bytes, digest: bytes, proof: bytes) -> None:
        """Check what `content` made. Raises `Unproven`."""
        if not self._keys.verify(b"luxfuse content 1\n" + nonce + b"\n" + digest, proof):
            raise Unproven("the content of a file is not what was sent")


def _request_text(path: str, headers: dict[bytes, bytes], digest: bytes) -> bytes:
    names = (NAME, TO, TIME, NONCE, LENGTH, META)
    return b"\n".join(
        (b"luxfuse request 1", b"POST", path.encode("latin-1"), *(headers.get(name, b"") for name in names), digest)
    )


def _answer_text(nonce: bytes, status: int, headers: dict[bytes, bytes], digest: bytes) -> bytes:
    names = (NAME, LENGTH, META, b"luxfuse-reason", b"retry-after")
    return b"\n".join((b"luxfuse answer 1", nonce, b"%d" % status, *(headers.get(name, b"") for name in names), digest))


def _verify(keys: Keys, text: bytes, headers: dict[bytes, bytes], needed: tuple[bytes, ...] = (NAME, MAC)) -> None:
    if any(name not in headers for name in needed) or len(headers.get(NAME, b"")) > 64:
        raise Unproven("there is no proof")
    try:
        mac = bytes.fromhex(headers[MAC].decode("latin-1"))
    except ValueError:
        raise Unproven("the proof is not hexadecimal") from None
    if not keys.verify(text, mac):
        raise Unproven("the proof is wrong: another key, or it was changed on the way")
