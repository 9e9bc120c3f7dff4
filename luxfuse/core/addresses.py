"""Addresses of nodes as people write them: ``host:port``, ``[IPv6]:port``, or a file that names some."""

from __future__ import annotations

import ipaddress
import re

from luxfuse.core.members import Address

DEFAULT_PORT = 7950
"""Where a node listens, by UDP and by TCP, if nothing else is said."""
SEED_FILE = "file:"
"""Begins an entry of ``join`` that names a file, with an address a line."""
MOST_SEEDS = 64
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Return host and port of ``HOST``, ``HOST:PORT``, ``[IPv6]`` or ``[IPv6]:PORT``. Raises ValueError with a reason."""
    refusal = f"{text!r} is no address; write HOST:PORT, or [IPv6]:PORT"
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", text.strip())
    if match is None:
        raise ValueError(refusal)
    bracketed, plain, port = match.groups()
    if bracketed is not None:
        if not is_ipv6(bracketed):
            raise ValueError(refusal)
    elif _HOST.fullmatch(plain) is None:
        raise ValueError(refusal)
    number = default_port if port is None else int(port)
    if number > 65535:
        raise ValueError(f"{text!r}: there is no port {number}; ports go to 65535")
    return bracketed if bracketed is not None else plain, number


def parse_seeds(written: object) -> tuple[str, ...]:
    """Return the entries of ``join``, each once: of a list, or of one text with commas or spaces between them.

    Raises ValueError for one that is neither an address nor ``file:PATH``, TypeError for what is no text.
    """
    texts = re.split(r"[,\s]+", written) if isinstance(written, str) else written
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError("must be text, or a list of texts: HOST:PORT")
    entries = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if len(entries) > MOST_SEEDS:
        raise ValueError(f"more than {MOST_SEEDS} entries; a few nodes suffice, or write file:PATH")
    for entry in entries:
        if entry == SEED_FILE:
            raise ValueError(f"{SEED_FILE} names no file; write {SEED_FILE}PATH")
        if not entry.startswith(SEED_FILE):
            parse_seed(entry)
    return entries


def parse_seed(text: str) -> Address:
    """Return the address of another node. Raises ValueError with a reason."""
    address = parse_address(text)
    if address[1] == 0 or is_wildcard(address[0]):
        raise ValueError(f"{text!r}: nobody can be reached there; write HOST:PORT of another node")
    return address


def format_address(address: Address) -> str:
    """Return an address as `parse_address` reads it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_numeric(host: str) -> bool:
    """True for an IPv4 or IPv6 address, False for a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_ipv6(host: str) -> bool:
    """True for an IPv6 address, one with a zone (``fe80::1%eth0``) included."""
    try:
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """True for the address that stands for all of a machine's."""
    return is_numeric(host) and ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches, and for the name of it."""
    return host.lower() == "localhost" or (is_numeric(host) and ipaddress.ip_address(host).is_loopback)
