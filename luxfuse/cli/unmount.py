"""``luxfuse unmount``. Never touches the mountpoint itself, so that a hung mount cannot hang it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import Annotated

import typer

from luxfuse import config
from luxfuse.cli.errors import CommandFailed
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.fuse import mountpoint as mounts

DEADLINE_S = 60.0
_TERM_PATIENCE_S = 2.0


def unmount(
    mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")],
    lazy: Annotated[bool, typer.Option("--lazy", help="Take it out of the tree now; open files live on.")] = False,
    force: Annotated[bool, typer.Option("--force", help="End everything now; open files fail.")] = False,
) -> int:
    """Unmount, and wait until the daemon has ended."""
    where = mounts.resolve(mountpoint)
    state_dir = config.state_root()
    record = next((each for each in registry.list_mounts(state_dir) if each.mountpoint == where), None)
    mounted = _is_mounted(where)
    if record is None and not mounted:
        raise CommandFailed(f"{where} is not a luxfuse mount; see: luxfuse list")
    if force:
        _force(where, record)
    elif record is None or not record.alive:
        # Its daemon is dead, or belongs to another user, whose daemon ends with its mount.
        if mounted:
            mounts.unmount(where, lazy=lazy)
    elif lazy:
        if mounted:
            mounts.unmount(where, lazy=True)
    else:
        _ask(where, record)
    if record is not None:
        registry.forget(record)
    return 0


def _is_mounted(where: str) -> bool:
    mount = mounts.find_mount(where)
    return mount is not None and mount.fstype == mounts.FSTYPE


def _ask(where: str, record: MountRecord) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    pidfd = _open_pid(record)
    try:
        with _progress(where):
            try:
                ControlClient(record.socket_path, deadline_s=DEADLINE_S).unmount()
            except DaemonRefused as exc:
                raise CommandFailed(str(exc)) from None
            except DaemonUnreachable as exc:
                # It may have ended before the answer was out.
                if not _ended(record, pidfd, time.monotonic() + _TERM_PATIENCE_S):
                    raise CommandFailed(f"{where}: {exc}; try: luxfuse unmount --force {where}") from None
            if not _ended(record, pidfd, give_up_at):
                raise CommandFailed(
                    f"{where}: the daemon (pid {record.pid}) has not ended within {DEADLINE_S:g} s; "
                    f"see {record.log_path}, or use --force"
                )
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if _is_mounted(where):
        mounts.unmount(where)


def _force(where: str, record: MountRecord | None) -> None:
    if _is_mounted(where):
        mounts.unmount(where, force=True)
    if record is None or (pidfd := _open_pid(record)) is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not _ended(record, pidfd, time.monotonic() + _TERM_PATIENCE_S):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _ended(record, pidfd, time.monotonic() + _TERM_PATIENCE_S)
    except PermissionError:
        raise CommandFailed(f"{where}: the daemon (pid {record.pid}) belongs to another user") from None
    finally:
        os.close(pidfd)


def _open_pid(record: MountRecord) -> int | None:
    """Return a descriptor of the daemon's process, or None if it has ended. Its pid is never taken for another's."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    if registry.is_alive(record.directory):
        return pidfd
    os.close(pidfd)
    return None


def _ended(record: MountRecord, pidfd: int | None, give_up_at: float) -> bool:
    """Wait for the process to end, or for its lock where it has no visible process."""
    if pidfd is not None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(max(0, int((give_up_at - time.monotonic()) * 1000))))
    while registry.is_alive(record.directory):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)
    return True


def _progress(where: str) -> contextlib.AbstractContextManager[object]:
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"unmounting {where}")


