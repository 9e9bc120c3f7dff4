"""Whole directory listings, from the under-store into the index."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import trio

from luxfuse.core import names as naming
from luxfuse.index.names import ROOT_INODE, Changes, Found, Names
from luxfuse.types import Kind, ListPage
from luxfuse.understore.listing import list_directory
from luxfuse.understore.retrying import Store
from luxfuse.vfs.errors import Moved
from luxfuse.vfs.kernel import KERNEL_BATCH, Kernel
from luxfuse.vfs.moving import Moving
from luxfuse.vfs.shared_answers import SharedAnswer

log = logging.getLogger(__name__)

MERGE_ENTRIES = 20_000
"""Entries recorded in one transaction. As many more are collected meanwhile, and then wait for it."""
CONCURRENT_LISTINGS = 8


class Lister:
    """Lists directories, each one once however many ask."""

    def __init__(
        self,
        *,
        store: Store,
        names: Names,
        moving: Moving,
        kernel: Kernel,
        nursery: trio.Nursery,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._names = names
        self.moving = moving
        self._kernel = kernel
        self._nursery = nursery
        self._clock = clock
        self._running: dict[int, SharedAnswer[int | None]] = {}
        self._limiter = trio.CapacityLimiter(CONCURRENT_LISTINGS)
        self.skipped_keys = 0
        self.listings = 0

    def is_listing(self, directory: int) -> bool:
        """Whether a listing of the directory is on its way."""
        return directory in self._running

    async def fetch(self, directory: int, prefix: str, moves: int, not_before_s: float) -> int | None:
        """List ``prefix`` into ``directory``; returns the listing's serial number, None if it does not exist.

        ``moves``: the number that `Moving.under_one_name` returned when the prefix was found out. A listing that is on its
        way will do if it did not begin before ``not_before_s``. Raises `Moved`, `StoreError`, `NotRecorded`.
        """
        while (running := self._running.get(directory)) is not None and running.began_s < not_before_s:
            await running.done.wait()
        if running is None:
            running = self._running[directory] = SharedAnswer(self._clock())
            self._nursery.start_soon(self._run, directory, prefix, moves, running)
        await running.done.wait()
        if running.error is not None:
            raise running.error
        return running.answer

    async def _run(self, directory: int, prefix: str, moves: int, running: SharedAnswer[int | None]) -> None:
        async def fetch() -> int | None:
            async with self._limiter:
                return await self._fetch(directory, prefix, moves)

        try:
            await running.get(fetch, "listing", repr(prefix), f"directory {prefix!r} was listed")
        finally:
            self._names.listings.end(directory)
            del self._running[directory]

    async def _fetch(self, directory: int, prefix: str, moves: int) -> int | None:
        serial = self._names.listings.begin(directory)
        began_s = self._clock()
        parts = _Parts(self._names, directory, serial, began_s)
        exists = directory == ROOT_INODE

        async def take(page: ListPage) -> None:
            nonlocal exists
            self._require_unmoved(directory, prefix, moves)
            exists = True
            self._collect(page, len(prefix), parts.batch)
            if len(parts.batch) >= MERGE_ENTRIES:
                await self._tell_kernel(directory, await parts.merged())
                parts.merge(nursery)

        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                await list_directory(self._store, prefix, take)
                self._require_unmoved(directory, prefix, moves)
                await self._tell_kernel(directory, await parts.merged())
            except Exception as exc:  # noqa: BLE001 - else the nursery would raise it in a group
                failed = exc
        if failed is not None:
            with contextlib.suppress(OSError):  # of a part, which nobody is told of then
                await self._tell_kernel(directory, await parts.merged())
            raise failed
        total = await parts.complete()
        await self._tell_kernel(directory, total.names)
        if not exists:  # beside what was made here and is not there yet
            return None
        self.listings += 1
        if total.shadowed:
            self._skip(total.shadowed, prefix, "a file and a directory (or symlink) of one name")
        return serial

    def _require_unmoved(self, directory: int, prefix: str, moves: int) -> None:
        if self.moving.since(directory, moves):
            raise Moved(f"directory {prefix!r} has another name now")

    async def _tell_kernel(self, directory: int, names: list[bytes]) -> None:
        """Names of a directory have got another inode number, or went."""
        for start in range(0, len(names), KERNEL_BATCH):
            if start and not await self._kernel.forgotten():
                return  # the time-outs take care of the rest
            for name in names[start : start + KERNEL_BATCH]:
                self._kernel.invalidate_entry(directory, name)

    def _collect(self, page: ListPage, cut: int, batch: list[Found]) -> None:
        for prefix in page.prefixes:
            name = naming.name_of(prefix[cut:-1])
            if name is None:
                self._skip(1, prefix, "it cannot be a file name")
            else:
                batch.append(Found(name, Kind.DIRECTORY))
        for info in page.objects:
            classified = naming.classify(info.key[cut:])
            if classified is None:
                self._skip(1, info.key, "it cannot be a file name")
            else:
                batch.append(Found(classified[0], classified[1], info.size, info.version, info.mtime_ns))

    def _skip(self, count: int, key: str, why: str) -> None:
        if self.skipped_keys == 0:
            log.warning("skipping key %r: %s; further skipped keys are only counted", key, why)
        self.skipped_keys += count


class _Parts:
    """The parts of one listing: each is recorded while the next one is collected."""

    def __init__(self, names: Names, directory: int, serial: int, began_s: float) -> None:
        self._names = names
        self._listing = directory, serial
        self._began_s = began_s
        self.batch: list[Found] = []
        self._total = Changes()
        self._fresh: bool | None = None
        """Whether the directory was empty at the first part."""
        self._running: trio.Event | None = None
        self._changes = Changes()
        self._failure: Exception | None = None

    def merge(self, nursery: trio.Nursery) -> None:
        """Begin to record what has been collected; `merged` waits for it, and comes before the next."""
        batch, self.batch, self._running = self.batch, [], trio.Event()
        nursery.start_soon(self._merge, batch, self._running)

    async def _merge(self, batch: list[Found], done: trio.Event) -> None:
        try:
            self._changes = await self._names.merge(*self._listing, batch, self._began_s, last=False)
        except Exception as exc:  # noqa: BLE001 - `merged` raises it
            self._failure = exc
        done.set()

    async def merged(self) -> list[bytes]:
        """Wait for the part that is being recorded, if there is one; returns the names that changed. Raises OSError."""
        if self._running is None:
            return []
        await self._running.wait()
        self._running, failure, part = None, self._failure, self._changes
        if failure is not None:
            raise failure
        self._total.shadowed += part.shadowed
        self._total.deferred += part.deferred
        self._fresh = part.was_empty if self._fresh is None else self._fresh
        return part.names

    async def complete(self) -> Changes:
        """Record the last part, and the end. Returns the names that this changed, and what lost its name in all parts."""
        last = self.batch + self._total.deferred
        changes = await self._names.complete(*self._listing, self._began_s, last, fresh=self._fresh)
        changes.shadowed += self._total.shadowed
        return changes
