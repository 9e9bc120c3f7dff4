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
from luxfuse.understore.retrying import Store
from luxfuse.vfs.errors import Moved
from luxfuse.vfs.kernel import KERNEL_BATCH, Kernel
from luxfuse.vfs.moving import Moving
from luxfuse.vfs.shared_answers import SharedAnswer

log = logging.getLogger(__name__)

MERGE_ENTRIES = 25_000
"""Entries recorded in one transaction."""
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
        batch: list[Found] = []
        total = Changes()
        exists = directory == ROOT_INODE
        async with contextlib.aclosing(self._store.list_directory(prefix)) as pages:
            async for page in pages:
                self._require_unmoved(directory, prefix, moves)
                exists = True
                self._collect(page, len(prefix), batch)
                if len(batch) >= MERGE_ENTRIES:
                    part = await self._names.merge(directory, serial, batch, began_s, last=False)
                    await self._add(directory, total, part)
                    batch = []
        self._require_unmoved(directory, prefix, moves)
        if not exists:  # beside what was made here and is not there yet
            await self._add(directory, total, await self._names.complete(directory, serial, began_s))
            return None
        await self._add(directory, total, await self._names.merge(directory, serial, batch + total.deferred, began_s))
        await self._add(directory, total, await self._names.complete(directory, serial, began_s))
        self.listings += 1
        if total.shadowed:
            self._skip(total.shadowed, prefix, "a file and a directory (or symlink) of one name")
        return serial

    def _require_unmoved(self, directory: int, prefix: str, moves: int) -> None:
        if self.moving.since(directory, moves):
            raise Moved(f"directory {prefix!r} has another name now")

    async def _add(self, directory: int, total: Changes, part: Changes) -> None:
        total.shadowed += part.shadowed
        total.deferred += part.deferred
        if part.names:
            await self._tell_kernel(directory, part.names)

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
