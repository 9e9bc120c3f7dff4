"""``luxfuse load``: brings files into the cache, and shows how far that is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed, UsageError, say
from luxfuse.cli.progress import Display, LoadMeter
from luxfuse.cli.targets import by_mount, failed, living_mount
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.core.units import format_count, format_size

START_DEADLINE_S = 60.0
"""A long list of paths takes its time to be read."""


def load(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files and directories in a mount; patterns (*, ?, [...], **), quoted, are matched there."),
    ] = None,
    from_file: Annotated[
        str | None, typer.Option("--from-file", metavar="LIST", help="Take paths from a file, one a line; -: stdin.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--background", help="Return when all is there, or at once. Default --wait.")
    ] = True,
    progress: Annotated[
        bool, typer.Option("--progress", help="Show how far the loads are of the mounts that the paths are in.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the loads of the mounts that the paths are in.")] = False,
) -> int:
    """Bring files, and all that is in directories, into the cache. What is there already is skipped."""
    wanted = [*(paths or []), *(_read_list(from_file) if from_file is not None else [])]
    if not wanted:
        raise UsageError("load: no path is given; write: luxfuse load PATH...")
    if progress and stop:
        raise UsageError("load: --progress and --stop exclude each other")
    if progress or stop:
        records = {record.mountpoint: record for record in map(living_mount, wanted)}
        return max([(_show_jobs if progress else _stop)(record) for record in records.values()])
    run = _load if wait else _start
    return max([run(record, inside) for record, inside in by_mount(wanted)])


def _read_list(name: str) -> list[str]:
    try:
        with sys.stdin if name == "-" else Path(name).open(encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\r\n") for line in file if line.strip()]
    except OSError as exc:
        raise CommandFailed(f"--from-file {name}: {exc.strerror}") from None


def _load(record: MountRecord, paths: list[str]) -> int:
    steps = ControlClient(record.socket_path, START_DEADLINE_S).load(paths)
    step: dict[str, Any] = {}
    try:
        with Display(record.mountpoint, LoadMeter()) as display:
            for step in steps:
                display.show(step)
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    except KeyboardInterrupt:
        raise CommandFailed(f"load: interrupted: {_done(step)}; run it again for the rest") from None
    return _report(record, step)


def _start(record: MountRecord, paths: list[str]) -> int:
    try:
        job = ControlClient(record.socket_path, START_DEADLINE_S).start_load(paths)
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    print(f"load {job} of {record.mountpoint} has begun; see: luxfuse load --progress {record.mountpoint}")
    return 0


def _stop(record: MountRecord) -> int:
    try:
        stopped = ControlClient(record.socket_path).stop_loads()
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    print(f"{record.mountpoint}: {format_count(stopped, 'load') + ' stopped' if stopped else 'no load runs'}")
    return 0


def _show_jobs(record: MountRecord) -> int:
    try:
        jobs = ControlClient(record.socket_path).loads()
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    if not jobs:
        print(f"{record.mountpoint}: no load")
    for job in jobs:
        state = job["state"] if job["done"] else "running"
        paths = ", ".join(path or "." for path in job["paths"])
        print(f"{record.mountpoint}: load {job['job']} ({paths}): {state}, {_done(job)}")
        if job["done"]:
            _complain(record, job)
    return 1 if any(job["done"] and _incomplete(job) for job in jobs) else 0


def _report(record: MountRecord, step: Mapping[str, Any]) -> int:
    print(f"{record.mountpoint}: {_done(step)}")
    _complain(record, step)
    return 1 if _incomplete(step) else 0


def _complain(record: MountRecord, step: Mapping[str, Any]) -> None:
    for failure in step["failures"]:
        say(f"load: {record.mountpoint}: {failure}")
    if step["note"]:
        say(f"load: {record.mountpoint}: {step['note']}")


def _incomplete(step: Mapping[str, Any]) -> bool:
    return bool(step["failed_files"] or step["left_out_files"] or step["note"] or step["state"] == "stopped")


def _done(step: Mapping[str, Any]) -> str:
    """Say what a load has done so far."""
    if not step:
        return "nothing loaded yet"
    parts = [f"{format_count(step['loaded_files'], 'file')} loaded ({format_size(step['loaded_bytes'])})"]
    if step["present_files"]:
        parts.append(f"{step['present_files']} there already")
    if step["failed_files"]:
        parts.append(f"{step['failed_files']} failed")
    if step["left_out_files"]:
        parts.append(f"{step['left_out_files']} left out")
    rest = step["files"] - sum(step[f"{kind}_files"] for kind in ("loaded", "present", "failed", "left_out"))
    if rest > 0:
        parts.append(f"{'at least ' if step['walking'] else ''}{rest} to come")
    return ", ".join(parts)
