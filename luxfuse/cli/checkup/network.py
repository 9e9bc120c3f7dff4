"""Whether the store can be reached, and how fast: name, connection, TLS and HTTP told apart, and its clock."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from luxfuse.cli.checkup.findings import Finding, fail, ok, warn
from luxfuse.core.units import format_age
from luxfuse.understore.endpoints import PORTS, Endpoint
from luxfuse.understore.failures import safe_url
from luxfuse.understore.protocols import scheme_fault

PATIENCE_S = 10.0
ROUNDS = 5
FAR_S = 0.3
"""A round trip over which every small file that is not cached is felt."""
CLOCK_WARN_S, CLOCK_FAIL_S = 60.0, 900.0
"""Stores refuse what is signed 15 minutes too early or too late (S3: RequestTimeTooSkewed)."""
EXPIRES_SOON_S = 14 * 86400.0
T = TypeVar("T")


def check_network(endpoint: Endpoint) -> Iterator[Finding]:
    """Follow the way of a request, step by step, and end where it ends."""
    proxy = next(iter(endpoint.reach.proxies().values()), None) if endpoint.reach is not None else None
    parts = urlsplit(proxy or endpoint.url)
    host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme)
    if not host or port is None:
        return
    through = f" (the proxy for {endpoint.host})" if proxy else ""
    try:
        found, took_s = timed(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except OSError as exc:
        yield fail("dns", f"{host}{through}: {exc.strerror}", "correct the endpoint URL, or look at /etc/resolv.conf")
        return
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    if not _is_address(host):
        yield ok("dns", f"{host}{through} is {', '.join(addresses[:3])} ({1000 * took_s:.0f} ms)")
    try:
        connection, took_s = timed(lambda: socket.create_connection((host, port), PATIENCE_S))
    except OSError as exc:
        yield fail(
            "connection", f"{host}:{port}{through}: {exc.strerror or exc}",
            "look whether the server runs there, at the port, at firewalls and HTTPS_PROXY",
        )  # fmt: skip
        return
    connection.close()
    yield ok("connection", f"{host}:{port}{through} ({1000 * took_s:.1f} ms)")
    if endpoint.reach is None or (proxy or "").startswith("https://"):
        return  # what comes next is not ours to say
    if urlsplit(endpoint.url).scheme == "https" and proxy is None:
        told = _check_tls(endpoint, endpoint.reach.trust.ssl_context())
        yield told
        if told.state == "FAIL":
            return
    yield from _check_http(endpoint, proxy)


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """Return what ``action`` returns, and the seconds that it took."""
    began = time.perf_counter()
    return action(), time.perf_counter() - began


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_tls(endpoint: Endpoint, context: ssl.SSLContext) -> Finding:
    where = f"{endpoint.host}:{endpoint.port}"

    def shake_hands() -> tuple[str, dict[str, Any]]:
        with (
            socket.create_connection((endpoint.host, endpoint.port or 443), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=endpoint.host) as secure,
        ):
            return secure.version() or "", secure.getpeercert() or {}

    try:
        (version, certificate), took_s = timed(shake_hands)
    except ssl.SSLCertVerificationError as exc:
        return fail(
            "tls", f"{where}: the certificate is not trusted: {exc.verify_message}",
            "name the authority that signed it with the storage option verify=FILE, or SSL_CERT_FILE",
        )  # fmt: skip
    except OSError as exc:
        return fail(
            "tls", f"{where}: {exc.strerror or exc}", scheme_fault(endpoint.url) or "look whether this port speaks TLS"
        )
    if context.verify_mode == ssl.CERT_NONE:
        return warn(
            "tls", f"{where}: {version}, and nobody checks the certificate",
            "name the certificate authority with the storage option verify=FILE",
        )  # fmt: skip
    left_s = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
    if left_s < EXPIRES_SOON_S:
        return warn(
            "tls", f"{where}: the certificate expires in {format_age(left_s)}", "have the server's certificate renewed"
        )
    return ok("tls", f"{where}: {version}, the certificate is good for {format_age(left_s)} ({1000 * took_s:.0f} ms)")


def _check_http(endpoint: Endpoint, proxy: str | None) -> Iterator[Finding]:
    """Ask several times over one connection, unsigned: any answer will do."""
    took: list[float] = []
    offsets: list[float] = []
    connection = _connection(endpoint, proxy)
    tunnelled = proxy is not None and urlsplit(endpoint.url).scheme == "https"
    headers = {"User-Agent": "luxfuse-doctor"} | ({} if tunnelled else _login(proxy))
    try:
        for _ in range(ROUNDS):
            asked_s, began = time.time(), time.perf_counter()
            connection.request("HEAD", _path(endpoint, proxy), headers=headers)
            answer = connection.getresponse()
            answer.read()
            took.append(time.perf_counter() - began)
            if (date := answer.headers["Date"]) is not None:
                # The store's clock is told in whole seconds: on average it is half a second later.
                offsets.append(_seconds(date) + 0.5 - (asked_s + time.time()) / 2)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        advice = scheme_fault(endpoint.url) or "look whether a store answers at this URL, and at proxies in between"
        yield fail("http", f"{endpoint.url}: {text}", advice)
        return
    finally:
        connection.close()
    # The first one makes the connection.
    typical_s = statistics.median(took[1:])
    text = f"{endpoint.url}: {1000 * typical_s:.1f} ms a request ({1000 * min(took):.1f} to {1000 * max(took):.1f})"
    if typical_s > FAR_S:
        yield warn("http", text, "choose an endpoint near this machine; luxfuse load brings data here ahead of its use")
    else:
        yield ok("http", text)
    if offsets:
        yield check_clock(statistics.median(offsets))


def _connection(endpoint: Endpoint, proxy: str | None) -> http.client.HTTPConnection:
    assert endpoint.reach is not None
    where = urlsplit(proxy or endpoint.url)
    port = where.port or PORTS[where.scheme]
    if urlsplit(endpoint.url).scheme == "http":
        return http.client.HTTPConnection(where.hostname or "", port, timeout=PATIENCE_S)
    secure = http.client.HTTPSConnection(
        where.hostname or "", port, timeout=PATIENCE_S, context=endpoint.reach.trust.ssl_context()
    )
    if proxy is not None:
        secure.set_tunnel(endpoint.host, endpoint.port, _login(proxy))
    return secure


def _login(proxy: str | None) -> dict[str, str]:
    """Return the header that lets a request through a proxy, if that wants a user's name and password."""
    parts = urlsplit(proxy or "")
    if parts.username is None:
        return {}
    written = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(written).decode()}"}


def _path(endpoint: Endpoint, proxy: str | None) -> str:
    parts = urlsplit(endpoint.url)
    return safe_url(endpoint.url) if proxy is not None and parts.scheme == "http" else parts.path or "/"


def _seconds(date: str) -> float:
    told = parsedate_to_datetime(date)
    return (told if told.tzinfo is not None else told.replace(tzinfo=UTC)).timestamp()


def check_clock(offset_s: float) -> Finding:
    """Judge how much later the store's clock is than this machine's, in seconds."""
    if abs(offset_s) < CLOCK_WARN_S:
        return ok("clock", f"{abs(offset_s):.0f} s from the store's")
    here = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    text = f"this machine says {here} UTC, and the store's clock is {format_age(abs(offset_s))} "
    text += "later" if offset_s > 0 else "earlier"
    advice = "set the clock: timedatectl set-ntp true, or install chrony"
    if abs(offset_s) < CLOCK_FAIL_S:
        return warn("clock", text, advice)
    return fail("clock", f"{text}: signed requests are refused", advice)
