"""``luxfuse status``, ``list``, ``metrics``, ``refresh`` and ``persist``: commands that ask a daemon and print."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from luxfuse import config
from luxfuse.cli.errors import CommandFailed, say
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.fuse import mountpoint as mounts

_REFRESH_DEADLINE_S = 60.0
AsJson = Annotated[bool, typer.Option("--json", help="For programs; the fields are stable.")]


def _record(path: str) -> MountRecord:
    """Return the living mount at or around ``path``."""
    record = registry.find(config.state_root(), path)
    if record is None:
        raise CommandFailed(f"{path} is not in a luxfuse mount; see: luxfuse list")
    if not record.alive:
        raise CommandFailed(
            f"{record.mountpoint}: the daemon (pid {record.pid}) has died; see {record.log_path}, "
            f"then run: luxfuse unmount {record.mountpoint}"
        )
    return record


def _failed(record: MountRecord, exc: Exception) -> CommandFailed:
    return CommandFailed(f"{record.mountpoint}: {exc}; see {record.log_path}")


def _ask_status(record: MountRecord) -> dict[str, Any]:
    try:
        return ControlClient(record.socket_path).status()
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise _failed(record, exc) from None


def status(
    mountpoint: Annotated[str | None, typer.Argument(help="One mount; all of them if left out.")] = None,
    as_json: AsJson = False,
) -> int:
    """Show how a mount, or every mount, is doing."""
    if mountpoint is not None:
        document = _ask_status(_record(mountpoint))
        if as_json:
            _print_json(document)
        else:
            from luxfuse.cli import render

            render.show_status(document)
        return 0
    documents, failures = [], []
    for record in registry.list_mounts(config.state_root()):
        try:
            documents.append(_ask_status(_record(record.mountpoint)))
        except CommandFailed as exc:
            failures.append(str(exc))
    if as_json:
        _print_json(documents)
    elif documents:
        from luxfuse.cli import render

        for document in documents:
            render.show_status(document)
    elif not failures:
        print("no mounts")
    for failure in failures:
        say(failure)
    return 1 if failures else 0


def list_(as_json: AsJson = False) -> int:
    """List the mounts of this user."""
    rows = []
    for record in registry.list_mounts(config.state_root()):
        row: dict[str, Any] = {
            "mountpoint": record.mountpoint,
            "source": record.source,
            "pid": record.pid,
            "version": record.version,
            "started_at": record.started_at,
            "state": "running" if record.alive else "dead",
        }
        rows.append(row)
    if as_json:
        _print_json(rows)
    elif rows:
        from luxfuse.cli import render

        render.show_list(rows, time.time())
    else:
        print("no mounts")
    return 0


def metrics(mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")]) -> int:
    """Print the numbers of a mount in Prometheus text format."""
    record = _record(mountpoint)
    try:
        sys.stdout.write(ControlClient(record.socket_path).metrics())
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise _failed(record, exc) from None
    return 0


def refresh(paths: Annotated[list[str], typer.Argument(help="Files or directories in a mount.")]) -> int:
    """Forget what is known of the paths, so that changes made in the bucket show at once."""
    failed = False
    for record, inside_paths in _by_mount(paths):
        try:
            errors = ControlClient(record.socket_path, _REFRESH_DEADLINE_S).refresh(inside_paths)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise _failed(record, exc) from None
        for error in errors:
            say(f"refresh: {record.mountpoint}: {error}")
        failed = failed or bool(errors)
    return 1 if failed else 0


def persist(paths: Annotated[list[str], typer.Argument(help="Files or directories in a mount.")]) -> int:
    """Bring what was written at and below the paths to the under-store, and wait until it is there."""
    from luxfuse.cli.progress import Display

    failed = False
    for record, inside_paths in _by_mount(paths):
        step: dict[str, Any] = {}
        try:
            with Display(record.mountpoint) as display:
                for step in ControlClient(record.socket_path).persist(inside_paths):
                    display.show(step)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise _failed(record, exc) from None
        for line in [*step.get("notes", []), *step.get("failures", [])]:
            say(f"persist: {record.mountpoint}: {line}")
        failed = failed or bool(step.get("failures"))
    return 1 if failed else 0


def _by_mount(paths: list[str]) -> list[tuple[MountRecord, list[str]]]:
    """Return the paths relative to their mounts, by mount; "" is the mountpoint itself."""
    by_mount: dict[str, tuple[MountRecord, list[str]]] = {}
    for path in paths:
        record = _record(path)
        inside = str(Path(mounts.resolve(path)).relative_to(record.mountpoint))
        by_mount.setdefault(record.mountpoint, (record, []))[1].append("" if inside == "." else inside)
    return list(by_mount.values())


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
