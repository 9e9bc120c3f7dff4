"""``luxfuse check``: whether the cache of a mount is what is recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed
from luxfuse.cli.progress import CheckMeter, Display
from luxfuse.cli.report import AsJson, print_json
from luxfuse.cli.targets import failed, mount_at
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.core.units import format_count, format_size

DEADLINE_S = 30.0


def check(
    mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is damaged, remove what belongs to nothing, correct counts.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Compare all that is cached with its checksums and records. Programs come first."""
    record = mount_at(mountpoint)
    step: dict[str, Any] = {}
    try:
        with Display(record.mountpoint, CheckMeter()) as display:
            for step in ControlClient(record.socket_path, DEADLINE_S).check(repair=repair):
                display.show(step)
    except (DaemonUnreachable, DaemonRefused) as exc:
        raise failed(record, exc) from None
    except KeyboardInterrupt:
        if not as_json:
            _print(record.mountpoint, step)
        raise CommandFailed(f"check: interrupted: {_done(step) if step else 'nothing checked yet'}") from None
    if step["error"] is not None:
        raise CommandFailed(f"{record.mountpoint}: the check ended early: {step['error']}; see {record.log_path}")
    if as_json:
        print_json({"mountpoint": record.mountpoint, **{k: v for k, v in step.items() if k not in ("done", "error")}})
    else:
        _print(record.mountpoint, step)
        print(f"{record.mountpoint}: {_done(step)}")
    return 1 if step["problems"] > step["mended"] else 0


def _print(mountpoint: str, step: Mapping[str, Any]) -> None:
    """Print the problems found."""
    lines = step.get("lines", [])
    for line in lines:
        print(f"{mountpoint}: {' '.join(line.split())}")
    if step and step["problems"] > len(lines):
        print(f"{mountpoint}: {step['problems'] - len(lines)} more")


def _done(step: Mapping[str, Any]) -> str:
    """Say what was found."""
    text = f"{format_count(step['files'], 'file')} checked ({format_size(step['bytes'])}), "
    if not step["problems"]:
        return text + "no problem"
    return text + format_count(step["problems"], "problem") + (f", {step['mended']} mended" if step["repair"] else "")
