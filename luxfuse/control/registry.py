"""The mounts of this machine: one directory per mountpoint, owned by its daemon through a lock held for life.

``<state>/mounts/<id>/`` (0700) holds ``lock``, ``mount.json``, ``control.sock`` and ``daemon.log``. A record whose
lock is free belongs to a daemon that died. Nothing here touches a mountpoint, which may hang.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

import msgspec

from luxfuse import PACKAGE, __version__
from luxfuse.config import Settings, mount_id
from luxfuse.control.attached_file import FILE as ATTACHED
from luxfuse.control.attached_file import AttachedFile
from luxfuse.durable import is_unfinished, replace_file
from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.understore.failures import safe_url

SOCKET, RECORD, LOCK, LOG = "control.sock", "mount.json", "lock", "daemon.log"
KEEPER = "keeper"
"""Locked by the keeper of a mount; says why it does not start daemons any more, once it does not."""
# A look at the lock holds it for a moment; a claim that meets one tries again for this long.
_CLAIM_PATIENCE_S = 0.5
_END_PATIENCE_S = 5.0
"""A daemon that has unmounted, and its keeper, end within that."""


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One known mount. ``alive`` False: its daemon died. ``started_at`` in seconds since the epoch."""

    mountpoint: str
    source: str
    pid: int
    version: str
    package: str = ""
    """The directory of the luxfuse that serves it; older ones do not say."""
    started_at: float
    places: dict[str, str] = {}
    """Where the objects are, beside ``source``: endpoint, account and the like, without secrets."""
    directory: str = ""
    alive: bool = False
    kept: bool = False
    """Whether a keeper goes on though the daemon died, or answers everything with EIO, as it has ``given_up``."""
    given_up: str = ""

    @property
    def is_restarting(self) -> bool:
        """Whether another daemon is about to go on."""
        return self.kept and not self.given_up

    @property
    def state(self) -> str:
        """What it is, in a word."""
        return "running" if self.alive else "restarting" if self.is_restarting else "dead"

    @property
    def death(self) -> str:
        """What has become of it, if it is not alive."""
        if self.given_up:
            return self.given_up
        died = f"the daemon (pid {self.pid}) has died"
        return f"{died}, and is being started again" if self.kept else died

    @property
    def socket_path(self) -> Path:
        """The control socket."""
        return Path(self.directory, SOCKET)

    @property
    def log_path(self) -> Path:
        """The daemon's log, unless the mount was given another one."""
        return Path(self.directory, LOG)


def mount_directory(settings: Settings) -> Path:
    """Return the state directory of the mount, made if needed, closed to others. Raises MountError."""
    directory = Path(settings.state_dir, "mounts", settings.mount_id)
    try:
        for each in (directory.parent.parent, directory.parent, directory):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as exc:
        why = "Not a directory" if isinstance(exc, FileExistsError) else exc.strerror
        raise MountError(f"state directory {directory}: {why}; make it writable or set LUXFUSE_STATE_DIR") from None
    return directory


