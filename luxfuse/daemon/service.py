"""What the control socket offers of a running daemon: its status, and orders to it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from luxfuse import __version__
from luxfuse.config import Settings
from luxfuse.control import metrics
from luxfuse.core.histogram import BOUNDS_S, Histogram
from luxfuse.daemon.parts import Parts
from luxfuse.errors import LuxError
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.index.names import ROOT_INODE
from luxfuse.orders.backlog import Progress, Tally
from luxfuse.orders.backlogs import Backlogs
from luxfuse.orders.check import CheckProgress, together
from luxfuse.orders.jobs import watch
from luxfuse.types import TIERS, TtlAction
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.volume.parts import VolumeParts


@dataclass(frozen=True, slots=True)
class VolumeState:
    """An attached under-store: where, relative to the mount; ``parts`` while it is served; ``error`` says why it is not."""

    path: str
    settings: Settings
    state: str
    error: str | None
    parts: VolumeParts | None


class AttachedVolumes(Protocol):
    """The further under-stores of a mount. Failures are `LuxError` with one line."""

    def volumes(self) -> list[VolumeState]:
        """Return all of them, by path."""

    async def attach(self, base: Settings, source: str, path: str, options: Mapping[str, Any]) -> list[str]:
        """Attach one; what ``options`` leave open is as in ``base``, the mount's settings. Returns lines worth knowing."""

    def detach(self, path: str, *, force: bool) -> AsyncGenerator[Progress, None]:
        """Bring what was written in it to its store, and take it away; yields how far that is."""


