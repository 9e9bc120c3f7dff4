"""A status document with every documented field, and which these are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from luxfuse.control.status import PeerStatus, Status


def peer(number: int, state: str, round_trip_s: float | None) -> PeerStatus:
    return {
        "name": f"{number:016x}",
        "label": f"host-{number}:/mnt/bucket",
        "address": f"10.0.0.{number}:7950",
        "state": state,
        "version": "0.1.0",
        "rack": "r1",
        "round_trip_s": round_trip_s,
        "weight": 50,
        "sources": ["00112233445566ff"],
        "entries": 1000 * number,
    }


def sample_status(mountpoint: str = "/mnt/bucket") -> Status:
    return {
        "mountpoint": mountpoint,
        "source": "s3://bucket",
        "pid": 42,
        "version": "0.1.0",
        "state": "serving",
        "degraded_reasons": [],
        "hints": [],
        "http": "http://127.0.0.1:9180/",
        "passthrough": True,
        "passthrough_reason": None,
        "dataplane": True,
        "restarts": 0,
        "keeper": True,
        "keeper_pid": 41,
        "keeper_reason": None,
        "uptime_s": 3700.5,
        "memory_bytes": 50 << 20,
        "driver": "obstore",
        "tiers": [
            {"name": "ssd", "path": "/c", "capacity_bytes": 1 << 30, "used_bytes": 1 << 29, "state": "serving"}
        ],
        "reads": {
            "memory_bytes": 10,
            "ssd_bytes": 20,
            "hdd_bytes": 0,
            "peer_bytes": 0,
            "understore_bytes": 30,
            "passthrough_opens": 3,
            "copied_opens": 4,
            "dataplane_opens": 5,
            "dataplane_bytes": 50,
        },
        "understore": {
            "cost": 0.01234,
            "currency": "EUR",
            "gets": 5,
            "heads": 6,
            "lists": 7,
            "puts": 0,
            "deletes": 0,
            "errors": 1,
            "retries": 2,
            "timeouts": 0,
            "in_flight": 1,
            "outages": 1,
            "probes": 4,
            "refused": 9,
            "get_bytes": 1000,
            "put_bytes": 2000,
            "state": "ok",
        },
        "cache": {
            "objects": 9,
            "pinned_bytes": 1 << 20,
            "pins": 1,
            "time_limits": 2,
            "expired": 3,
            "moved_up": 4,
            "moved_down": 5,
            "evictions": 1,
            "evicted_bytes": 2,
            "checksum_failures": 0,
            "write_failures": 0,
            "verified_bytes": 0,
            "files_ahead": 0,
            "schedules": 0,
            "scheduled_files": 0,
            "scheduled_bytes": 0,
            "buffered_bytes": 0,
            "in_flight_bytes": 0,
        },
        "names": {"skipped_keys": 0, "listings": 3, "stale_served": 0},
        "fuse": {
            "requests": 100, "fast_opens": 3, "waited_opens": 2, "waited_opens_s": 0.5,
            "fast_reads": 6, "fast_writes": 7, "fast_lookups": 8, "fast_getattrs": 9,
            "lanes": 2, "lanes_waiting": 1, "errors": 0, "overdue": 0,
            "stalls": 0,
            "refusals": 0,
        },
        "dirty": {
            "files": 0,
            "bytes": 0,
            "oldest_s": 0.0,
            "open_files": 0,
            "deletes": 0,
            "failing": 0,
            "error": None,
            "renames": 0,
            "local_only": 0,
            "failures": 0,
            "conflicts": 0,
        },
        "recovered": {"files": 0, "path": "/state/recovered/1"},
        "latency": {
            "bounds_s": [0.001, 0.01],
            "understore": {
                "get": {"count": 6, "sum_s": 0.05, "p50_s": 0.004, "p95_s": 0.009, "p99_s": 0.01, "buckets": [1, 3, 2]}
            },
            "fuse": {
                "read": {"count": 1, "sum_s": 0.0005, "p50_s": 0.0005, "p95_s": 0.001, "p99_s": 0.001, "buckets": [1, 0, 0]}
            },
        },
        "volumes": [
            {"path": "", "source": "s3://bucket", "state": "serving", "error": None, "read_only": False,
             "driver": "obstore", "dirty_files": 0, "dirty_bytes": 0, "deletes": 0},
            {"path": "data/more", "source": "s3://other", "state": "unreachable", "error": "no such bucket",
             "read_only": True, "driver": None, "dirty_files": 1, "dirty_bytes": 5, "deletes": 1},
        ],
        "node": peer(0, "alive", None),
        "cluster": {"asked": 12, "failed": 2, "corrupt": 1, "hedges": 1, "provided_bytes": 99, "refused": 3,
                    "notices_sent": 4, "notices_received": 5, "datagrams_rejected": 3, "replicas_sent": 6,
                    "replicas_forgone": 1, "replicas_held": 2,
                    "replicas_held_bytes": 77, "rules": 1, "copies_ordered": 9, "copies_taken": 8, "copies_dropped": 1,
                    "copies_accepted": 7, "copies_refused": 2},
        "peers": [peer(1, "alive", 0.00042), peer(2, "suspect", 0.02), peer(3, "dead", None)],
    }  # fmt: skip


def documented(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The documented fields of a document, by their paths, with what they may be."""
    parts = get_args(kind)
    if is_typeddict(kind):
        for name, inner in get_type_hints(kind).items():
            yield from documented(inner, f"{prefix}/{name}")
    elif any(is_typeddict(part) for part in parts):
        for part in parts:
            if is_typeddict(part):
                yield from documented(part, f"{prefix}/*" if get_origin(kind) in (list, dict) else prefix)
    else:
        yield prefix, kind


def fields(value: object, kind: Any, prefix: str = "") -> Iterator[str]:
    """The fields that a document has, as `documented` calls them."""
    inner = next((part for part in (kind, *get_args(kind)) if is_typeddict(part)), None)
    if inner is None:
        yield prefix
    elif get_origin(kind) in (list, dict):
        for each in value.values() if isinstance(value, dict) else value:  # type: ignore[attr-defined]
            yield from fields(each, inner, f"{prefix}/*")
    elif value is not None:
        hints = get_type_hints(inner)
        for name, each in value.items():  # type: ignore[attr-defined]
            yield from fields(each, hints.get(name), f"{prefix}/{name}")
