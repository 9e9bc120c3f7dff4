"""Starts a daemon: in the background as a process of its own, or in this one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from luxfuse import keeper
from luxfuse.cli.errors import CommandFailed, say
from luxfuse.config import Settings
from luxfuse.control import registry
from luxfuse.core.kernels import why_no_keeper
from luxfuse.errors import LuxError, MountError
from luxfuse.fuse import mountpoint
from luxfuse.keeper import systemd
from luxfuse.keeper.device import mounted
from luxfuse.keeper.handing import Held
from luxfuse.keeper.log import LOG_FORMAT
from luxfuse.keeper.starting import PASSED_ON
from luxfuse.keeper.words import was_served

READY_DEADLINE_S = 30.0
PROGRAM = Path(keeper.__path__[0], "__main__.py")
"""The keeper's: a file, so that Python starts with nothing else."""
MOST_DEATHS = 10
"""Deaths of daemons in a row after which a keeper gives up."""
_STOP_PATIENCE_S = 3.0
_ANSWER_MAX_BYTES = 64 << 10
_SETTINGS_MAX_BYTES = 16 << 20


def clear_dead_mount(settings: Settings) -> None:
    """Take away what a daemon that died has left at the mountpoint. Raises `MountError` if somebody goes on with it."""
    mount = mountpoint.find_mount(settings.mountpoint)
    if mount is None or mount.fstype != mountpoint.FSTYPE:
        return
    record = registry.at(settings.state_dir, settings.mountpoint)
    if record is not None and record.is_restarting and not record.alive:
        raise MountError(f"{settings.mountpoint} is already mounted by luxfuse: {record.death}")
    if (death := _death(mount, record)) is not None:
        say(f"{settings.mountpoint}: {death}; what it left is taken away")
        mountpoint.unmount(settings.mountpoint, lazy=True, force=True)


def _death(mount: mountpoint.MountInfo, record: registry.MountRecord | None) -> str | None:
    """Return what has become of the daemon of a mount of luxfuse; None if one serves it, or goes on with it."""
    if record is not None:
        return None if record.alive or record.is_restarting else record.death
    dead = mountpoint.is_dead(mount.mountpoint) and mountpoint.find_mount(mount.mountpoint) == mount
    return "nobody serves it any more" if dead else None


def in_background(settings: Settings) -> None:
    """Return once the tree answers. Raises CommandFailed with the daemon's reason, or the log to look at."""
    directory = registry.mount_directory(settings)
    before = mountpoint.find_mount(settings.mountpoint)
    log_path = Path(settings.log_file) if settings.log_file else directory / registry.LOG
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as ready:
        try:
            process = _spawn(settings, log_path, write_fd)
        finally:
            os.close(write_fd)
        answer = _await_answer(ready.fileno())
    if answer is None:
        _stop(process, settings, before)
        raise CommandFailed(
            f"{settings.mountpoint}: the daemon was not ready within {READY_DEADLINE_S:g} s; see {log_path}"
        )
    if not answer:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_PATIENCE_S)
        _stop(process, settings, before)
        raise CommandFailed(f"{settings.mountpoint}: the daemon ended before it was ready; see {log_path}")
    if (error := answer.get("error")) is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_PATIENCE_S)
        raise CommandFailed(str(error))
    for note in answer.get("notes", []):
        say(str(note))
    process.returncode = 0  # it lives on without us, which Popen would warn about


def _await_answer(fd: int) -> dict[str, Any] | None:
    """Return what the daemon says when it is ready, {} if it ends before, None if it is silent for too long."""
    lines = _Lines(fd)
    waiting = None
    while (line := lines.next(time.monotonic() + READY_DEADLINE_S)) is not None:
        try:
            answer = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            return {}
        if "waiting" not in answer:
            return answer
        if answer["waiting"] != waiting:
            waiting = answer["waiting"]
            say(str(waiting))
    return None


def daemon_command() -> list[str]:
    """Return the command of a daemon of this luxfuse, without its arguments."""
    # -P: the working directory is no place to import from.
    return [sys.executable, "-P", "-m", "luxfuse.daemon"]


def keeper_command() -> list[str]:
    """Return the command of a keeper of this luxfuse, without its arguments."""
    return [sys.executable, "-I", "-S", str(PROGRAM)]


