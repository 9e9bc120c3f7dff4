"""One mount's parts without FUSE: as the daemon builds them, on a fake store, a fake kernel and a temporary directory.

`mounted` runs one life of a daemon over the state in a directory; the next one over the same directory is a remount.
`snapshot` copies what a kill at this instant would leave, on disk and in the store, for another life to take up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from msgspec import structs

from luxfuse.cache.directories import Directories
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.mover import Mover
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.space import Space
from luxfuse.cache.upload import Uploader
from luxfuse.config import Settings, WriteMode
from luxfuse.core.breaker import Breaker
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.memory import Shares
from luxfuse.errors import LuxError
from luxfuse.index import lifecycle
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.orders.check import Checks
from luxfuse.orders.inventory import Inventory
from luxfuse.orders.loads import Loads
from luxfuse.orders.manifest import Manifests
from luxfuse.orders.retention import Retention
from luxfuse.orders.schedules import Schedules
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.types import PAGE_BYTES
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.restart import Outcome, Recovery
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer
from luxfuse.volume.assembly import build_tree
from luxfuse.volume.neighbours import Neighbours
from luxfuse.volume.opened import ClaimedDirectory, Local, Opened, VolumeEstate
from luxfuse.volume.parts import VolumeParts
from luxfuse.volume.writing import Writing
from tests.support.fake_kernel import FakeKernel
from tests.support.fake_store import FakeStore

MIB = 1 << 20
BEGINNING_S = 1_800_000_000.0
AWAY = pytest.mark.expected_logs("cannot be reached: .*; what is cached is served")
"""For tests in which a store may be found to be away."""


PATIENCE = ("_patience_s", "_doubt_s", "probe_deadline_s")
"""Of the breaker of a store: what follows from how long a request is tried."""


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
    eviction_policy: str = "tinylfu"
    read_mode: str = "cache"
    more_caches: tuple[CacheSetting, ...] = ()
    """Further cache directories, with paths relative to the state; the first one is an SSD."""
    free_space_ratio: float = 0.0
    memory_bytes: int = 16 * MIB
    metadata_ttl_s: float = 60.0
    negative_ttl_s: float = 5.0
    whole_file_bytes: int = 16 * MIB
    readahead_bytes: int = 64 * MIB
    request_timeout_s: float = 30.0
    max_requests: int = 16
    passthrough: bool = True
    grants: bool = False
    """The kernel writes within the room that is granted, as the data plane does."""
    flusher: bool = True
    write_mode: WriteMode = "cache-through"
    on_conflict: str = "overwrite"
    hardlinks: str = "refuse"
    room_timeout_s: float = 2.0
    abort_uploads: bool = True
    directory: Callable[[Path, str], CacheDirectory] = CacheDirectory
    beginning_s: float = BEGINNING_S
    allow_other: bool = False
    attributes: str = "auto"
    share: Kernel | None = None
    """The kernel as one volume of several sees it."""
    neighbours: Callable[[Store, Journal], Neighbours] | None = None
    """Makes the other nodes of a cluster."""
    estate: VolumeEstate = field(default_factory=VolumeEstate)
    """What a daemon leaves to its successor, and finds of its predecessor."""
    on_built: Callable[[Mount], None] | None = None
    """Called before recovery begins."""

    def settings(self, path: Path) -> Settings:
        """The settings of a daemon that has its state in ``path``."""
        return Settings(
            source="fake://bucket",
            mountpoint=str(path / "mnt"),
            state_dir=str(path),
            cache_dirs=(
                CacheSetting(str(path / "cache"), self.capacity_bytes, high_watermark=1.0, low_watermark=1.0),
                *(structs.replace(cache, path=str(path / cache.path)) for cache in self.more_caches),
            ),
            free_space_ratio=self.free_space_ratio,
            eviction_policy=self.eviction_policy,  # type: ignore[arg-type]
            read_mode=self.read_mode,
            attributes=self.attributes,  # type: ignore[arg-type]
            allow_other=self.allow_other,
            metadata_ttl_s=self.metadata_ttl_s,
            negative_ttl_s=self.negative_ttl_s,
            uid=1000,
            gid=1000,
            whole_file_threshold_bytes=self.whole_file_bytes,
            readahead_bytes=self.readahead_bytes,
            write_mode=WriteMode(self.write_mode),
            on_conflict=self.on_conflict,
            room_timeout_s=self.room_timeout_s,  # type: ignore[arg-type]
            hardlinks=self.hardlinks,  # type: ignore[arg-type]
        )


class Durable:
    """What is on the platter: lets nobody commit while it is looked at, and knows what was synced."""

    def __init__(self, index: IndexStore, journal: Journal, staging: Staging) -> None:
        self.lock = threading.RLock()
        self.synced: set[int] = set()
        """File numbers of staging files that were brought to the platter at least once."""
        commit_journal, commit_index, sync = journal._file.commit, index._commit, staging.sync

        def guarded(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                with self.lock:
                    return function(*arguments)

            return call

        def note_synced(fd: int) -> None:
            sync(fd)
            self.synced.add(os.fstat(fd).st_ino)

        journal._file.commit = guarded(commit_journal)  # type: ignore[method-assign, assignment]
        index._commit = guarded(commit_index)  # type: ignore[method-assign, assignment]
        staging.sync = note_synced  # type: ignore[method-assign]


@dataclass
class Mount:
    """The parts, by the names of the daemon."""

    path: Path
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
    hierarchy: Hierarchy
    cache: PageCache
    mover: Mover
    directories: Directories
    ahead: FilesAhead
    files: Files
    fs: FileSystem
    journal: Journal
    staging: Staging
    dirty: DirtyEntries
    writing: Writing
    writer: Writer
    writeback: WriteBack
    recovered: Recovered
    recovery: Recovery
    nursery: trio.Nursery
    durable: Durable
    loads: Loads
    schedules: Schedules
    manifests: Manifests
    inventory: Inventory
    checks: Checks
    retention: Retention
    uploader: Uploader
    outcome: Outcome = field(default_factory=Outcome)
    """What recovery found."""

    @property
    def space(self) -> Space:
        """The home directory's."""
        return self.hierarchy.home

    async def drain(self, timeout_s: float = 120.0) -> None:
        """Bring everything to the store, as before an unmount."""
        self.writeback.pace.urgent = True
        with trio.fail_after(timeout_s):
            while self.writeback.pending:
                self.writeback.hurry()
                await trio.sleep(0.002)
        self.writeback.pace.urgent = False

    @contextlib.contextmanager
    def impatient(self, timeout_s: float = 0.2) -> Iterator[None]:
        """Give up requests so soon for the block, in which they fail or hang: others would be late on a busy machine."""
        store, breaker = self.store, self.store.presence._breaker
        hasty, before = Breaker(timeout_s, 0), Breaker(store.timeout_s, 0)
        store._timeout_s, patience_s = timeout_s, store.timeout_s
        try:
            for name in PATIENCE:
                setattr(breaker, name, getattr(hasty, name))
            yield
        finally:
            store._timeout_s = patience_s
            for name in PATIENCE:
                setattr(breaker, name, getattr(before, name))

    async def inode(self, path: str) -> int:
        """Look a path up, name by name."""
        inode = ROOT_INODE
        for part in path.split("/"):
            inode = (await self.kernel.lookup(self.fs, inode, part.encode())).inode
        return inode

    async def open(self, path: str) -> int:
        """Look up and open, as the kernel does: an answer of ESTALE is followed by one more look-up."""
        try:
            return await self.kernel.open(self.fs, await self.inode(path))
        except LuxError as exc:
            if exc.errno != errno.ESTALE:
                raise
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
        handle, _ = await self.fs.directories.open(directory)
        try:
            found = [(name, stat.inode) for name, stat, _ in await read_directory(self.fs, handle)]
        finally:
            self.fs.directories.close(handle)
        names = [name for name, _ in found]
        assert len(names) == len(set(names)), "an entry came twice"
        return dict(found[2:])

    def disk_bytes(self) -> int:
        """Bytes that cache files take on disk now."""
        total = 0
        for space in self.hierarchy:
            for path in space.directory.path.glob("objects/*/*"):
                try:
                    total += path.stat().st_blocks * 512
                except FileNotFoundError:
                    continue
        return total

    def open_cache_files(self) -> list[str]:
        """The cache files that this process has open."""
        found = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # that of the directory itself
                found.append(str(link.readlink()))
        return [name for name in found if name.startswith(str(self.path)) and "/objects/" in name]

    def file_of(self, key: str) -> Path:
        """The cache file of a key's present version."""
        version = self.driver.objects[key][1]
        obj = self.cache.acquire(key, version, len(self.driver.objects[key][0]))
        self.cache.release(obj)
        return (obj.space or self.space).directory.file_of(obj.oid)


