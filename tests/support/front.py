"""HTTP servers that tests put before others: one that checks requests, perhaps behind TLS, and a proxy that keeps a list.

`certificate_authority` makes the certificates.
"""

from __future__ import annotations

import base64
import datetime
import http.client
import ipaddress
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.http_server import HttpServer, answering

_HOP = ("connection", "keep-alive", "transfer-encoding", "proxy-authorization", "proxy-connection")
_OWN = ("date", "server", "content-length")
"""Of answers; the date of a request may be signed."""


@dataclass
class Answer:
    """What the front says instead of the server behind it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def s3_error(status: int, code: str, more: str = "", **headers: str) -> Answer:
    """An error as S3 writes it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>"
    return Answer(status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120

    def handle_all(self) -> None:
        self.body = body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server: Any = self.server
        url = urlsplit(self.path)
        answer = server.check(self)
        if answer is None:
            self._forward(server.upstream or url.netloc, self.path if server.upstream else url._replace(
                scheme="", netloc="").geturl(), body)  # fmt: skip
            return
        self._send(answer.status, list(answer.headers.items()), answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_PROPFIND = handle_all

    def _forward(self, place: str, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection(place, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        connection.request(self.command, path, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in (*_HOP, *_OWN)]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self._send(answer.status, [*kept, ("Content-Length", length or "0")], data)
        connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_CONNECT(self) -> None:
        server: Any = self.server
        if (answer := server.check(self)) is not None:
            self._send(answer.status, list(answer.headers.items()), answer.body)
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=120) as upstream:
            self.send_response(200)
            self.end_headers()
            _relay(self.connection, upstream)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _relay(one: socket.socket, other: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([one, other], [], [], 120)
        if not ready:
            return
        for source in ready:
            data = source.recv(1 << 16)
            if not data:
                return
            (other if source is one else one).sendall(data)


class _Server(HttpServer):
    def __init__(self, upstream: str, check: Callable[[Any], Answer | None], tls: ssl.SSLContext | None) -> None:
        super().__init__(_Handler)
        self.upstream = upstream
        self.check = check
        self._tls = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


@contextmanager
def front(
    upstream: str, check: Callable[[Any], Answer | None] = lambda request: None, certificate: str | None = None
) -> Iterator[str]:
    """Serve what is at the URL ``upstream``; yields the URL. ``check`` sees each request first, and may answer it.

    Its ``body`` has been read. ``certificate`` is a PEM file with certificate and key, for TLS.
    """
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    server = _Server(urlsplit(upstream).netloc, check, tls)
    with answering(server):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"


@dataclass
class Proxy:
    """A proxy with what went through it: "GET http://..." or "CONNECT host:port"."""

    url: str
    seen: list[str]


@contextmanager
def proxy(user: str | None = None, password: str = "") -> Iterator[Proxy]:
    """Run a forward proxy, which asks for ``user`` and ``password`` if they are given."""
    seen: list[str] = []
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def check(request: Any) -> Answer | None:
        if user is not None and request.headers.get("Proxy-Authorization") != wanted:
            return Answer(407, headers={"Proxy-Authenticate": "Basic"})
        seen.append(f"{request.command} {request.path}")
        return None

    with front("", check) as url:
        place = url.removeprefix("http://")
        yield Proxy(f"http://{user}:{password}@{place}" if user else url, seen)


@dataclass(frozen=True)
class Authority:
    """``bundle`` has the authority's certificate, ``server`` one that it has signed, with its key; PEM files."""

    bundle: str
    server: str


def certificate_authority(directory: Path, name: str, *hosts: str) -> Authority:
    """Make an authority, and a certificate of it for 127.0.0.1, localhost and ``hosts``."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]

    def certificate(subject: x509.Name, key: Any, *extensions: tuple[Any, bool]) -> bytes:
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        )  # fmt: skip
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    bundle = directory / f"{name}.pem"
    bundle.write_bytes(certificate(issuer, keys[0], (constraints, True), (usage, True)))
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, ("localhost", *hosts))]
    server = directory / f"{name}.server.pem"
    server.write_bytes(
        certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]), keys[1],
            (x509.SubjectAlternativeName(names), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        )
        + keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return Authority(str(bundle), str(server))
