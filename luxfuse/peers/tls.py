"""TLS between nodes: with the cluster's key a node can make its certificate authority, and so a certificate for itself.

The authority's private key is derived from the cluster's key, so every node has the same one; its certificate is signed
anew by each node, with the same subject and public key, which is all that verification goes by. A node's own certificate
lasts for days and is made anew each day; what verifies it may be a day behind with its clock, or six ahead.
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from luxfuse.peers.sealing import derive

RENEWED_S = 86400.0
"""A certificate is used for so long."""
LASTS_S = 7 * 86400.0
SKEW_S = 86400.0
"""It is valid from so long before it was made."""
_AUTHORITY_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_AUTHORITY_UNTIL = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)
_CURVE = ec.SECP256R1()
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_MFD_NOEXEC_SEAL = 8


class Authority:
    """The certificate authority of one key of a cluster."""

    def __init__(self, key: bytes) -> None:
        # 16 bytes more than the order has: what is lost by the remainder is then of no account.
        scalar = int.from_bytes(derive(key, "certificate authority, 1", 48), "big") % (_ORDER - 1) + 1
        self.private_key = ec.derive_private_key(scalar, _CURVE)
        number = derive(key, "certificate authority id, 1", 8)
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"luxfuse cluster {number.hex()}")])
        builder = _builder(self.subject, self.subject, self.private_key.public_key())
        self.certificate = (
            builder.serial_number(1)
            .not_valid_before(_AUTHORITY_FROM)
            .not_valid_after(_AUTHORITY_UNTIL)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(self._identifier(), critical=False)
            .sign(self.private_key, hashes.SHA256())
        )

    def _identifier(self) -> x509.SubjectKeyIdentifier:
        return x509.SubjectKeyIdentifier.from_public_key(self.private_key.public_key())

    def issue(self, name: str, now_s: float) -> bytes:
        """Return a new private key and the certificate that it belongs to node ``name``, as PEM. ``now_s``: since 1970."""
        now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
        private_key = ec.generate_private_key(_CURVE)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(subject, self.subject, private_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=SKEW_S))
            .not_valid_after(now + datetime.timedelta(seconds=LASTS_S))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier()), critical=False
            )
            .sign(self.private_key, hashes.SHA256())
        )
        secret = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return secret + certificate.public_bytes(Encoding.PEM)


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def contexts(authorities: Sequence[Authority], name: str, now_s: float) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return what a node serves and connects with: a new certificate of the first authority; peers need one of any.

    Only TLS 1.3; nothing is resumed, so that each connection shows a certificate that is valid now. The caller compares
    `streams.peer_name` with the node that it wants to talk to.
    """
    pem = authorities[0].issue(name, now_s)
    trusted = "".join(each.certificate.public_bytes(Encoding.PEM).decode() for each in authorities)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.num_tickets = 0
    client.check_hostname = False
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=trusted)
        _load_chain(context, pem)
    return server, client


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Give ``context`` its private key and certificate. It takes only files: this one is in memory, and has no name."""
    try:
        fd = os.memfd_create("luxfuse", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError:  # a kernel before 6.3; later ones may insist on the flag
        fd = os.memfd_create("luxfuse", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as f:
            f.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
