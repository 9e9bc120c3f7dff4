"""Whether an endpoint speaks HTTP or HTTPS, to tell the fault of a URL: libraries only say that they failed."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

PATIENCE_S = 2.0
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")


def scheme_fault(url: str) -> str | None:
    """Return the fault of the scheme of a URL, in words; None if there is none, or that cannot be known. Blocks."""
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if host is None or port is None:
        return None
    speaks_tls = _speaks_tls(host, port)
    if speaks_tls and parts.scheme == "http":
        return "the server speaks HTTPS: write https:// in the endpoint URL"
    if speaks_tls is False and parts.scheme == "https":
        return "the server speaks no HTTPS: write http:// in the endpoint URL, or correct the port"
    return None


def _speaks_tls(host: str, port: int) -> bool | None:
    """Begin a TLS session, with nothing said in it and no certificate believed; None if nobody answers that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), PATIENCE_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return True
    except ssl.SSLError as exc:
        # An alert comes from something that speaks TLS, and wants it otherwise than we do.
        return False if exc.reason in _NO_TLS else True if "ALERT" in (exc.reason or "") else None
    except OSError:
        return None