def _command(settings: Settings, log: str, ready_fd: int, held: Held | None = None) -> list[str]:
    """Return the command of the daemon, or of the keeper that starts it, which may go on with what is ``held`` already.

    ``log`` "": the streams stay what they are.
    """
    daemon = daemon_command()
    if not settings.keeper:
        return [*daemon, "--ready-fd", str(ready_fd)]
    cannot = why_no_keeper(wanted=True, root=os.geteuid() == 0, release=os.uname().release)
    said = registry.mount_directory(settings) / registry.KEEPER
    arguments = [str(ready_fd), str(said), "0" if cannot else str(MOST_DEATHS), settings.mountpoint, log]
    return [*keeper_command(), *(held.arguments() if held is not None else []), *arguments, *daemon]


def _spawn(settings: Settings, log_path: Path, write_fd: int) -> subprocess.Popen[bytes]:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log_fd = os.open(log_path, flags, 0o600)
    except OSError as exc:
        raise CommandFailed(f"log file {log_path}: {exc.strerror}; choose another with --log-file") from None
    try:
        process = subprocess.Popen(
            _command(settings, str(log_path), write_fd),
            stdin=subprocess.PIPE,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=[write_fd],
            env={**os.environ, LOG_FORMAT: settings.log_format},
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(msgspec.json.encode(settings))
    return process


class _Lines:
    """The lines of a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._received = b""

    def next(self, give_up_at: float) -> bytes | None:
        """Return what comes before a newline or the end; None if neither comes in time."""
        while b"\n" not in self._received and len(self._received) < _ANSWER_MAX_BYTES:
            left_s = give_up_at - time.monotonic()
            if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
                return None
            chunk = os.read(self._fd, 4096)
            if not chunk:
                break
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line


def _stop(process: subprocess.Popen[bytes], settings: Settings, before: mountpoint.MountInfo | None) -> None:
    """End a daemon that failed to start, and take away a mount that it may have made: not the one ``before``, nor one that
    another daemon serves."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a keeper, and its daemon
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_PATIENCE_S)
    mount = mountpoint.find_mount(settings.mountpoint)
    if mount is None or mount.fstype != mountpoint.FSTYPE or (before is not None and mount.device == before.device):
        return
    if _death(mount, registry.at(settings.state_dir, settings.mountpoint)) is not None:
        with contextlib.suppress(MountError):
            mountpoint.unmount(settings.mountpoint, force=True)


def in_foreground(settings: Settings) -> int:
    """Serve until unmounted; returns 0, or 1 after a failed start. Raises CommandFailed with its reason.

    With a keeper this process becomes that, and the daemon says on stderr what there is to say.
    """
    if settings.keeper:
        fd = os.memfd_create("luxfuse-settings")
        os.write(fd, msgspec.json.encode(settings))
        os.lseek(fd, 0, os.SEEK_SET)
        os.dup2(fd, 0)
        os.close(fd)
        command = _command(settings, "", -1)
        os.environ[LOG_FORMAT] = settings.log_format
        os.execv(command[0], command)  # noqa: S606 (no shell is wanted)
    from luxfuse.daemon.main import run

    errors: list[str] = []

    def ready(error: str | None, notes: Sequence[str] = ()) -> None:
        for note in notes:
            say(note)
        if error is not None:
            errors.append(error)

    try:
        code = run(settings, ready)
    except LuxError as exc:
        raise CommandFailed(str(exc)) from None
    if errors:
        raise CommandFailed(errors[0])
    return code


def go_on() -> None:
    """Become the keeper of a mount that this process's predecessor had in the same service, if systemd has kept it.

    Returns where it has not, or where there is nothing to go on with. The settings are those of the predecessor, whatever
    the configuration says by now.
    """
    held = systemd.take()
    if held is None:
        return
    try:
        os.lseek(held.settings, 0, os.SEEK_SET)
        settings = msgspec.json.decode(os.read(held.settings, _SETTINGS_MAX_BYTES), type=Settings)
        goes_on = mounted(held.device) and was_served(held.estate)
    except (OSError, msgspec.MsgspecError) as exc:
        say(f"what systemd has kept cannot be gone on with ({exc}); mounting anew")
        goes_on = False
    if goes_on:
        say(f"{settings.mountpoint}: going on where the process before this one ended")
        for fd in held.fds():
            os.set_inheritable(fd, True)
        os.environ[LOG_FORMAT] = settings.log_format
        command = _command(settings, "", -1, held)
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until the keeper passes them on
        os.execv(command[0], command)  # noqa: S606 (no shell is wanted)
    systemd.give_back(held)
