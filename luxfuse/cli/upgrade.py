"""``luxfuse upgrade``: the luxfuse that this command is of goes on with a mount, while programs use it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from luxfuse import __version__
from luxfuse.cli.errors import CommandFailed, say
from luxfuse.cli.launch import daemon_command, keeper_command
from luxfuse.cli.targets import mount_at
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord

ANSWER_S = 60.0
SERVES_S = 60.0
POLL_S = 0.05


def upgrade(mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")]) -> int:
    """Let this luxfuse go on where another one, or an older state of this one, serves; programs notice a pause at most."""
    record = mount_at(mountpoint)
    _leave(record)
    new = _await_other(record)
    if not _is_ours(new):
        raise CommandFailed(
            f"{new.mountpoint}: luxfuse {__version__} did not begin to serve, and luxfuse {new.version} goes on; "
            f"see {new.log_path}"
        )
    say(f"{new.mountpoint}: luxfuse {new.version} serves (pid {new.pid}), where luxfuse {record.version} did")
    return 0


def _leave(record: MountRecord) -> None:
    """Have the daemon leave. Raises `CommandFailed` if it stays."""
    leaving = False
    try:
        for step in ControlClient(record.socket_path, ANSWER_S).upgrade(daemon_command(), keeper_command()):
            leaving = bool(step["done"])
    except DaemonRefused as exc:
        if exc.status == 404:
            raise CommandFailed(
                f"{record.mountpoint}: luxfuse {record.version}, which serves it, cannot be upgraded while it is mounted; "
                "unmount and mount again"
            ) from None
        raise CommandFailed(str(exc)) from None
    except DaemonUnreachable as exc:
        if not leaving:
            raise CommandFailed(f"{record.mountpoint}: {exc}; see {record.log_path}") from None


def _await_other(record: MountRecord) -> MountRecord:
    """Return the record of the daemon that goes on, once it serves. Raises `CommandFailed` if none does."""
    give_up_at = time.monotonic() + SERVES_S
    while time.monotonic() < give_up_at:
        found = registry.at(state_root(), record.mountpoint)
        if found is not None and found.given_up:
            raise CommandFailed(f"{record.mountpoint}: {found.given_up}")
        if found is not None and found.alive and found.pid != record.pid:
            try:
                ControlClient(found.socket_path, max(1.0, give_up_at - time.monotonic())).status()
            except (DaemonUnreachable, DaemonRefused):
                pass  # it has died as it began
            else:
                return found
        time.sleep(POLL_S)
    raise CommandFailed(
        f"{record.mountpoint}: no daemon serves it again after {SERVES_S:g} s; see {record.log_path}, and: luxfuse status"
    )


def _is_ours(record: MountRecord) -> bool:
    command = [os.fsencode(word) for word in daemon_command()]
    try:
        return Path(f"/proc/{record.pid}/cmdline").read_bytes().split(b"\0")[: len(command)] == command
    except OSError:
        return False
