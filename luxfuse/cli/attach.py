"""``luxfuse attach`` and ``detach``: further under-stores inside a running mount."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed, say
from luxfuse.cli.flags import with_settings
from luxfuse.cli.options import parse_options
from luxfuse.cli.progress import Display
from luxfuse.cli.targets import by_mount, failed
from luxfuse.configuration import building
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord

DEADLINE_S = 120.0


@with_settings(attachable=True)
def attach(
    source: Annotated[str, typer.Argument(help="What to attach: s3://bucket/prefix or any fsspec URL.")],
    path: Annotated[str, typer.Argument(help="A path in a mount; objects of the bucket there are hidden.")],
    options: Annotated[
        list[str] | None, typer.Option("-o", metavar="NAME=VALUE,...", help="Settings as for mount; the other flags win.")
    ] = None,
    *,
    settings: Mapping[str, Any],
) -> int:
    """Show SOURCE at PATH inside a mount, now and later. Other options are as for the mount."""
    chosen = building.for_attached(settings, parse_options(options or []))
    source = building.checked_source(source)
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
    """Take an attached SOURCE out of a mount, now and for later mounts. What was written there is brought to it before."""
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
