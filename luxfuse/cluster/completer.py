"""Bringing one replica to the store for its writer, or keeping it aside where that cannot be right any more."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import trio

from luxfuse.cache.checksums import has_same_content, page_checksums
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.upload import Uploader
from luxfuse.cache.upload_source import Source
from luxfuse.cluster.replicas import HeldReplica, ReplicaFiles
from luxfuse.core.parts import SINGLE_BYTES
from luxfuse.core.replicas import State, write_of
from luxfuse.core.takeover import Verdict, judge
from luxfuse.errors import NotFound, StoreError, VersionChanged
from luxfuse.steps import reached
from luxfuse.tiers.directory import read_exact
from luxfuse.types import ABSENT, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

ROUNDS = 5
ABORT_DEADLINE_S = 5.0
FILL_THREADS = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where replicas of one under-store are brought to."""

    store: Store
    recovered: Recovered
    uploader: Uploader
    cache: PageCache


@dataclass(slots=True)
class HolderStatistics:
    """Counts since the start: replicas brought to the store here, found there, kept aside; failed tries."""

    uploaded: int = 0
    found: int = 0
    kept: int = 0
    failures: int = 0


class Completer:
    """Completes the writes of others."""

    def __init__(self, files: ReplicaFiles, threads: Threads, clock: Callable[[], float], counts: HolderStatistics) -> None:
        """``clock``: wall-clock seconds; ``counts``: to add to."""
        self._files = files
        self._threads = threads
        self._clock = clock
        self._counts = counts
        self._fill_threads = Threads(FILL_THREADS)

    async def bring(self, held: HeldReplica, place: Place) -> None:
        """Make the store have it, if nobody else has written the object meanwhile. Raises `StoreError`, OSError."""
        replica = held.replica
        tried = False
        for _ in range(ROUNDS):
            info = await _head(place.store, replica.key)
            version = info.version if info is not None else ABSENT
            found = write_of(info.metadata, replica.key) if info is not None else None
            judgement = judge(replica.write, replica.expect, version, found)
            if judgement.verdict is Verdict.UPLOAD:
                tried = True
                reached("takeover.judged")
                try:
                    uploaded = await self._upload(place, held, judgement.expect)
                except (VersionChanged, NotFound):  # somebody else; or we, and the answer got lost
                    continue
                reached("takeover.stored")
                self._counts.uploaded += 1
                await self.settle(held, State.DONE, uploaded.version, effective=True)
                return
            if judgement.verdict is Verdict.FOREIGN and (info is None or not await self._is_same(place, held, info)):
                await self.keep(held, place, "somebody else has written it meanwhile")
                return
            self._counts.found += 1
            await self.settle(held, State.DONE, version, effective=tried and found == replica.write)
            return
        raise StoreError(f"{replica.key!r} changes again and again in the under-store")

    async def _is_same(self, place: Place, held: HeldReplica, info: ObjectInfo) -> bool:
        size = held.replica.size
        if info.size != size:
            return False
        sums = await self._threads.run(_checksums, str(self._files.path_of(held)), size)
        return await has_same_content(place.store, info, sums, size)

    async def keep(self, held: HeldReplica, place: Place, why: str) -> None:
        """Keep the content aside, for an operator."""
        path = await self._threads.run(place.recovered.keep_file, self._files.path_of(held), held.replica.key)
        reached("takeover.kept")
        self._counts.kept += 1
        log.warning(
            "%r of node %s, which is gone, is not uploaded: %s; it is kept as %s",
            held.replica.key,
            held.replica.write.file.writer,
            why,
            path,
        )
        await self.settle(held, State.KEPT)

    async def settle(self, held: HeldReplica, state: State, version: str = "", *, effective: bool = False) -> None:
        """Note what became of a replica."""
        now_s = self._clock()
        await self._threads.run(lambda: self._files.settle(held, state, now_s, version=version, effective=effective))
        reached("takeover.settled")

    async def _upload(self, place: Place, held: HeldReplica, expect: str) -> ObjectInfo:
        replica, path = held.replica, self._files.path_of(held)
        if replica.size > SINGLE_BYTES:
            return await self._upload_large(place, held, expect)
        fd = await self._threads.run(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = await self._threads.run(read_exact, fd, replica.size, 0)
        finally:
            os.close(fd)
        return await place.store.put(replica.key, data, replica.metadata, expect=expect)

    async def _upload_large(self, place: Place, held: HeldReplica, expect: str) -> ObjectInfo:
        """Send it like a file that is written here: within the same limits, and the journal knows of the open upload."""
        replica, path = held.replica, self._files.path_of(held)
        fd = await self._threads.run(os.open, path, os.O_RDWR | os.O_CLOEXEC)
        data = StagedBytes(fd, path, cache=place.cache, threads=self._fill_threads)
        source = Source(replica.key, data)
        try:
            return (await place.uploader.upload(source, replica.metadata, expect)).info
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(ABORT_DEADLINE_S):
                await place.uploader.parts.give_up_open(source)
            data.abandon()


async def _head(store: Store, key: str) -> ObjectInfo | None:
    try:
        return await store.head(key)
    except NotFound:
        return None


def _checksums(path: str, size: int) -> dict[int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return page_checksums(fd, 0, size)
    finally:
        os.close(fd)
