"""``luxfuse trace``: which program asks for what, how long that takes, where the bytes come from; live, or in sums."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import UsageError, say
from luxfuse.cli.report import AsJson, print_json
from luxfuse.cli.targets import by_mount, failed
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.core.printing import printable
from luxfuse.core.tallies import OPERATIONS, Tallies, Tally, names_of, sources_of
from luxfuse.core.units import format_count, format_size

DEADLINE_S = 30.0
SHOWN = 20
"""Files, and programs, in a summary."""
MOST_S = 86400.0


def batches(record: MountRecord, path: str, pid: int | None, seconds: float | None) -> Iterator[Mapping[str, Any]]:
    """Yield what a daemon tells of requests, for so many seconds, or until Ctrl-C. Raises `CommandFailed`."""
    until_s = None if seconds is None else time.monotonic() + seconds
    try:
        for batch in ControlClient(record.socket_path, DEADLINE_S).trace(path, pid):
            yield batch
            if until_s is not None and time.monotonic() >= until_s:
                return
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    except KeyboardInterrupt:
        return


def trace(
    path: Annotated[str, typer.Argument(help="A mountpoint, or a file or directory inside: what is at and below it.")],
    pid: Annotated[int | None, typer.Option("--pid", help="Only requests of this process.")] = None,
    operation: Annotated[
        list[str] | None, typer.Option("--op", help="Only requests of this kind: open, read, lookup... May be repeated.")
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="End after so long; else on Ctrl-C.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Sums by file and by program, at the end.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show what programs ask of a mount, as it is answered. What the kernel reads in passthrough shows as opens."""
    if seconds is not None and not 0 < seconds <= MOST_S:
        raise UsageError(f"--seconds: must be more than 0, and at most {MOST_S:g}")
    for name in operation or []:
        if name not in OPERATIONS:
            raise UsageError(f"--op: {printable(name)} is none of {', '.join(sorted(OPERATIONS))}")
    ((record, (inside,)),) = by_mount([path])
    files, programs, total, dropped = Tallies(), Tallies(), Tally(), 0
    for batch in batches(record, inside, pid, seconds):
        dropped += batch["dropped"]
        for event in batch["events"]:
            if operation and event["op"] not in operation:
                continue
            if summary:
                total.add(event)
                file, program = names_of(event)
                files.add(file, event)
                programs.add(program, event)
            elif as_json:
                print(json.dumps(event))
            else:
                print(line_of(event))
        sys.stdout.flush()
    if summary and as_json:
        print_json({
            "total": described(total), "dropped": dropped,
            "files": {name: described(tally) for name, tally in files.longest(1000)},
            "programs": {name: described(tally) for name, tally in programs.longest(1000)},
        })  # fmt: skip
    elif summary:
        _print("program", programs)
        _print("file", files)
        print(f"all: {_text(total)}")
    if dropped:
        say(f"{format_count(dropped, 'request')} came too fast to be told of; choose a path or a process to see all of it")
    return 0


def line_of(event: Mapping[str, Any]) -> str:
    """Return an event as a line for people."""
    when = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3]
    file, program = names_of(event)
    uid = event.get("uid", 0)
    what = f"{when} {program} uid {'?' if uid is None else uid} {event['op']} {file}"
    if event["op"] in ("read", "write"):
        what += f" {event.get('offset', 0)}+{event.get('bytes', 0)}"
    what += f" {_duration(event.get('took_s', 0.0))}"
    if event.get("queued_s", 0.0) >= 0.001:
        what += f", {_duration(event['queued_s'])} in the queue"
    if event.get("way"):
        what += f", {event['way']}"
    sources = sources_of(event) or event.get("sources") or {}
    if sources:
        what += ", " + ", ".join(f"{format_size(size)} from {source}" for source, size in sources.items())
    return what + (f", {event['error']}" if "error" in event else "")


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def described(tally: Tally) -> dict[str, Any]:
    """Return a tally for JSON."""
    return {
        "requests": tally.count, "opens": tally.opens, "seconds": round(tally.seconds, 6), "errors": tally.errors,
        "not_found": tally.missing,
        "read_bytes": tally.sources, "written_bytes": tally.written_bytes,
    }  # fmt: skip


def _text(tally: Tally) -> str:
    parts = [format_count(tally.count, "request"), format_count(tally.opens, "open"), f"{_duration(tally.seconds)} in sum"]
    parts += [f"{format_size(size)} from {source}" for source, size in sorted(tally.sources.items(), key=lambda i: -i[1])]
    if tally.written_bytes:
        parts.append(f"{format_size(tally.written_bytes)} written")
    if tally.missing:
        parts.append(f"{tally.missing} not found")
    if tally.errors:
        parts.append(format_count(tally.errors, "error"))
    return ", ".join(parts)


def _print(what: str, tallies: Tallies) -> None:
    if tallies.by_name:
        print(f"by {what}:")
    for name, tally in tallies.longest(SHOWN):
        print(f"  {name}: {_text(tally)}")
    if len(tallies.by_name) > SHOWN:
        print(f"  and {len(tallies.by_name) - SHOWN} more")
