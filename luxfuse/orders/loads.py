"""The loads of one mount: how many run at once, and what they keep from eviction."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.errors import LuxError
from luxfuse.orders.load import Load
from luxfuse.orders.load_progress import LoadProgress
from luxfuse.orders.window import Window
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace

JOBS_AT_ONCE = 16
JOBS_REMEMBERED = 16


class LoadRefused(LuxError):
    """The load cannot begin. The text is one line."""


class Loads:
    """The loads of one mount."""

    def __init__(
        self, *, namespace: Namespace, cache: PageCache, dirty: DirtyEntries, store: Store, nursery: trio.Nursery
    ) -> None:
        self._nursery = nursery
        self._cache = cache
        self._make: Callable[[int, Sequence[str]], Load] = partial(
            Load, namespace=namespace, cache=cache, dirty=dirty, store=store, window=Window(cache, store)
        )
        self._jobs: deque[Load] = deque()
        self._next = 1
        cache.contents.protections.append(self._protects)

    def start(self, paths: Sequence[str]) -> Load:
        """Begin to load what is at and below ``paths`` (relative to the mount). Raises `LoadRefused`."""
        if not self._cache.hierarchy.writable:
            raise LoadRefused("nothing can be loaded into a mount with read_mode no-cache")
        if len(self.running) >= JOBS_AT_ONCE:
            raise LoadRefused(f"{JOBS_AT_ONCE} loads are running, which is the most; wait, or end them with: load --stop")
        job = self._make(self._next, paths)
        self._next += 1
        self._jobs.append(job)
        for old in [job for job in self._jobs if job.ended.is_set()][:-JOBS_REMEMBERED]:
            self._jobs.remove(old)
        self._nursery.start_soon(job.run)
        return job

    def _protects(self, oid: bytes) -> bool:
        """Whether an object must stay because it is of a load that is running."""
        running = self.running
        record = self._cache.record_of(oid) if running else None
        return record is not None and any(job.covers(record) for job in running)

    @property
    def running(self) -> list[Load]:
        """Those that have not ended."""
        return [job for job in self._jobs if not job.ended.is_set()]

    def progress(self) -> list[LoadProgress]:
        """Return how far each is: those that run, and the last that ended."""
        return [job.progress() for job in self._jobs]

    def stop(self) -> int:
        """End all that run; returns how many those are."""
        running = self.running
        for job in running:
            job.stop()
        return len(running)
