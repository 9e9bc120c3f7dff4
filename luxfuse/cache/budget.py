"""Bounds on memory: bytes of requests in flight, and of fetched pages that wait to be read."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from luxfuse.types import Buffer

YIELD_S = 0.02
LONGEST_YIELD_S = 0.5
"""For how long one slice of work in the background waits at most: it must not stop for ever."""


class ByteBudget:
    """Lets at most ``limit_bytes`` be held at once; first come, first served. One larger claim is let through alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is held and nobody waits."""
        return self._held == 0 and not self._waiting

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._held

    @property
    def limit_bytes(self) -> int:
        """The most that is held at once."""
        return self._limit

    async def let_others_go_first(self) -> None:
        """Wait until nothing is held, for `LONGEST_YIELD_S` at most: for work in the background, which never ends."""
        with trio.move_on_after(LONGEST_YIELD_S):
            while not self.idle:  # noqa: ASYNC110 (an event would be set at the end of every request)
                await trio.sleep(YIELD_S)

    def _fits(self, claim: int) -> bool:
        return self._held == 0 or self._held + claim <= self._limit

    def try_hold(self, claim_bytes: int) -> bool:
        """Hold ``claim_bytes`` if that is possible at once; give them back with `give_back`."""
        if self._waiting or not self._fits(claim_bytes):
            return False
        self._held += claim_bytes
        return True

    @asynccontextmanager
    async def hold(self, claim_bytes: int) -> AsyncIterator[None]:
        """Wait for ``claim_bytes`` and hold them for the block."""
        if self._waiting or not self._fits(claim_bytes):
            turn = trio.Event()
            ticket = (claim_bytes, turn)
            self._waiting.append(ticket)
            try:
                await turn.wait()
            except BaseException:
                if turn.is_set():
                    self.give_back(claim_bytes)
                else:
                    self._waiting.remove(ticket)
                    self._admit()
                raise
        else:
            self._held += claim_bytes
        try:
            yield
        finally:
            self.give_back(claim_bytes)

    def give_back(self, claim: int) -> None:
        """End what `try_hold` began."""
        self._held -= claim
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            claim, turn = self._waiting.popleft()
            self._held += claim
            turn.set()


class RecentPages:
    """Pages fetched or verified lately, in memory, so that a reader that comes at once does not read the disk.

    Bounded by bytes, least recently used first out. A page that a stream has read to its end is discarded by the
    reader: the kernel has it now. A page that is a part of a larger buffer, as those of one run are, keeps all of that
    alive; so buffers are counted, each as a whole and once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._pages: OrderedDict[tuple[bytes, int], Buffer] = OrderedDict()
        self._parts: dict[int, int] = {}
        """How many pages are parts of a buffer, by its identity."""

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, oid: bytes, page: int) -> Buffer | None:
        """Return a page's bytes if they are here."""
        found = self._pages.get((oid, page))
        if found is not None:
            self._pages.move_to_end((oid, page))
        return found

    def has_any(self, oid: bytes, pages: int) -> bool:
        """Whether any of an object's first ``pages`` is here."""
        return bool(self._pages) and any((oid, page) in self._pages for page in range(pages))

    def put(self, oid: bytes, page: int, data: Buffer) -> None:
        """Keep a page for a while."""
        self.discard(oid, page)
        self._pages[oid, page] = data
        buffer = _whole(data)
        parts = self._parts.get(id(buffer), 0)
        self._parts[id(buffer)] = parts + 1
        if not parts:
            self._bytes += memoryview(buffer).nbytes
        while self._bytes > self._limit:
            _, dropped = self._pages.popitem(last=False)
            self._uncount(dropped)

    def discard(self, oid: bytes, page: int) -> None:
        """Forget a page."""
        old = self._pages.pop((oid, page), None)
        if old is not None:
            self._uncount(old)

    def _uncount(self, data: Buffer) -> None:
        buffer = _whole(data)
        parts = self._parts.pop(id(buffer)) - 1
        if parts:
            self._parts[id(buffer)] = parts
        else:
            self._bytes -= memoryview(buffer).nbytes


def _whole(data: Buffer) -> Any:
    """Return what keeps the memory of ``data``."""
    return data.obj if isinstance(data, memoryview) else data
