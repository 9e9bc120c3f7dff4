"""``luxfuse stats``: how much goes where, and how fast; live on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed
from luxfuse.cli.targets import failed, mount_at
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.control.status import OPENS
from luxfuse.core.histogram import Histogram
from luxfuse.core.prices import cost_text
from luxfuse.core.units import format_age, format_count, format_size

INTERVAL_S = 1.0
WINDOW_S = 10.0
"""Latencies are those of the last so many seconds."""
SOURCES = ("memory", "ssd", "hdd", "peer", "understore")
BUSIEST = 8
"""Operations of the kernel that are shown."""


class Sampler:
    """Makes rates and recent latencies of one mount's status documents. Times in seconds, of any clock."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, Mapping[str, Any]]] = []

    def feed(self, now_s: float, status: Mapping[str, Any]) -> None:
        """Take in a status document."""
        if self._samples and status["pid"] != self.status["pid"]:
            self._samples.clear()  # another daemon counts anew
        self._samples.append((now_s, status))
        while len(self._samples) > 2 and now_s - self._samples[1][0] >= WINDOW_S:
            self._samples.pop(0)

    @property
    def status(self) -> Mapping[str, Any]:
        """The last document."""
        return self._samples[-1][1]

    def rate(self, group: str, name: str) -> float:
        """Return by how much a counter has risen a second between the last two documents."""
        if len(self._samples) < 2:
            return 0.0
        (before_s, before), (now_s, now) = self._samples[-2:]
        rise = now.get(group, {}).get(name, 0) - before.get(group, {}).get(name, 0)
        return float(max(0, rise)) / max(1e-9, now_s - before_s)

    def latencies(self, side: str) -> dict[str, tuple[float, Histogram]]:
        """Return requests a second and durations of each kind of the last seconds, the most frequent first."""
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        before, now = first.get("latency", {}).get(side, {}), last.get("latency", {}).get(side, {})
        found = {}
        for kind, described in now.items():
            histogram = _histogram(described)
            if last_s > first_s:
                histogram = histogram.since(_histogram(before[kind]) if kind in before else Histogram())
            if histogram.count:
                found[kind] = (histogram.count / (last_s - first_s) if last_s > first_s else 0.0, histogram)
        return dict(sorted(found.items(), key=lambda item: -item[1][1].count))


def _histogram(described: Mapping[str, Any]) -> Histogram:
    return Histogram(described["buckets"], described["sum_s"])


def rows(sampler: Sampler) -> list[tuple[str, str]]:
    """Return what is shown of a mount: names and texts."""
    status = sampler.status
    reasons = "; ".join(status.get("degraded_reasons") or [])
    state = f"{status['state']}{': ' + reasons if reasons else ''}, up {format_age(float(status['uptime_s']))}"
    reads = [f"{format_size(sampler.rate('reads', f'{name}_bytes'))}/s {name}" for name in SOURCES
             if status["reads"].get(f"{name}_bytes")]  # fmt: skip
    opens = ", ".join(f"{sampler.rate('reads', f'{kind}_opens'):.0f}/s {text}"
                      for kind, text in OPENS.items())  # fmt: skip
    found = [("state", state), ("reads", ", ".join(reads) or "none through the daemon"), ("opens", opens)]
    found += [(f"cache ({tier['name']})", _tier(tier)) for tier in status["tiers"]]
    store = status["understore"]
    traffic = f"{format_size(sampler.rate('understore', 'get_bytes'))}/s in, "
    traffic += f"{format_size(sampler.rate('understore', 'put_bytes'))}/s out, {store['in_flight']} under way"
    found.append(("under-store", traffic if store["state"] == "ok" else f"{traffic}, {store['state']}"))
    found += [(f"  {kind}", _timing(rate, h)) for kind, (rate, h) in sampler.latencies("understore").items()]
    if store.get("cost") is not None:
        found.append(("cost", cost_text(store["cost"], store["currency"])))
    fuse = list(sampler.latencies("fuse").items())[:BUSIEST]
    found.append(("kernel", f"{sampler.rate('fuse', 'requests'):.0f}/s requests"))
    found += [(f"  {kind}", _timing(rate, h)) for kind, (rate, h) in fuse]
    dirty = status["dirty"]
    waiting = f"{format_count(dirty['files'], 'file')} ({format_size(dirty['bytes'])})"
    if dirty["deletes"]:
        waiting += f", {format_count(dirty['deletes'], 'delete')}"
    if dirty["failing"]:
        waiting += f", {dirty['failing']} failed when last tried: {dirty['error']}"
    found.append(("not uploaded", waiting if dirty["files"] or dirty["deletes"] else "nothing"))
    found.append(("memory", format_size(status["memory_bytes"])))
    return found


def _tier(tier: Mapping[str, Any]) -> str:
    used, capacity = tier["used_bytes"], tier["capacity_bytes"]
    share = f" of {format_size(capacity)} ({100 * used / capacity:.0f} %)" if capacity else ""
    return f"{format_size(used)}{share} in {tier['path']}" + ("" if tier["state"] == "serving" else f", {tier['state']}")


def _timing(rate: float, histogram: Histogram) -> str:
    times = ", ".join(f"p{percent} {_milliseconds(histogram.quantile(percent / 100))}" for percent in (50, 95, 99))
    return f"{rate:.1f}/s, {times}"


def _milliseconds(seconds: float | None) -> str:
    value = (seconds or 0.0) * 1000
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def stats(
    mountpoint: Annotated[str | None, typer.Argument(help="One mount; all of them if left out.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One report; so it is where there is no terminal.")] = False,
) -> int:
    """Show rates, latencies, tiers and uploads, until Ctrl-C. Latencies are those of the last 10 s."""
    if mountpoint is not None:
        records = [mount_at(mountpoint)]
    else:
        records = [record for record in registry.list_mounts(state_root()) if record.alive]
    if not records:
        raise CommandFailed("no mount is running; see: luxfuse list")
    samplers = [Sampler() for _ in records]
    _feed(records, samplers)
    try:
        if once or not sys.stdout.isatty():
            time.sleep(INTERVAL_S)
            _feed(records, samplers)
            for record, sampler in zip(records, samplers, strict=True):
                print(f"{record.mountpoint}  {record.source}")
                for name, text in rows(sampler):
                    print(f"  {name:<14} {text}")
        else:
            _live(records, samplers)
    except KeyboardInterrupt:
        return 0
    return 0


def _feed(records: Sequence[MountRecord], samplers: Sequence[Sampler]) -> None:
    for record, sampler in zip(records, samplers, strict=True):
        try:
            sampler.feed(time.monotonic(), ControlClient(record.socket_path).status())
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise failed(record, exc) from None


def _live(records: Sequence[MountRecord], samplers: Sequence[Sampler]) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def picture() -> Group:
        parts: list[Any] = []
        for record, sampler in zip(records, samplers, strict=True):
            parts.append(Text(f"{record.mountpoint}  {record.source}", style="bold"))
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(style="dim", no_wrap=True)
            table.add_column()
            for name, text in rows(sampler):
                table.add_row(Text(f"  {name}"), Text(text))
            parts.append(table)
        return Group(*parts)

    with Live(picture(), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL_S)
            _feed(records, samplers)
            live.update(picture(), refresh=True)
