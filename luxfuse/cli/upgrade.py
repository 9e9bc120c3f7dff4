"""``luxfuse upgrade``: the luxfuse that this command is of goes on with a mount, while programs use it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from luxfuse import PACKAGE, __version__
from luxfuse.cli.errors import CommandFailed, say
from luxfuse.cli.launch import daemon_command, keeper_command
from luxfuse.cli.targets import mount_at
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord

ANSWER_S = 90.0
SERVES_S = 150.0
"""For how long a daemon is waited for: the keeper ends one that hangs as it begins, and the one of before goes on."""
BEGINS_S = 5.0
STEADY_S = 1.5
"""After that a daemon is not given up any more that dies."""
POLL_S = 0.05


def upgrade(mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")]) -> int:
    """Let this luxfuse go on with a mount of another one. Programs notice a pause at most."""
    record = mount_at(mountpoint)
    _leave(record)
    new = _await_other(record)
    if not is_ours(new):
        raise CommandFailed(
            f"{new.mountpoint}: luxfuse {__version__}{_of(PACKAGE)} does not serve, and luxfuse {new.version}"
            f"{_of(new.package)} goes on; see {new.log_path}"
        )
    say(f"{new.mountpoint}: luxfuse {new.version} serves (pid {new.pid}), where luxfuse {record.version} did")
    return 0


def _leave(record: MountRecord) -> None:
    """Have the daemon leave. Raises `CommandFailed` if it stays."""
    leaving = False
    try:
        daemon = [*daemon_command(), "--package", PACKAGE]
        for step in ControlClient(record.socket_path, ANSWER_S).upgrade(daemon, keeper_command()):
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
    """Return the record of the daemon that goes on, once it serves steadily. Raises `CommandFailed` if none does."""
    give_up_at = time.monotonic() + SERVES_S
    serving, since = record.pid, 0.0
    while (now := time.monotonic()) < give_up_at:
        found = registry.at(state_root(), record.mountpoint)
        if found is not None and found.given_up:
            raise CommandFailed(f"{record.mountpoint}: {found.given_up}")
        if found is not None and found.alive and found.pid != record.pid:
            if found.pid == serving and now - since >= STEADY_S and _serves(found):
                return found
            if found.pid != serving and _serves(found):
                serving, since = found.pid, time.monotonic()
        time.sleep(POLL_S)
    raise CommandFailed(
        f"{record.mountpoint}: no daemon serves it again after {SERVES_S:g} s; see {record.log_path}, and: luxfuse status"
    )


def _serves(record: MountRecord) -> bool:
    try:
        return ControlClient(record.socket_path, BEGINS_S).status().get("pid") == record.pid
    except (DaemonUnreachable, DaemonRefused):
        return False  # it has not begun yet, or has died as it did


def is_ours(record: MountRecord) -> bool:
    """Whether a daemon is of this luxfuse, whatever its command line says."""
    return record.version == __version__ and record.package == PACKAGE


def _of(package: str) -> str:
    return f" of {package}" if package else ""
