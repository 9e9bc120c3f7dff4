"""``luxfuse status``, ``list``, ``metrics``, ``refresh`` and ``persist``: commands that ask a daemon and print."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed, say
from luxfuse.cli.targets import by_mount, failed, mount_at
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord

_REFRESH_DEADLINE_S = 60.0
AsJson = Annotated[bool, typer.Option("--json", help="For programs; the fields are stable.")]


def ask_status(record: MountRecord) -> dict[str, Any]:
    """Return the status document of a mount. Raises `CommandFailed`."""
    try:
        return ControlClient(record.socket_path).status()
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None


def status(
    mountpoint: Annotated[str | None, typer.Argument(help="One mount; all of them if left out.")] = None,
    as_json: AsJson = False,
) -> int:
    """Show how a mount, or every mount, is doing."""
    if mountpoint is not None:
        document = ask_status(mount_at(mountpoint))
        if as_json:
            print_json(document)
        else:
            from luxfuse.cli import render

            render.show_status(document)
        return 0
    documents, failures = [], []
    for record in registry.list_mounts(state_root()):
        try:
            documents.append(ask_status(mount_at(record.mountpoint)))
        except CommandFailed as exc:
            failures.append(str(exc))
    if as_json:
        print_json(documents)
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
    for record in registry.list_mounts(state_root()):
        row: dict[str, Any] = {
            "mountpoint": record.mountpoint,
            "source": record.source,
            "pid": record.pid,
            "version": record.version,
            "started_at": record.started_at,
            "state": record.state,
        }
        rows.append(row)
    if as_json:
        print_json(rows)
    elif rows:
        from luxfuse.cli import render

        render.show_list(rows, time.time())
    else:
        print("no mounts")
    return 0


def metrics(mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")]) -> int:
    """Print the numbers of a mount in Prometheus text format."""
    record = mount_at(mountpoint)
    try:
        sys.stdout.write(ControlClient(record.socket_path).metrics())
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    return 0


def refresh(paths: Annotated[list[str], typer.Argument(help="Files or directories in a mount.")]) -> int:
    """Look again in the bucket. So changes made there show at once."""
    any_failed = False
    for record, inside_paths in by_mount(paths):
        try:
            errors = ControlClient(record.socket_path, _REFRESH_DEADLINE_S).refresh(inside_paths)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise failed(record, exc) from None
        for error in errors:
            say(f"refresh: {record.mountpoint}: {error}")
        any_failed = any_failed or bool(errors)
    return 1 if any_failed else 0


def reload(mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")]) -> int:
    """Take up the changed configuration file of a mount. A bad one is refused, and the old one stays."""
    record = mount_at(mountpoint)
    try:
        changed = ControlClient(record.socket_path, _REFRESH_DEADLINE_S).reload()
    except DaemonRefused as exc:
        raise CommandFailed(f"the configuration stays as it was: {exc}") from None
    except DaemonUnreachable as exc:
        raise failed(record, exc) from None
    print(f"{record.mountpoint}: changed: {', '.join(changed)}" if changed else f"{record.mountpoint}: nothing has changed")
    return 0


def persist(paths: Annotated[list[str], typer.Argument(help="Files or directories in a mount.")]) -> int:
    """Wait until what is at and below the paths is in the under-store."""
    from luxfuse.cli.progress import Display

    any_failed = False
    for record, inside_paths in by_mount(paths):
        step: dict[str, Any] = {}
        try:
            with Display(record.mountpoint) as display:
                for step in ControlClient(record.socket_path).persist(inside_paths):
                    display.show(step)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise failed(record, exc) from None
        for line in [*step.get("notes", []), *step.get("failures", [])]:
            say(f"persist: {record.mountpoint}: {line}")
        any_failed = any_failed or bool(step.get("failures"))
    return 1 if any_failed else 0


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
