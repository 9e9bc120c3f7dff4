"""One mount's parts without FUSE: as the daemon builds them, on a fake store, a fake kernel and a temporary directory."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.index import lifecycle
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.types import PAGE_BYTES
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead, FillBehind
from luxfuse.vfs.attributes import Defaults
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.namespace import Namespace
from tests.support.fake_kernel import FakeKernel
from tests.support.fake_store import FakeStore

MIB = 1 << 20
BEGINNING_S = 1_800_000_000.0


class FakeClock:
    """Wall-clock seconds that move when told."""

    def __init__(self, now_s: float = BEGINNING_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@dataclass
class Options:
    """What tests vary; the defaults are small and quiet."""

    capacity_bytes: int | None = 64 * MIB
    free_space_ratio: float = 0.0
    memory_bytes: int = 16 * MIB
    metadata_ttl_s: float = 60.0
    negative_ttl_s: float = 5.0
    whole_file_bytes: int = 16 * MIB
    readahead_bytes: int = 64 * MIB
    request_timeout_s: float = 30.0
    max_requests: int = 16
    passthrough: bool = True
    flusher: bool = True
    directory: Callable[[Path, str], CacheDirectory] = CacheDirectory


@dataclass
class Mount:
    """The parts, by the names of the daemon."""

    driver: FakeStore
    store: Store
    clock: FakeClock
    kernel: FakeKernel
    index: IndexStore
    beginning: lifecycle.Beginning
    names: Names
    lister: Lister
    namespace: Namespace
    directory: CacheDirectory
    objects: Objects
    space: Space
    cache: PageCache
    ahead: FilesAhead
    files: Files
    fs: FileSystem
    nursery: trio.Nursery

    async def inode(self, path: str) -> int:
        """Look a path up, name by name."""
        inode = ROOT_INODE
        for part in path.split("/"):
            inode = (await self.fs.lookup(inode, part.encode())).inode
        return inode

    async def open(self, path: str) -> int:
        """Look up and open, as the kernel does: an answer of ESTALE is followed by one more look-up."""
        return await self.kernel.open(self.fs, await self.inode(path))

    async def read_all(self, path: str) -> bytes:
        """Open, read to the end and close."""
        handle = await self.open(path)
        try:
            return await self.kernel.read_all(self.fs, handle)
        finally:
            await self.kernel.release(self.fs, handle)

    async def entries(self, path: str = "") -> dict[bytes, int]:
        """Open and read a directory: name -> inode, without dots."""
        directory = await self.inode(path) if path else ROOT_INODE
        handle, _ = await self.fs.opendir(directory)
        try:
            found = [(name, stat.inode) for name, stat, _ in self.fs.readdir(handle, 0)]
        finally:
            self.fs.releasedir(handle)
        names = [name for name, _ in found]
        assert len(names) == len(set(names)), "an entry came twice"
        return dict(found[2:])

    def disk_bytes(self) -> int:
        """Bytes that cache files take on disk now."""
        total = 0
        for path in self.directory.path.glob("objects/*/*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def file_of(self, key: str) -> Path:
        """The cache file of a key's present version."""
        version = self.driver.objects[key][1]
        obj = self.cache.acquire(key, version, len(self.driver.objects[key][0]))
        self.cache.release(obj)
        return self.directory.file_of(obj.oid)


@asynccontextmanager
async def mounted(
    path: Path, driver: FakeStore, options: Options | None = None, *, clean_end: bool = True, **changes: object
) -> AsyncIterator[Mount]:
    """Build all parts over the state in ``path``; ``clean_end`` False leaves the index as a killed daemon would."""
    o = options or Options()
    for name, value in changes.items():
        assert hasattr(o, name), name
        setattr(o, name, value)
    clock = FakeClock()
    store = Store(
        driver, request_timeout_s=o.request_timeout_s, max_requests=o.max_requests, rng=random.Random(0)
    )
    directory = o.directory(path / "cache", "source")
    index = IndexStore(path / "index")
    try:
        beginning = await lifecycle.begin(index, directory.identity)
        if not beginning.same_cache:
            await Objects(index).clear()
            directory.doom_all()
        async with trio.open_nursery() as nursery:
            yield _build(o, driver, store, clock, directory, index, beginning, nursery)
            nursery.cancel_scope.cancel()
        if clean_end:
            await lifecycle.end(index)
    finally:
        index.close()
        directory.close()


def _build(
    o: Options, driver: FakeStore, store: Store, clock: FakeClock, directory: CacheDirectory, index: IndexStore,
    beginning: lifecycle.Beginning, nursery: trio.Nursery,
) -> Mount:
    kernel = FakeKernel(passthrough=o.passthrough)
    names = Names(index, clock)
    lister = Lister(store=store, names=names, nursery=nursery, clock=clock)
    namespace = Namespace(
        store=store, names=names, lister=lister, kernel=kernel, metadata_ttl_s=o.metadata_ttl_s,
        negative_ttl_s=o.negative_ttl_s, nursery=nursery, clock=clock,
    )
    objects = Objects(index)
    space = Space(directory, objects, capacity_bytes=o.capacity_bytes, free_space_ratio=o.free_space_ratio)
    cache = PageCache(
        store=store, objects=objects, directory=directory, space=space, source_id="source", epoch=beginning.epoch,
        memory_bytes=o.memory_bytes, nursery=nursery,
    )
    ahead = FilesAhead(
        namespace=namespace, cache=cache, limit_bytes=o.readahead_bytes, largest_bytes=o.whole_file_bytes
    )
    files = Files(
        namespace=namespace, cache=cache, kernel=kernel, ahead=ahead, behind=FillBehind(cache=cache, nursery=nursery),
        whole_file_bytes=o.whole_file_bytes, readahead_bytes=o.readahead_bytes,
    )

    def lost_files() -> None:
        cache.forget_all_pages()
        files.forget_all()

    space.lost_files = lost_files
    fs = FileSystem(
        namespace=namespace, files=files, cache=cache, defaults=Defaults(1000, 1000, 0o022, 1), tier="ssd"
    )
    nursery.start_soon(store.watch_deadlines)
    if o.flusher:
        nursery.start_soon(index.flusher)
    return Mount(
        driver, store, clock, kernel, index, beginning, names, lister, namespace, directory, objects, space, cache, ahead,
        files, fs, nursery,
    )


def random_bytes(size: int, seed: int) -> bytes:
    """Bytes without repetition, the same for a seed."""
    return random.Random(seed).randbytes(size)


def pages(count: float) -> int:
    """Bytes of that many pages."""
    return int(count * PAGE_BYTES)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what worker threads bring about, and no event tells."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        await trio.sleep(0.002)
