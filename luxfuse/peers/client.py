"""Asks other nodes: for pages, from worker threads and blocking; and with control messages, from the event loop.

Nothing that a node says is believed before it is checked: its name, how long what follows may be, and each page.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio
import xxhash

from luxfuse.core.members import Address, NodeInfo, Want
from luxfuse.errors import PeerCorrupt, PeerRefused
from luxfuse.peers.calls import Call, Caller, send_content
from luxfuse.peers.links import Link
from luxfuse.peers.signing import PROOF_BYTES, Keys
from luxfuse.peers.wire import (
    BODY_MAX_BYTES,
    LENGTH,
    META,
    PAGES_PATH,
    Malformed,
    Outcome,
    PageAnswer,
    PagesRequest,
    decode_answers,
    description,
    encoded,
    refused,
    wants_bytes,
)
from luxfuse.types import PAGE_BYTES, Description

MOST_MESSAGES = 16
"""Control messages under way at once."""

PROVIDING = 0.75
"""This share of the time the other node has to get the pages; the rest is for sending them, or saying they are late."""

checksum = xxhash.xxh3_64_intdigest


class Rpc(Protocol):
    """Small control messages between nodes, from the event loop. `Client` is one."""

    async def request(
        self, address: Address, path: str, body: bytes, *, name: str | None = None, timeout_s: float = 5.0
    ) -> bytes:
        """Return a node's answer, of at most 16 MiB. Raises `PeerRefused`, `PeerFailed`.

        ``name``: the node that must answer there; None: any node.
        """

    async def send_file(
        self, address: Address, path: str, header: bytes, fd: int, length: int, *, name: str, timeout_s: float
    ) -> bytes:
        """Send ``header`` and the first ``length`` bytes of a file; the answer as above."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of a want, which have these checksums, one a page."""

    data: memoryview
    checksums: tuple[int, ...]
    described: Description | None = None
    """The attributes of the object that the node knows."""


Result = Fetched | PeerRefused | PeerCorrupt
"""The outcome of a want."""


class Client:
    """For any thread. It is for its caller to bound how many threads call at once."""

    def __init__(self, keys: Keys, *, tls: bool, clock: Callable[[], float] = time.time) -> None:
        """Without ``tls``, each request and answer is proven by itself. ``clock``: wall-clock seconds."""
        self._caller = Caller(keys, tls=tls, clock=clock)
        self._messages = trio.CapacityLimiter(MOST_MESSAGES)

    def close(self) -> None:
        """Close the kept connections."""
        self._caller.pool.close()

    def forget(self, address: Address) -> None:
        """Close the kept connections to a node that is gone."""
        self._caller.pool.forget(address)

    def sweep(self) -> None:
        """Close connections that were idle for too long. To be called now and then."""
        self._caller.pool.sweep()

    def fetch(self, member: NodeInfo, wants: Sequence[Want], *, fetch: bool, timeout_s: float) -> list[Result]:
        """Return what becomes of each want, in order. Blocks: call it in a thread.

        ``fetch``: the node shall get what it lacks from the under-store. The wants must keep to the limits of
        `wire.wants_bytes`. Raises `PeerRefused` if it is busy, `PeerFailed`.
        """
        lengths = wants_bytes(wants)
        body = encoded(PagesRequest(list(wants), fetch, timeout_s * PROVIDING))
        with Call(self._caller, member.address, member.name, timeout_s) as call:
            call.ask(PAGES_PATH, [], body)
            answers = decode_answers(call.meta(), wants)
            granted = [
                length if answer.outcome is Outcome.OK else 0 for length, answer in zip(lengths, answers, strict=True)
            ]
            if call.left != sum(granted):
                raise Malformed(f"{call.left} bytes of pages where {sum(granted)} are due")
            data = memoryview(bytearray(sum(granted)))
            call.receive_into(data)
        return list(_results(member.name, data, granted, answers, wants))

    async def request(
        self, address: Address, path: str, body: bytes, *, name: str | None = None, timeout_s: float = 5.0
    ) -> bytes:
        job = partial(self._message, address, path, body, name, timeout_s)
        return await trio.to_thread.run_sync(job, limiter=self._messages, abandon_on_cancel=True)

    async def send_file(
        self, address: Address, path: str, header: bytes, fd: int, length: int, *, name: str, timeout_s: float
    ) -> bytes:
        own = os.dup(fd)  # the thread may outlive a cancelled caller, and its descriptor
        job = partial(self._send_file, address, path, header, own, length, name, timeout_s)
        return await trio.to_thread.run_sync(job, limiter=self._messages, abandon_on_cancel=True)

    def _message(self, address: Address, path: str, body: bytes, name: str | None, timeout_s: float) -> bytes:
        with Call(self._caller, address, name, timeout_s) as call:
            call.ask(path, [], body)
            return call.whole(BODY_MAX_BYTES)

    def _send_file(
        self, address: Address, path: str, header: bytes, fd: int, length: int, name: str, timeout_s: float
    ) -> bytes:
        signer = self._caller.signer
        total = len(header) + length + (PROOF_BYTES if signer is not None else 0)
        headers = [(LENGTH, b"%d" % total), (META, b"%d" % len(header))]

        def content(link: Link, nonce: bytes) -> None:
            send_content(link, fd, length, None if signer is None else partial(signer.content, nonce))

        try:
            with Call(self._caller, address, name, timeout_s) as call:
                call.ask(path, headers, header, content)
                return call.whole(BODY_MAX_BYTES)
        finally:
            os.close(fd)


def _results(
    name: str, data: memoryview, granted: Sequence[int], answers: Sequence[PageAnswer], wants: Sequence[Want]
) -> Iterator[Result]:
    """Compare what came with the checksums that the node stated."""
    start = 0
    for length, answer, want in zip(granted, answers, wants, strict=True):
        if answer.outcome is not Outcome.OK:
            yield refused(answer)
            continue
        part = data[start : start + length]
        start += length
        found = tuple(checksum(part[i : i + PAGE_BYTES]) for i in range(0, length, PAGE_BYTES))
        if found == answer.checksums:
            yield Fetched(part, found, description(answer, want))
        else:
            yield PeerCorrupt(f"node {name} sent pages that are not what their checksums say")
