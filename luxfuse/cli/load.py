"""``luxfuse load``: brings files into the cache, and shows how far that is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luxfuse.cli.errors import CommandFailed, UsageError
from luxfuse.cli.loading import START_DEADLINE_S, complain, how_far, incomplete, load_and_wait
from luxfuse.cli.targets import by_mount, failed, mount_around
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.core.printing import printable
from luxfuse.core.units import format_count


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
    """Bring files, and all that is in directories, into the cache. Files that are there already are skipped."""
    wanted = [*(paths or []), *(_read_list(from_file) if from_file is not None else [])]
    if not wanted:
        raise UsageError("load: no path is given; write: luxfuse load PATH...")
    if progress and stop:
        raise UsageError("load: --progress and --stop exclude each other")
    if progress or stop:
        records = {record.mountpoint: record for record in map(mount_around, wanted)}
        return max([(_show_jobs if progress else _stop)(record) for record in records.values()])
    return load_and_wait(wanted) if wait else max([_start(record, inside) for record, inside in by_mount(wanted)])


def _read_list(name: str) -> list[str]:
    try:
        with sys.stdin if name == "-" else Path(name).open(encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\r\n") for line in file if line.strip()]
    except OSError as exc:
        raise CommandFailed(f"--from-file {name}: {exc.strerror}") from None


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
        paths = printable(", ".join(path or "." for path in job["paths"]))
        print(f"{record.mountpoint}: load {job['job']} ({paths}): {state}, {how_far(job)}")
        if job["done"]:
            complain(record, job)
    return 1 if any(job["done"] and incomplete(job) for job in jobs) else 0
