"""Proofs that a node belongs to the cluster: everything is derived from the secret in the key file."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from luxfuse.peers.keyfile import read_keys
from luxfuse.peers.sealing import Opened, Sealer, derive
from luxfuse.peers.tls import RENEWED_S, Authority, contexts

SIGNATURE_BYTES = 32


class Credentials:
    """The keys of a cluster as one life of a node uses them. Datagrams are for one thread, the rest for any."""

    def __init__(
        self,
        keys: Sequence[bytes],
        *,
        name: str,
        stamp_ns: int,
        path: str | Path = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``name`` and ``stamp_ns``: see `luxfuse.peers.identity`. ``path``: the file that the keys come from."""
        self.name = name
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._sealer = Sealer(name, stamp_ns, keys)
        self._use(keys)

    @classmethod
    def read(cls, path: str | Path, *, name: str, stamp_ns: int) -> Credentials:
        """Return what a key file gives. Raises `ConfigError` with one line."""
        return cls(read_keys(path), name=name, stamp_ns=stamp_ns, path=path)

    def check(self) -> None:
        """Raise `ConfigError` if the key file cannot be used now. Blocks: for a worker thread."""
        read_keys(self._path)

    def reread(self) -> bool:
        """Take up the changed key file; returns whether it had changed. Blocks: for a worker thread.

        Raises `ConfigError` if it cannot be used: then the keys stay as they were. Connections that exist live on.
        """
        keys = read_keys(self._path)
        if keys == self._keys:
            return False
        self._sealer.use(keys)
        self._use(keys)
        return True

    def _use(self, keys: Sequence[bytes]) -> None:
        authorities = [Authority(key) for key in keys]
        signing = [derive(key, "requests, 1") for key in keys]
        with self._lock:
            self._keys = tuple(keys)
            self._authorities = authorities
            self._signing = signing
            self._contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
            self._made_s = 0.0

    def seal(self, payload: bytes) -> bytes:
        """Return a datagram with ``payload``, `sealing.OVERHEAD_BYTES` longer."""
        return self._sealer.seal(payload)

    def open(self, datagram: bytes) -> Opened:
        """Return what another node sealed. Raises `rejections.Rejected`."""
        return self._sealer.open(datagram)

    def server_context(self) -> ssl.SSLContext:
        """Return what to serve a new connection with; ask again for each, since certificates are renewed."""
        return self._current()[0]

    def client_context(self) -> ssl.SSLContext:
        """Return what to make a new connection with; ask again for each, since certificates are renewed."""
        return self._current()[1]

    def _current(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        with self._lock:
            now_s = self._clock()
            # A clock that was set back makes the certificate one of the future.
            if self._contexts is None or not self._made_s <= now_s < self._made_s + RENEWED_S:
                self._contexts, self._made_s = contexts(self._authorities, self.name, now_s), now_s
            return self._contexts

    def sign(self, data: bytes) -> bytes:
        """Return `SIGNATURE_BYTES` that only nodes of the cluster can make of ``data``, for connections without TLS."""
        return hmac.digest(self._signing[0], data, hashlib.sha256)

    def verify(self, data: bytes, mac: bytes) -> bool:
        """True if ``mac`` is what a node of the cluster made of ``data``."""
        signing = self._signing
        return any(hmac.compare_digest(hmac.digest(key, data, hashlib.sha256), mac) for key in signing)
