"""Mountpoints: the kernel's mount table, mount(2), umount2(2), fusermount3 and aborting a FUSE connection.

A mount whose daemon hangs blocks everything that touches it, `stat` included, and a process blocked that way cannot
even be killed. So nothing here touches a FUSE mount: paths are compared as strings with /proc/self/mountinfo.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luxfuse.errors import MountError

log = logging.getLogger(__name__)

FSTYPE = "fuse.luxfuse"
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_OCTAL = re.compile(r"\\([0-7]{3})")
_FUSERMOUNT_TIMEOUT_S = 20
_SYMLINKS_MAX = 40
_INT = struct.Struct("i")
_ASK = "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as exc: sys.exit(exc.errno)"
_ASK_PATIENCE_S = 5.0


@dataclass(frozen=True)
class MountInfo:
    """One line of /proc/self/mountinfo. ``device`` is ``major:minor``; ``options`` are the mount's, then the file
    system's."""

    mountpoint: str
    fstype: str
    source: str
    device: str
    options: tuple[str, ...]

    @property
    def is_fuse(self) -> bool:
        """True for every FUSE file system except block-device ones."""
        return self.fstype == "fuse" or self.fstype.startswith("fuse.")


def parse_mountinfo(text: str) -> list[MountInfo]:
    """Return the mounts of a mountinfo file, oldest first. Lines that cannot be read are left out."""
    mounts = []
    for line in text.split("\n"):  # a name may hold other characters that end lines
        left, separator, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not separator or len(before) < 6 or len(after) < 2:
            continue
        super_options = after[2] if len(after) > 2 else ""
        options = tuple(option for option in f"{before[5]},{super_options}".split(",") if option)
        mounts.append(MountInfo(_unescape(before[4]), after[0], _unescape(after[1]), before[2], options))
    return mounts


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def read_mounts() -> list[MountInfo]:
    """Return the mounts that this process sees, oldest first."""
    raw = Path("/proc/self/mountinfo").read_bytes()
    return parse_mountinfo(os.fsdecode(raw))


def resolve(path: str | os.PathLike[str], mounts: Iterable[MountInfo] | None = None) -> str:
    """Return the absolute path without symbolic links, never looking inside a FUSE mount or at its root.

    What lies at or below a FUSE mountpoint is kept as written. Raises MountError for a loop of links or a working
    directory that is gone.
    """
    fuse_roots = {mount.mountpoint for mount in (read_mounts() if mounts is None else mounts) if mount.is_fuse}
    try:
        parts = deque(Path(Path.cwd(), path).parts[1:])
    except FileNotFoundError:
        raise MountError(f"{os.fspath(path)}: the working directory is gone; give an absolute path") from None
    current, links = "/", 0
    while parts:
        part = parts.popleft()
        if part == "..":
            current = str(Path(current).parent)
            continue
        candidate = f"{current.rstrip('/')}/{part}"
        if candidate in fuse_roots:
            return os.path.normpath("/".join([candidate, *parts]))
        try:
            target = os.readlink(candidate)  # noqa: PTH115 (Path would drop a dot)
        except OSError:
            current = candidate
            continue
        links += 1
        if links > _SYMLINKS_MAX:
            raise MountError(f"{os.fspath(path)}: too many levels of symbolic links; give the real path")
        if target.startswith("/"):
            current = "/"
        parts.extendleft(reversed([p for p in target.split("/") if p not in ("", ".")]))
    return current


def find_mount(path: str, mounts: Sequence[MountInfo] | None = None) -> MountInfo | None:
    """Return the topmost mount exactly at ``path`` (absolute, resolved), or None."""
    found = [mount for mount in (read_mounts() if mounts is None else mounts) if mount.mountpoint == path]
    return found[-1] if found else None


def mount_around(path: str, mounts: Sequence[MountInfo]) -> MountInfo | None:
    """Return the mount that ``path`` (absolute, resolved) lies on; of several at one place the topmost."""
    around = [mount for mount in mounts if is_inside(path, mount.mountpoint)]
    return max(reversed(around), key=lambda mount: len(mount.mountpoint), default=None)


