"""The schedules of one under-store: how many at once, how large their windows are, and what they keep from eviction.

What was opened is heard from `Backings.on_open`: at once where Python answers an open, else when the lanes are asked, which
is done for all schedules at once, and often while a reader is at work. So neither a program that reads nor the lanes do
anything for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.core.schedule import MOST_AHEAD, Schedule
from luxfuse.errors import LuxError
from luxfuse.orders.room_ahead import RoomAhead
from luxfuse.orders.schedule import Following
from luxfuse.orders.window import Window
from luxfuse.shares import shares
from luxfuse.understore.retrying import Store
from luxfuse.vfs.answers import Answers
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

AT_ONCE = 64
PART = 4
"""The windows together are one part in so many of what the cache can hold, and of the files that the kernel may have. As
much again may be kept for readers side by side, so half of both is left to what has proved to be worth keeping."""
MOST_BYTES, LEAST_FILES = 1 << 30, 64
ROOM_PART, ROOM_BYTES = 8, 32 << 20
"""Room is made ahead for one part in so many of the windows, and for so much at most."""
LOOK_S, LOOK_IDLE_S = 0.02, 0.2
"""How often the lanes are asked what was opened: while a reader is at work, and while none is."""
LINGER_S, LINGERING = 30.0, 4
"""What a program had handed to its readers as it ended is kept for so long, of the last few programs."""


class ScheduleRefused(LuxError):
    """The schedule cannot begin. The text is one line."""


class Schedules:
    """The schedules of one under-store."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: PageCache,
        backings: Backings,
        answers: Answers,
        dirty: DirtyEntries,
        store: Store,
        nursery: trio.Nursery,
    ) -> None:
        self._cache = cache
        self._backings = backings
        self._nursery = nursery
        self._stirred = trio.Event()
        room = RoomAhead(cache, lambda: min(ROOM_BYTES, self._windows_bytes // ROOM_PART))
        self._make: Callable[[int, Callable[[], tuple[int, int]]], Following] = partial(
            Following,
            namespace=namespace,
            cache=cache,
            backings=backings,
            answers=answers,
            dirty=dirty,
            window=Window(cache, store, gives_way=False),  # readers wait for what it fetches
            room=room,
            stir=self._stir,
        )
        self._running: dict[int, Following] = {}
        self._lingering: deque[tuple[float, Schedule]] = deque(maxlen=LINGERING)
        """Schedules that have ended, and until when what is left of them is kept."""
        self.files = self.bytes = 0
        """Fetched by those that have ended."""
        cache.contents.protections.append(self._protects)
        cache.contents.expectations.append(self._expects)
        backings.on_open.append(self._opened)
        backings.foreseen.append(self._foresees)
        backings.awaited.append(self._protects)
        nursery.start_soon(room.run)
        nursery.start_soon(self._look)

    def begin(self, number: int, most_bytes: int | None) -> Following:
        """Begin to follow a schedule; ``most_bytes`` bounds its window besides. Raises `ScheduleRefused`."""
        if not self._cache.hierarchy.writable:
            raise ScheduleRefused("nothing can be fetched ahead into a mount with read_mode no-cache")
        if len(self._running) >= AT_ONCE:
            raise ScheduleRefused(f"{AT_ONCE} programs have files fetched ahead, which is the most; end one first")
        job = self._make(number, partial(self._share, most_bytes))
        self._running[number] = job
        self._nursery.start_soon(self._run, job)
        return job

    def get(self, number: int) -> Following | None:
        """Return a schedule that is followed."""
        return self._running.get(number)

    @property
    def running(self) -> list[Following]:
        """Those that are followed now."""
        return list(self._running.values())

    async def _run(self, job: Following) -> None:
        try:
            await job.run()
        finally:
            del self._running[job.number]
            self.files += job.files
            self.bytes += job.bytes

    def _stir(self) -> None:
        self._stirred.set()

    async def _look(self) -> None:
        """Hear from the lanes what was opened, while there are schedules; until cancelled."""
        while True:
            if all(job.idle for job in self._running.values()):
                with trio.move_on_after(LOOK_IDLE_S if self._running or self._lingering else LINGER_S):
                    await self._stirred.wait()
            self._stirred = trio.Event()
            await trio.sleep(LOOK_S)
            try:
                await self._look_once()
            except Exception:  # it must not end the mount
                log.exception("hearing what was opened failed in an unexpected way")

    async def _look_once(self) -> None:
        if self._running or self._lingering:
            await self._backings.note_touched_together()
        for job in self._running.values():
            job.wake()
        while self._lingering and trio.current_time() > self._lingering[0][0]:
            self._lingering.popleft()

    @property
    def _windows_bytes(self) -> int:
        """How much all windows together may have."""
        most = self._cache.hierarchy.most_bytes
        return MOST_BYTES if most is None else min(MOST_BYTES, most // PART)

    def _share(self, asked_bytes: int | None) -> tuple[int, int]:
        """Return the bytes and files that one window may have: what is ahead stays registered until it is opened."""
        share = self._windows_bytes // max(1, len(self._running))
        files = shares().registered // PART // max(1, len(self._running))
        return max(1, share if asked_bytes is None else min(share, asked_bytes)), max(LEAST_FILES, min(MOST_AHEAD, files))

    @property
    def _schedules(self) -> Iterable[Schedule]:
        return chain((job.schedule for job in self._running.values()), (schedule for _, schedule in self._lingering))

    def _protects(self, oid: bytes) -> bool:
        """Whether an object must stay because a program is about to open it."""
        return any(schedule.keeps(oid) for schedule in self._schedules)

    def _foresees(self, directory: int) -> bool:
        return any(directory in job.directories and not job.idle for job in self._running.values())

    def _expects(self) -> Iterable[bytes]:
        return chain.from_iterable(schedule.kept for schedule in self._schedules)

    def _opened(self, oid: bytes) -> None:
        for job in self._running.values():
            job.opened(oid)
        for _, schedule in self._lingering:
            schedule.opened(oid)

    def end(self, job: Following) -> None:
        """The program of a schedule has ended it. Its readers may still open what they were handed."""
        job.stop()
        job.schedule.end()
        if job.schedule.kept:
            self._lingering.append((trio.current_time() + LINGER_S, job.schedule))

    def stop(self) -> None:
        """End all."""
        for job in self._running.values():
            job.stop()
