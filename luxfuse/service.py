"""What the control socket offers of a running daemon: its status, and orders to it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from luxfuse import __version__
from luxfuse.cache.hierarchy import TIERS, Hierarchy
from luxfuse.cache.mover import Mover
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.config import Settings
from luxfuse.control import metrics
from luxfuse.core.histogram import BOUNDS_S, Histogram
from luxfuse.core.rules import PathPolicies
from luxfuse.errors import LuxError
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.session import Session
from luxfuse.index.journal import Journal
from luxfuse.index.names import ROOT_INODE
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.tiers.staging import Staging
from luxfuse.types import TtlAction
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead
from luxfuse.vfs.backlog import Backlog, Progress, Tally
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.inventory import Inventory
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.load import Loads, watch
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery import Recovery
from luxfuse.vfs.retention import Retention
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that makes up a running daemon."""

    store: Store
    index: IndexStore
    objects: Objects
    hierarchy: Hierarchy
    cache: PageCache
    mover: Mover
    lister: Lister
    namespace: Namespace
    ahead: FilesAhead
    files: Files
    fs: FileSystem
    operations: Operations
    kernel: KernelSide
    session: Session
    journal: Journal
    staging: Staging
    dirty: DirtyEntries
    writer: Writer
    writeback: WriteBack
    backlog: Backlog
    recovered: Recovered
    recovery: Recovery
    loads: Loads
    inventory: Inventory
    retention: Retention
    policies: PathPolicies