def check(path: str) -> None:
    """Raise MountError, with one line that says what to do, unless ``path`` is a directory that can be mounted on."""
    where = resolve(path)
    if mount := find_mount(where):
        if mount.fstype == FSTYPE:
            raise MountError(
                f"{path} is already a luxfuse mount, perhaps of a daemon that died; run: luxfuse unmount {path}"
            )
        raise MountError(f"{path} is busy: {mount.source} ({mount.fstype}) is mounted there; choose another directory")
    try:
        with os.scandir(where) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountError(f"{path} does not exist; create it with: mkdir -p {path}") from None
    except NotADirectoryError:
        raise MountError(f"{path} is not a directory; choose or create an empty one") from None
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            raise MountError(f"{path} lies in a FUSE mount whose daemon died; unmount that one first") from None
        raise MountError(f"{path} cannot be read: {exc.strerror}; choose a directory of your own") from None
    if not empty:
        raise MountError(f"{path} is not empty; choose or create an empty directory")
    if os.geteuid() != 0 and not os.access(where, os.W_OK):
        raise MountError(f"{path} is not writable for you, which fusermount3 needs; choose a directory of your own")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount_device(fd: int, mountpoint: str, source: str, options: Sequence[str], flags: int) -> None:
    """Mount the open /dev/fuse descriptor ``fd`` as type fuse.luxfuse; needs CAP_SYS_ADMIN.

    ``options`` go to the kernel's FUSE as they are (``allow_other``, ``user_id=0``, ...), after the ``fd=`` that is
    put in front of them; ``flags`` are MS_*. Raises MountError.
    """
    data = ",".join([f"fd={fd}", *options])
    arguments = [os.fsencode(text) for text in (source, mountpoint, FSTYPE)]
    done = _libc().mount(*arguments, ctypes.c_ulong(flags), data.encode())
    if done != 0:
        code = ctypes.get_errno()
        hint = "root may mount; a plain user needs fusermount3" if code == errno.EPERM else "see dmesg"
        raise MountError(f"{mountpoint} cannot be mounted: {os.strerror(code)}; {hint}")


def fusermount_device(mountpoint: str, source: str, options: Sequence[str]) -> int:
    """Have fusermount3 mount as type fuse.luxfuse for a plain user; returns the descriptor of the device.

    It sends that over a socket whose number it finds in _FUSE_COMMFD, as for libfuse. Raises MountError.
    """
    given = [*options, "fsname=" + re.sub(r"([\\,])", r"\\\1", source), "subtype=luxfuse"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            done = _run_fusermount(
                ["-o", ",".join(given), "--", mountpoint],
                f"{mountpoint} cannot be mounted",
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
            )
        except subprocess.TimeoutExpired:
            _take_away(mountpoint)
            raise MountError(
                f"{mountpoint} cannot be mounted: fusermount3 does not answer; look whether the machine is overloaded"
            ) from None
        if done.returncode == 0:
            return _receive_device(ours, mountpoint)
    why = "; ".join(
        line.strip().removeprefix("fusermount3: ") for line in done.stderr.decode(errors="replace").splitlines()
    )
    raise MountError(f"{mountpoint}: fusermount3 cannot mount here: {why or 'is the directory yours?'}")


def _receive_device(sent: socket.socket, mountpoint: str) -> int:
    """Return the descriptor that fusermount3, which has ended, has sent. Raises MountError if there is none."""
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC  # which `socket.recv_fds` of Python 3.11 does not pass on
    with contextlib.suppress(BlockingIOError):  # it sent nothing
        _, ancillary, _, _ = sent.recvmsg(1, socket.CMSG_LEN(_INT.size), flags)
        for level, kind, data in ancillary:
            if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.size):
                device: int = _INT.unpack(data)[0]
                return device
    _take_away(mountpoint)
    raise MountError(f"{mountpoint} cannot be mounted: fusermount3 sent no device; is it the one of the package fuse3?")


def _take_away(mountpoint: str) -> None:
    """Take off a mount that fusermount3 may have made, and that nothing can serve."""
    mount = find_mount(mountpoint)
    if mount is None or mount.fstype != FSTYPE:
        return
    try:
        unmount(mountpoint, lazy=True)
    except MountError as exc:
        log.warning("a mount that is not served is left: %s", exc)