async def read_directory(fs: FileSystem, handle: int, cookie: int = 0) -> list[tuple[bytes, Stat, int]]:
    """Read an open directory to its end, as the kernel does."""
    found: list[tuple[bytes, Stat, int]] = []
    while True:
        more = list(fs.directories.read(handle, cookie))
        found += more
        cookie = more[-1][2] if more else cookie
        if not more and not await fs.directories.more(handle):
            return found


def _thrice(size_bytes: int) -> Shares:
    return Shares(size_bytes, size_bytes, size_bytes)


@asynccontextmanager
async def mounted(
    path: Path, driver: FakeStore, options: Options | None = None, *, clean_end: bool = True, **changes: object
) -> AsyncIterator[Mount]:
    """Build all parts over the state in ``path`` and recover what is there.

    At the end what is dirty is brought to the store; ``clean_end`` False leaves all as a killed daemon would.
    """
    o = options or Options()
    for name, value in changes.items():
        assert hasattr(o, name), name
        setattr(o, name, value)
    store = Store(driver, request_timeout_s=o.request_timeout_s, max_requests=o.max_requests, rng=random.Random(0))
    with contextlib.ExitStack() as stack:
        settings = o.settings(path)
        directories = [o.directory(Path(setting.path), "source") for setting in settings.cache_dirs]
        for directory in directories:
            stack.callback(directory.close)
        journal = Journal(path / "journal")
        stack.callback(journal.close)
        index = IndexStore(path / "index")
        stack.callback(index.close)
        beginning = await lifecycle.begin(index)
        caches: list[ClaimedDirectory] = []
        for setting, directory in zip(settings.cache_dirs, directories, strict=True):
            known = lifecycle.number_of(index, str(directory.path), directory.identity, {cache.number for cache in caches})
            if not known.same:
                await Objects(index).clear(known.number)
                directory.doom_all()
            caches.append(ClaimedDirectory(setting, directory, known.number))
        local = Local(caches, index, journal, beginning.epoch, clean=beginning.clean)
        stack.callback(local.staging.close)
        durable = Durable(index, journal, local.staging)
        async with trio.open_nursery() as nursery:
            mount = _build(o, path, driver, store, local, beginning, durable, nursery)
            stack.callback(_close_files, mount)
            stack.callback(mount.directories.close)
            if o.on_built is not None:
                o.on_built(mount)
            await _begin(o, mount)
            yield mount
            if clean_end:
                await mount.drain()
                mount.files.backings.note_touched()
                mount.hierarchy.keep_policy_states()
                mount.cache.close()
                await journal.commit()
            nursery.cancel_scope.cancel()
        await until(lambda: journal._running is None)  # else a thread would meet a journal that is closed
        if clean_end:
            await lifecycle.end(index)


