"""The status document of a running daemon; `luxfuse.control.status` says what is in it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luxfuse import __version__
from luxfuse.core.histogram import BOUNDS_S, Histogram
from luxfuse.core.kernels import why_no_keeper
from luxfuse.core.units import format_age
from luxfuse.daemon.running import Running, VolumeState
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.orders.backlog import Tally
from luxfuse.orders.backlogs import Backlogs
from luxfuse.types import TIERS
from luxfuse.understore.failures import safe_url
from luxfuse.volume.parts import VolumeParts


class Status:
    """Makes the status document."""

    def __init__(self, running: Running, backlogs: Backlogs) -> None:
        self._running = running
        self._backlogs = backlogs

    def document(self) -> dict[str, object]:
        """Return the status document; see `luxfuse.control.status`."""
        s, p = self._running.settings, self._running.parts
        tally = self._backlogs.tally()
        reasons = self._degraded_reasons()
        each = [parts for _, parts in self._running.volumes()]
        lane = passthrough.statistics()
        return {
            "mountpoint": s.mountpoint,
            "source": safe_url(s.source),
            "pid": os.getpid(),
            **_keeper(self._running),
            "version": __version__,
            "state": "draining" if p.backlog.draining else "degraded" if reasons else "serving",
            "degraded_reasons": reasons,
            "hints": [hint for parts in each if (hint := parts.writing.promises.small_closes.hint) is not None],
            "passthrough": p.kernel.passthrough,
            "passthrough_reason": p.kernel.reason,
            "dataplane": p.kernel.serves_bytes,
            "uptime_s": time.monotonic() - self._running.started_s,
            "memory_bytes": _resident_bytes(),
            "driver": p.store.driver.driver,
            "tiers": self._tiers(),
            "reads": self._reads(lane),
            "understore": self._understore(),
            "cache": _total([_cache(parts) for parts in each]),
            "names": _total([_names(parts) for parts in each]),
            "fuse": {
                "requests": lane["requests"],
                "fast_opens": lane["opens"],
                "waited_opens": lane["waited_opens"],
                "waited_opens_s": lane["waited_ns"] / 1e9,
                "fast_reads": lane["reads"],
                "fast_writes": lane["writes"],
                "fast_lookups": lane["lookups"],
                "fast_getattrs": lane["getattrs"],
                "lanes": lane["lanes"],
                "lanes_waiting": lane["lanes_waiting"],
                "errors": p.operations.errors,
                "refusals": p.operations.refusals,
                "overdue": p.watchdog.overdue,
                "stalls": p.watchdog.stalls,
            },
            "dirty": self._dirty(tally),
            "recovered": {
                "files": sum(parts.recovered.count() for parts in each),
                "path": str(p.recovered.directory if len(each) == 1 else p.recovered.directory.parent),
            },
            "volumes": self._describe_volumes(),
            "http": self._running.http,
            "latency": {
                "bounds_s": list(BOUNDS_S),
                "understore": {kind: _latency(h) for kind, h in _latencies(each).items() if h.count},
                "fuse": {name: _latency(h) for name, h in p.operations.latency.items() if h.count},
            },
            **self._cluster(),
        }

    def _cluster(self) -> dict[str, object]:
        if self._running.nodes is None:
            return {"node": None, "peers": []}
        node, peers = self._running.nodes.describe()
        return {"node": node, "peers": peers, "cluster": self._running.nodes.statistics()}

    def _degraded_reasons(self) -> list[str]:
        reasons = [f"{path}: {why}" if path else why for path, parts in self._running.volumes() for why in _degraded(parts)]
        reasons += self._running.nodes.degraded() if self._running.nodes is not None else []
        return reasons + [f"{each.path}: {each.error}" for each in self._running.attached.volumes() if each.error]

    def _describe_volumes(self) -> list[dict[str, object]]:
        own = VolumeState("", self._running.settings, "serving", None, self._running.parts)
        return [_volume(each) for each in (own, *self._running.attached.volumes())]

    def _tiers(self) -> list[dict[str, object]]:
        """Volumes use the same directories, each with a limit of its own."""
        tiers: dict[tuple[str, str], dict[str, Any]] = {}
        for space in (space for _, parts in self._running.volumes() for space in parts.hierarchy):
            tier = tiers.setdefault((space.tier, space.directory.name), {
                "name": space.tier, "path": space.directory.name, "capacity_bytes": 0, "used_bytes": 0, "state": "serving",
            })  # fmt: skip
            unlimited = tier["capacity_bytes"] is None or space.capacity_bytes is None
            tier["capacity_bytes"] = None if unlimited else tier["capacity_bytes"] + space.capacity_bytes
            tier["used_bytes"] += space.ledger.used_bytes
            if space.degraded or space.draining:
                tier["state"] = "degraded" if space.degraded or tier["state"] == "degraded" else "draining"
        return list(tiers.values())

    def _reads(self, lane: Mapping[str, int]) -> dict[str, Any]:
        total = _total([_reads(parts) for _, parts in self._running.volumes()])
        total["passthrough_opens"] += lane["opens"] + lane["waited_opens"] - lane["dataplane_opens"]
        return {**total, "dataplane_opens": lane["dataplane_opens"], "dataplane_bytes": lane["read_bytes"]}

    def _understore(self) -> dict[str, Any]:
        total, prices = _total([_understore(parts) for _, parts in self._running.volumes()]), self._running.settings.prices
        requests = {name: total[f"{name}s"] for name in ("get", "put", "list", "head", "delete")}
        return {
            "cost": prices.cost(requests, total["get_bytes"], total["put_bytes"]) if prices is not None else None,
            "currency": prices.currency if prices is not None else None,
            **total,
            "state": "ok" if all(parts.store.reachable for _, parts in self._running.volumes()) else "unreachable",
        }

    def _dirty(self, tally: Tally) -> dict[str, object]:
        """The unsaved changes: those that the stores do not have yet."""
        each = [parts.writeback for _, parts in self._running.volumes()]
        return {
            "files": tally.files,
            "bytes": tally.bytes,
            "oldest_s": max(0.0, time.time() - tally.since_s) if tally.since_s is not None else 0.0,
            "open_files": tally.open_files,
            "deletes": tally.deletes,
            "renames": tally.renames,
            "failing": tally.failing,
            "error": tally.error,
            "local_only": tally.local_only,
            "failures": sum(writeback.pace.failures for writeback in each),
            "conflicts": sum(writeback.pusher.conflicts for writeback in each),
        }


def _keeper(running: Running) -> dict[str, object]:
    s, succession = running.settings, running.succession
    if succession is None:
        root, release = os.geteuid() == 0, os.uname().release
        why = why_no_keeper(wanted=s.keeper, root=root, release=release)
        return {
            "restarts": 0,
            "keeper": False,
            "keeper_pid": None,
            "keeper_reason": why or "it could not begin; see the log",
        }
    restarts, pid = succession.estate.restarts, succession.keeper_pid
    if not succession.kept:
        why = f"it has died (pid {pid}), and will be there again after the next mount"
        return {"restarts": restarts, "keeper": False, "keeper_pid": None, "keeper_reason": why}
    return {"restarts": restarts, "keeper": True, "keeper_pid": pid, "keeper_reason": None}


def _total(documents: Sequence[dict[str, int]]) -> dict[str, Any]:
    return {name: sum(document[name] for document in documents) for name in documents[0]}


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


STALE = "what is known and cached is served, and may be stale"


def _degraded(p: VolumeParts) -> list[str]:
    tally = p.backlog.tally()
    reasons = [space.degraded for space in p.hierarchy if space.degraded]
    if p.index.failing:
        reasons.append(f"what is learnt of the under-store and of the cache cannot be recorded: {p.index.failing}")
    if p.index.doubted:
        reasons.append(p.index.doubted)
    if p.journal.failing:
        reasons.append(f"the journal cannot be written, so a crash would lose changes: {p.journal.failing}")
    if tally.failing:
        reasons.append(f"{tally.failing} changes cannot be brought to the under-store yet: {tally.error}")
    presence = p.store.presence
    if presence.denied_s is not None:
        since = f"since {format_age(presence.denied_s)} ({presence.denial})"
        reasons.append(f"the under-store {presence.denies} {since}: {STALE}")
    if not p.store.reachable:
        since = f" since {format_age(presence.away_s)} ({presence.cause})" if presence.away_s is not None else ""
        reasons.append(f"the under-store cannot be reached{since}: {STALE}")
    return reasons


def _reads(p: VolumeParts) -> dict[str, int]:
    counters, files = p.cache.counters, p.files
    tiers = dict.fromkeys(TIERS, 0)
    for space in p.hierarchy:
        tiers[space.tier] += space.read_bytes
    return {
        "memory_bytes": counters.memory_bytes + tiers["mem"],
        "ssd_bytes": tiers["ssd"],
        "hdd_bytes": tiers["hdd"],
        "peer_bytes": counters.peer_bytes,
        "understore_bytes": counters.understore_bytes,
        "passthrough_opens": files.backings.opened,
        "copied_opens": files.copied.opened,
    }


def _understore(p: VolumeParts) -> dict[str, int]:
    st = p.store.counters.statistics()
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
        "outages": p.store.presence.outages,
        "probes": p.store.presence.probes,
        "refused": p.store.presence.refused,
        "in_flight": st.in_flight,
        "get_bytes": p.cache.counters.understore_bytes + st.get_bytes,
    }


def _cache(p: VolumeParts) -> dict[str, int]:
    return {
        "objects": p.objects.count,
        "pinned_bytes": p.hierarchy.total(lambda space: space.standings.pinned_bytes),
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
        "schedules": len(p.schedules.running),
        "scheduled_files": p.schedules.files + sum(job.files for job in p.schedules.running),
        "scheduled_bytes": p.schedules.bytes + sum(job.bytes for job in p.schedules.running),
        "buffered_bytes": p.cache.recent.held_bytes,
        "in_flight_bytes": p.cache.budget.held_bytes,
    }


def _names(p: VolumeParts) -> dict[str, int]:
    return {
        "skipped_keys": p.lister.skipped_keys,
        "listings": p.lister.listings,
        "stale_served": p.namespace.belief.stale_served,
    }


def _latencies(each: Sequence[VolumeParts]) -> dict[str, Histogram]:
    kinds = {kind for parts in each for kind in parts.store.counters.latency}
    found: dict[str, Histogram] = {}
    for kind in sorted(kinds):
        histograms = [parts.store.counters.latency[kind] for parts in each if kind in parts.store.counters.latency]
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
