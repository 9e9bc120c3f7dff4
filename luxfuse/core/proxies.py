"""Which HTTP proxy a request goes through, by the variables that curl knows: clients read them each in its own way."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from luxfuse.core.urls import url_fault
from luxfuse.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str, variables: Mapping[str, str], chosen: str | None = None) -> str | None:
    """Return the URL of the proxy for requests to ``url``, or None for a direct connection.

    ``chosen`` is the user's setting, which goes before HTTP_PROXY, HTTPS_PROXY and ALL_PROXY. NO_PROXY holds for both, as
    with curl; names in small letters go before those in capitals. Raises `ConfigError` for a proxy that cannot be used.
    """
    parts = urlsplit(url)
    found, name = (chosen, "proxy_url") if chosen else _from_variables(parts.scheme, variables)
    if not found:
        return None
    without = variables.get("no_proxy", variables.get("NO_PROXY", ""))
    if bypasses(parts.hostname or "", _port(url) or _PORTS.get(parts.scheme), without):
        return None
    proxy = found if "://" in found else f"http://{found}"
    if proxy.partition("://")[0].lower() not in _PORTS or url_fault(proxy):
        raise ConfigError(f"{name}: only http:// and https:// proxies can be used; write http://HOST:PORT")
    return proxy


def _port(url: str) -> int | None:
    """Return the port that ``url`` names, None if it names none, 0 for one that cannot be."""
    try:
        return urlsplit(url).port
    except ValueError:
        return 0


PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def _from_variables(scheme: str, variables: Mapping[str, str]) -> tuple[str, str]:
    for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if name in variables:  # empty: no proxy for this scheme
            return variables[name].strip(), name
    return "", ""


def bypasses(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether NO_PROXY exempts ``host``, which has no brackets if it is an IPv6 address.

    Entries, between commas or blanks: ``*``, a domain with or without a leading dot (and all below it), an address, a
    CIDR block, each but the last with a port or without; an IPv6 address with a port is in brackets.
    """
    host = host.lower().rstrip(".").partition("%")[0]
    return any(_matches(entry, host, port) for entry in re.split(r"[,\s]+", no_proxy.lower()) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    name, wanted = _split_port(entry)
    if wanted is not None and wanted != port:
        return False
    address = _address(host)
    if address is not None:
        try:
            network = ipaddress.ip_network(name, strict=False)
        except ValueError:
            return False
        return address.version == network.version and address in network
    domain = name.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    if found := re.fullmatch(r"\[([^]]*)\](/\d+)?(?::(\d+))?", entry):
        return found[1] + (found[2] or ""), int(found[3]) if found[3] else None
    if found := re.fullmatch(r"([^:]*):(\d+)", entry):
        return found[1], int(found[2])
    return entry, None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
