"""Shows a status document to people; rich is imported here alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luxfuse.control.status import OPENS
from luxfuse.core.prices import cost_text
from luxfuse.core.units import format_age, format_count, format_size

_STATE_STYLES = {
    "serving": "green", "degraded": "yellow", "draining": "cyan", "running": "green", "restarting": "yellow",
    "dead": "red", "alive": "green", "suspect": "yellow", "left": "dim",
}  # fmt: skip


_BETWEEN_NODES = {
    "pages of peers": (
        ("asked", "asked for"), ("failed", "failed"), ("corrupt", "damaged"), ("hedges", "asked of the under-store, too"),
        ("provided_bytes", "given to others"), ("refused", "refused to others"),
    ),
    "notices": (
        ("notices_sent", "sent"), ("notices_received", "received"), ("datagrams_rejected", "datagrams rejected"),
    ),
    "replicas": (
        ("replicas_sent", "sent"), ("replicas_forgone", "forgone"), ("replicas_held", "held for others"),
        ("replicas_held_bytes", "held"),
    ),
    "copies": (
        ("rules", "rules known"), ("copies_ordered", "ordered of others"), ("copies_taken", "made by them"),
        ("copies_dropped", "given up"), ("copies_accepted", "made for others"), ("copies_refused", "refused to others"),
    ),
}  # fmt: skip
"""Titles of rows, and the counters of ``cluster`` in them.."""


def _console() -> Console:
    # Lines are folded to fit a terminal, never in a pipe or file.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def _print(console: Console, table: Table) -> None:
    """Print a table; in a pipe or file without the spaces that fill its last column up."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _style(state: str) -> str:
    return f"[{_STATE_STYLES.get(state, 'bold')}]{escape(state)}[/]"


def show_status(status: Mapping[str, Any]) -> None:
    """Print a status document. A field that is missing is left out."""
    console = _console()
    console.print(f"[bold]{escape(str(status.get('mountpoint')))}[/]  {escape(str(status.get('source')))}")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in _rows(status):
        table.add_row(f"  {name}", text)
    _print(console, table)


