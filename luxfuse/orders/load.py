"""``luxfuse load``: brings files into the cache before anybody opens them.

A load walks, plans and fetches at the same time. One task walks: it lists and counts, far ahead of the others, so that
it is soon known how much there is. Another takes the files in that order, skips those that are whole, leaves out those
that do not fit, and keeps a window of requests on their way. Their ends are plain calls in the event loop: a file costs
no task of its own.

Reads of programs go first: while anybody else waits for the store, the window is nearly closed. An object that a load has
brought or found is not evicted while it runs: when its files together are as large as the cache can be, the rest is left
out.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

import trio

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.fetching import RUN_PAGES
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.ledger import allocated_bytes
from luxfuse.core.paths import literal_part
from luxfuse.core.spans import missing_runs
from luxfuse.core.units import format_count, format_size
from luxfuse.errors import LuxError, NotFound, StoreUnavailable, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.index.object_records import ObjectRecord
from luxfuse.orders.load_files import File, Together
from luxfuse.orders.load_progress import LoadProgress, State, Tally
from luxfuse.orders.walk import Part, Walk
from luxfuse.orders.window import Window
from luxfuse.types import PAGE_BYTES, Kind
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

LINES = 200
"""Failures told in detail."""
PATHS_TOLD = 3
PARTS_AHEAD = 100_000
"""How far the walk may be ahead: parts of some hundred files."""
AGAIN_BOUND = 10_000
"""Files that changed in the store since they were listed: so many are looked up once more."""
EXPECT_FROM = 8
LARGE_PAGES = 64
"""Files of so many pages come in large requests where the line is fast (`core.large_runs`), as each costs a millisecond of
Python; smaller ones in smaller ones, as several at once bring a file sooner."""
GIVE_UP_AFTER = 32
"""So many files in a row that got no answer from the store, or no room, end a load."""


class Load:
    """One load, as a job. `run` it once."""

    def __init__(
        self, number: int, paths: Sequence[str], *, namespace: Namespace, cache: PageCache, dirty: DirtyEntries,
        store: Store, window: Window,
    ) -> None:  # fmt: skip
        self.number = number
        self._paths = paths
        self._namespace = namespace
        self._cache = cache
        self._dirty = dirty
        self._store = store
        self._window = window
        self._roots = {literal_part(path) for path in paths}
        self._began_us = time.time_ns() // 1000
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._tally = Tally()
        self._failures: list[str] = []
        self._again: deque[tuple[int, str, Entry]] = deque()
        self._planned_bytes = 0
        self._most_bytes: int | None = None
        self._under_way = 0
        self._together = Together()
        self._landed = trio.Event()
        self._unlucky = 0
        self._why: str | None = None
        self._walking = True
        self.state: State = "running"
        self.ended = trio.Event()

    # -- from outside

    def covers(self, record: ObjectRecord) -> bool:
        """Whether the load has brought or met an object, or may yet."""
        if record.used_us < self._began_us:
            return False
        path = record.key
        while path and path not in self._roots:
            path = path.rpartition("/")[0]
        return path in self._roots

    def stop(self) -> None:
        """End it soon; fetches on their way still get into the cache."""
        if self.state == "running":
            self.state = "stopped"
            self._scope.cancel()

    def progress(self) -> LoadProgress:
        """Return how far it is."""
        t = self._tally
        done = self.ended.is_set()
        failures = list(self._failures) if done else []
        if done and t.failed.files > len(failures):
            failures.append(f"{t.failed.files - len(failures)} more failed")
        handled = t.loaded.files + t.present.files + t.left_out.files + t.failed.files
        return LoadProgress(
            self.number,
            tuple(self._paths[:PATHS_TOLD]),
            self.state,
            self._walking,
            max(t.found.files, handled),
            t.found.bytes,
            t.loaded.files,
            t.loaded.bytes,
            t.present.files,
            t.present.bytes,
            t.left_out.files,
            t.left_out.bytes,
            t.failed.files,
            self._note(),
            done,
            tuple(failures),
        )

    def _note(self) -> str | None:
        """Say what is to be known beside the numbers."""
        left_out = self._tally.left_out
        if self._why is not None:
            return self._why
        if not left_out.files:
            return None
        most = self._cache.hierarchy.most_bytes
        room = f" ({format_size(most)})" if most is not None else ""
        return (
            f"{format_count(left_out.files, 'file')} ({format_size(left_out.bytes)}) left out: what is asked for is more "
            f"than the cache holds{room}; enlarge it with --cache-size, or load less"
        )

    # -- the job

    async def run(self) -> None:
        """Load until all is done, or `stop`."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    send, receive = trio.open_memory_channel[Part](PARTS_AHEAD)
                    nursery.start_soon(self._walk, Walk(self._namespace, nursery, self._fail), send)
                    async with receive:
                        async for part in receive:
                            await self._take_part(part)
                            await trio.lowlevel.checkpoint()
                    await self._wait_for_all()
                    while self._again:
                        await self._take_again(*self._again.popleft())
                    await self._wait_for_all()
                    await self._cache.flush()  # loaded files survive the daemon from now on
                    nursery.cancel_scope.cancel()
        except Exception:  # it must not end the mount
            log.exception("a load failed in an unexpected way")
            self._why = "unexpected error in the daemon; see its log"
            self._fail("", self._why)
        finally:
            for file in self._together.take():
                self._one_less(file)
            if self.state == "running":
                self.state = "done"
            self._walking = False
            self.ended.set()

    async def _walk(self, walk: Walk, send: trio.MemorySendChannel[Part]) -> None:
        async with send, aclosing(walk.parts(self._paths)) as parts:
            async for part, files in parts:
                for _, entry in files:
                    self._tally.found.add(entry.size)
                await send.send(part)
        self._walking = False

    def _fail(self, path: str, why: str) -> None:
        self._tally.failed.add(0)
        if len(self._failures) < LINES:
            self._failures.append(f"{path or '.'}: {why}")

    def _give_up(self, why: str) -> None:
        """Nothing more can be loaded: say why, once."""
        self._why = self._why or why
        self._scope.cancel()

    async def _wait_for_all(self) -> None:
        if files := self._together.take():
            await self._fetch_together(files)
        while self._under_way:
            self._landed = trio.Event()
            await self._landed.wait()

    async def _take_part(self, part: Part) -> None:
        files = [(part.prefix + name.decode(), entry) for name, entry in part.files(self._namespace)]
        if len(files) >= EXPECT_FROM:
            await self._cache.expect((path, entry.version) for path, entry in files)
        self._most_bytes = self._cache.hierarchy.most_bytes
        self._together.at_once = self._window.together
        for path, entry in files:
            await self._take(part.directory, path, entry)

    async def _take_again(self, directory: int, path: str, entry: Entry) -> None:
        """Look a file up that was replaced in the store since it was listed."""
        name = path.rpartition("/")[2].encode()
        try:
            self._namespace.belief.expire(entry.inode)
            found = await self._namespace.lookup(directory, name)
        except LuxError as exc:
            self._fail(path, str(exc))
            return
        if found.kind is Kind.FILE:
            await self._take(directory, path, found, again=True)

    async def _take(self, directory: int, path: str, entry: Entry, *, again: bool = False) -> None:
        """Skip a file, or begin to fetch it."""
        size = entry.size
        dirty = self._dirty.get(entry.inode)
        if size == 0 or (dirty is not None and dirty.source is not None):
            self._tally.present.add(size)  # it is written to here, so its content is here
            return
        obj = self._cache.acquire(path, entry.version, size)
        most = self._most_bytes
        planned_bytes = self._planned_bytes + (0 if again else allocated_bytes(size))
        if most is not None and planned_bytes > most:
            self._cache.release(obj)
            self._tally.left_out.add(size)
            return
        self._planned_bytes = planned_bytes
        if obj.whole:
            self._cache.touch(obj)
            self._cache.release(obj)
            self._tally.present.add(size)
            return
        file = File(directory, path, entry, obj, size - obj.cached_bytes, again)
        self._under_way += 1
        if obj.pages.total <= RUN_PAGES and not obj.pages.count and not obj.flights:
            if files := self._together.put_by(file):
                await self._fetch_together(files)
            return
        try:
            await self._fetch(file)
        finally:
            self._one_less(file)

    async def _fetch_together(self, files: list[File]) -> None:
        """Begin to fetch small files."""
        small: dict[bytes, File] = {}
        others: list[File] = []
        left, recent = files, self._cache.recent
        try:
            for file in files:
                await self._cache.turn(file.obj, file.obj.size)
            await self._window.room(sum(file.obj.size for file in files))
            self._together.at_once = self._window.together
            for file in files:
                obj = file.obj
                if obj.pages.count or obj.flights or obj.oid in small:  # somebody has opened it since, or it came twice
                    others.append(file)
                    continue
                small[obj.oid] = file
                for page in range(obj.pages.total):
                    recent.discard(obj.oid, page)  # being in memory would do for a reader
            if small:
                flights = self._cache.start_small([file.obj for file in small.values()])
                left = others  # with its flight each of the small ones ends
                for file, flight in zip(small.values(), flights, strict=True):
                    self._window.began(flight)
                    flight.on_end = partial(self._flight_ended, file, flight)
            for file in others:
                await self._fetch(file)
        finally:
            for file in left:
                self._one_less(file)

    def _note_flight(self, file: File, flight: Flight) -> None:
        file.flights += 1
        file.waited_for.add(flight)
        self._window.began(flight)
        flight.on_end = partial(self._flight_ended, file, flight)

    def _wait_for_others(self, file: File) -> None:
        """Have the file wait for what others have on their way for it: they begin while it waits for its turns, too."""
        for other in set(file.obj.flights.values()) - file.waited_for:
            assert self._nursery is not None
            file.flights += 1
            file.waited_for.add(other)
            self._nursery.start_soon(self._await_other, file, other)

    async def _fetch(self, file: File) -> None:
        obj, window = file.obj, self._window
        most = math.inf if obj.pages.total >= LARGE_PAGES else RUN_PAGES
        at = 0
        while True:
            self._wait_for_others(file)  # their pages are in no run
            if (run := self._next_run(obj, at, most)) is None:
                return
            at = run.stop
            await self._cache.turn(obj, min(obj.size, run.stop * PAGE_BYTES) - run.start * PAGE_BYTES)
            await window.room(len(run) * PAGE_BYTES)
            if file.error is not None:
                return
            for page in run:
                self._cache.recent.discard(obj.oid, page)  # being in memory would do for a reader
            for flight in self._cache.start(obj, run, keep_in_memory=False, run=len(run), later=True, had_turn=True):
                self._note_flight(file, flight)

    def _next_run(self, obj: CachedObject, at: int, most: float) -> range | None:
        pages = int(min(most, self._window.part_pages))
        missing = missing_runs(range(at, obj.pages.total), lambda page: obj.pages.has(page) or page in obj.flights, pages)
        return next(missing, None)

    async def _await_other(self, file: File, flight: Flight) -> None:
        try:
            await flight.done.wait()
            file.error = file.error or flight.error
        finally:
            file.waited_for.discard(flight)
            self._one_less(file)

    def _flight_ended(self, file: File, flight: Flight, _fd: int) -> None:
        self._window.ended(flight)
        file.error = file.error or flight.error
        file.waited_for.discard(flight)
        self._one_less(file)

    def _one_less(self, file: File) -> None:
        file.flights -= 1
        if file.flights:
            return
        self._under_way -= 1
        if not self._under_way:
            self._landed.set()
        self._settle(file)
        self._cache.release(file.obj)

    def _settle(self, file: File) -> None:
        """Note how the fetching of a file ended."""
        error = file.error
        if file.obj.whole:
            self._unlucky = 0
            tally, missing_bytes = self._tally, file.missing_bytes
            tally.loaded.files += 1
            tally.loaded.bytes += missing_bytes
            tally.present.bytes += file.entry.size - missing_bytes
            return
        if self._scope.cancel_called:
            return  # stopped half-way
        if isinstance(error, VersionChanged | NotFound) and not file.again and len(self._again) < AGAIN_BOUND:
            self._again.append((file.directory, file.path, file.entry))
            return
        if error is not None:
            self._fail(file.path, str(error))
            self._unlucky = self._unlucky + 1 if isinstance(error, StoreUnavailable) else 0
            if self._unlucky >= GIVE_UP_AFTER and not self._store.reachable:
                self._give_up("the under-store cannot be reached: what is left was not tried; load again later")
            return
        self._tally.left_out.add(file.entry.size)
        self._unlucky += 1
        if not self._cache.hierarchy.usable:
            degraded = next((space.degraded for space in self._cache.hierarchy if space.degraded), "the index is full")
            self._give_up(f"nothing can be stored: {degraded}")
        elif self._unlucky >= GIVE_UP_AFTER:
            self._give_up("the cache takes no more: all that is in it is in use")
