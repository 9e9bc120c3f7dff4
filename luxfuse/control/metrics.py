"""The status document as Prometheus text or OpenMetrics: names luxfuse_*, one sample per number, with help and unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_COUNTERS = {
    "reads_memory_bytes": "Bytes served from memory.",
    "reads_ssd_bytes": "Bytes served by the daemon from the SSD tier; passthrough reads are not counted.",
    "reads_hdd_bytes": "Bytes served by the daemon from the HDD tier; passthrough reads are not counted.",
    "reads_peer_bytes": "Bytes served from other nodes.",
    "reads_understore_bytes": "Bytes served from the bucket.",
    "reads_dataplane_bytes": "Bytes that the data plane read from cache files.",
    "reads_passthrough_opens": "Opens handed to the kernel.",
    "reads_dataplane_opens": "Opens whose reads the data plane answers, without Python.",
    "reads_copied_opens": "Opens whose reads Python answers, at least while the file is not whole in the cache.",
    "cluster_asked": "Requests for pages to other nodes.",
    "cluster_failed": "Requests for pages to other nodes that came to nothing.",
    "cluster_corrupt": "Times that another node sent damaged pages.",
    "cluster_hedges": "Times that the bucket was asked because another node was slow.",
    "cluster_provided_bytes": "Bytes of pages provided to other nodes.",
    "cluster_refused": "Requests for pages of other nodes that were refused.",
    "cluster_notices_sent": "Notices of changes sent to other nodes.",
    "cluster_notices_received": "Notices of changes that other nodes sent.",
    "cluster_datagrams_rejected": "Datagrams of strangers, damaged, or seen before.",
    "cluster_replicas_sent": "Replicas of writes that other nodes took.",
    "cluster_replicas_forgone": "Writes that too few other nodes took, so that they went to the bucket at once.",
    "cluster_copies_ordered": "Copies of what is cached that this node has asked other nodes to make.",
    "cluster_copies_taken": "Of these copies, those that other nodes made.",
    "cluster_copies_dropped": "Copies that this node gave up as one too many.",
    "cluster_copies_accepted": "Copies that this node made for others.",
    "cluster_copies_refused": "Copies that this node refused to make for others.",
    "understore_gets": "GET requests to the bucket, retries included.",
    "understore_heads": "HEAD requests to the bucket, retries included.",
    "understore_lists": "LIST requests to the bucket, retries included.",
    "understore_puts": "PUT requests to the bucket, retries included.",
    "understore_deletes": "DELETE requests to the bucket, retries included.",
    "understore_errors": "Requests to the bucket that failed for good.",
    "understore_retries": "Requests to the bucket that were tried again.",
    "understore_timeouts": "Requests to the bucket that ran into their deadline.",
    "understore_outages": "Times that the bucket was found to be away.",
    "understore_probes": "Requests to the bucket that asked only whether it is there.",
    "understore_refused": "Requests to the bucket that were not made, as it was away.",
    "understore_get_bytes": "Bytes received from the bucket.",
    "understore_put_bytes": "Bytes sent to the bucket.",
    "cache_scheduled_files": "Files fetched because a program had told that it will open them.",
    "cache_scheduled_bytes": "Bytes of such files.",
    "cache_evictions": "Objects removed from the cache to make room for others: where it is full, or a quota is.",
    "cache_evicted_bytes": "Bytes of evicted objects, and of parts evicted of large ones; nothing that commands drop.",
    "cache_expired": "Files dropped or removed because their time was over.",
    "cache_moved_up": "Cache files moved to a higher tier.",
    "cache_moved_down": "Cache files moved to a lower tier.",
    "cache_checksum_failures": "Pages dropped because their checksum was wrong.",
    "cache_write_failures": "Pages that could not be written to the cache.",
    "cache_verified_bytes": "Bytes of the cache read back and found right.",
    "names_skipped_keys": "Keys that cannot be shown as files.",
    "names_listings": "Listings of directories.",
    "names_stale_served": "Answers that may be stale, because the bucket could not be asked.",
    "dirty_failures": "Tries to bring a change to the bucket that failed.",
    "dirty_conflicts": "Files that somebody else had written meanwhile.",
    "fuse_requests": "Requests from the kernel.",
    "fuse_fast_opens": "Opens answered without waiting for anything.",
    "fuse_waited_opens": "Opens that waited for a file on its way, and for nothing else.",
    "fuse_waited_opens_s": "How long these waited, in sum.",
    "fuse_fast_reads": "Reads answered by the data plane.",
    "fuse_fast_writes": "Writes answered by the data plane.",
    "fuse_fast_lookups": "Look-ups of names answered by the data plane.",
    "fuse_fast_getattrs": "Questions for attributes answered by the data plane.",
    "fuse_errors": "Requests from the kernel that failed in a way that luxfuse did not foresee.",
    "fuse_overdue": "Requests from the kernel that took longer than any should; the log says what they waited for.",
    "fuse_stalls": "Times in which the daemon looked at no request for 10 s.",
    "fuse_refusals": "Requests from the kernel that failed for a reason outside luxfuse, as an outage.",
}
_GAUGES = {
    "fuse_lanes": "Threads that take requests from the kernel.",
    "fuse_lanes_waiting": "Of these threads, those that read or write for the data plane now.",
    "pid": "Process id of the daemon.",
    "uptime_s": "Seconds since the daemon began to serve.",
    "restarts": "Daemons that died since the mount was made, each of which has a successor.",
    "keeper": "1 where another daemon goes on when this one dies.",
    "keeper_pid": "Process id of the keeper.",
    "memory_bytes": "Resident memory of the daemon.",
    "passthrough": "1 where the kernel reads cached files itself.",
    "dataplane": "1 where the data plane reads and writes the files that the kernel does not.",
    "cache_objects": "Objects in the cache.",
    "cache_pinned_bytes": "Bytes of the cache that are never evicted.",
    "cache_pins": "Pins made by commands.",
    "cache_time_limits": "Time limits set by commands.",
    "dirty_files": "Files not in the bucket yet.",
    "dirty_bytes": "Bytes not in the bucket yet.",
    "dirty_oldest_s": "Age of the oldest change not in the bucket yet.",
    "dirty_open_files": "Files not in the bucket yet that are open for writing.",
    "dirty_deletes": "Objects still to be removed from the bucket.",
    "dirty_renames": "Interrupted renames still to be finished in the bucket.",
    "dirty_failing": "Changes that failed when they were tried last.",
    "dirty_local_only": "Files that never go to the bucket.",
    "recovered_files": "Files saved aside after a crash or a conflict.",
    "cluster_replicas_held": "Replicas of writes that are held here for other nodes.",
    "cluster_replicas_held_bytes": "Bytes of replicas of writes that are held here for other nodes.",
    "cluster_rules": "Rules of luxfuse replicate that are known.",
    "understore_cost": "Estimated cost of the requests to the bucket since the mount, by the price table.",
    "understore_in_flight": "Requests to the bucket that are waited for.",
    "cache_files_ahead": "Files being fetched before they are asked for.",
    "cache_schedules": "Programs that have told which files they will open.",
    "cache_buffered_bytes": "Bytes kept in memory for a moment.",
    "cache_in_flight_bytes": "Bytes being fetched from the bucket.",
    "tier_capacity_bytes": "Most bytes that the tier may hold.",
    "tier_used_bytes": "Bytes that the tier holds.",
    "tier_ok": "1 where the tier works.",
}
_UNITS = ("bytes", "seconds")
_STATES = ("serving", "degraded", "draining")
_NO_NUMBERS = ("latency", "node")
_PEER_STATES = ("alive", "suspect", "dead", "left")


class _StatusCollector(Collector):
    def __init__(self, status: Mapping[str, object]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield one family per number of the status document."""
        status = self._status
        labels = {name: str(status.get(name, "")) for name in ("mountpoint", "source", "version", "driver")}
        info = GaugeMetricFamily("luxfuse_mount_info", "The mount; always 1.", labels=list(labels))
        info.add_metric(list(labels.values()), 1)
        yield info
        state = GaugeMetricFamily("luxfuse_state", "1 for the state that the mount is in.", labels=["state"])
        for name in _STATES:
            state.add_metric([name], float(status.get("state") == name))
        yield state
        for name, value in _numbers("", {name: value for name, value in status.items() if name not in _NO_NUMBERS}):
            yield _family(name, value)
        if isinstance(latency := status.get("latency"), Mapping):
            yield from _latencies(latency)
        tiers, peers = status.get("tiers"), status.get("peers")
        if isinstance(tiers, list):
            yield from _tiers(tiers)
        if isinstance(peers, list):
            yield from _peers(peers)


