"""Follows a schedule: brings the files that a program has told it will open, just ahead of its opens, and keeps them.

Names are looked up a batch at a time (`orders.finding`). Small files are fetched many in one turn of a thread, and handed
to the kernel as they come, so that their opens cost the daemon nothing. Of a file that is larger than the window, as much
is brought as the window has; read-ahead does the rest.

What is opened it is told by `orders.schedules`, which asks the lanes for all schedules at once, and then wakes those that
have something to do.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, islice

import trio

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.fetching import RUN_PAGES
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.schedule import Schedule
from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.orders.finding import Finder
from luxfuse.orders.load import EXPECT_FROM
from luxfuse.orders.load_files import TOGETHER_BYTES
from luxfuse.orders.room_ahead import RoomAhead
from luxfuse.orders.window import TOGETHER, Window
from luxfuse.types import PAGE_BYTES, Kind
from luxfuse.vfs.answers import Answers
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

BATCH, FIRST = 256, 32
"""So many names are looked up together; fewer while none was brought, as a reader waits for the first of them."""
MOST_DIRECTORIES = 4096
IDLE_AFTER_S = 1.0
AWAY_S = 1.0
"""A pause while the store cannot be reached."""
SILENT_S = 3600.0
"""A schedule of which nothing is told and nothing opened for so long ends. Its program may have left, and its connection be
held by a process that it has forked."""

_PutBy = tuple[CachedObject, int, Callable[[int], None]]
"""A file, its inode, and what is to be called at the end of its request."""


class Following:
    """One schedule and its fetches, as a job. `run` it once."""

    def __init__(
        self,
        number: int,
        share: Callable[[], tuple[int, int]],
        *,
        namespace: Namespace,
        cache: PageCache,
        backings: Backings,
        answers: Answers,
        dirty: DirtyEntries,
        window: Window,
        room: RoomAhead,
        stir: Callable[[], None],
    ) -> None:
        """``share``: the bytes and files that its window may have now. ``stir``: have the lanes asked often from now on."""
        self.number = number
        self._share = share
        self._namespace = namespace
        self._cache = cache
        self._backings = backings
        self._answers = answers
        self._dirty = dirty
        self._window = window
        self._room = room
        self._stir = stir
        self._finder = Finder(namespace)
        self.schedule = Schedule(*share())
        self._scope = trio.CancelScope()
        self._news = trio.Event()
        self._has_news = False
        self._hear()
        self._together: dict[CachedObject, tuple[int, Callable[[int], None]]] = {}
        """Small files that are fetched once a whole batch of names has been looked at (see `Window.spread`), and what is
        to be called at the end of their requests."""
        self.directories: OrderedDict[int, None] = OrderedDict()
        """Those in which files were told lately."""
        self.files = self.bytes = self.failed = 0
        """Fetched so far; and the files that could not be brought."""
        self.ended = trio.Event()

    # -- from outside

    def tell(self, names: Sequence[str], position: int | None) -> int:
        """Add the names (relative to the under-store) that come next; returns how many more it takes now.

        ``position``: how many of all have been handed to the reader; None: that is not known.
        Raises ValueError if there are more names than there was room for.
        """
        self.schedule.tell(names)
        if position is not None:
            self.schedule.reach(position)
        self._has_news = True
        self.wake()
        return self.schedule.room

    def opened(self, oid: bytes) -> None:
        """An object was opened, now or lately; `wake` comes once all of these are told."""
        if self.schedule.opened(oid):
            self._has_news = True

    def wake(self) -> None:
        """See to what was told and opened, if anything was."""
        schedule, share = self.schedule, self._share()
        before = schedule.window_bytes, schedule.window_files
        schedule.window_bytes, schedule.window_files = share
        if self._has_news:
            self._has_news = False
            self._hear()
        elif before == share:
            return
        self._news.set()

    @property
    def idle(self) -> bool:
        """Whether nothing was heard of the reader for a moment."""
        return trio.current_time() - self._heard_s > IDLE_AFTER_S

    def _hear(self) -> None:
        """The reader is there: silence, which ends this wherever it stands, begins anew."""
        self._stir()
        self._heard_s = trio.current_time()
        self._scope.deadline = self._heard_s + SILENT_S

    def stop(self) -> None:
        """End it; fetches on their way still get into the cache."""
        self._scope.cancel()

    # -- the job

    async def run(self) -> None:
        """Bring what comes next, until `stop`, or until nothing is heard for long."""
        try:
            with self._scope:
                while True:
                    if taken := self.schedule.take(BATCH if self.schedule.kept else FIRST):
                        await self._bring(taken)
                    else:
                        await self._wait()
        except Exception:  # it must not end the mount
            log.exception("fetching ahead of a program failed in an unexpected way")
        finally:
            for obj in self._together:
                self._cache.release(obj)
            self.ended.set()

    async def _wait(self) -> None:
        """Wait for news of the reader."""
        await self._news.wait()
        self._news = trio.Event()

    async def _bring(self, taken: Sequence[tuple[int, str]]) -> None:
        found = await self._finder.find(taken)
        for directory, _, _ in found.values():
            self.directories[directory] = None
            self.directories.move_to_end(directory)
        while len(self.directories) > MOST_DIRECTORIES:
            self.directories.popitem(last=False)
        if len(found) >= EXPECT_FROM:
            await self._cache.expect((path, found[place][2].version) for place, path in taken if place in found)
        for place, _ in taken:
            while self.schedule.is_full_for(place):
                await self._fetch_together()
                await self._wait()
            if place in found:
                await self._begin(place, *found[place][:2])
            else:
                self.failed += 1
                self.schedule.skip(place)
        await self._fetch_together()
        if not found and not self._namespace.can_ask:
            await trio.sleep(AWAY_S)

    async def _begin(self, place: int, directory: int, name: bytes) -> None:
        """Begin to fetch what is missing of a file, and keep it from now on."""
        entry = self._namespace.peek(directory, name)  # it may be another one since it was found, or gone
        dirty = None if entry is None else self._dirty.get(entry.inode)
        written = dirty is not None and dirty.source is not None  # here, so its content is here
        if entry is None or entry.kind is not Kind.FILE or entry.size == 0 or written:
            self.schedule.skip(place)
            return
        try:
            key = self._namespace.places.key(directory, name, Kind.FILE)
        except LuxError:
            self.schedule.skip(place)  # the directory is gone
            return
        self._answers.opened_soon(directory, name, entry)
        obj = self._cache.acquire(key, entry.version, entry.size)
        wanted_bytes = min(entry.size, self.schedule.window_bytes)
        if not self._cache.keeps(obj):
            self.schedule.skip(place)
            self._cache.release(obj)
            return
        if not self.schedule.bring(place, obj.oid, wanted_bytes) or obj.whole:
            self._cache.release(obj)
            return
        pages = range(-(-wanted_bytes // PAGE_BYTES))
        on_end = partial(self._arrived, place, directory, name, entry, obj)
        if obj.pages.total <= RUN_PAGES and not self._cache.has_any(obj):
            if obj not in self._together:
                self._together[obj] = entry.inode, on_end
            else:
                self._cache.release(obj)
            return
        try:
            if len(self._together) >= TOGETHER:
                await self._fetch_together()
            await self._fetch(obj, pages, on_end)
        finally:
            self._cache.release(obj)

    async def _fetch(self, obj: CachedObject, pages: range, on_end: Callable[[int], None]) -> None:
        """Fetch a large file, or the rest of one, a run at a time."""
        for first in range(pages.start, pages.stop, RUN_PAGES):
            await self._window.room()
            for flight in self._cache.start(obj, pages[first : first + RUN_PAGES], keep_in_memory=False):
                self._window.began(flight)
                shared = self._cache.acquire(obj.record.key, obj.record.version, obj.size)
                assert shared is obj
                flight.on_end = partial(self._ended, flight, on_end)

    async def _fetch_together(self) -> None:
        """Begin to fetch the small files that were put by."""
        each = self._window.spread(len(self._together))
        while self._together:
            await self._window.room()
            await self._room.make(sum(allocated_bytes(obj.size) for obj in self._turn(each)))
            self._fetch_in_a_turn([(obj, *self._together.pop(obj)) for obj in self._turn(each)])

    def _turn(self, each: int) -> list[CachedObject]:
        """The next of those that were put by: so many at most, with so few bytes that a slow line brings them in time."""
        put_by = list(islice(self._together, each))
        sizes = accumulate(obj.size for obj in put_by)
        return [obj for obj, size in zip(put_by, sizes, strict=True) if size <= TOGETHER_BYTES] or put_by[:1]

    def _fetch_in_a_turn(self, turn: Sequence[_PutBy]) -> None:
        small: list[_PutBy] = []
        for obj, inode, on_end in turn:
            if self._cache.has_any(obj):
                self._cache.release(obj)  # somebody has opened it since
            else:
                small.append((obj, inode, on_end))
                self._backings.expect(inode)
        if small:
            flights = self._cache.start_small(
                [obj for obj, _, _ in small], [on_end for _, _, on_end in small], later=False, had_turn=False
            )
            for flight in flights:
                self._window.began(flight)
                assert flight.on_end is not None
                flight.on_end = partial(self._ended, flight, flight.on_end)

    def _ended(self, flight: Flight, on_end: Callable[[int], None], fd: int) -> None:
        self._window.ended(flight)
        on_end(fd)

    def _arrived(self, place: int, directory: int, name: bytes, entry: Entry, obj: CachedObject, fd: int) -> None:
        """A request for a file is over; it is handed over once it is whole. ``fd``: its open cache file, or -1."""
        try:
            if obj.whole:
                self.files += 1
                self.bytes += obj.size
                if self._namespace.stands_for(directory, name, entry.inode, obj.record.version):
                    self._backings.register(directory, name, entry, obj, fd)
                    return
            elif not obj.pages.count and not obj.flights:
                self.failed += 1
                self.schedule.drop(place)
                self._has_news = True
            if fd >= 0:  # it was written to meanwhile: what was fetched is the content of before
                os.close(fd)
        finally:
            self._backings.arrived(entry.inode)
            self._cache.release(obj)
