"""Where a node listens, and where others reach it: one port number for datagrams and for connections."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import trio

from luxfuse import lasting
from luxfuse.core.addresses import format_address, is_ipv6, is_numeric, is_wildcard, parse_address
from luxfuse.core.members import Address
from luxfuse.errors import ConfigError

TRIES = 32
"""For a port that is free for both kinds."""
RECEIVE_BUFFER_BYTES = 1 << 20
RESOLVE_S = 10.0
_MAPPED = "::ffff:"
# From the range for documentation: what routes there routes to the rest of the world. Nothing is sent.
_V4 = socket.AF_INET
_ELSEWHERE = {_V4: ("192.0.2.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}


class Unreachable(Exception):
    """Datagrams cannot be sent to such an address."""


@dataclass(frozen=True, slots=True)
class Listening:
    """The two sockets of a node, which do not block. ``host``: numeric."""

    datagrams: socket.socket
    connections: socket.socket
    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET reaches IPv4 addresses, AF_INET6 on all interfaces reaches both."""
        return socket.AddressFamily(self.datagrams.family)

    def close(self) -> None:
        """Give the port back."""
        self.datagrams.close()
        self.connections.close()


def listen(text: str) -> Listening:
    """Listen at ``HOST:PORT``; port 0 takes one that is free. Blocks if the host is a name. Raises `ConfigError`."""
    host, port = parse_address(text)
    try:
        inherited = _inherited(text, port)
        if inherited is not None:
            return inherited
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        for _ in range(TRIES - 1 if port == 0 else 0):
            try:
                return _kept(text, _bind(family, where))
            except OSError:
                continue
        return _kept(text, _bind(family, where))
    except OSError as exc:
        raise ConfigError(f"--listen {text}: {exc.strerror or exc}; name another address or port of this machine") from None


def _kept(text: str, listening: Listening) -> Listening:
    """Have the sockets kept for a daemon that goes on when this one dies: other nodes find it where they know it to be."""
    lasting.keep(f"datagrams {text}", listening.datagrams.fileno())
    lasting.keep(f"connections {text}", listening.connections.fileno())
    return listening


def _inherited(text: str, port: int) -> Listening | None:
    """Take up what a daemon before this one has kept. Raises OSError.

    It may have died between its two sockets: then the other one is made beside the one that is there. To give that back,
    and to take the port anew, would meet the keeper, which has it until it hears of that.
    """
    found = {kind: fd for kind in ("datagrams", "connections") if (fd := lasting.take(f"{kind} {text}")) is not None}
    if not found:
        return None
    with contextlib.ExitStack() as undo:
        kept = {kind: undo.enter_context(socket.socket(fileno=fd)) for kind, fd in found.items()}
        known = next(iter(kept.values()))
        try:
            listening = _bind(known.family, known.getsockname(), kept.get("datagrams"), kept.get("connections"))
        except OSError:
            if port:
                raise
            for kind, sock in kept.items():  # its other half is taken, and any port will do
                lasting.unlock(Path(f"{kind} {text}"), sock.detach())
            return None
        undo.pop_all()
    return _kept(text, listening) if len(found) < 2 else listening


def _bind(
    family: int,
    where: tuple[str | int, ...] | tuple[int, bytes],
    datagrams: socket.socket | None = None,
    connections: socket.socket | None = None,
) -> Listening:
    """Make the sockets that are not there yet. Raises OSError."""
    with contextlib.ExitStack() as undo:
        if connections is None:
            connections = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            _prepare(connections)
            # For connections alone: two sockets for datagrams could share the port then.
            connections.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connections.bind(where)
        host, port = connections.getsockname()[:2]
        if datagrams is None:
            datagrams = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            _prepare(datagrams)
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            datagrams.bind((where[0], port, *where[2:]))
        for sock in (datagrams, connections):
            sock.setblocking(False)
        connections.listen(1024)
        undo.pop_all()
    return Listening(datagrams, connections, host, port)


def _prepare(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


async def advertised(listening: Listening, advertise: str | None, seeds: Sequence[Address]) -> Address:
    """Return where other nodes reach this one. Raises `ConfigError`.

    That is ``advertise`` (``HOST[:PORT]``); or the address that is listened at; or, if that stands for all, the one that
    packets to the seeds have (rather to one on another machine), else to the rest of the world.
    """
    if advertise is not None:
        host, port = parse_address(advertise, listening.port)
        return await _numeric(host, listening.family, f"--advertise {advertise}"), port or listening.port
    if not is_wildcard(listening.host):
        return listening.host, listening.port
    sources = [source for seed in seeds if (source := _source(listening.family, seed)) is not None]
    others = [source for source in sources if not _is_loopback(source)]
    fallbacks = (_source(family, address) for family, address in _ELSEWHERE.items() if family in (listening.family, _V4))
    host = next((host for host in (*others, *sources, *fallbacks) if host is not None), "127.0.0.1")
    return host, listening.port


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


async def _numeric(host: str, family: int, where: str) -> str:
    if is_numeric(host):
        return host
    wanted = socket.AF_INET if family == socket.AF_INET else socket.AF_UNSPEC
    try:
        with trio.fail_after(RESOLVE_S):
            found = await trio.to_thread.run_sync(
                lambda: socket.getaddrinfo(host, None, wanted, socket.SOCK_DGRAM), abandon_on_cancel=True
            )
    except (OSError, trio.TooSlowError) as exc:
        reason = getattr(exc, "strerror", None) or f"no answer within {RESOLVE_S:g} s"
        raise ConfigError(f"{where}: {reason}; write an address of this machine") from None
    return str(found[0][4][0])


def _source(family: int, address: Address) -> str | None:
    """Return the address of this machine that packets to ``address`` come from; None without a route. Sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(on_wire(family, address))
        except (OSError, Unreachable):
            return None
        return from_wire(sock.getsockname())[0]


@lru_cache(maxsize=8192)
def on_wire(family: int, address: Address) -> Address:
    """Return ``address`` as a socket of ``family`` takes it. Raises `Unreachable` for a name or another family."""
    host, port = address
    if not is_numeric(host) or not 0 < port <= 65535:
        raise Unreachable(f"{format_address(address)}: is not the numeric address of a node")
    if is_ipv6(host) == (family == socket.AF_INET6):
        return address
    if family == socket.AF_INET:
        raise Unreachable(f"{format_address(address)}: cannot be reached from an IPv4 address; listen at [::]")
    return _MAPPED + host, port


def from_wire(name: tuple[str | int, ...]) -> Address:
    """Return the address that a socket told."""
    return str(name[0]).removeprefix(_MAPPED), int(name[1])
