"""FTP inside TLS, with checked certificates. fsspec by itself believes any, and encrypts no data in implicit TLS."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ftplib import FTP, FTP_TLS
from typing import Any

import fsspec
from fsspec.implementations.ftp import FTPFileSystem

from luxfuse.errors import ConfigError
from luxfuse.understore.trust import trust_for
from luxfuse.understore.variables import variables


@dataclass(frozen=True, slots=True)
class Tls:
    """``implicit``: from the first byte on, rather than when both have agreed to it."""

    context: ssl.SSLContext
    implicit: bool


class _Implicit(FTP_TLS):
    """Wraps every control connection as soon as there is one."""

    _sock: Any = None

    @property
    def sock(self) -> Any:
        return self._sock

    @sock.setter
    def sock(self, value: Any) -> None:
        if value is not None and not isinstance(value, ssl.SSLSocket):
            value = self.context.wrap_socket(value, server_hostname=self.host)
        self._sock = value


class TrustingFTPFileSystem(FTPFileSystem):  # type: ignore[misc]
    """Takes a `Tls` as ``tls``; without it nothing is encrypted."""

    def _connect(self) -> None:
        named = {"timeout": self.timeout, "encoding": self.encoding}
        if isinstance(self.tls, Tls):
            kind = _Implicit if self.tls.implicit else FTP_TLS
            self.ftp: FTP = kind(context=self.tls.context, **named)
        else:
            assert not self.tls
            self.ftp = FTP(**named)  # noqa: S321
        try:
            self.ftp.connect(self.host, self.port)
            self.ftp.login(*self.cred)
            if isinstance(self.ftp, FTP_TLS):
                self.ftp.prot_p()  # the data, too
        except BaseException:
            self.ftp.close()
            raise


def use() -> None:
    """Have fsspec open FTP with `TrustingFTPFileSystem`."""
    if fsspec.get_filesystem_class("ftp") is FTPFileSystem:
        fsspec.register_implementation("ftp", TrustingFTPFileSystem, clobber=True)


def encrypt(arguments: dict[str, Any], reaching: Mapping[str, str]) -> None:
    """Put the arguments of FTP inside TLS in the place of the option tls."""
    wanted = arguments.pop("tls", False)
    if wanted not in (True, False, "tls"):
        raise ConfigError("storage option tls: write true, false, or tls for implicit TLS")
    if wanted:
        arguments["tls"] = Tls(trust_for(reaching, variables()).ssl_context(), implicit=wanted == "tls")
    elif reaching:
        raise ConfigError(f"storage option {min(reaching)}: FTP has no certificates without the storage option tls=true")
