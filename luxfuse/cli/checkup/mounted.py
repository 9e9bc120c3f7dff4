"""How a mount that runs is doing, by what its daemon says of itself. Never touches the mount, which may hang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luxfuse import __version__
from luxfuse.cli.checkup.findings import Finding, fail, ok, warn
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.core.units import format_age, format_count, format_size

OLD_S = 900.0
"""Changes that have waited longer for the store than any upload that goes well."""
_PATIENCE_S = 10.0


def check_mount(record: MountRecord) -> Iterator[Finding]:
    """Look at one mount."""
    where = record.mountpoint
    if not record.alive:
        cure = "wait a moment" if record.kept and not record.given_up else f"run: luxfuse unmount {where}, and mount again"
        yield fail("mount", f"{where}: {record.death}", f"see {record.log_path}, then {cure}")
        return
    try:
        status = ControlClient(record.socket_path, _PATIENCE_S).status()
    except (DaemonUnreachable, DaemonRefused) as exc:
        yield fail("mount", f"{where}: {exc}", f"see {record.log_path}; to end it: luxfuse unmount --force {where}")
        return
    yield from judge(status, str(record.log_path))


def judge(status: Mapping[str, Any], log_path: str) -> Iterator[Finding]:
    """Say what a status document shows; fields that are missing are those of another version."""
    where, state = str(status["mountpoint"]), status["state"]
    reasons = "; ".join(status.get("degraded_reasons") or ())
    up = f"up {format_age(float(status.get('uptime_s', 0)))}, pid {status.get('pid')}"
    if state == "degraded":
        yield warn("mount", f"{where}: degraded: {reasons}", f"mend that; see luxfuse status {where} and {log_path}")
    else:
        yield ok("mount", f"{where}: {state}, {up}")
    if status.get("version") != __version__:
        yield warn(
            "version", f"{where}: runs {status.get('version')}, installed is {__version__}", f"run: luxfuse upgrade {where}"
        )
    if status.get("restarts"):
        times = format_count(status["restarts"], "time")
        yield warn("restarts", f"{where}: its daemon died {times}, and was started again", f"see {log_path}, and report it")
    if status.get("keeper") is False:
        yield ok("keeper", f"{where}: none: {status.get('keeper_reason')}")
    if not status.get("passthrough"):
        yield ok("passthrough", f"{where}: off: {status.get('passthrough_reason')}")
    yield from _store(where, status, log_path)
    yield from _backlog(where, status)
    yield from _cache(where, status)
    fuse = status.get("fuse", {})
    for name, what in (("errors", "mistake of luxfuse itself"), ("stalls", "time in which nothing was answered for 10 s")):
        if fuse.get(name):
            yield warn("requests", f"{where}: {format_count(fuse[name], what)}", f"see {log_path}, and report it")


def _store(where: str, status: Mapping[str, Any], log_path: str) -> Iterator[Finding]:
    store = status.get("understore", {})
    if store.get("state", "ok") != "ok":
        yield fail(
            "store", f"{where}: {status.get('source')} is {store['state']}", "luxfuse doctor SOURCE says where it fails"
        )
    else:
        asked = sum(store.get(name, 0) for name in ("gets", "heads", "lists", "puts", "deletes"))
        errors = format_count(store.get("errors", 0), "failed request")
        yield ok("store", f"{where}: answers; {errors} of {asked}, {format_count(store.get('outages', 0), 'outage')}")
    if stale := status.get("names", {}).get("stale_served"):
        yield warn(
            "stale", f"{where}: {format_count(stale, 'answer')} may have been stale, as the store could not be asked",
            f"once it answers: luxfuse refresh {where}",
        )  # fmt: skip
    for volume in status.get("volumes", []):
        if volume["path"] and volume["state"] in ("unreachable", "degraded"):
            said = f": {volume['error']}" if volume.get("error") else ""
            yield fail("attached", f"{where}/{volume['path']}: {volume['state']}{said}", f"see {log_path}")


def _backlog(where: str, status: Mapping[str, Any]) -> Iterator[Finding]:
    dirty = status.get("dirty", {})
    waiting = dirty.get("files", 0) + dirty.get("deletes", 0)
    if dirty.get("failing"):
        yield fail(
            "backlog", f"{where}: {format_count(dirty['failing'], 'change')} cannot go to the store: {dirty.get('error')}",
            f"mend the cause, then run: luxfuse persist {where}",
        )  # fmt: skip
    elif waiting:
        text = f"{where}: {format_count(waiting, 'change')} not in the store yet ({format_size(dirty.get('bytes', 0))}), "
        text += f"the oldest {format_age(float(dirty.get('oldest_s', 0)))} old"
        old = float(dirty.get("oldest_s", 0)) > OLD_S and waiting > dirty.get("open_files", 0)
        yield warn("backlog", text, "raise --max-uploads, or look at the line to the store") if old else ok("backlog", text)
    else:
        yield ok("backlog", f"{where}: everything is in the store")
    recovered = status.get("recovered", {})
    if recovered.get("files"):
        yield warn(
            "recovered", f"{where}: {format_count(recovered['files'], 'file')} saved aside in {recovered.get('path')}",
            "copy back what is wanted, then remove them there",
        )  # fmt: skip


def _cache(where: str, status: Mapping[str, Any]) -> Iterator[Finding]:
    for tier in status.get("tiers", []):
        if tier.get("state") == "degraded":
            yield fail(
                "cache", f"{where}: {tier.get('path')} is not used: full, failing or gone",
                "free space there, or replace the disk; it is taken up again by itself",
            )  # fmt: skip
    if wrong := status.get("cache", {}).get("checksum_failures"):
        yield warn(
            "cache", f"{where}: {format_count(wrong, 'page')} in the cache had a wrong checksum, and came again",
            f"the disk may be failing: luxfuse check {where}, smartctl -a",
        )  # fmt: skip