class Claim:
    """The right to serve a mountpoint, held until `close` or the end of the process."""

    def __init__(self, directory: Path, lock_fd: int) -> None:
        self.directory = directory
        self.socket_path = directory / SOCKET
        self.log_path = directory / LOG
        self._lock_fd = lock_fd

    def close(self) -> None:
        """Remove the record and the socket and free the lock; may be called again."""
        if self._lock_fd < 0:
            return
        for name in (RECORD, SOCKET):
            (self.directory / name).unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Free the lock, and leave the record as a kill does: a keeper goes on, and commands are to know of it."""
        os.close(self._lock_fd)
        self._lock_fd = -1

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def claim(settings: Settings, *, inherited: bool = False) -> Claim:
    """Take the mountpoint for this process and write its record.

    ``inherited``: from a daemon that was killed, though it may not have ended yet. Raises MountError if another daemon has
    it, or if the state directory cannot be used.
    """
    directory = mount_directory(settings)
    fd = _lock(directory, settings.mountpoint, inherited=inherited)
    try:
        (directory / SOCKET).unlink(missing_ok=True)
        record = {
            "mountpoint": settings.mountpoint,
            "source": safe_url(settings.source),
            "places": {name: safe_url(value) for name, value in settings.places.items()},
            "pid": os.getpid(),
            "version": __version__,
            "package": PACKAGE,
            "started_at": time.time(),
        }
        replace_file(directory / RECORD, msgspec.json.encode(record))
    except OSError as exc:
        os.close(fd)
        raise MountError(f"{directory}: {exc.strerror}; free space or make it writable") from None
    return Claim(directory, fd)


def _lock(directory: Path, mountpoint: str, *, inherited: bool) -> int:
    path = directory / LOCK
    give_up_at = time.monotonic() + _CLAIM_PATIENCE_S
    while True:
        try:
            if (fd := _try_lock(path)) is not None:
                return fd
            if time.monotonic() > give_up_at and inherited:
                path.unlink()  # what is locked goes with the one that cannot end
                continue
        except OSError as exc:
            raise MountError(f"{path}: {exc.strerror}; make it writable") from None
        if time.monotonic() > give_up_at:
            record = _read(directory)
            pid = f" (pid {record.pid})" if record else ""
            if mounts.find_mount(mountpoint) is None:
                raise MountError(
                    f"{mountpoint}: a daemon{pid} is about to mount there, or still brings changes of the last mount "
                    f"to the under-store; wait, or end it with: luxfuse unmount --force {mountpoint}"
                )
            raise MountError(f"{mountpoint} is already mounted by luxfuse{pid}; unmount it first")
        time.sleep(0.02)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor of the lock, None if another process has it, or has just replaced it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def is_alive(directory: str | Path) -> bool:
    """True while a daemon holds the lock of this mount directory."""
    return _is_locked(Path(directory, LOCK))


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can tell, as on a disk that fails: nothing is to be taken away from a daemon that may live
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _read(directory: Path) -> MountRecord | None:
    try:
        record = msgspec.json.decode((directory / RECORD).read_bytes(), type=MountRecord)
    except (OSError, msgspec.DecodeError):
        return None
    alive = is_alive(directory)
    kept = not alive and _is_locked(directory / KEEPER)
    given_up = (directory / KEEPER).read_text(errors="replace") if kept else ""
    return msgspec.structs.replace(record, directory=str(directory), alive=alive, kept=kept, given_up=given_up)


def list_mounts(state_dir: str | Path) -> list[MountRecord]:
    """Return all known mounts, by mountpoint. A record that cannot be read is left out. Raises MountError."""
    try:
        directories = list(Path(state_dir, "mounts").iterdir())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise MountError(f"state directory {state_dir}: {why}; correct LUXFUSE_STATE_DIR") from None
    records = [record for directory in directories if (record := _read(directory))]
    return sorted(records, key=lambda record: record.mountpoint)


def at(state_dir: str | Path, mountpoint: str) -> MountRecord | None:
    """Return the mount that has just this mountpoint, which is resolved; None if there is none. Raises MountError."""
    return next((record for record in list_mounts(state_dir) if record.mountpoint == mountpoint), None)


def find(state_dir: str | Path, path: str | Path) -> MountRecord | None:
    """Return the innermost mount at or above ``path``, or None. The path is resolved without touching a mount."""
    where = mounts.resolve(path)
    around = [record for record in list_mounts(state_dir) if mounts.is_inside(where, record.mountpoint)]
    return max(around, key=lambda record: len(record.mountpoint), default=None)


def discard(state_dir: str | Path, mountpoint: str, needless: Collection[str]) -> None:
    """Remove the state directory of a mountpoint, with its log and what is ``needless`` in it. Raises OSError.

    Where there is more, as attached under-stores, or what is held for other nodes, all stays; as while it is served.
    """
    directory = Path(state_dir, "mounts", mount_id(mountpoint))
    give_up_at = time.monotonic() + _END_PATIENCE_S
    while directory.is_dir() and (is_alive(directory) or _is_locked(directory / KEEPER)):
        if time.monotonic() > give_up_at:
            return
        time.sleep(0.02)
    if not directory.is_dir() or (lock := _try_lock(directory / LOCK)) is None:
        return
    try:
        known = {LOCK, KEEPER, RECORD, SOCKET, *needless}
        if _has_none(directory):
            known.add(ATTACHED)
        others = [path for path in directory.iterdir() if path.name not in known and not path.name.startswith(LOG)]
        if all(_is_needless(each) for path in others for each in (path, *path.rglob("*"))):
            shutil.rmtree(directory)
    finally:
        os.close(lock)


def _has_none(directory: Path) -> bool:
    """Whether nothing is attached any more; the record of attachments then only says which numbers were used."""
    try:
        return not AttachedFile(directory).read().attached
    except MountError:
        return False


def _is_needless(path: Path) -> bool:
    return path.is_dir() or is_unfinished(path.name)


def forget(record: MountRecord) -> None:
    """Remove the record and the socket that a dead daemon left; a living one is left alone."""
    if not is_alive(record.directory):
        for name in (RECORD, SOCKET):
            Path(record.directory, name).unlink(missing_ok=True)
