"""Recording of a listing: in parts, each while the next one is collected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from luxfuse.core.listed_spans import WHOLE, Span
from luxfuse.index.entries import Changes, Found
from luxfuse.index.names import Names
from luxfuse.vfs.streams import Stream

MERGE_ENTRIES = 20_000
"""Entries recorded in one transaction. As many more are collected meanwhile, and then wait for it."""
MERGE_WANTED = 4_000
"""Where readers wait for them, so many are enough, or half as many as were recorded before."""


class Recorder:
    """One listing's way into the index, and to those who read it meanwhile."""

    def __init__(
        self,
        names: Names,
        listing: tuple[int, int],
        began_s: float,
        stream: Stream,
        tell: Callable[[list[bytes]], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        """``listing``: directory and serial number. ``tell``: called with names that others have to forget."""
        self._names = names
        self._listing = listing
        self._began_s = began_s
        self._stream = stream
        self._tell = tell
        self._nursery = nursery
        self.batch: list[Found] = []
        self._spans: list[Span] = []
        self._recorded = 0
        self._total = Changes()
        self._fresh: bool | None = None
        """Whether the directory was empty at the first part."""
        self._running: trio.Event | None = None
        self._failure: Exception | None = None
        stream.begin(listing[1], began_s)
        stream.on_wanted = self._consider

    async def take(self, span: Span | None) -> None:
        """Note that ``batch`` has all of a span now. Waits if there is too much. Raises OSError, where a part failed."""
        if span is None:
            if self._spans or self._stream.spans or self._running is not None:
                await self._lose_order()
        elif span != WHOLE and span.upto != span.after:
            self._spans.append(span)
        self._consider()
        while len(self.batch) >= MERGE_ENTRIES and self._running is not None:
            await self._wait()

    def _consider(self) -> None:
        """Record what was collected, if that is enough by now."""
        wanted = self._stream.wanted and self._spans and len(self.batch) >= min(MERGE_WANTED, self._recorded // 2)
        if self._running is None and self._failure is None and (wanted or len(self.batch) >= MERGE_ENTRIES):
            batch, spans, self.batch, self._spans = self.batch, self._spans, [], []
            self._running = trio.Event()
            self._nursery.start_soon(self._merge, batch, spans, self._running)

    async def _merge(self, batch: list[Found], spans: list[Span], done: trio.Event) -> None:
        try:
            came_as = self._stream.came_as
            part = await self._names.merge(*self._listing, batch, self._began_s, last=False, came_as=came_as)
            self._recorded += len(batch)
            self._total.shadowed += part.shadowed
            self._total.deferred += part.deferred
            self._fresh = part.was_empty if self._fresh is None else self._fresh
            self._stream.recorded(spans, part)
            await self._tell(part.names)
        except Exception as exc:  # noqa: BLE001 - `_wait` raises it
            self._failure = exc
        self._running = None
        done.set()
        self._consider()

    async def _wait(self) -> None:
        while self._running is not None:
            await self._running.wait()
        if self._failure is not None:
            raise self._failure

    async def _lose_order(self) -> None:
        self._spans = []
        await self._wait()
        if self._stream.spans and not self._stream.is_disordered:
            self._stream.disordered()

    async def complete(self) -> Changes:
        """Record the last part, and the end. Returns the names that this changed, and what lost its name in all parts."""
        self._stream.on_wanted = lambda: None
        await self._wait()
        last = self.batch + self._total.deferred
        came_as = self._stream.came_as
        changes = await self._names.complete(*self._listing, self._began_s, last, fresh=self._fresh, came_as=came_as)
        self._stream.recorded(self._spans, changes)
        changes.shadowed += self._total.shadowed
        return changes

    def give_up(self) -> None:
        """Record nothing more."""
        self._stream.on_wanted = lambda: None
