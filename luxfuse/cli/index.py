"""``luxfuse index``: the names of a source in a file, made on one machine and taken up on others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed, UsageError, say
from luxfuse.cli.flags import with_settings
from luxfuse.cli.options import parse_options
from luxfuse.cli.progress import Display
from luxfuse.cli.targets import by_mount, failed, mount_or_source
from luxfuse.configuration import building
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable, Steps
from luxfuse.control.registry import MountRecord
from luxfuse.core.printing import printable
from luxfuse.core.units import format_count

DEADLINE_S = 120.0
"""A directory of millions of names is listed between two lines of progress."""

app = typer.Typer(help="Manifests: the names of a data set in a file.", no_args_is_help=True)


class NamesMeter:
    """How many names there are so far; how many there will be is not known."""

    fraction = 0.0
    text = ""

    def feed(self, _now_s: float, step: Mapping[str, Any]) -> None:
        """Take in a line of progress."""
        self.text = _counted(step)


def _counted(step: Mapping[str, Any]) -> str:
    return f"{format_count(step.get('entries', 0), 'name')} in {_directories(step.get('directories', 0))}"


def _directories(count: int) -> str:
    return "1 directory" if count == 1 else f"{count} directories"


@app.command("export")
@with_settings(attachable=True)
def export(
    what: Annotated[
        str, typer.Argument(help="A mount, or where a store is attached in one; or a source: s3://bucket/prefix.")
    ],
    file: Annotated[str, typer.Argument(help="The manifest to write.")],
    options: Annotated[
        list[str] | None, typer.Option("-o", metavar="NAME=VALUE,...", help="Of a source: settings as for mount.")
    ] = None,
    *,
    settings: Mapping[str, Any],
) -> int:
    """Write a manifest of a mount or of a source. It has names, sizes, versions, times and what is known of attributes."""
    if mount_or_source(what, below=True) is None:
        return _export_source(what, file, parse_options(options or []), settings)
    if options or settings:
        raise UsageError("index export: a mount has its settings already; give options with a source only")
    return _export_mount(what, file)


def _export_mount(path: str, file: str) -> int:
    _, step = _asked(path, file, ControlClient.export_index)
    print(f"{printable(file)}: {_counted(step)}")
    return 0


def _export_source(source: str, file: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    built = building.build({"source": source, "mountpoint": "/", **settings}, options=options)
    from luxfuse.cli.exporting import export_listed  # it needs the event loop and the drivers

    with Display(file, NamesMeter()) as display:
        step = export_listed(built, Path(_absolute(file)), display.show)
    print(f"{printable(file)}: {_counted(step)}")
    if step["skipped"]:
        say(f"index export: {step['skipped']} keys can be no file names, and are left out")
    return 0


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="A manifest, made by: luxfuse index export.")],
    path: Annotated[str, typer.Argument(help="A mount of the same source, or where that is attached.")],
) -> int:
    """Take up the names of a manifest. They are what the store said when it was made; what is known better here stays."""
    record, step = _asked(path, file, ControlClient.import_index)
    skipped = f"; {_directories(step['skipped'])} known better here"
    print(f"{record.mountpoint}: {_counted(step)} taken up{skipped if step['skipped'] else ''}")
    for failure in step["failures"]:
        say(f"index import: {failure}")
    if step["note"]:
        say(f"index import: {step['note']}")
    return 1 if step["failures"] else 0


def _asked(
    path: str, file: str, order: Callable[[ControlClient, str, str], Steps]
) -> tuple[MountRecord, Mapping[str, Any]]:
    """Have the daemon of the mount of ``path`` do it, and show progress; returns the mount, and the last of it."""
    [(record, [inside])] = by_mount([path])
    try:
        return record, _shown(file, order(ControlClient(record.socket_path, DEADLINE_S), inside, _absolute(file)))
    except DaemonRefused as exc:
        raise CommandFailed(str(exc)) from None
    except DaemonUnreachable as exc:
        raise failed(record, exc) from None


def _shown(title: str, steps: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Show progress; returns the last of it."""
    step: Mapping[str, Any] = {}
    try:
        with Display(title, NamesMeter()) as display:
            for step in steps:
                display.show(step)
    except KeyboardInterrupt:
        raise CommandFailed("index: interrupted; nothing that was taken up before is wrong, run it again") from None
    return step


def _absolute(file: str) -> str:
    directory = building.working_directory()
    if not directory and not file.startswith("/"):
        raise CommandFailed(f"{file}: the working directory is gone; give an absolute path")
    return str(Path(directory or "/", file))
