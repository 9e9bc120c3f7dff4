"""Whole directory listings, from the under-store into the index."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable

import trio

from luxfuse.core import names as naming
from luxfuse.core.listed_spans import Span
from luxfuse.index.names import ROOT_INODE, Found, Names
from luxfuse.types import Kind, ListPage
from luxfuse.understore.listing import list_directory
from luxfuse.understore.retrying import Store
from luxfuse.vfs.errors import Moved
from luxfuse.vfs.kernel import KERNEL_BATCH, Kernel
from luxfuse.vfs.moving import Moving
from luxfuse.vfs.recording import Recorder
from luxfuse.vfs.shared_answers import SharedAnswer
from luxfuse.vfs.streams import Stream

log = logging.getLogger(__name__)

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
        self._running: dict[int, tuple[SharedAnswer[int | None], Stream]] = {}
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
        running, _ = await self._begin(directory, prefix, moves, not_before_s)
        return await running.wait()

    async def begin(self, directory: int, prefix: str, moves: int, not_before_s: float) -> Stream | int | None:
        """As `fetch`, but returns the listing while it is under way as soon as there is anything to be read of it.

        Also where it has failed by then: the error comes behind the names, however soon that was.
        """
        running, stream = await self._begin(directory, prefix, moves, not_before_s)
        await stream.begun()
        if stream.spans and (not stream.over or stream.error is not None):
            return stream
        return await running.wait()

    async def _begin(
        self, directory: int, prefix: str, moves: int, not_before_s: float
    ) -> tuple[SharedAnswer[int | None], Stream]:
        while (listing := self._running.get(directory)) is not None and listing[0].began_s < not_before_s:
            await listing[0].done.wait()
        if listing is None:
            listing = self._running[directory] = SharedAnswer(self._clock()), Stream(self._names, directory)
            self._nursery.start_soon(self._run, directory, prefix, moves, *listing)
        return listing

    async def _run(
        self, directory: int, prefix: str, moves: int, running: SharedAnswer[int | None], stream: Stream
    ) -> None:
        async def fetch() -> int | None:
            async with self._limiter:
                return await self._fetch(directory, prefix, moves, stream)

        try:
            await running.get(fetch, "listing", repr(prefix), f"directory {prefix!r} was listed")
        finally:
            self._names.listings.end(directory)
            del self._running[directory]
            stream.end(running.error)

    async def _fetch(self, directory: int, prefix: str, moves: int, stream: Stream) -> int | None:
        serial = self._names.listings.begin(directory)
        exists = directory == ROOT_INODE
        failed: Exception | None = None

        async def tell(names: list[bytes]) -> None:
            await self._tell_kernel(directory, names)

        async def take(page: ListPage, span: Span | None) -> None:
            nonlocal exists
            self._require_unmoved(directory, prefix, moves)
            exists = True
            self._collect(page, len(prefix), recorder.batch)
            await recorder.take(span)

        async with trio.open_nursery() as nursery:
            recorder = Recorder(self._names, (directory, serial), self._clock(), stream, tell, nursery)
            try:
                await list_directory(self._store, prefix, take)
                self._require_unmoved(directory, prefix, moves)
                total = await recorder.complete()
            except Exception as exc:  # noqa: BLE001 - else the nursery would raise it in a group
                recorder.give_up()
                failed = exc
        if failed is not None:
            raise failed
        await self._tell_kernel(directory, total.names)
        if not exists:  # beside what was made here and is not there yet
            return None
        self.listings += 1
        if total.shadowed:
            self._skip(total.shadowed, prefix, "a file and a directory (or symlink) of one name")
        return serial

    async def replay(
        self, directory: int, prefix: str, moves: int, asked_s: float, parts: AsyncIterator[list[Found]]
    ) -> bool:
        """Record what the store said of a directory at ``asked_s``, as others have noted it.

        False: a listing as new is known, or one is under way; then nothing is taken of ``parts``. What was looked up or
        changed since ``asked_s`` stays. Raises `Moved`, `NotRecorded`, and the errors of ``parts``.
        """
        known = self._names.listings.of(directory)
        if directory in self._running or (known is not None and known.fetched_s >= asked_s):
            return False
        running: SharedAnswer[int | None] = SharedAnswer(asked_s)
        stream = Stream(self._names, directory)
        self._running[directory] = running, stream
        try:
            await running.get(
                lambda: self._replay(directory, prefix, moves, asked_s, parts), "listing", repr(prefix),
                f"directory {prefix!r} was noted",
            )  # fmt: skip
        finally:
            self._names.listings.end(directory)
            del self._running[directory]
            stream.end(running.error)
        if running.error is not None:
            raise running.error
        return True

    async def _replay(
        self, directory: int, prefix: str, moves: int, asked_s: float, parts: AsyncIterator[list[Found]]
    ) -> int:
        serial = self._names.listings.begin(directory)
        last: list[Found] = []
        deferred: list[Found] = []
        fresh: bool | None = None
        async for part in parts:
            self._require_unmoved(directory, prefix, moves)
            if last:
                changes = await self._names.merge(directory, serial, last, asked_s, last=False)
                fresh = changes.was_empty if fresh is None else fresh
                deferred += changes.deferred
                await self._tell_kernel(directory, changes.names)
            last = part
        self._require_unmoved(directory, prefix, moves)
        # The last part, mostly the only one, in one transaction with the end: each takes a write to the disk.
        total = await self._names.complete(directory, serial, asked_s, last + deferred, fresh=fresh)
        await self._tell_kernel(directory, total.names)
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
