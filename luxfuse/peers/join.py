"""The nodes to begin with: ``HOST:PORT``, a name with any number of addresses, or ``file:PATH`` with one of these a line.

Names are resolved, and files read, again and again, since nodes come and go; in threads, with a deadline. Trouble with an
entry is logged once, until it is over.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from luxfuse.core.addresses import SEED_FILE, is_numeric, parse_seed
from luxfuse.core.members import Address
from luxfuse.errors import ConfigError

log = logging.getLogger(__name__)

MOST_ADDRESSES = 4096
MOST_FILE_BYTES = 1 << 20
MOST_NAMES = 256
"""In a file; numeric addresses do not count."""
DEADLINE_S = 10.0
MOST_THREADS = 8

Lookup = Callable[[str, int], list[Address]]


class Seeds:
    """The addresses that the entries of ``--join`` stand for at a time."""

    def __init__(self, entries: Sequence[str], *, family: int, lookup: Lookup | None = None) -> None:
        """``family``: of the socket that will send there. Blocks. Raises `ConfigError` for a file that cannot be used."""
        self._entries = tuple(entries)
        self._lookup = lookup or _system_lookup(family)
        self._limiter = trio.CapacityLimiter(MOST_THREADS)  # lookups that hang keep their threads
        self._troubles: dict[str, str] = {}
        for entry in self._entries:
            if entry.startswith(SEED_FILE):
                try:
                    _read(entry)
                except ValueError as exc:
                    raise ConfigError(f"--join {entry}: {exc}") from None

    def __bool__(self) -> bool:
        return bool(self._entries)

    async def resolve(self) -> list[Address]:
        """Return all addresses, each once; numeric ones. Takes at most `DEADLINE_S` for files, and for names."""
        written: list[str] = []
        names = 0
        for entry in self._entries:
            written += await self._lines(entry) if entry.startswith(SEED_FILE) else [entry]
        addresses = [parse_seed(text) for text in dict.fromkeys(written)]
        found: dict[Address, list[Address]] = {}
        async with trio.open_nursery() as nursery:
            for address in addresses:
                if is_numeric(address[0]):
                    found[address] = [address]
                elif names < MOST_NAMES:
                    names += 1
                    found[address] = []
                    nursery.start_soon(self._resolve, address, found[address])
        every = dict.fromkeys(each for address in addresses for each in found.get(address, ()))
        return list(every)[:MOST_ADDRESSES]

    async def _lines(self, entry: str) -> list[str]:
        with trio.move_on_after(DEADLINE_S):
            try:
                lines = await trio.to_thread.run_sync(_read, entry, limiter=self._limiter, abandon_on_cancel=True)
            except ValueError as exc:
                self._note(entry, str(exc))
                return []
            self._note(entry, None)
            return lines
        self._note(entry, f"not read within {DEADLINE_S:g} s")
        return []

    async def _resolve(self, address: Address, into: list[Address]) -> None:
        host, port = address
        with trio.move_on_after(DEADLINE_S):
            try:
                into += await trio.to_thread.run_sync(
                    self._lookup, host, port, limiter=self._limiter, abandon_on_cancel=True
                )
            except OSError as exc:
                self._note(host, exc.strerror or str(exc))
            else:
                self._note(host, None)
            return
        self._note(host, f"not resolved within {DEADLINE_S:g} s")

    def _note(self, entry: str, trouble: str | None) -> None:
        """Log trouble with an entry, or its end, unless that is known."""
        before = self._troubles.get(entry)
        if trouble is None:
            if before is not None:
                del self._troubles[entry]
                log.info("--join %s: can be used again", entry)
        elif before is None and len(self._troubles) < MOST_NAMES:
            self._troubles[entry] = trouble
            log.warning("--join %s: %s; it is tried again", entry, trouble)


def _system_lookup(family: int) -> Lookup:
    wanted = socket.AF_INET if family == socket.AF_INET else socket.AF_UNSPEC

    def lookup(host: str, port: int) -> list[Address]:
        found = socket.getaddrinfo(host, port, wanted, socket.SOCK_DGRAM)
        return list(dict.fromkeys((str(where[0]), int(where[1])) for *_, where in found))

    return lookup


def _read(entry: str) -> list[str]:
    """Return the addresses in a file as they are written. Blocks. Raises ValueError with a reason."""
    try:
        with Path(entry.removeprefix(SEED_FILE)).open("rb") as f:
            content = f.read(MOST_FILE_BYTES + 1)
    except OSError as exc:
        raise ValueError(exc.strerror) from None
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"longer than {MOST_FILE_BYTES} bytes")
    lines = []
    for number, raw in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        try:
            parse_seed(line)
        except ValueError as exc:
            raise ValueError(f"line {number}: {exc}") from None
        lines.append(line)
    return lines