def unmount(path: str, *, lazy: bool = False, force: bool = False) -> None:
    """Take the topmost mount off ``path`` (resolved); does not wait for the daemon.

    ``lazy`` takes it out of the tree at once and lets open files live on; ``force`` also aborts the connection, so that
    all requests that wait for the daemon get an error. Raises MountError: not mounted, busy (naming the processes), not
    allowed.
    """
    mount = find_mount(path)
    if mount is None:
        raise MountError(f"{path} is not mounted")
    if force and mount.is_fuse:
        try:
            abort(mount.device)
        except OSError:
            pass  # the connection is gone already, or belongs to someone else, which the next step reports
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy or force else 0)
        if _libc().umount2(os.fsencode(path), flags) != 0:
            _raise_unmount(path, ctypes.get_errno())
    else:
        _fusermount(path, lazy or force)


def _fusermount(path: str, lazy: bool) -> None:
    try:
        done = _run_fusermount(["-u", *(["-z"] if lazy else []), "--", path], f"{path} cannot be unmounted")
    except subprocess.TimeoutExpired:
        raise MountError(f"{path} cannot be unmounted: fusermount3 does not answer; try --force") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        if "busy" in said:
            _raise_unmount(path, errno.EBUSY)
        raise MountError(f"{path} cannot be unmounted: {said or 'fusermount3 failed'}")


def _run_fusermount(arguments: Sequence[str], failed: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run fusermount3 to its end. Raises MountError if it is missing, `subprocess.TimeoutExpired`."""
    try:
        return subprocess.run(
            ["fusermount3", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_FUSERMOUNT_TIMEOUT_S, check=False, **options,
        )  # fmt: skip
    except FileNotFoundError:
        raise MountError(f"{failed}: fusermount3 is missing; install the package fuse3") from None


def _raise_unmount(path: str, code: int) -> None:
    if code != errno.EBUSY:
        raise MountError(f"{path} cannot be unmounted: {os.strerror(code)}")
    raise busy(path, holders(path))


def busy(path: str, users: Sequence[str]) -> MountError:
    """Return the error that names the processes that use a mount; ``users`` as from `holders`."""
    shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
    used = f"in use by {shown}" if users else "in use"
    return MountError(f"{path} is busy: {used}; end them first, or use: luxfuse unmount --lazy {path}")


def holders(path: str) -> list[str]:
    """Return ``name (pid)`` of each visible process with an open file, mapping or directory at or below ``path``."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 (Path objects of every process are slow)
        if name.isdigit() and _holds(f"/proc/{name}", path):
            found.append(f"{_comm(name)} (pid {name})")
    return found


def _holds(process: str, path: str) -> bool:
    links = [f"{process}/cwd", f"{process}/root"]
    try:
        links += [f"{process}/fd/{fd}" for fd in os.listdir(f"{process}/fd")]  # noqa: PTH208
    except OSError:
        pass
    for link in links:
        try:
            if is_inside(os.readlink(link), path):  # noqa: PTH115 (Path objects of every descriptor are slow)
                return True
        except OSError:
            continue
    try:
        maps = Path(process, "maps").read_text(errors="surrogateescape")
    except OSError:
        return False
    return any(is_inside(line.split(" ", 5)[-1].strip(), path) for line in maps.splitlines() if path in line)


def _comm(pid: str) -> str:
    try:
        return Path("/proc", pid, "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def is_inside(path: str, root: str) -> bool:
    """True if ``path`` is ``root`` or lies below it; both absolute. Compares strings only."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def is_gone(device_fd: int) -> bool:
    """Whether the mount of an open FUSE device, which was mounted, has been taken away."""
    poll = select.poll()
    poll.register(device_fd, 0)
    return bool(poll.poll(0))  # POLLERR


def is_dead(path: str) -> bool:
    """Whether the FUSE mount at ``path`` has no daemon any more; False if that cannot be told.

    The kernel then answers at once. Where there is one, it may hang, so another process asks, and is not waited for.
    """
    asking = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ASK, path],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        return asking.wait(_ASK_PATIENCE_S) == errno.ENOTCONN
    except subprocess.TimeoutExpired:
        asking.kill()
        asking.returncode = -signal.SIGKILL  # it ends once it is answered
        return False


def abort(device: str) -> None:
    """Abort the FUSE connection of ``major:minor``: every waiting and later request fails. Raises OSError."""
    control = _CONNECTIONS / device.partition(":")[2] / "abort"
    if not control.exists() and os.geteuid() == 0:
        _libc().mount(b"fusectl", os.fsencode(_CONNECTIONS), b"fusectl", ctypes.c_ulong(0), None)
    control.write_text("1")
