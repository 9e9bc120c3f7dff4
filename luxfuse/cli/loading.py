"""``luxfuse load`` that waits for the end; it needs nothing that understands options, see `main`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luxfuse.cli.errors import CommandFailed, say
from luxfuse.cli.progress import Display, LoadMeter
from luxfuse.cli.targets import by_mount, failed
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.core.units import format_count, format_size

START_DEADLINE_S = 60.0
"""A long list of paths takes its time to be read."""


def load_and_wait(paths: Sequence[str]) -> int:
    """Bring what is at and below the paths into the cache, and show how far that is."""
    return max([_load(record, inside) for record, inside in by_mount(paths)])


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
        raise CommandFailed(f"load: interrupted: {how_far(step)}; run it again for the rest") from None
    return _report(record, step)


def _report(record: MountRecord, step: Mapping[str, Any]) -> int:
    print(f"{record.mountpoint}: {how_far(step)}")
    complain(record, step)
    return 1 if incomplete(step) else 0


def complain(record: MountRecord, step: Mapping[str, Any]) -> None:
    """Say what failed, and what is to be known besides."""
    for failure in step["failures"]:
        say(f"load: {record.mountpoint}: {failure}")
    if step["note"]:
        say(f"load: {record.mountpoint}: {step['note']}")


def incomplete(step: Mapping[str, Any]) -> bool:
    """Whether not all has been loaded that was asked for."""
    return bool(step["failed_files"] or step["left_out_files"] or step["note"] or step["state"] == "stopped")


def how_far(step: Mapping[str, Any]) -> str:
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