class Service:
    """Implements `luxfuse.control.server.ControlService`."""

    def __init__(self, settings: Settings, parts: Parts, *, started_s: float) -> None:
        self.settings = settings
        self._parts = parts
        self._started_s = started_s
        self.reread: Callable[[], Awaitable[list[str]]] = self._nothing_to_read
        """Set by the daemon: reads the configuration file again; returns the names of what changed."""

    def status(self) -> dict[str, object]:
        """Return the status document; see `luxfuse.control.status`."""
        s, p = self.settings, self._parts
        tally = p.backlog.tally()
        reasons = self._degraded_reasons(tally)
        requests, fast_opens = passthrough.statistics()
        return {
            "mountpoint": s.mountpoint,
            "source": safe_url(s.source),
            "pid": os.getpid(),
            "version": __version__,
            "state": "draining" if p.backlog.draining else "degraded" if reasons else "serving",
            "degraded_reasons": reasons,
            "passthrough": p.kernel.passthrough,
            "passthrough_reason": p.kernel.reason,
            "uptime_s": time.monotonic() - self._started_s,
            "memory_bytes": _resident_bytes(),
            "driver": p.store.driver.driver,
            "tiers": self._tiers(),
            "reads": self._reads(fast_opens),
            "understore": self._understore(),
            "cache": self._cache(),
            "names": {
                "skipped_keys": p.lister.skipped_keys,
                "listings": p.lister.listings,
                "stale_served": p.namespace.stale_served,
            },
            "fuse": {"requests": requests, "fast_opens": fast_opens, "errors": p.operations.errors},
            "dirty": self._dirty(tally),
            "recovered": {"files": p.recovered.count(), "path": str(p.recovered.directory)},
            "latency": {
                "bounds_s": list(BOUNDS_S),
                "understore": {kind: _latency(h) for kind, h in p.store.latency.items() if h.count},
                "fuse": {name: _latency(h) for name, h in p.operations.latency.items() if h.count},
            },
            "peers": [],
        }

    def _degraded_reasons(self, tally: Tally) -> list[str]:
        p = self._parts
        reasons = [space.degraded for space in p.hierarchy if space.degraded]
        if p.index.failing:
            reasons.append(p.index.failing)
        if p.journal.failing:
            reasons.append(f"the journal cannot be written, so a crash would lose changes: {p.journal.failing}")
        if tally.failing:
            reasons.append(f"{tally.failing} changes cannot be brought to the under-store yet: {tally.error}")
        if not p.store.reachable:
            reasons.append("the under-store cannot be reached")
        return reasons

    def _tiers(self) -> list[dict[str, object]]:
        return [
            {
                "name": space.tier,
                "path": space.directory.name,
                "capacity_bytes": space.capacity_bytes,
                "used_bytes": space.ledger.used_bytes,
                "state": "degraded" if space.degraded else "serving",
            }
            for space in self._parts.hierarchy
        ]

    def _reads(self, fast_opens: int) -> dict[str, int]:
        counters, files = self._parts.cache.counters, self._parts.files.counters
        tiers = dict.fromkeys(TIERS, 0)
        for space in self._parts.hierarchy:
            tiers[space.tier] += space.read_bytes
        return {
            "memory_bytes": counters.memory_bytes + tiers["mem"],
            "ssd_bytes": tiers["ssd"],
            "hdd_bytes": tiers["hdd"],
            "peer_bytes": 0,
            "understore_bytes": counters.understore_bytes,
            "passthrough_opens": files.passthrough_opens + fast_opens,
            "copied_opens": files.copied_opens,
        }

    def _understore(self) -> dict[str, object]:
        st, prices = self._parts.store.statistics(), self.settings.prices
        get_bytes = self._parts.cache.counters.understore_bytes + st.get_bytes
        requests = {"get": st.gets, "put": st.puts, "list": st.lists, "head": st.heads, "delete": st.deletes}
        return {
            "cost": prices.cost(requests, get_bytes, st.put_bytes) if prices is not None else None,
            "currency": prices.currency if prices is not None else None,
            "gets": st.gets,
            "heads": st.heads,
            "lists": st.lists,
            "puts": st.puts,
            "deletes": st.deletes,
            "put_bytes": st.put_bytes,
            "errors": st.errors,
            "retries": st.retries,
            "timeouts": st.timeouts,
            "in_flight": st.in_flight,
            "get_bytes": get_bytes,
            "state": "ok" if self._parts.store.reachable else "unreachable",
        }

    def _cache(self) -> dict[str, int]:
        p = self._parts
        return {
            "objects": p.objects.count,
            "pinned_bytes": p.hierarchy.total(lambda space: space.pinned_bytes),
            "pins": len(p.retention.marks.pins),
            "time_limits": len(p.retention.marks.limits),
            "expired": p.retention.expired,
            "moved_up": p.mover.moved_up,
            "moved_down": p.mover.moved_down,
            "evictions": p.hierarchy.total(lambda space: space.evictions),
            "evicted_bytes": p.hierarchy.total(lambda space: space.evicted_bytes),
            "checksum_failures": p.cache.counters.checksum_failures,
            "write_failures": p.hierarchy.total(lambda space: space.write_failures),
            "verified_bytes": p.cache.counters.verified_bytes,
            "files_ahead": p.ahead.files,
            "buffered_bytes": p.cache.recent.held_bytes,
            "in_flight_bytes": p.cache.budget.held_bytes,
        }

    def _dirty(self, tally: Tally) -> dict[str, object]:
        """What the store does not have yet, but should."""
        writeback = self._parts.writeback
        return {
            "files": tally.files,
            "bytes": tally.bytes,
            "oldest_s": max(0.0, time.time() - tally.since_s) if tally.since_s is not None else 0.0,
            "open_files": tally.open_files,
            "deletes": tally.deletes,
            "failing": tally.failing,
            "error": tally.error,
            "local_only": tally.local_only,
            "failures": writeback.failures,
            "conflicts": writeback.conflicts,
        }

    def metrics(self) -> str:
        """Return the same numbers as Prometheus text."""
        return metrics.render(self.status())

    async def refresh(self, paths: list[str]) -> list[str]:
        """Ask the store again about each path; returns one line for each that failed."""
        errors = []
        for path in paths:
            try:
                await self._parts.fs.refresh(path)
            except LuxError as exc:
                errors.append(f"{path}: {exc}")
        return errors

    async def persist(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below each path to the store; see `Backlog.persist`. The last item has the failures."""
        known, missing = [], []
        for path in paths:
            if self._parts.backlog.has_changes(path) or await self._exists(path):
                known.append(path)
            else:
                missing.append(f"{path}: there is no such file or directory")
        async with aclosing(self._parts.backlog.persist(known)) as steps:
            async for step in steps:
                line = _line(step)
                if step.done:
                    line["failures"] = [*missing, *step.failures]
                yield line

    async def _exists(self, path: str) -> bool:
        inode = ROOT_INODE
        try:
            for name in path.split("/") if path else ():
                inode = (await self._parts.fs.lookup(inode, os.fsencode(name))).inode
        except LuxError as exc:
            return exc.errno not in (errno.ENOENT, errno.ENOTDIR)
        return True

    async def _nothing_to_read(self) -> list[str]:
        return []

    async def reload(self) -> list[str]:
        """Take up a changed configuration file; returns the names of what changed. Raises `ConfigError`."""
        return await self.reread()

    async def pin(self, paths: list[str]) -> dict[str, object]:
        """Never evict what is at and below the paths; returns failures and notes."""
        return asdict(await self._parts.retention.pin(paths))

    async def unpin(self, paths: list[str]) -> dict[str, object]:
        """Let what is at and below the paths be evicted again; returns failures."""
        return asdict(await self._parts.retention.unpin(paths))

    async def limit(self, paths: list[str], seconds: float | None, action: TtlAction) -> dict[str, object]:
        """Set how long what is at and below the paths is kept; returns failures."""
        return asdict(await self._parts.retention.limit(paths, seconds, action))

    async def drain(self) -> AsyncGenerator[dict[str, object], None]:
        """Bring everything that is closed to the store, while this is iterated; ends when it is there."""
        async with aclosing(self._parts.backlog.drain()) as steps:
            async for step in steps:
                yield _line(step)

    async def load(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below the paths into the cache, while this is iterated; ends when it is there."""
        job = self._parts.loads.start(paths)
        try:
            async with aclosing(watch(job)) as steps:
                async for step in steps:
                    yield asdict(step)
        finally:
            job.stop()

    def start_load(self, paths: list[str]) -> int:
        """The same in the background; returns the number of the job. Raises `LoadRefused`."""
        return self._parts.loads.start(paths).number

    def loads(self) -> list[dict[str, object]]:
        """Return how far the loads are: those that run, and the last that ended."""
        return [asdict(progress) for progress in self._parts.loads.progress()]

    def stop_loads(self) -> int:
        """End all loads; returns how many those are."""
        return self._parts.loads.stop()

    async def free(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Drop what is cached at and below the paths; the last item has all of it."""
        async with aclosing(self._parts.inventory.free(paths)) as steps:
            async for step in steps:
                yield asdict(step)

    async def locate(self, paths: list[str]) -> list[dict[str, object]]:
        """Return what is cached of each path, and where."""
        return await self._parts.inventory.locate(paths)

    async def unmount(self, *, lazy: bool) -> None:
        """Take the mount away; the daemon then brings what is left to the store, and ends.

        Raises `MountError` where it is busy.
        """
        await self._parts.session.unmount(lazy=lazy)
        self._parts.backlog.hasten()


def _line(step: Progress) -> dict[str, object]:
    return asdict(step)


def _latency(histogram: Histogram) -> dict[str, object]:
    return {
        "count": histogram.count,
        "sum_s": histogram.sum_s,
        "p50_s": histogram.quantile(0.5),
        "p95_s": histogram.quantile(0.95),
        "p99_s": histogram.quantile(0.99),
        "buckets": list(histogram.counts),
    }


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
