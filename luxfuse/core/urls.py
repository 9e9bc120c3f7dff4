"""Whether a URL can be one, so that no client has to find out: some of them fail in ways that nobody understands."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_HOST = re.compile(r"[A-Za-z0-9._~-]{1,253}")


def url_fault(url: str) -> str | None:
    """Say what is wrong with a URL that names a host, without repeating it; None if a client can make use of it."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return "holds a blank or a control character"
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "has brackets that hold no IPv6 address"
    if not host:
        return "names no host"
    if "[" in parts.netloc:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return "has brackets that hold no IPv6 address"
    elif _HOST.fullmatch(host) is None:
        return "has a host name with characters that none can have"
    try:
        port = parts.port
    except ValueError:
        port = 0
    return "has a port that is no number from 1 to 65535" if port == 0 else None


def endpoint_fault(url: str) -> str | None:
    """Say what is wrong with the address of a store, below which come buckets and keys; None if it can be used."""
    if not url.startswith(("http://", "https://")):
        return "must start with http:// or https://"
    if "?" in url or "#" in url:
        return "must end with the path, without ? and #"
    return url_fault(url)
