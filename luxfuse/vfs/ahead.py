"""Fetching before a program asks: the next files of a directory, and the rest of a large file that is being read."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.fetching import RUN_PAGES
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.order import Predictor, numbered_successors
from luxfuse.core.spans import missing_runs
from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.types import PAGE_BYTES, Kind
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

DIRECTORIES_WATCHED = 256
PLANNED_BOUND = 256
NOTICE_EVERY = 4
"""Of the files fetched ahead, every so many tell us when the kernel opens them without asking, to keep us ahead."""
FILL_AFTER_BYTES = 8 << 20
"""A large file of which this much has been read gets the rest fetched behind its reader."""
FILL_PAUSE_S = 0.02
FILL_RUN_PAGES = 4
ON_THEIR_OWN = 0.5
"""A file of which this fraction is there is completed even after its last close."""


class Receiver(Protocol):
    """Takes the files that were fetched ahead; `luxfuse.vfs.backings.Backings` is the one."""

    def register(self, parent: int, name: bytes, entry: Entry, obj: CachedObject, fd: int, notice: bool = False) -> None:
        """Take a file that is whole. ``fd``: its open cache file, which is to be closed; -1 if there is none.

        ``notice``: its first open is to be told (`FilesAhead.opened`).
        """

    def expect(self, inode: int) -> None:
        """A file is on its way: opens of it may wait for `arrived`."""

    def arrived(self, inode: int) -> None:
        """It was registered, or will not be."""


class FilesAhead:
    """Read-ahead across the files of a directory."""

    def __init__(
        self, *, namespace: Namespace, cache: PageCache, receiver: Receiver, limit_bytes: int, largest_bytes: int
    ) -> None:
        """``limit_bytes`` bounds what is on its way at once; files above ``largest_bytes`` are left alone."""
        self._namespace = namespace
        self._cache = cache
        self._receiver = receiver
        self._limit = limit_bytes
        self._largest = largest_bytes
        self._predictors: OrderedDict[int, Predictor] = OrderedDict()
        self._planned: deque[tuple[int, bytes, Entry, bool]] = deque(maxlen=PLANNED_BOUND)
        """Files that had no room yet. They get it at later opens, not on their own: a reader that left needs none."""
        self._on_their_way = 0
        self.files = 0

    def opened(self, parent: int, name: bytes) -> None:
        """Note that a file is opened and start to fetch the ones expected next."""
        predictor = self._predictors.get(parent)
        if predictor is None:
            predictor = self._predictors[parent] = Predictor()
            if len(self._predictors) > DIRECTORIES_WATCHED:
                self._predictors.popitem(last=False)
        else:
            self._predictors.move_to_end(parent)
        following: dict[bytes, Entry] = {}

        def by_listing(after: bytes, count: int) -> list[bytes]:
            found = [(n, e) for n, e in self._namespace.after(parent, after, count, keep=True) if e.kind is Kind.FILE]
            following.update(found)
            return [n for n, _ in found]

        def by_number(after: bytes, count: int) -> list[bytes]:
            return numbered_successors(after, count, lambda n: self._namespace.peek(parent, n) is not None)

        plan = predictor.opened(name, by_listing, by_number)
        for number, expected in enumerate(plan, 1):
            entry = following.get(expected) or self._namespace.peek(parent, expected)
            if entry is not None and entry.kind is Kind.FILE and 0 < entry.size <= min(self._largest, self._limit):
                notice = number % NOTICE_EVERY == 0 or number == len(plan) or len(plan) < 2 * NOTICE_EVERY
                self._planned.append((parent, expected, entry, notice))
        small: dict[bytes, tuple[CachedObject, Callable[[int], None]]] = {}
        while self._planned and self._on_their_way + self._planned[0][2].size <= self._limit:
            self._fetch(*self._planned.popleft(), small)
        if small:
            self._cache.start_spread([obj for obj, _ in small.values()], [on_end for _, on_end in small.values()])

    def _fetch(
        self,
        parent: int,
        name: bytes,
        entry: Entry,
        notice: bool,
        small: dict[bytes, tuple[CachedObject, Callable[[int], None]]],
    ) -> None:
        """Begin to fetch a file; one of ``small``, by the id of its object, is to be begun with the others there."""
        size = entry.size
        if not self._namespace.belief.is_fresh(entry) or self._namespace.is_held(parent, name):
            return  # the open would have to ask first, and might learn of another version
        try:
            key = self._namespace.places.key(parent, name, Kind.FILE)
        except LuxError:
            return  # the directory is gone
        obj = self._cache.acquire(key, entry.version, size)
        if obj.whole or obj.flights or obj.oid in small:
            self._cache.release(obj)
            return
        self.files += 1
        self._on_their_way += size
        unfinished = 0

        def on_end(fd: int) -> None:
            nonlocal unfinished
            unfinished -= 1
            if unfinished == 0:
                self._on_their_way -= size
                # An error is not ours: the file's reader will meet it, if there is one.
                if obj.whole and self._namespace.stands_for(parent, name, entry.inode, obj.record.version):
                    self._receiver.register(parent, name, entry, obj, fd, notice)
                elif fd >= 0:  # it was written to meanwhile: what was fetched is the content of before
                    os.close(fd)
                self._receiver.arrived(entry.inode)
                self._cache.release(obj)
            elif fd >= 0:
                os.close(fd)

        if obj.pages.total <= RUN_PAGES and not self._cache.has_any(obj):
            unfinished = 1
            self._receiver.expect(entry.inode)
            small[obj.oid] = obj, on_end
            return
        unfinished = len(self._cache.start(obj, range(obj.pages.total), keep_in_memory=False, on_end=on_end))
        if not unfinished:  # every page is in memory, though not all on disk
            self._on_their_way -= size
            self._cache.release(obj)


class FillBehind:
    """Completes large files that are read in part, while nothing more urgent is on its way."""

    def __init__(self, *, cache: PageCache, nursery: trio.Nursery) -> None:
        self._cache = cache
        self._nursery = nursery
        self._filling: set[bytes] = set()

    def consider(self, obj: CachedObject) -> None:
        """Start to fill ``obj`` if enough of it has been read and it can become whole."""
        here_bytes = obj.cached_bytes + len(obj.flights) * PAGE_BYTES
        if obj.oid in self._filling or obj.whole or here_bytes < FILL_AFTER_BYTES or not self.fits(obj):
            return
        self._filling.add(obj.oid)
        shared = self._cache.acquire(obj.record.key, obj.record.version, obj.size)
        assert shared is obj
        self._nursery.start_soon(self._fill, obj)

    def fits(self, obj: CachedObject) -> bool:
        """Whether an object can become whole."""
        hierarchy = self._cache.hierarchy
        most = hierarchy.largest_bytes if obj.space is None else obj.space.capacity_bytes
        missing = obj.size - obj.cached_bytes
        return hierarchy.usable and (most is None or missing <= most // 2)

    async def _fill(self, obj: CachedObject) -> None:
        try:
            while self._wanted(obj):
                if not self._cache.budget.idle:
                    await trio.sleep(FILL_PAUSE_S)
                    continue
                run = next(missing_runs(range(obj.pages.total), obj.pages.has, FILL_RUN_PAGES), None)
                if run is None:
                    return
                before = obj.pages.count
                for flight in self._cache.start(obj, run, keep_in_memory=False, run=FILL_RUN_PAGES):
                    await flight.done.wait()
                    if flight.error is not None:
                        log.info("filling %r behind its reader stopped: %s", obj.record.key, flight.error)
                        return
                if obj.pages.count == before:
                    return  # it could not be stored
        finally:
            self._filling.discard(obj.oid)
            self._cache.release(obj)

    def _wanted(self, obj: CachedObject) -> bool:
        if obj.whole or not self.fits(obj):
            return False
        others = obj.users - 1
        return others > 0 or obj.pages.count * PAGE_BYTES >= obj.size * ON_THEIR_OWN
