"""``luxfuse unmount``. Never touches the mountpoint itself, so that a hung mount cannot hang it.

First the daemon brings what was written to the under-store, while the mount is still there: so whatever goes wrong then,
the mount is as it was. Then the mount is taken away, and the daemon ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import CommandFailed, say
from luxfuse.cli.progress import Display, left_text
from luxfuse.cli.targets import await_successor
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.control.registry import MountRecord
from luxfuse.fuse import mountpoint as mounts

DEADLINE_S = 60.0
STALLED_S = 60.0
"""After so long without progress it is given up to bring what is left to the store."""
_LAZY_DEADLINE_S = 5.0
_TERM_PATIENCE_S = 2.0
_TERM_INTERVAL_S = 0.5


def unmount(
    mountpoint: Annotated[str, typer.Argument(help="Where it is mounted.")],
    lazy: Annotated[
        bool,
        typer.Option("--lazy", help="Take it out of the tree now; open files live on, changes are uploaded afterwards."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="End everything now; open files fail, changes are left to the next mount.")
    ] = False,
) -> int:
    """Bring what was written to the under-store, and unmount. Waits until the daemon has ended."""
    where = mounts.resolve(mountpoint)
    state_dir = state_root()
    record = registry.at(state_dir, where)
    mounted = _is_mounted(where)
    if record is None and not mounted:
        raise CommandFailed(f"{where} is not a luxfuse mount; see: luxfuse list")
    if record is not None and record.kept and not force:
        record = await_successor(record)
    if force:
        _force(where, record)
        _say_what_is_left(where, state_dir)
    elif record is None or not record.alive:
        # Of a dead daemon's mount nobody has anything more, but files that the kernel reads by itself, and these go on.
        dead = record is not None
        if mounted:
            mounts.unmount(where, lazy=lazy or dead, force=dead)
        if dead:
            _say_what_is_left(where, state_dir)
        else:
            say(f"{where}: {state_dir} has no record of its daemon, which ends by itself; changes may not be in the "
                "under-store yet")  # fmt: skip
    elif lazy:
        _detach(where, record)
    else:
        _ask(where, record)
    if record is not None:
        registry.forget(record)
    return 0


def _is_mounted(where: str) -> bool:
    mount = mounts.find_mount(where)
    return mount is not None and mount.fstype == mounts.FSTYPE


def _detach(where: str, record: MountRecord) -> None:
    try:
        ControlClient(record.socket_path, _LAZY_DEADLINE_S).unmount(lazy=True)
    except DaemonRefused as exc:
        raise CommandFailed(str(exc)) from None
    except DaemonUnreachable:
        if _is_mounted(where):
            mounts.unmount(where, lazy=True)


# -- in good order


def _ask(where: str, record: MountRecord) -> None:
    pidfd = _open_pid(record)
    try:
        with Display(where) as display:
            _drain(where, record, display)
            try:
                ControlClient(record.socket_path, deadline_s=DEADLINE_S).unmount()
            except DaemonRefused as exc:
                raise CommandFailed(str(exc)) from None
            except DaemonUnreachable as exc:
                # It may have ended before the answer was out, or be about to.
                if _is_mounted(where) and not _ended(record, pidfd, time.monotonic() + _TERM_PATIENCE_S):
                    raise CommandFailed(f"{where}: {exc}; try: luxfuse unmount --force {where}") from None
            _await_end(where, record, pidfd, display)
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if _is_mounted(where):
        mounts.unmount(where)


def _drain(where: str, record: MountRecord, display: Display) -> None:
    """Have what is closed brought to the store. Raises CommandFailed, with the mount as it was, if that gets nowhere."""
    first = True
    try:
        for step in _steps(record):
            if first and not step["done"] and _is_mounted(where) and (users := mounts.holders(where)):
                raise CommandFailed(str(mounts.busy(where, users)))
            first = False
            display.show(step)
            if step["stalled_s"] >= STALLED_S:
                raise CommandFailed(
                    f"{where}: {left_text(step)} are still not in the under-store, without progress for {STALLED_S:g} s"
                    f"{_because(step)}; it stays mounted: try again, or leave them to the next mount with: "
                    f"luxfuse unmount --force {where}"
                )
    except DaemonUnreachable as exc:
        if registry.is_alive(record.directory):
            raise CommandFailed(f"{where}: {exc}; try: luxfuse unmount --force {where}") from None
    except DaemonRefused as exc:
        raise CommandFailed(f"{where}: {exc}; see {record.log_path}, or use --force") from None
    except KeyboardInterrupt:
        raise CommandFailed(f"interrupted: {where} stays mounted, and goes on as before") from None


def _steps(record: MountRecord) -> Iterator[dict[str, Any]]:
    with closing(ControlClient(record.socket_path).drain()) as steps:
        yield from steps


def _because(step: Mapping[str, Any]) -> str:
    return f" ({step['error']})" if step["error"] else ""


def _await_end(where: str, record: MountRecord, pidfd: int | None, display: Display) -> None:
    """The mount is gone: wait for the daemon, which first brings to the store what was written in the last moment."""
    last: dict[str, Any] | None = None
    try:
        with contextlib.suppress(DaemonUnreachable, DaemonRefused):
            for step in _steps(record):
                last = step
                display.show(step)
        if not _ended(record, pidfd, time.monotonic() + DEADLINE_S):
            raise CommandFailed(
                f"{where}: the daemon (pid {record.pid}) has not ended within {DEADLINE_S:g} s; "
                f"see {record.log_path}, or use --force"
            )
    except KeyboardInterrupt:
        raise CommandFailed(
            f"interrupted: {where} is unmounted, its daemon (pid {record.pid}) ends when all is in the under-store"
        ) from None
    if last is not None and not last["done"] and last["stalled_s"] > 0:
        raise CommandFailed(
            f"{where} is unmounted, but {left_text(last)} are not in the under-store{_because(last)}; the next mount of "
            "the same source with the same cache directory brings them there"
        )


# -- at once


def _force(where: str, record: MountRecord | None) -> None:
    if _is_mounted(where):
        mounts.unmount(where, force=True)
    if record is None or (pidfd := _open_pid(record)) is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            give_up_at = time.monotonic() + _TERM_PATIENCE_S
            while True:
                # The first ends the mount, if it had not noticed yet; the next one the draining after it.
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                if _ended(record, pidfd, min(give_up_at, time.monotonic() + _TERM_INTERVAL_S)):
                    return
                if time.monotonic() >= give_up_at:
                    break
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _ended(record, pidfd, time.monotonic() + _TERM_PATIENCE_S)
    except PermissionError:
        raise CommandFailed(f"{where}: the daemon (pid {record.pid}) belongs to another user") from None
    finally:
        os.close(pidfd)


def _say_what_is_left(where: str, state_dir: Path) -> None:
    """Tell of each journal of the mount what the store has not got."""
    from luxfuse.index import leftovers

    for left in leftovers.find(state_dir / "journal"):
        if left.any and left.origin.mountpoint == where:
            cache_dir = Path(left.origin.cache).parent
            say(
                f"{where}: not in the under-store: {left.text}; they are kept, and the next mount of {left.origin.source} "
                f"with --cache-dir {cache_dir} brings them there"
            )


# -- processes


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
