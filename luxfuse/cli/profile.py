"""``luxfuse profile``: where the time of a job's requests goes, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import UsageError
from luxfuse.cli.report import AsJson, print_json
from luxfuse.cli.targets import failed, mount_at
from luxfuse.cli.trace import MOST_S, batches
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.core.histogram import Histogram
from luxfuse.core.profile import Profile
from luxfuse.core.units import format_count, format_size

USUAL_S = 10.0


def profile(
    mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")],
    seconds: Annotated[float, typer.Option("--seconds", help="How long to watch; Ctrl-C ends it earlier.")] = USUAL_S,
    as_json: AsJson = False,
) -> int:
    """Say where the time of a job's requests goes, and what to change. Watches it for a while."""
    if not 0 < seconds <= MOST_S:
        raise UsageError(f"--seconds: must be more than 0, and at most {MOST_S:g}")
    record = mount_at(mountpoint)
    found = Profile()
    before = _status(record)
    for batch in batches(record, "", None, seconds):
        found.dropped += batch["dropped"]
        for event in batch["events"]:
            found.add(event)
    after = _status(record)
    watched_s = after["uptime_s"] - before["uptime_s"]
    advice = found.advice(before, after, watched_s)
    if as_json:
        print_json({
            "seconds": round(watched_s, 3), "requests": found.requests, "dropped": found.dropped,
            "processes": found.programs, "request_seconds": round(found.total_s, 6),
            "busiest_process_seconds": round(found.busiest_s, 6), "read_bytes": found.sources,
            "causes": {cause: round(each, 6) for cause, each in _longest(found.causes)},
            "kinds": {kind: _described(each) for kind, each in found.kinds.items()}, "advice": advice,
        })  # fmt: skip
        return 0
    whose = "1 process" if found.programs == 1 else f"{found.programs} processes"
    requests = format_count(found.requests, "request")
    share = f", {found.total_s / watched_s:.0%} of that time" if watched_s > 0 else ""
    sums = f"{found.total_s:.2f} s in sum{share}"
    print(f"{record.mountpoint}: watched for {watched_s:.1f} s: {requests} of {whose}, {sums}")
    if found.dropped:
        print(f"  {format_count(found.dropped, 'request')} more came too fast to be looked at")
    if found.requests:
        print("what they waited for:")
    for cause, each_s in _longest(found.causes):
        print(f"  {cause:<32} {each_s:9.3f} s  {found.share(cause):5.0%}")
    if found.requests:
        print("by kind:")
    for kind, times in sorted(found.kinds.items(), key=lambda item: -item[1].sum_s):
        p95 = times.quantile(0.95) or 0.0
        print(f"  {kind:<24} {times.count:7d}  {times.sum_s:9.3f} s, mean {_ms(times.sum_s / times.count)}, p95 {_ms(p95)}")
    if found.sources:
        sizes = sorted(found.sources.items(), key=lambda item: -item[1])
        print("bytes: " + ", ".join(f"{format_size(size)} from {source}" for source, size in sizes))
    if found.kernel_opens:
        print(f"{format_count(found.kernel_opens, 'open')} in passthrough: the kernel reads these files, at no cost here")
    print("what to change:")
    for line in advice:
        print(f"  - {line}")
    return 0


def _status(record: MountRecord) -> dict[str, Any]:
    try:
        return ControlClient(record.socket_path).status()
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None


def _longest(causes: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(causes.items(), key=lambda item: -item[1])


def _described(times: Histogram) -> dict[str, float | int]:
    return {"count": times.count, "seconds": round(times.sum_s, 6), "p95_s": round(times.quantile(0.95) or 0.0, 6)}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