class Nodes(Protocol):
    """The cluster that the mount is in."""

    def describe(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return this node and the others, as `status` has them."""

    def statistics(self) -> dict[str, int]:
        """Return counters of what nodes ask of each other."""

    def degraded(self) -> list[str]:
        """Return what does not work as it should, a line each."""


class Replicas(Protocol):
    """Has other nodes of the cluster hold copies of what is cached."""

    async def order(
        self, parts: VolumeParts, paths: Sequence[str], least: int, most: int | None
    ) -> tuple[list[str], list[str]]:
        """Make rules, or end them (``least`` 0); returns lines: failures by path, and notes. Raises `LuxError`, OSError."""


class Service:
    """Carries out the orders of `luxfuse.control.orders.ORDERS`."""

    def __init__(
        self, settings: Settings, parts: Parts, attached: AttachedVolumes, nodes: Nodes | None = None, *, started_s: float
    ) -> None:
        self.settings = settings
        self._nodes = nodes
        self._parts = parts
        self._attached = attached
        self._started_s = started_s
        self.reread: Callable[[], Awaitable[list[str]]] = self._nothing_to_read
        """Set by the daemon: reads the configuration file again; returns the names of what changed."""
        self.replicas: Replicas | None = None
        """Set by the daemon where the mount is in a cluster."""
        self.backlogs = Backlogs(lambda: [(path, each.backlog) for path, each in self._volumes()])

    def stores(self) -> list[Store]:
        """Return the under-stores that are served now, the mount's own first."""
        return [parts.store for _, parts in self._volumes()]

    def _volumes(self) -> list[tuple[str, VolumeParts]]:
        """Return what is served, and where: the mount's own under-store first."""
        return [("", self._parts), *((each.path, each.parts) for each in self._attached.volumes() if each.parts)]

    def status(self) -> dict[str, object]:
        """Return the status document; see `luxfuse.control.status`."""
        s, p = self.settings, self._parts
        tally = self.backlogs.tally()
        reasons = self._degraded_reasons()
        each = [parts for _, parts in self._volumes()]
        requests, fast_opens = passthrough.statistics()
        return {
            "mountpoint": s.mountpoint,
            "source": safe_url(s.source),
            "pid": os.getpid(),
            "version": __version__,
            "state": "draining" if p.backlog.draining else "degraded" if reasons else "serving",
            "degraded_reasons": reasons,
            "hints": [hint for parts in each if (hint := parts.writer.small_closes.hint) is not None],
            "passthrough": p.kernel.passthrough,
            "passthrough_reason": p.kernel.reason,
            "uptime_s": time.monotonic() - self._started_s,
            "memory_bytes": _resident_bytes(),
            "driver": p.store.driver.driver,
            "tiers": self._tiers(),
            "reads": self._reads(fast_opens),
            "understore": self._understore(),
            "cache": _total([_cache(parts) for parts in each]),
            "names": _total([_names(parts) for parts in each]),
            "fuse": {
                "requests": requests,
                "fast_opens": fast_opens,
                "errors": p.operations.errors,
                "refusals": p.operations.refusals,
            },
            "dirty": self._dirty(tally),
            "recovered": {
                "files": sum(parts.recovered.count() for parts in each),
                "path": str(p.recovered.directory if len(each) == 1 else p.recovered.directory.parent),
            },
            "volumes": self._describe_volumes(),
            "latency": {
                "bounds_s": list(BOUNDS_S),
                "understore": {kind: _latency(h) for kind, h in _latencies(each).items() if h.count},
                "fuse": {name: _latency(h) for name, h in p.operations.latency.items() if h.count},
            },
            **self._cluster(),
        }

    def _cluster(self) -> dict[str, object]:
        if self._nodes is None:
            return {"node": None, "peers": []}
        node, peers = self._nodes.describe()
        return {"node": node, "peers": peers, "cluster": self._nodes.statistics()}

    def _degraded_reasons(self) -> list[str]:
        reasons = [f"{path}: {why}" if path else why for path, parts in self._volumes() for why in _degraded(parts)]
        reasons += self._nodes.degraded() if self._nodes is not None else []
        return reasons + [f"{each.path}: {each.error}" for each in self._attached.volumes() if each.error]

    def _describe_volumes(self) -> list[dict[str, object]]:
        own = VolumeState("", self.settings, "serving", None, self._parts)
        return [_volume(each) for each in (own, *self._attached.volumes())]

    def _tiers(self) -> list[dict[str, object]]:
        """Volumes use the same directories, each with a limit of its own."""
        tiers: dict[tuple[str, str], dict[str, Any]] = {}
        for space in (space for _, parts in self._volumes() for space in parts.hierarchy):
            tier = tiers.setdefault((space.tier, space.directory.name), {
                "name": space.tier, "path": space.directory.name, "capacity_bytes": 0, "used_bytes": 0, "state": "serving",
            })  # fmt: skip
            unlimited = tier["capacity_bytes"] is None or space.capacity_bytes is None
            tier["capacity_bytes"] = None if unlimited else tier["capacity_bytes"] + space.capacity_bytes
            tier["used_bytes"] += space.ledger.used_bytes
            if space.degraded or space.draining:
                tier["state"] = "degraded" if space.degraded or tier["state"] == "degraded" else "draining"
        return list(tiers.values())

    def _reads(self, fast_opens: int) -> dict[str, Any]:
        total = _total([_reads(parts) for _, parts in self._volumes()])
        total["passthrough_opens"] += fast_opens
        return total

    def _understore(self) -> dict[str, Any]:
        total, prices = _total([_understore(parts) for _, parts in self._volumes()]), self.settings.prices
        requests = {name: total[f"{name}s"] for name in ("get", "put", "list", "head", "delete")}
        return {
            "cost": prices.cost(requests, total["get_bytes"], total["put_bytes"]) if prices is not None else None,
            "currency": prices.currency if prices is not None else None,
            **total,
            "state": "ok" if all(parts.store.reachable for _, parts in self._volumes()) else "unreachable",
        }

    def _dirty(self, tally: Tally) -> dict[str, object]:
        """What the stores do not have yet, but should."""
        each = [parts.writeback for _, parts in self._volumes()]
        return {
            "files": tally.files,
            "bytes": tally.bytes,
            "oldest_s": max(0.0, time.time() - tally.since_s) if tally.since_s is not None else 0.0,
            "open_files": tally.open_files,
            "deletes": tally.deletes,
            "failing": tally.failing,
            "error": tally.error,
            "local_only": tally.local_only,
            "failures": sum(writeback.failures for writeback in each),
            "conflicts": sum(writeback.conflicts for writeback in each),
        }

    def metrics(self) -> str:
        """Return the same numbers as Prometheus text."""
        return metrics.render(self.status())

    async def refresh(self, paths: list[str]) -> list[str]:
        """Ask the store again about each path; returns one line for each that failed."""
        errors = []
        for path in paths:
            try:
                volume, inside = self._parts.volumes.split(path)
                with volume as fs:
                    await fs.refresh(inside)
            except LuxError as exc:
                errors.append(f"{path}: {exc}")
        return errors

    async def persist(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below each path to the store; see `Backlogs.persist`. The last item has the failures."""
        known, missing = [], []
        for path in paths:
            if self.backlogs.has_changes(path) or await self._exists(path):
                known.append(path)
            else:
                missing.append(f"{path}: there is no such file or directory")
        async with aclosing(self.backlogs.persist(known)) as steps:
            async for step in steps:
                line = _line(step)
                if step.done:
                    line["failures"] = [*missing, *step.failures]
                yield line

    async def _exists(self, path: str) -> bool:
        inode = ROOT_INODE
        try:
            for name in path.split("/") if path else ():
                inode = (await self._parts.volumes.lookup(inode, os.fsencode(name))).inode
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
        place, parts, inside = self._one_volume(paths)
        return _placed(place, asdict(await parts.retention.pin(inside)))

    async def unpin(self, paths: list[str]) -> dict[str, object]:
        """Let what is at and below the paths be evicted again; returns failures."""
        place, parts, inside = self._one_volume(paths)
        return _placed(place, asdict(await parts.retention.unpin(inside)))

    async def limit(self, paths: list[str], seconds: float | None, action: TtlAction) -> dict[str, object]:
        """Set how long what is at and below the paths is kept; returns failures."""
        place, parts, inside = self._one_volume(paths)
        return _placed(place, asdict(await parts.retention.limit(inside, seconds, action)))

    async def replicate(self, paths: list[str], least: int, most: int | None) -> dict[str, object]:
        """Have what is at and below the paths held by so many nodes; returns failures and notes. Raises `PathsRefused`."""
        if self.replicas is None:
            raise PathsRefused("the mount is in no cluster; mount it with --cluster-key-file, see: luxfuse cluster --help")
        place, parts, inside = self._one_volume(paths)
        missing = {path: await parts.inventory.missing(path) for path in inside} if least else {}
        failures = [f"{path or '.'}: {why}" for path, why in missing.items() if why is not None]
        there = [path for path in inside if missing.get(path) is None]
        try:
            refused, notes = await self.replicas.order(parts, there, least, most)
        except OSError as exc:
            raise PathsRefused(f"the rules cannot be kept: {exc}") from exc
        return {**_placed(place, {"failures": [*failures, *refused]}), "notes": notes}

    async def drain(self) -> AsyncGenerator[dict[str, object], None]:
        """Bring everything that is closed to the store, while this is iterated; ends when it is there."""
        async with aclosing(self.backlogs.drain()) as steps:
            async for step in steps:
                yield _line(step)

    async def load(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below the paths into the cache, while this is iterated; ends when it is there."""
        place, parts, inside = self._one_volume(paths)
        job = parts.loads.start(inside)
        try:
            async with aclosing(watch(job)) as steps:
                async for step in steps:
                    yield _placed(place, asdict(step))
        finally:
            job.stop()

    def start_load(self, paths: list[str]) -> int:
        """The same in the background; returns the number of the job. Raises `LoadRefused`."""
        _, parts, inside = self._one_volume(paths)
        return parts.loads.start(inside).number

    def loads(self) -> list[dict[str, object]]:
        """Return how far the loads are: those that run, and the last that ended."""
        return [_placed(place, asdict(progress)) for place, parts in self._volumes() for progress in parts.loads.progress()]

    def stop_loads(self) -> int:
        """End all loads; returns how many those are."""
        return sum(parts.loads.stop() for _, parts in self._volumes())

    async def free(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Drop what is cached at and below the paths; the last item has all of it."""
        place, parts, inside = self._one_volume(paths)
        async with aclosing(parts.inventory.free(inside)) as steps:
            async for step in steps:
                yield _placed(place, asdict(step))

    async def check(self, *, repair: bool) -> AsyncGenerator[dict[str, object], None]:
        """Compare the cache with what is recorded of it, one under-store after the other, while this is iterated.

        Raises `CheckRefused`.
        """
        before: list[CheckProgress] = []
        volumes = self._volumes()
        for number, (place, parts) in enumerate(volumes, 1):
            job = parts.checks.start(repair=repair, place=place)
            try:
                async with aclosing(watch(job)) as steps:
                    async for step in steps:
                        yield asdict(together([*before, step], last=number == len(volumes)))
            finally:
                job.stop()
            before.append(job.progress())

    async def locate(self, paths: list[str]) -> list[dict[str, object]]:
        """Return what is cached of each path, and where."""
        found: list[dict[str, object]] = []
        for path in paths:
            place, parts, inside = self._one_volume([path])
            for each in await parts.inventory.locate(inside):
                found.append({**each, "path": f"{place}/{each['path']}".strip("/")})
        return found

    def _one_volume(self, paths: list[str]) -> tuple[str, VolumeParts, list[str]]:
        """Return where the volume of the paths is attached, its parts, and what the paths are called in it."""
        split = [self._parts.volumes.split(path) for path in paths]
        if len({volume.number for volume, _ in split}) > 1:
            raise PathsRefused("the paths are in several under-stores of the mount; name those of one at a time")
        place = paths[0][: len(paths[0]) - len(split[0][1])].rstrip("/") if paths else ""
        parts = dict(self._volumes()).get(place)
        if parts is None:
            raise PathsRefused(f"{place}: the under-store that is attached there cannot be reached")
        return place, parts, [inside for _, inside in split]

    async def attach(self, source: str, path: str, options: dict[str, Any]) -> list[str]:
        """Attach a further under-store; returns lines worth knowing."""
        return await self._attached.attach(self.settings, source, path, options)

    async def detach(self, path: str, *, force: bool) -> AsyncGenerator[dict[str, object], None]:
        """Take an attached under-store away; yields how far that is."""
        async with aclosing(self._attached.detach(path, force=force)) as steps:
            async for step in steps:
                yield _line(step)

    async def unmount(self, *, lazy: bool) -> None:
        """Take the mount away; the daemon then brings what is left to the store, and ends.

        Raises `MountError` where it is busy.
        """
        await self._parts.session.unmount(lazy=lazy)
        self.backlogs.hasten()


class PathsRefused(LuxError):
    """An order cannot be given for these paths. The text is one line."""


def _total(documents: Sequence[dict[str, int]]) -> dict[str, Any]:
    return {name: sum(document[name] for document in documents) for name in documents[0]}


def _placed(place: str, step: dict[str, Any]) -> dict[str, object]:
    """Return progress with paths relative to the mount instead of to the volume at ``place``."""
    if place:
        for name in {"paths", "failures", "lines", "notes"} & set(step):
            step[name] = [f"{place}/{text}".rstrip("/") for text in step[name]]
    return step


def _volume(each: VolumeState) -> dict[str, object]:
    tally = each.parts.backlog.tally() if each.parts is not None else Tally()
    error = each.error or next(iter(_degraded(each.parts) if each.parts is not None else ()), None)
    return {
        "path": each.path,
        "source": safe_url(each.settings.source),
        "state": "degraded" if error and each.state == "serving" else each.state,
        "error": error,
        "read_only": each.settings.read_only,
        "driver": each.parts.store.driver.driver if each.parts is not None else None,
        "dirty_files": tally.files,
        "dirty_bytes": tally.bytes,
        "deletes": tally.deletes,
    }


def _degraded(p: VolumeParts) -> list[str]:
    tally = p.backlog.tally()
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


def _reads(p: VolumeParts) -> dict[str, int]:
    counters, files = p.cache.counters, p.files.counters
    tiers = dict.fromkeys(TIERS, 0)
    for space in p.hierarchy:
        tiers[space.tier] += space.read_bytes
    return {
        "memory_bytes": counters.memory_bytes + tiers["mem"],
        "ssd_bytes": tiers["ssd"],
        "hdd_bytes": tiers["hdd"],
        "peer_bytes": counters.peer_bytes,
        "understore_bytes": counters.understore_bytes,
        "passthrough_opens": files.passthrough_opens,
        "copied_opens": files.copied_opens,
    }


def _understore(p: VolumeParts) -> dict[str, int]:
    st = p.store.statistics()
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
        "get_bytes": p.cache.counters.understore_bytes + st.get_bytes,
    }


def _cache(p: VolumeParts) -> dict[str, int]:
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


def _names(p: VolumeParts) -> dict[str, int]:
    return {
        "skipped_keys": p.lister.skipped_keys,
        "listings": p.lister.listings,
        "stale_served": p.namespace.stale_served,
    }


def _line(step: Progress) -> dict[str, object]:
    return asdict(step)


def _latencies(each: Sequence[VolumeParts]) -> dict[str, Histogram]:
    kinds = {kind for parts in each for kind in parts.store.latency}
    found: dict[str, Histogram] = {}
    for kind in sorted(kinds):
        histograms = [parts.store.latency[kind] for parts in each if kind in parts.store.latency]
        counts = [sum(column) for column in zip(*(h.counts for h in histograms), strict=True)]
        found[kind] = Histogram(counts, sum(h.sum_s for h in histograms))
    return found


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
