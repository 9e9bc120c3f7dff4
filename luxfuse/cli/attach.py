"""``luxfuse attach`` and ``detach``: further under-stores inside a running mount."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luxfuse import config
from luxfuse.cli.errors import CommandFailed, UsageError, say
from luxfuse.cli.options import parse_options, parse_storage_options
from luxfuse.cli.progress import Display
from luxfuse.cli.targets import by_mount, failed
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord

DEADLINE_S = 120.0


def attach(
    source: Annotated[str, typer.Argument(help="What to attach: s3://bucket/prefix or any fsspec URL.")],
    path: Annotated[str, typer.Argument(help="A path in a mount; what the bucket has there is hidden.")],
    options: Annotated[
        list[str] | None, typer.Option("-o", metavar="NAME=VALUE,...", help="Settings as for mount; the other flags win.")
    ] = None,
    read_only: Annotated[bool | None, typer.Option("--read-only", help="Refuse every change.")] = None,
    read_mode: Annotated[str | None, typer.Option(metavar="cache|cache-promote|no-cache")] = None,
    write_mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="As for mount, whose mode it is if left out.")
    ] = None,
    on_conflict: Annotated[str | None, typer.Option(metavar="overwrite|fail")] = None,
    cache_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes to cache of this source; else as for the mount.")
    ] = None,
    metadata_ttl: Annotated[str | None, typer.Option(metavar="DURATION")] = None,
    negative_ttl: Annotated[str | None, typer.Option(metavar="DURATION")] = None,
    whole_file_threshold: Annotated[str | None, typer.Option(metavar="SIZE")] = None,
    endpoint_url: Annotated[str | None, typer.Option(metavar="URL", help="The store's address, if not AWS.")] = None,
    storage_option: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="An option of the store's driver; may be repeated.")
    ] = None,
    driver: Annotated[str | None, typer.Option(metavar="auto|obstore|fsspec")] = None,
) -> int:
    """Show SOURCE at PATH inside a mount, now and at every later mount. What is not said here is as for the mount."""
    flags: dict[str, Any] = {
        "read_only": read_only,
        "read_mode": read_mode,
        "write_mode": write_mode,
        "on_conflict": on_conflict,
        "cache_size": cache_size,
        "metadata_ttl": metadata_ttl,
        "negative_ttl": negative_ttl,
        "whole_file_threshold": whole_file_threshold,
        "endpoint_url": endpoint_url,
        "storage_options": parse_storage_options(storage_option) if storage_option else None,
        "driver": driver,
    }
    environment = {name: value for name, value in config.from_environment().items() if name in config.ATTACHABLE}
    chosen = {**environment, **parse_options(options or []), **{k: v for k, v in flags.items() if v is not None}}
    if unknown := sorted(set(chosen) - config.ATTACHABLE):
        raise UsageError(f"{unknown[0]}: no setting of an attached under-store; see luxfuse attach --help")
    record, inside = _inside(path)
    try:
        notes = ControlClient(record.socket_path, DEADLINE_S).attach(source, inside, chosen)
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise _failed(record, exc) from None
    for note in notes:
        say(note)
    return 0


def detach(
    path: Annotated[str, typer.Argument(help="Where it is attached.")],
    force: Annotated[
        bool,
        typer.Option("--force", help="At once: open files fail, and changes are left to the next attach of the source."),
    ] = False,
) -> int:
    """Bring what was written there to its under-store, and take that out of the mount, now and for later mounts."""
    record, inside = _inside(path)
    try:
        with Display(path) as display:
            for step in ControlClient(record.socket_path).detach(inside, force=force):
                display.show(step)
    except KeyboardInterrupt:
        raise CommandFailed(f"interrupted: {path} stays attached, and goes on as before") from None
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise _failed(record, exc) from None
    return 0


def _inside(path: str) -> tuple[MountRecord, str]:
    [(record, [inside])] = by_mount([path])
    return record, inside


def _failed(record: MountRecord, exc: Exception) -> CommandFailed:
    return CommandFailed(str(exc)) if isinstance(exc, DaemonRefused) else failed(record, exc)
