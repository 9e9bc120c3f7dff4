"""The certificate authorities that are believed: one bundle for all clients of an under-store.

Left to themselves, the clients read different places: obstore the system's store and ``SSL_CERT_FILE``, botocore and
aiobotocore the bundle of their package and ``AWS_CA_BUNDLE``.
"""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luxfuse.core.units import NO, YES
from luxfuse.errors import ConfigError

_SYSTEM = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Gentoo
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, Red Hat
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)
_joined: dict[bytes, int] = {}
"""Bundles made of several files, by content: descriptors that stay open."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """``bundle`` is a PEM file of all certificate authorities that are believed, None if certificates are not checked.

    ``chosen``: somebody named it, so that nothing else may be believed beside it.
    """

    bundle: str | None
    chosen: bool

    @property
    def verify(self) -> str | bool:
        """As botocore and requests take it."""
        return self.bundle if self.bundle is not None else False

    def ssl_context(self) -> ssl.SSLContext:
        """As aiohttp and urllib take it."""
        if self.bundle is None:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        return ssl.create_default_context(cafile=self.bundle)

    def obstore_variables(self) -> dict[str, str | None]:
        """Return the variables that must be set while a client of obstore is built: it reads its roots from there then.

        What it can be given besides is believed beside the system's roots, not instead of them.
        """
        if self.bundle is None or not self.chosen:
            return {}
        return {"SSL_CERT_FILE": self.bundle, "SSL_CERT_DIR": None}


def trust_for(options: Mapping[str, str], variables: Mapping[str, str], *, aws: str | None = None) -> Authorities:
    """Return the first that is set of ``verify``, AWS_CA_BUNDLE, SSL_CERT_FILE, or the system's.

    ``aws``, for S3, is AWS_CA_BUNDLE or ``ca_bundle`` of the profile. Raises `ConfigError` for a bundle that is none.
    """
    written = options.get("verify", "true").strip()
    word = written.lower()
    off = options.get("allow_invalid_certificates", "false").strip().lower() in YES
    if word in NO or (off and word in YES):
        return Authorities(None, chosen=True)
    if not written:
        raise ConfigError("storage option verify is empty; name a PEM file of CA certificates, or leave it out")
    if word not in YES:
        if off:
            raise ConfigError("storage options: verify and allow_invalid_certificates contradict each other; leave one out")
        return Authorities(_checked("storage option verify", written), chosen=True)
    if aws:
        return Authorities(_checked("AWS_CA_BUNDLE", aws), chosen=True)
    file, directory = variables.get("SSL_CERT_FILE"), variables.get("SSL_CERT_DIR")
    if directory:
        return Authorities(_of_directories(directory, file), chosen=True)
    if file:
        return Authorities(_checked("SSL_CERT_FILE", file), chosen=True)
    return _system_trust()


def _checked(name: str, path: str) -> str:
    path = str(Path(path).expanduser().absolute())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        problem = "holds no certificates in PEM form"
    except OSError as exc:
        problem = str(exc.strerror)
    else:
        return path
    raise ConfigError(f"{name}: {path}: {problem}; name a readable PEM file of CA certificates")


def _system_trust() -> Authorities:
    found = next((path for path in _SYSTEM if Path(path).is_file()), None)
    if found is not None:
        return Authorities(found, chosen=False)
    package = importlib.util.find_spec("botocore")  # which brings a bundle along
    if package is None or package.origin is None:
        raise ConfigError("no certificate authorities found; install the package ca-certificates, or set SSL_CERT_FILE")
    return Authorities(str(Path(package.origin).with_name("cacert.pem")), chosen=True)


def _of_directories(written: str, file: str | None) -> str:
    """Return a bundle of the files in the directories that SSL_CERT_DIR names, and of ``file``."""
    paths = [Path(file)] if file else []
    for directory in written.split(":"):
        paths += sorted(Path(directory).glob("*.[0-9]")) + sorted(Path(directory).glob("*.pem"))
    contents = b"\n".join(dict.fromkeys(path.read_bytes() for path in paths if path.is_file()))
    if contents not in _joined:
        descriptor = os.memfd_create("luxfuse-ca", os.MFD_CLOEXEC)
        os.write(descriptor, contents)
        _joined[contents] = descriptor
    return _checked("SSL_CERT_DIR", f"/proc/self/fd/{_joined[contents]}")
