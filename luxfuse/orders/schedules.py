"""The schedules of one under-store: how many at once, how large their windows are, and what they keep from eviction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.errors import LuxError
from luxfuse.orders.schedule import Following
from luxfuse.orders.window import Window
from luxfuse.understore.retrying import Store
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace

AT_ONCE = 64
PART = 4
"""The windows together are one part in so many of what the cache can hold. As much again may be kept for readers side by
side, so half of the cache is left to what has proved to be worth keeping."""
MOST_BYTES = 1 << 30


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
        dirty: DirtyEntries,
        store: Store,
        nursery: trio.Nursery,
    ) -> None:
        self._cache = cache
        self._nursery = nursery
        window = Window(cache, store, gives_way=False)  # readers wait for what it fetches
        self._make: Callable[[int, Callable[[], int]], Following] = partial(
            Following, namespace=namespace, cache=cache, backings=backings, dirty=dirty, window=window
        )
        self._running: dict[int, Following] = {}
        self.files = self.bytes = 0
        """Fetched by those that have ended."""
        cache.contents.protections.append(self._protects)
        cache.contents.expectations.append(self._expects)
        backings.on_open.append(self._opened)

    def begin(self, number: int, most_bytes: int | None) -> Following:
        """Begin to follow a schedule; ``most_bytes`` bounds its window besides. Raises `ScheduleRefused`."""
        if not self._cache.hierarchy.writable:
            raise ScheduleRefused("nothing can be fetched ahead into a mount with read_mode no-cache")
        if len(self._running) >= AT_ONCE:
            raise ScheduleRefused(f"{AT_ONCE} programs have files fetched ahead, which is the most; end one first")
        job = self._make(number, partial(self._share_bytes, most_bytes))
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

    def _share_bytes(self, asked_bytes: int | None) -> int:
        most = self._cache.hierarchy.most_bytes
        limit = MOST_BYTES if most is None else min(MOST_BYTES, most // PART)
        share = limit // max(1, len(self._running))
        return max(1, share if asked_bytes is None else min(share, asked_bytes))

    def _protects(self, oid: bytes) -> bool:
        """Whether an object must stay because a program is about to open it."""
        return any(job.schedule.keeps(oid) for job in self._running.values())

    def _expects(self) -> Iterable[bytes]:
        return chain.from_iterable(job.schedule.kept for job in self._running.values())

    def _opened(self, oid: bytes) -> None:
        for job in self._running.values():
            job.opened(oid)

    def stop(self) -> None:
        """End all."""
        for job in self._running.values():
            job.stop()