def _latencies(latency: Mapping[str, Any]) -> Iterator[Metric]:
    for side, name, text in (
        ("understore", "luxfuse_request_seconds", "How long requests to the bucket took."),
        ("fuse", "luxfuse_fuse_request_seconds", "How long requests of the kernel took."),
    ):
        family = HistogramMetricFamily(name, text, labels=["kind"], unit="seconds")
        for kind, histogram in latency.get(side, {}).items():
            totals = list(accumulate(histogram["buckets"]))
            bounds = [*map(str, latency["bounds_s"]), "+Inf"]
            family.add_metric([kind], list(zip(bounds, totals, strict=True)), histogram["sum_s"])
        yield family


def _numbers(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _numbers(f"{full}_", value)
        elif isinstance(value, (bool, int, float)):
            yield full, float(value)


def _family(name: str, value: float) -> Metric:
    # Prometheus spells units out.
    spelled = f"{name[:-2]}_seconds" if name.endswith("_s") else name
    if name in _COUNTERS:
        return CounterMetricFamily(f"luxfuse_{spelled}", _COUNTERS[name], value=value, unit=_unit(spelled))
    return GaugeMetricFamily(
        f"luxfuse_{spelled}", _GAUGES.get(name, name.replace("_", " ")), value=value, unit=_unit(spelled)
    )


def _unit(name: str) -> str:
    return next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")


def _tiers(tiers: list[Mapping[str, object]]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    for tier in tiers:
        labels = [str(tier.get("name", "")), str(tier.get("path", ""))]
        numbers = dict(_numbers("tier_", tier))
        if "state" in tier:
            numbers["tier_ok"] = float(tier["state"] == "serving")
        for name, value in numbers.items():
            if name not in families:
                text = _GAUGES.get(name, name.replace("_", " "))
                families[name] = GaugeMetricFamily(f"luxfuse_{name}", text, labels=["tier", "path"], unit=_unit(name))
            families[name].add_metric(labels, value)
    yield from families.values()


def _peers(peers: list[Mapping[str, Any]]) -> Iterator[Metric]:
    states = GaugeMetricFamily("luxfuse_peers", "Other nodes of the cluster, by state.", labels=["state"])
    for state in _PEER_STATES:
        states.add_metric([state], sum(peer.get("state") == state for peer in peers))
    yield states


def families(status: Mapping[str, object]) -> Iterator[Metric]:
    """Yield the metrics of a status document."""
    return _StatusCollector(status).collect()


def render(status: Mapping[str, object], accept: str = "") -> tuple[bytes, str]:
    """Return the metrics of a status document (see `luxfuse.control.status`), and their media type.

    That is the Prometheus text format, or what ``accept``, a header of HTTP, prefers to it: OpenMetrics.
    """
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