def _rows(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    state = _style(str(status.get("state")))
    reasons = status.get("degraded_reasons") or []
    if reasons:
        state += ": " + escape("; ".join(reasons))
    uptime = format_age(float(status.get("uptime_s", 0)))
    rows = [("state", f"{state}, up {uptime}, pid {status.get('pid')}, version {status.get('version')}")]
    if status.get("passthrough"):
        rows.append(("passthrough", "yes: the kernel reads cached files itself"))
    else:
        rows.append(("passthrough", f"no: {escape(str(status.get('passthrough_reason') or 'reason unknown'))}"))
    if status.get("dataplane") is False:
        rows.append(("data plane", "off: Python answers all reads and writes that the kernel does not"))
    elif lanes := status.get("fuse", {}).get("lanes"):
        rows.append(("data plane", f"{lanes} threads, {status['fuse'].get('lanes_waiting', 0)} at work"))
    if "keeper" in status:
        rows.append(("keeper", _keeper(status)))
    rows += [(f"cache ({tier['name']})", _tier(tier)) for tier in status.get("tiers", [])]
    rows += [("attached", _volume(volume)) for volume in status.get("volumes", []) if volume["path"]]
    for name, make in (
        ("reads", _reads),
        ("opens", _opens),
        ("under-store", _understore),
        ("cost", _cost),
        ("not uploaded", _dirty),
        ("recovered", _recovered),
        ("problems", _problems),
    ):
        if text := make(status):
            rows.append((name, text))
    rows += [(name, text) for name, text in _cluster(status) if text]
    rows += [("hint", escape(hint)) for hint in status.get("hints", [])]
    if status.get("http"):
        rows.append(("web page", escape(str(status["http"]))))
    rows.append(("memory", format_size(status.get("memory_bytes", 0))))
    return rows


def _keeper(status: Mapping[str, Any]) -> str:
    restarts = status.get("restarts", 0)
    died = f"; daemons have died {restarts} times, see the log" if restarts else ""
    if status["keeper"]:
        return f"yes: another daemon goes on if this one dies (pid {status.get('keeper_pid')}){died}"
    return f"no: {escape(str(status.get('keeper_reason') or 'reason unknown'))}{died}"


def _tier(tier: Mapping[str, Any]) -> str:
    used, capacity = tier.get("used_bytes", 0), tier.get("capacity_bytes")
    share = f" of {format_size(capacity)} ({100 * used / capacity:.0f} %)" if capacity else ""
    state = "" if tier.get("state") == "serving" else f", {_style(str(tier.get('state')))}"
    return f"{format_size(used)}{share} in {escape(str(tier.get('path')))}{state}"


def _volume(volume: Mapping[str, Any]) -> str:
    state = _style(str(volume["state"])) + (f" ({escape(str(volume['error']))})" if volume["error"] else "")
    dirty = volume["dirty_files"] + volume["deletes"]
    waiting = f", {format_count(dirty, 'change')} not uploaded" if dirty else ""
    read_only = ", read-only" if volume["read_only"] else ""
    return f"{escape(volume['source'])} at {escape(volume['path'])}: {state}{read_only}{waiting}"


def _reads(status: Mapping[str, Any]) -> str:
    reads = status.get("reads", {})
    names = ("memory", "ssd", "hdd", "peer", "understore")
    sizes = {name: reads.get(f"{name}_bytes", 0) for name in names}
    total = sum(sizes.values())
    parts = [f"{format_size(size)} from {name} ({100 * size / total:.0f} %)" for name, size in sizes.items() if size]
    return ", ".join(parts) or "none through the daemon"


def _opens(status: Mapping[str, Any]) -> str:
    reads = status.get("reads", {})
    counts = [(reads.get(f"{kind}_opens", 0), text) for kind, text in OPENS.items()]
    return ", ".join(f"{count} {text}" for count, text in counts if count) or "none"


def _understore(status: Mapping[str, Any]) -> str:
    store = status.get("understore", {})
    kinds = ("get", "head", "list", "put", "delete")
    counts = ", ".join(format_count(store[f"{kind}s"], kind) for kind in kinds if store.get(f"{kind}s"))
    state = "" if store.get("state", "ok") == "ok" else f", [yellow]{escape(str(store['state']))}[/]"
    traffic = f"{format_size(store.get('get_bytes', 0))} received"
    if store.get("put_bytes"):
        traffic += f", {format_size(store['put_bytes'])} sent"
    return f"{counts or 'no requests'}, {traffic} ({escape(str(status.get('driver')))}){state}"


def _cost(status: Mapping[str, Any]) -> str:
    store = status.get("understore", {})
    return escape(cost_text(store["cost"], store["currency"])) if store.get("cost") is not None else ""


def _dirty(status: Mapping[str, Any]) -> str:
    dirty = status.get("dirty", {})
    files, deletes, local = (dirty.get(name, 0) for name in ("files", "deletes", "local_only"))
    parts = []
    if files:
        still_open = f", {dirty['open_files']} of them open" if dirty.get("open_files") else ""
        parts.append(f"{format_count(files, 'file')} ({format_size(dirty.get('bytes', 0))}{still_open})")
    if deletes:
        parts.append(format_count(deletes, "delete"))
    if dirty.get("renames"):
        parts.append(format_count(dirty["renames"], "unfinished rename"))
    if parts:
        parts.append(f"the oldest {format_age(float(dirty.get('oldest_s', 0)))} old")
    if local:
        parts.append(f"{format_count(local, 'file')} local only")
    if dirty.get("failing"):
        parts.append(
            f"[yellow]{dirty['failing']} failed when last tried ({escape(str(dirty.get('error')))}): they are kept "
            "and tried again; mend the cause, then run: luxfuse persist[/]"
        )
    return ", ".join(parts) or "nothing"


def _cluster(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what there is between this node and the others; nothing where there is no cluster."""
    if not status.get("node"):
        return []
    counts = Counter(peer["state"] for peer in status.get("peers", []))
    rows = [("other nodes", ", ".join(f"{count} {_style(state)}" for state, count in sorted(counts.items())) or "none")]
    said = status.get("cluster", {})
    for title, fields in _BETWEEN_NODES.items():
        found = [(format_size(said[name]) if name.endswith("_bytes") else said[name], text)
                 for name, text in fields if said.get(name)]  # fmt: skip
        rows.append((title, ", ".join(f"{count} {text}" for count, text in found)))
    return rows


def _recovered(status: Mapping[str, Any]) -> str:
    recovered = status.get("recovered", {})
    if not recovered.get("files"):
        return ""
    files, where = format_count(recovered["files"], "file"), escape(str(recovered.get("path")))
    return f"[yellow]{files} in {where}: copy back what is wanted, then remove them there[/]"


def _problems(status: Mapping[str, Any]) -> str:
    """Return the counters that should be zero and are not."""
    watched = (
        ("understore", "errors", "failed requests"),
        ("understore", "retries", "retries"),
        ("cache", "checksum_failures", "wrong checksums"),
        ("cache", "write_failures", "failed cache writes"),
        ("dirty", "conflicts", "files also written by somebody else"),
        ("names", "skipped_keys", "keys not shown"),
        ("fuse", "refusals", "failed calls"),
        ("fuse", "errors", "internal errors"),
    )
    counts = [(status.get(group, {}).get(name, 0), text) for group, name, text in watched]
    return ", ".join(f"{count} {text}" for count, text in counts if count) or "none"


def show_list(rows: Sequence[Mapping[str, Any]], now: float) -> None:
    """Print the mounts; ``now`` in seconds since the epoch."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("MOUNTPOINT", "SOURCE", "STATE", "PID", "UP", "VERSION"):
        table.add_column(title, overflow="fold")
    for row in rows:
        up = format_age(max(0.0, now - row["started_at"])) if row["state"] == "running" else "-"
        state = _style(row["state"])
        table.add_row(escape(row["mountpoint"]), escape(row["source"]), state, str(row["pid"]), up, row["version"])
    _print(_console(), table)


def show_cluster(node: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> None:
    """Print the nodes of a cluster as one of them, ``node``, which comes first, sees them."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("NODE", "ADDRESS", "STATE", "VERSION", "ROUND TRIP", "RACK", "HOLDS", "SOURCES"):
        table.add_column(title, overflow="fold")
    for peer in (node, *peers):
        trip = peer.get("round_trip_s")
        table.add_row(
            escape(peer["label"] or peer["name"]) + (" [dim](this)[/]" if peer is node else ""),
            escape(peer["address"]),
            _style(peer["state"]),
            escape(peer["version"]),
            "-" if trip is None else f"{1000 * trip:.1f} ms",
            escape(peer["rack"] or "-"),
            str(peer["entries"]),
            str(len(peer["sources"])),
        )
    _print(_console(), table)