def _build(
    o: Options,
    path: Path,
    driver: FakeStore,
    store: Store,
    local: Local,
    beginning: lifecycle.Beginning,
    durable: Durable,
    nursery: trio.Nursery,
) -> Mount:
    opens = o.estate.inherited.registered if o.estate.inherited is not None else None
    kernel, clock = FakeKernel(passthrough=o.passthrough, grants=o.grants, opens=opens), FakeClock(o.beginning_s)
    neighbours = o.neighbours(store, local.journal) if o.neighbours is not None else Neighbours()
    kernel.clock = clock
    opened = Opened(o.settings(path), store, local, nursery, neighbours, o.estate)
    p: VolumeParts = build_tree(opened, o.share or kernel, clock=clock, memory=_thrice(o.memory_bytes))
    p.directories._source_id = "source"  # as the directories that were claimed above
    return Mount(
        path,
        driver,
        store,
        clock,
        kernel,
        p.index,
        beginning,
        p.names,
        p.lister,
        p.namespace,
        local.directory,
        p.objects,
        p.hierarchy,
        p.cache,
        p.mover,
        p.directories,
        p.ahead,
        p.files,
        p.fs,
        p.journal,
        p.staging,
        p.dirty,
        p.writing,
        p.writer,
        p.writeback,
        p.recovered,
        p.recovery,
        nursery,
        durable,
        p.loads,
        p.schedules,
        p.manifests,
        p.inventory,
        p.checks,
        p.retention,
        p.uploader,
    )


