"""Epochs of training in virtual time: a job whose workers read files in random order, over a store far away.

All that decides is the real thing: the teller in the job, the schedule in the daemon, its window, eviction, the number of
requests under way. Only requests and work take time, so rates say what the policy gives, and not how fast this machine is:
a request `LATENCY_S`, `MOST_PARALLEL` of a turn and `MOST_REQUESTS` in all at once, as the requests in C are made.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import outcome
import pytest
import trio
import trio.testing
import xxhash

from luxfuse import workers
from luxfuse.training import teller
from luxfuse.training.telling import in_order
from luxfuse.types import PAGE_BYTES, ObjectInfo
from luxfuse.understore.small_files import Answer, ArrivedFile, WantedFile
from tests.simulation import no_threads
from tests.simulation.one_node import new_base
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted, random_bytes

LATENCY_S = 0.02
MOST_REQUESTS, MOST_PARALLEL = 64, 8
FILE_BYTES = 4096
BATCH, PREFETCH = 8, 2
"""As a DataLoader has them: so many samples go to a worker at once, and so many batches wait with each."""

T = TypeVar("T")


class FarStore(FakeStore):
    """A store whose requests take time, which `Far` lets pass; it fetches small files as the requests in C do."""

    fetches_small = True

    def __init__(self) -> None:
        super().__init__()
        self.owed = 0
        """Requests that were made and took no time yet."""
        self.files: Counter[str] = Counter()
        """Requests for each file."""

    def _request(self, kind: str) -> None:
        super()._request(kind)
        self.owed += 1

    def take_owed(self) -> int:
        owed, self.owed = self.owed, 0
        return owed

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        return [self._fetch(file) for file in files]

    def _fetch(self, file: WantedFile) -> Answer:
        self._request("get")
        self.files[file.key] += 1
        data, version = self.objects[file.key][:2]
        assert version == file.version
        info = ObjectInfo(file.key, file.size, file.version, 0, {})
        sums = tuple(xxhash.xxh3_64_intdigest(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES))
        if file.path is None:
            return Answer(LATENCY_S, ArrivedFile(info, data, sums, 0, 0, -1, 0, False))
        os.makedirs(os.path.dirname(file.path), exist_ok=True)
        fd = os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, data)
        st = os.fstat(fd)
        if not file.stay_open:
            os.close(fd)
            fd = -1
        return Answer(LATENCY_S, ArrivedFile(info, data, sums, st.st_mtime_ns, st.st_ino, fd, 0, True))


class Far(no_threads.NoThreads):
    """Runs what is to run in threads at once; then requests take their time, as many at once as there are threads."""

    def __init__(self, store: FarStore) -> None:
        super().__init__(0)
        self.store = store
        self.under_way = self.most_under_way = 0

    def submit_to(
        self, own: workers.Workers, job: workers.Job, done: workers.Done, size_bytes: int,
        seconds: Sequence[float] | None = None, *, later: bool = False,
    ) -> None:  # fmt: skip
        """As `Workers.submit` of ``own``."""
        (own._later if later else own._jobs).append((job, done, size_bytes, [] if seconds is None else seconds))
        own._outstanding += 1
        self._begin(own)

    def _begin(self, own: workers.Workers) -> None:
        while own._threads < own.width and (own._jobs or own._later):
            own._threads += 1
            job = own._next()
            trio.lowlevel.spawn_system_task(self._work, own, job, outcome.capture(job[0]), self.store.take_owed())

    async def _work(self, own: workers.Workers, job: workers._Job, result: outcome.Outcome[Any], requests: int) -> None:
        while requests:
            some = min(requests, MOST_PARALLEL, max(1, MOST_REQUESTS - self.under_way))
            self.under_way += some
            self.most_under_way = max(self.most_under_way, self.under_way)
            await trio.sleep(LATENCY_S)
            self.under_way -= some
            requests -= some
        own._threads -= 1
        own._outcomes.append((job, *((None, result.error) if isinstance(result, outcome.Error) else (result.value, None))))
        own._deliver()
        self._begin(own)

    async def run_sync(
        self, function: Callable[..., T], *arguments: Any, abandon_on_cancel: bool = False, limiter: object = None
    ) -> T:
        """As `trio.to_thread.run_sync`."""
        result = await super().run_sync(function, *arguments)
        if requests := self.store.take_owed():
            await trio.sleep(requests * LATENCY_S)
        return result


class Daemon:
    """What the teller of a job talks to, in place of the daemon's socket."""

    def __init__(self, m: Mount) -> None:
        self._m = m
        self._number = 0

    def begin_schedule(self, _path: str, window_bytes: int | None) -> Iterator[dict[str, int]]:
        self._number += 1
        job = self._m.schedules.begin(self._number, window_bytes)
        try:
            yield {"schedule": self._number, "room": job.schedule.room}
        finally:
            self._m.schedules.end(job)

    def tell(self, number: int, names: Sequence[str], position: int | None) -> int:
        job = self._m.schedules.get(number)
        assert job is not None
        return job.tell(names, position)


