"""Credentials of nodes for tests, without a key file; and pages to serve."""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import os
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@functools.cache
def _authority(secret: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _certificate(key, _name(f"cluster {secret}"), _name(f"cluster {secret}"), key, authority=True)


def _certificate(key, subject, issuer, issuer_key, *, authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


class TestKeys:
    """What a node of the cluster that ``secret`` stands for proves with that it belongs there."""

    __test__ = False

    def __init__(self, name: str, secret: str = "one") -> None:
        self.name = name
        self._secret = secret.encode()
        authority_key, authority = _authority(secret)
        key = ec.generate_private_key(ec.SECP256R1())
        own = _certificate(key, _name(name), authority.subject, authority_key, authority=False)
        self._pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + own.public_bytes(serialization.Encoding.PEM)
        self._trusted = authority.public_bytes(serialization.Encoding.PEM).decode()

    @functools.cache  # noqa: B019 (as few as there are tests)
    def server_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    @functools.cache  # noqa: B019
    def client_context(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0
        context.load_verify_locations(cadata=self._trusted)
        with tempfile.NamedTemporaryFile() as f:
            f.write(self._pem)
            f.flush()
            os.fchmod(f.fileno(), 0o600)
            context.load_cert_chain(f.name)
        return context

    def sign(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, hashlib.sha256)

    def verify(self, data: bytes, mac: bytes) -> bool:
        return hmac.compare_digest(self.sign(data), mac)
