"""A server of pages in a test, with a provider that has what the test gives it."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import xxhash

from luxfuse.core.members import NodeInfo, Want
from luxfuse.errors import PeerRefused, Refusal
from luxfuse.peers import links
from luxfuse.peers.client import Client
from luxfuse.peers.credentials import Credentials
from luxfuse.peers.provider import Provided
from luxfuse.peers.server import Server, listen
from luxfuse.types import PAGE_BYTES

SERVER, CLIENT = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
SOURCE = b"source 1"


def keys_of(name: str, cluster: bytes = b"one") -> Credentials:
    """What a node proves with that it belongs to a cluster."""
    return Credentials((cluster.ljust(32),), name=name, stamp_ns=1)


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that look random."""
    return random.Random(seed).randbytes(size)


def sums_of(data: bytes) -> tuple[int, ...]:
    """The checksums of pages."""
    return tuple(xxhash.xxh3_64_intdigest(data[i : i + PAGE_BYTES]) for i in range(0, len(data), PAGE_BYTES))


def want(key: str, size: int, first: int = 0, count: int | None = None) -> Want:
    """Pages of an object of the test's source, all of them by default."""
    return Want(SOURCE, key, "v1", size, first, -(-size // PAGE_BYTES) if count is None else count)


class FakeProvider:
    """Has objects in memory, and in files where ``in_files``."""

    def __init__(self, objects: dict[str, bytes], *, in_files: bool = False) -> None:
        self.objects = objects
        self.asked: list[tuple[Want, bool]] = []
        self.given = self.released = 0
        self.gate = trio.Event()
        self.gate.set()
        self._fds: dict[str, int] = {}
        if in_files:
            for key, data in objects.items():
                fd = self._fds[key] = os.memfd_create(key)
                os.write(fd, data)

    async def provide(self, want: Want, *, fetch: bool) -> Provided:
        self.asked.append((want, fetch))
        await self.gate.wait()
        data = self.objects.get(want.key)
        if data is None:
            raise PeerRefused(Refusal.NOT_HERE)
        if want.version != "v1":
            raise PeerRefused(Refusal.CHANGED, f"{want.key} is v1")
        start = want.first * PAGE_BYTES
        part = data[start : start + want.count * PAGE_BYTES]
        self.given += 1
        if want.key in self._fds:
            return Provided(len(part), sums_of(part), fd=self._fds[want.key], offset=start, on_release=self._release)
        return Provided(len(part), sums_of(part), data=memoryview(part), on_release=self._release)

    def _release(self) -> None:
        self.released += 1

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


class Node:
    """A running server and a client of it."""

    def __init__(self, server: Server, provider: FakeProvider, client: Client) -> None:
        self.server = server
        self.provider = provider
        self.client = client
        self.info = NodeInfo(SERVER, *server.address)

    async def fetch(self, *wants: Want, fetch: bool = False, timeout_s: float = 60.0, client: Client | None = None):
        """`Client.fetch` in a thread."""
        chosen = client or self.client
        return await trio.to_thread.run_sync(lambda: chosen.fetch(self.info, wants, fetch=fetch, timeout_s=timeout_s))


@asynccontextmanager
async def running(objects: dict[str, bytes], *, tls: bool, in_files: bool = False) -> AsyncIterator[Node]:
    """Run a server, and close what is open afterwards."""
    provider = FakeProvider(objects, in_files=in_files)
    server = Server(listen(("127.0.0.1", 0)), keys_of(SERVER), tls=tls, provider=provider)
    client = Client(keys_of(CLIENT), tls=tls)
    connect_s, links.CONNECT_S = links.CONNECT_S, 60.0  # the last of many at once has to wait for its turn
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            yield Node(server, provider, client)
            nursery.cancel_scope.cancel()
    finally:
        links.CONNECT_S = connect_s
        client.close()
        provider.close()