class InPlace:
    """The paths of the job are the names in the mount."""

    record = SimpleNamespace(socket_path="", alive=True)

    def find(self, _path: str) -> Any:
        return self.record

    @staticmethod
    def inside(path: str) -> str:
        return path


@dataclass
class Job:
    """Reads a data set, epoch by epoch, as the processes of a DataLoader do. Times are in seconds."""

    m: Mount
    workers: int
    sample_s: float = 0.0005
    """So long a worker works on a sample, its open and read included."""
    step_s: float = 0.004
    """So long the accelerator works on a batch."""
    late: int = 0
    """Opens that had to wait for the store, of an epoch."""
    read: set[str] = field(default_factory=set)
    """Files that were read, of an epoch."""
    inodes: dict[str, int] = field(default_factory=dict)

    async def find(self) -> None:
        """Look all names up, as a job does that makes its list of files."""
        for directory in sorted({name.rpartition("/")[0] for name in self.m.driver.objects}):
            for name, inode in (await self.m.entries(directory)).items():
                self.inodes[f"{directory}/{name.decode()}"] = inode

    async def epoch(self, seed: int, *, told: bool) -> float:
        """Read all files in random order; returns files/s."""
        order = sorted(self.inodes)
        random.Random(seed).shuffle(order)
        source = in_order(order) if told else iter(order)
        give, take = trio.open_memory_channel[Sequence[str]](len(order))
        end, ended = trio.open_memory_channel[int](len(order))
        self.late, self.read = 0, set()
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(self.workers):
                nursery.start_soon(self._work, take, end)
            waiting = total = 0
            while True:
                while waiting < self.workers * PREFETCH and (batch := list(islice(source, BATCH))):
                    give.send_nowait(batch)
                    waiting += 1
                if not waiting:
                    break
                total += await ended.receive()
                waiting -= 1
                await trio.sleep(self.step_s)
            give.close()
        assert total == len(order)
        return total / (trio.current_time() - began_s)

    async def _work(self, batches: trio.MemoryReceiveChannel[Sequence[str]], end: trio.MemorySendChannel[int]) -> None:
        async for batch in batches:
            for name in batch:
                await self._read(name)
            end.send_nowait(len(batch))

    async def _read(self, name: str) -> None:
        m, began_s = self.m, trio.current_time()
        handle = await m.kernel.open(m.fs, self.inodes[name])
        try:
            data = await m.kernel.read_all(m.fs, handle)
        finally:
            await m.kernel.release(m.fs, handle)
        assert data == m.driver.objects[name][0]
        self.read.add(name)
        self.late += trio.current_time() > began_s
        await trio.sleep(self.sample_s)


def data_set(count: int) -> FarStore:
    """A store with so many files, in ten directories."""
    store = FarStore()
    for n in range(count):
        store.place(f"class{n % 10}/{n:05}", random_bytes(FILE_BYTES, n))
    return store


def run(files: int, cached_files: int, work: Callable[[Mount, FarStore], Awaitable[T]]) -> T:
    """Return what ``work`` does with a mount of a data set, of which the cache takes so many files."""

    async def mounting(path: Path) -> T:
        options = Options(capacity_bytes=cached_files * FILE_BYTES, max_requests=MOST_REQUESTS, metadata_ttl_s=1e6)
        async with mounted(path, store, options) as m:
            daemon = Daemon(m)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(teller, "ControlClient", lambda *_, **__: daemon)
                return await work(m, store)

    store = data_set(files)
    base = new_base()
    try:
        with far_away(Far(store)):
            return trio.run(mounting, base, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        shutil.rmtree(base)


@contextmanager
def far_away(far: Far) -> Iterator[None]:
    """Let requests take their time for the block, and a job take its paths for names in the mount."""

    def submit(own: workers.Workers, *job: Any, later: bool = False) -> None:
        far.submit_to(own, *job, later=later)

    with no_threads.without_threads(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("trio.to_thread.run_sync", far.run_sync)
        patch.setattr(workers.Workers, "submit", submit)
        patch.setattr(workers.Workers, "_start_threads", lambda _own, _most: None)
        patch.setattr(teller, "Places", InPlace)
        yield
