"""What the control socket offers of a running daemon: its status, and orders to it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import trio

from luxfuse import __version__
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.space import Space
from luxfuse.config import Settings
from luxfuse.control import metrics
from luxfuse.errors import LuxError
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.session import Session
from luxfuse.index.journal import Journal
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, WriteMode
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery import Recovery
from luxfuse.vfs.writeback import WriteBack
from luxfuse.vfs.writer import Writer

log = logging.getLogger(__name__)

DRAIN_POLL_S = 0.1

@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that makes up a running daemon."""

    store: Store
    index: IndexStore
    objects: Objects
    space: Space
    cache: PageCache
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
    recovered: Recovered
    recovery: Recovery


class Service:
    """Implements `luxfuse.control.server.ControlService`."""

    def __init__(self, settings: Settings, parts: Parts, *, started_s: float) -> None:
        self._settings = settings
        self._parts = parts
        self._started_s = started_s
        self._draining = False
        self._drained_bytes = 0

    def status(self) -> dict[str, object]:
        """Return the status document; see `luxfuse.control.status`."""
        s, p = self._settings, self._parts
        reasons = self._degraded_reasons()
        requests, fast_opens = passthrough.statistics()
        return {
            "mountpoint": s.mountpoint,
            "source": safe_url(s.source),
            "pid": os.getpid(),
            "version": __version__,
            "state": "draining" if self._draining else "degraded" if reasons else "serving",
            "degraded_reasons": reasons,
            "passthrough": p.kernel.passthrough,
            "passthrough_reason": p.kernel.reason,
            "uptime_s": time.monotonic() - self._started_s,
            "memory_bytes": _resident_bytes(),
            "driver": p.store.driver.driver,
            "tiers": [self._tier()],
            "reads": self._reads(fast_opens),
            "understore": self._understore(),
            "cache": self._cache(),
            "names": {
                "skipped_keys": p.lister.skipped_keys,
                "listings": p.lister.listings,
                "stale_served": p.namespace.stale_served,
            },
            "fuse": {"requests": requests, "fast_opens": fast_opens, "errors": p.operations.errors},
            "dirty": self._dirty(),
            "recovered": {"files": p.recovered.count(), "path": str(p.recovered.directory)},
            "peers": [],
        }

    def _degraded_reasons(self) -> list[str]:
        p = self._parts
        reasons = [p.space.degraded] if p.space.degraded else []
        if p.index.failing:
            reasons.append(p.index.failing)
        if not p.store.reachable:
            reasons.append("the under-store cannot be reached")
        return reasons

    def _tier(self) -> dict[str, object]:
        s, p = self._settings, self._parts
        return {
            "name": s.cache_dir.tier,
            "path": s.cache_dir.path,
            "capacity_bytes": p.space.capacity_bytes,
            "used_bytes": p.space.ledger.used_bytes,
            "state": "degraded" if p.space.degraded else "serving",
        }

    def _reads(self, fast_opens: int) -> dict[str, int]:
        counters, files = self._parts.cache.counters, self._parts.files.counters
        disk = dict.fromkeys(("ssd_bytes", "hdd_bytes"), 0)
        memory = counters.memory_bytes
        if self._settings.cache_dir.tier == "mem":
            memory += counters.disk_bytes
        else:
            disk[f"{self._settings.cache_dir.tier}_bytes"] = counters.disk_bytes
        return {
            "memory_bytes": memory,
            **disk,
            "peer_bytes": 0,
            "understore_bytes": counters.understore_bytes,
            "passthrough_opens": files.passthrough_opens + fast_opens,
            "copied_opens": files.copied_opens,
        }

    def _understore(self) -> dict[str, object]:
        st = self._parts.store.statistics()
        return {
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
            "get_bytes": self._parts.cache.counters.understore_bytes,
            "state": "ok" if self._parts.store.reachable else "unreachable",
        }

    def _cache(self) -> dict[str, int]:
        p = self._parts
        return {
            "objects": p.objects.count,
            "evictions": p.space.evictions,
            "evicted_bytes": p.space.evicted_bytes,
            "checksum_failures": p.cache.counters.checksum_failures,
            "write_failures": p.space.write_failures,
            "verified_bytes": p.cache.counters.verified_bytes,
            "files_ahead": p.ahead.files,
            "buffered_bytes": p.cache.recent.held_bytes,
            "in_flight_bytes": p.cache.budget.held_bytes,
        }

    def _dirty(self) -> dict[str, object]:
        """What the store does not have yet, but should."""
        p = self._parts
        waiting = [d for d in p.dirty if d.must_push]
        oldest = min((d.since_s for d in waiting), default=None)
        failing = next((d for d in waiting if d.error is not None), None)
        return {
            "files": len(waiting),
            "bytes": sum(d.stamp.size for d in waiting if d.stamp is not None),
            "oldest_s": max(0.0, time.time() - oldest) if oldest is not None else 0.0,
            "deletes": len(p.journal.deletes),
            "local_only": sum(1 for d in p.dirty if d.mode is WriteMode.MUST_CACHE or d.kind is Kind.SPECIAL),
            "failures": p.writeback.failures,
            "conflicts": p.writeback.conflicts,
            "error": f"{failing.key}: {failing.error}" if failing is not None else None,
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

    async def persist(self, paths: list[str]) -> list[str]:
        """Wait until what is at and below each path is in the store; returns one line for each that failed."""
        errors = []
        for path in paths:
            key = path.strip("/")
            try:
                await self._parts.writeback.persist(key)
            except LuxError as exc:
                errors.append(f"{path}: {exc}")
        return errors

    async def drain(self, *, patience_s: float) -> bool:
        """Bring everything to the store; False once there has been no progress for so long."""
        writeback = self._parts.writeback
        writeback.urgent = True
        left, since_s = writeback.pending, trio.current_time()
        while left:
            writeback.hurry()
            await trio.sleep(DRAIN_POLL_S)
            now_left = writeback.pending
            put_bytes = self._parts.store.statistics().put_bytes
            if now_left < left or put_bytes != self._drained_bytes:
                since_s = trio.current_time()
            elif trio.current_time() - since_s > patience_s:
                log.warning("%d changes are not in the under-store; the next mount brings them there", now_left)
                return False
            left, self._drained_bytes = now_left, put_bytes
        return True

    async def unmount(self, *, lazy: bool) -> None:
        """Take the mount away; the daemon then ends. Raises `MountError` where it is busy."""
        self._draining = True
        try:
            await self._parts.session.unmount(lazy=lazy)
        except LuxError:
            self._draining = False
            raise


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
