"""Connections to SFTP servers with a known host key: fsspec by itself believes any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

from luxfuse.core.known_hosts import PORT, HostKeys, Verdict, fingerprint, host_keys, name_of
from luxfuse.errors import NotTrusted

FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
"""Those that OpenSSH reads."""


class KnownSFTPFileSystem(SFTPFileSystem):  # type: ignore[misc]
    """Takes ``known_hosts``, the one file to read instead of `FILES`, besides the arguments of paramiko's connect."""

    def _connect(self) -> None:
        settings = dict(self.ssh_kwargs)
        chosen = settings.pop("known_hosts", None)
        port = int(settings.get("port") or PORT)
        known = host_keys(self.host, port, _contents(chosen))

        def transport(sock: Any, **arguments: Any) -> Any:
            made = paramiko.Transport(sock, **arguments)
            offered = made.get_security_options()
            # The server shows one of its keys, by our preference: one that is known.
            kinds = {each.kind for each in known.known}
            offered.key_types = sorted(offered.key_types, key=lambda name: _kind(name) not in kinds)
            return made

        self.client = paramiko.SSHClient()
        self.client.set_missing_host_key_policy(_Known(known, name_of(self.host, port), chosen or FILES[0]))
        try:
            self.client.connect(self.host, transport_factory=transport, **settings)
            self.ftp = self.client.open_sftp()
        except BaseException:
            self.client.close()
            raise


class _Known(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Asked about every key, since paramiko itself is told of none: it reads neither patterns nor revocations."""

    def __init__(self, known: HostKeys, name: str, file: str) -> None:
        self._known, self._name, self._file = known, name, file

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Raise `NotTrusted` for a key that is not known."""
        verdict = self._known.judge(key.asbytes())
        if verdict is Verdict.KNOWN:
            return
        shown = f"{self._name} shows the host key {key.get_name()} {fingerprint(key.asbytes())}, which"
        host, _, port = self._name.rpartition("]:")
        scan = f"ssh-keyscan -p {port} {host.removeprefix('[')}" if host else f"ssh-keyscan {self._name}"
        add = f"add what {scan} prints to {self._file}"
        if verdict is Verdict.REVOKED:
            raise NotTrusted(f"{shown} is revoked: the server needs another one")
        if verdict is Verdict.CHANGED:
            raise NotTrusted(
                f"{shown} is not the one in {self._known.known[0].place}: somebody may be in between; if the server has a "
                f"new key, remove that line and {add}"
            )
        raise NotTrusted(
            f"{shown} is not known; if it is the server's, {add}, or name a file that has it with the storage option "
            "known_hosts=FILE"
        )


def use() -> None:
    """Have fsspec open SFTP with `KnownSFTPFileSystem`, unless a package is installed that brings its own client."""
    for protocol in ("sftp", "ssh"):
        if fsspec.get_filesystem_class(protocol) is SFTPFileSystem:
            fsspec.register_implementation(protocol, KnownSFTPFileSystem, clobber=True)


def _kind(algorithm: str) -> str:
    """Return the kind of the keys that sign with an algorithm."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def _contents(chosen: str | None) -> dict[str, str]:
    """Return the files that say which keys are known, by path; of the usual ones those that there are."""
    found = {}
    for written in (chosen,) if chosen else FILES:
        try:
            found[written] = Path(written).expanduser().read_text(errors="replace")
        except FileNotFoundError:
            if chosen:
                raise NotTrusted(f"storage option known_hosts: {written}: no such file") from None
        except OSError as exc:
            name = "storage option known_hosts: " if chosen else ""
            raise NotTrusted(f"{name}{written}: {exc.strerror}; it says which host keys are known") from None
    return found
