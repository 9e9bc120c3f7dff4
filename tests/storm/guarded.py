"""A store behind a name, TLS and a key, each of which can fail: for the storms that run by command."""

from __future__ import annotations

import dataclasses
import os
import socket
import ssl
from pathlib import Path

from tests.support.fault_proxy import Fate, FaultProxy, Faults, Request
from tests.support.front import certificate_authority
from tests.support.resolving import HOST, resolver


class GuardedProxy(FaultProxy):
    """A fault proxy that speaks TLS under the name `HOST`, and lets in requests that are signed with the one valid key.

    ``directory`` has what a mount needs for that: ``flags`` and ``environment`` lead there.
    """

    def __init__(self, upstream: str, directory: Path, *, seed: int) -> None:
        super().__init__(upstream, seed=seed)
        resolving = resolver(directory)
        authority, stranger = (certificate_authority(directory, name, HOST) for name in ("right", "wrong"))
        self._resolves, self._credentials = resolving.switch, directory / "credentials"
        self._right, self._wrong = _context(authority.server), _context(stranger.server)
        self._tls: ssl.SSLContext | None = self._right
        self._keys = 0
        self.flags = ("--storage-option", f"verify={authority.bundle}")
        self.environment = {
            **resolving.environment, "AWS_SHARED_CREDENTIALS_FILE": str(self._credentials), "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
        }  # fmt: skip
        self._resolves.touch()
        self._rotate()

    @property
    def endpoint(self) -> str:
        return f"https://{HOST}:{self.port}"

    # -- what fails

    def fail(self, what: str) -> None:
        """Fail in one of `plan.GUARDS` until `recover`."""
        self.troubled.add(self.endpoint)
        match what:
            case "name":
                self._resolves.unlink()
            case "certificate":
                self._tls = self._wrong
            case "TLS":
                self._tls = None
            case "expired":
                self._keys += 1
                return
        self.outage(True)  # what is connected needs neither a name nor a certificate
        self.outage(False)

    def recover(self) -> None:
        """Let all be as it was; but a key that has expired is never valid again: there is another."""
        self._resolves.touch()
        self._tls = self._right
        self._rotate()
        super().recover()

    @property
    def _key(self) -> str:
        """The valid one."""
        return f"AKIASTORM{self._keys}"

    def _rotate(self) -> None:
        fresh = self._credentials.with_suffix(".fresh")
        fresh.write_text(f"[default]\naws_access_key_id = {self._key}\naws_secret_access_key = s3cr3t\n")
        os.replace(fresh, self._credentials)

    # -- what that does to connections and requests

    def secured(self, client: socket.socket) -> socket.socket:
        tls = self._tls
        if tls is not self._right:
            self.count("another certificate" if tls else "no TLS")
        if tls is None:
            raise ConnectionAbortedError("no TLS")
        return tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)  # it is made with the first read

    def decide(self, request: Request) -> Fate:
        fate = super().decide(request)
        if request.key == self._key:
            return fate
        self.count("expired")
        return dataclasses.replace(fate, fault="error", status=400, faults=Faults(error_code="ExpiredToken"))


def _context(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