async def _begin(o: Options, mount: Mount) -> None:
    """Recover and start the background tasks, in the order of the daemon."""
    start = mount.nursery.start_soon
    start(mount.store.watch_deadlines)
    if o.flusher:
        start(mount.index.flusher)
    start(mount.journal.committer)
    mount.outcome = await mount.recovery.run()
    if mount.outcome.moves:
        mount.clock.advance(0.001)  # as time would have passed since the names were settled
    if o.abort_uploads:
        await mount.recovery.abort_uploads(mount.recovery.old_uploads())
    start(mount.writer.watch)
    start(mount.writeback.run)


def _close_files(mount: Mount) -> None:
    """What the end of a process closes."""
    for backing in mount.kernel.table.values():
        for fd in (backing.fd, *backing.writers):
            if fd >= 0:
                os.close(fd)
    for dirty in mount.dirty:
        if dirty.source is not None:
            dirty.source.bytes.abandon()


def snapshot(mount: Mount, target: Path, *, power_cut: bool = False) -> FakeStore:
    """Copy to ``target`` what is on disk at this instant; returns a copy of the store as it is at this instant.

    ``power_cut``: staging files that were never synced are lost. (What a synced one got since is kept: either may be.)
    """
    with mount.durable.lock:
        driver = mount.driver.copied()
        caches = sorted({space.directory.path.relative_to(mount.path).parts[0] for space in mount.hierarchy})
        for name in ("journal", "index", "recovered", *caches):
            if (mount.path / name).exists():
                _copy_tree(mount.path / name, target / name)
        if power_cut:
            for path in (mount.path / "cache").glob("*/staging/*"):
                if path.stat().st_ino not in mount.durable.synced:
                    (target / path.relative_to(mount.path)).unlink(missing_ok=True)
    return driver


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _copy_tree(Path(entry.path), target / entry.name)
            elif entry.name not in ("lock", "lock.mdb"):
                with contextlib.suppress(FileNotFoundError):  # a thread has just removed it
                    _copy_file(Path(entry.path), target / entry.name)
    shutil.copystat(source, target)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file, its holes as holes."""
    with source.open("rb") as fin, target.open("wb") as out:
        st = os.fstat(fin.fileno())
        position = 0
        while position < st.st_size:
            try:
                position = os.lseek(fin.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(fin.fileno(), position, os.SEEK_HOLE)
            os.pwrite(out.fileno(), os.pread(fin.fileno(), end - position, position), position)
            position = end
        out.truncate(st.st_size)
        os.utime(out.fileno(), ns=(st.st_atime_ns, st.st_mtime_ns))


def random_bytes(size: int, seed: int) -> bytes:
    """Bytes without repetition, the same for a seed."""
    return random.Random(seed).randbytes(size)


def pages(count: float) -> int:
    """Bytes of that many pages."""
    return int(count * PAGE_BYTES)


async def until(condition: Callable[[], bool], timeout_s: float = 120.0, pause_s: float = 0.002) -> None:
    """Wait for what worker threads bring about, and no event tells."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        await trio.sleep(pause_s)
