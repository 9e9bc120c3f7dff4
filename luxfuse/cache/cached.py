"""A cached object while somebody uses it, and a fetch on its way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import trio

from luxfuse import origins
from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.space import Space
from luxfuse.core.heat import Heat
from luxfuse.core.ledger import Ledger, allocated_bytes
from luxfuse.core.spans import page_bytes
from luxfuse.errors import StoreError
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.pages import Pages
from luxfuse.types import PAGE_BYTES, ObjectInfo

_claiming = threading.Lock()


class Flight:
    """One request for a run of pages. Waiters take the bytes from here: they need not be stored anywhere else."""

    __slots__ = (
        "_arrived", "_claimed", "_size", "asked_s", "asks_peer", "attempt", "budget", "data", "done",
        "error", "fd", "from_store", "had_turn", "keep_in_memory", "later", "length", "on_end", "opens", "pages", "quota",
        "source", "taken", "waits_for_peer",
    )  # fmt: skip

    def __init__(
        self,
        pages: range,
        size_bytes: int,
        keep_in_memory: bool,
        on_end: Callable[[int], None] | None,
        budget: ByteBudget,
        later: bool = False,
    ) -> None:
        """A request for ``pages`` of an object of ``size_bytes``; see `PageCache.start` for the rest."""
        self.pages = pages
        self._size = size_bytes
        self.length = min(size_bytes, pages.stop * PAGE_BYTES) - pages.start * PAGE_BYTES
        self.keep_in_memory = keep_in_memory
        self.on_end = on_end
        self.opens = on_end is not None
        """Whether its cache file is to stay open, for `on_end`; one that is set later takes no file."""
        self.later = later
        self.fd = -1
        self.had_turn = False
        """Whether the rules have let it go; see `Calls.turn`."""
        self.attempt = 0
        """Rises when an attempt is over, for whatever reason: a thread that is still at it then has nothing to store."""
        self.asked_s: float | None = None
        """When its first attempt was begun, by the clock of the loop; the others share that one's deadline."""
        self._claimed = -1
        self.budget = budget
        """The budget that its memory is held of."""
        self.from_store = False
        """Whether no peer is to be asked: one waits for it, as we are to get it for all."""
        self.asks_peer = False
        """Whether a peer was asked."""
        self.waits_for_peer = False
        """Whether a peer was asked that may have to get it from the under-store first."""
        self.done = trio.Event()
        self._arrived: trio.Event | None = None
        """Where somebody waits for the bytes."""
        self.taken: set[int] = set()
        """Pages that a reader has read to their end: the kernel has them now."""
        self.quota: Ledger | None = None
        """Where room for it is reserved besides that in a directory."""
        self.source = origins.STORE
        """Where its bytes came from, once they are there."""
        self.data: memoryview | None = None
        self.error: Exception | None = None

    def claim(self, attempt: int) -> bool:
        """Whether a thread may store what it got: nobody else did in this attempt, which is not over yet."""
        with _claiming:
            if self.attempt != attempt or self._claimed == attempt:
                return False
            self._claimed = attempt
            return True

    def settle_quota(self) -> None:
        """End the reservation in a quota, which counts stored bytes by itself."""
        if self.quota is not None:
            self.quota.settle(allocated_bytes(self.length), 0)
            self.quota = None

    def bring(self, data: memoryview, token: trio.lowlevel.TrioToken) -> None:
        """Let readers have the bytes that came, which are not stored yet; called by the thread that got them.

        To wake the loop costs a system call, so it is done only if somebody waits.
        """
        self.data = data
        arrived = self._arrived  # it is made before `data` is looked at, so one of the two sees the other
        if arrived is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(arrived.set)

    async def arrived(self) -> None:
        """Wait until the bytes are here. Raises the error of a flight that failed without."""
        if self._arrived is None:
            self._arrived = trio.Event()
        if self.data is None and not self.done.is_set():
            await self._arrived.wait()
        if self.data is None:
            raise self.error or StoreError("nothing arrived")

    async def landed(self) -> None:
        """Wait for the end. Raises the error of a flight that failed."""
        await self.done.wait()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """It is over: `error` says how."""
        if self._arrived is not None:
            self._arrived.set()
        self.done.set()

    def page(self, page: int) -> memoryview:
        """Return the bytes of one page of the run, which have `arrived`."""
        assert self.data is not None
        start = (page - self.pages.start) * PAGE_BYTES
        return self.data[start : start + page_bytes(page, self._size)]


class CachedObject:
    """One version of one object. ``users`` counts its uses: handles, fetches, hand-overs."""

    __slots__ = (
        "cuts", "described", "distrusts", "file_number", "flights", "heat", "loaded_stamp", "oid", "pages", "record",
        "space", "strangers", "trusted", "unsaved", "used", "users",
    )  # fmt: skip

    def __init__(self, oid: bytes, record: ObjectRecord, pages: Pages, space: Space | None = None) -> None:
        self.oid = oid
        self.record = record
        self.pages = pages
        self.space = space
        """The directory that has its file, or is to get it; None if none does."""
        self.users = 0
        self.used = False
        """Whether somebody asked for it since it was loaded: it was not only fetched ahead."""
        self.file_number = 0
        """Inode number of the cache file; 0 while we have not seen it."""
        self.flights: dict[int, Flight] = {}
        self.heat = Heat(pages.total)
        self.cuts = 0
        """How often pages were taken out of the file: bytes that were read from it meanwhile may be holes."""
        self.trusted: set[int] = set()
        """Pages written or verified by this daemon since nobody else wrote to the file."""
        self.strangers = 0
        """How often we know somebody else to have written to the file; see `Stored`."""
        self.distrusts = 0
        """How often `trusted` was emptied because of that."""
        self.loaded_stamp = record.stamp
        """The mtime that our last write to the file left when this was loaded."""
        self.described: tuple[ObjectInfo, float] | None = None
        """The description by the under-store at the last read, and when it was asked: peers are told."""
        self.unsaved = False
        """Whether the index missed a change of the pages: the next one that it takes stores all of them."""

    @property
    def size(self) -> int:
        """Size of the object in bytes."""
        return self.record.size

    @property
    def whole(self) -> bool:
        """Whether every page is on disk."""
        return self.pages.whole

    @property
    def cached_bytes(self) -> int:
        """Bytes of the object that are on disk."""
        if self.pages.count == 0:
            return 0
        last = self.pages.total - 1
        missing_tail = PAGE_BYTES - page_bytes(last, self.size) if self.pages.has(last) else 0
        return self.pages.count * PAGE_BYTES - missing_tail

    def put_in(self, space: Space) -> None:
        """Its file is, or is to be, in this directory."""
        self.space = space
        self.record.directory = space.number

    def forget_pages(self) -> None:
        """The file is gone: nothing is on disk."""
        self.cuts += 1
        if not self.flights:
            self.space = None
        self.pages = Pages(self.record.size)
        self.file_number = 0
        self.strangers = 0
        self.trusted.clear()
        self.record.whole = False
