"""Bind mounts: one mount shown at further places. Nothing here touches what is mounted, which may hang."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from pathlib import Path

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.mountpoint import MS_NODEV, MS_NOSUID, MS_RDONLY, MountInfo
from luxfuse.steps import reached

MS_REMOUNT, MS_BIND = 32, 4096
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
"""Numbers of system calls, the same on all machines that Python's wheels are made for."""
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _F_EMPTY_PATH = -100, 0x1000, 1, 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
"""<linux/mount.h>"""


def show(source: MountInfo, target: str, *, read_only: bool) -> None:
    """Show a mount also at ``target`` (resolved), a directory that is made if needed. Raises MountError.

    Fine if that is so already. What a dead daemon has left there stays below: a container whose mount is a slave of it
    (`HostToContainer`) sees what is mounted upon it, but not what takes its place.
    """
    there = mounts.find_mount(target)
    if there is not None and there.device != source.device:
        if there.fstype != mounts.FSTYPE:
            raise MountError(f"{target}: {there.source} ({there.fstype}) is mounted there")
        _cover(source.mountpoint, target, read_only=read_only)
        return
    if there is None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(target, 0o750)  # noqa: PTH102 (paths are strings here, as in the mount table)
        _mount(source.mountpoint, target, MS_BIND)
        reached("csi: shown")
        there = mounts.find_mount(target)
    if read_only and there is not None and "ro" not in there.options:
        _mount("none", target, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def hide(target: str) -> None:
    """Take all mounts of ours off ``target`` (resolved), and remove the directory. Raises MountError, OSError."""
    while (there := mounts.find_mount(target)) is not None:
        if there.fstype != mounts.FSTYPE:
            raise MountError(f"{target}: {there.source} ({there.fstype}) is mounted there, which is none of ours")
        mounts.unmount(target)
    try:
        os.rmdir(target)  # noqa: PTH106 (as above)
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:
            raise MountError(
                f"{target}: nothing is mounted there, but it has files; look at them, and remove them"
            ) from None
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise


def users(place: Path) -> list[str]:
    """Return the other places at which what is mounted at ``place`` is shown."""
    mounted = mounts.read_mounts()
    there = mounts.find_mount(str(place), mounted)
    if there is None:
        return []
    return [mount.mountpoint for mount in mounted if mount.device == there.device and mount.mountpoint != str(place)]


def _mount(source: str, target: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        raise MountError(f"{target}: the volume cannot be shown there: {os.strerror(ctypes.get_errno())}")


def _cover(source: str, target: str, *, read_only: bool) -> None:
    """Show a mount upon another one, read only from the first moment: containers see it at once, and no later change."""
    if not read_only:
        _mount(source, target, MS_BIND)
        return
    fd = -1
    try:
        fd = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        attributes = struct.pack("QQQQ", _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
        _call(_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        _call(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _F_EMPTY_PATH)
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            raise MountError(f"{target}: showing it anew read only needs Linux 5.12; end the pods that use it") from None
        raise MountError(f"{target}: the volume cannot be shown there: {exc.strerror}") from None
    finally:
        if fd >= 0:
            os.close(fd)


def _call(number: int, *arguments: int | bytes) -> int:
    """Make a system call that the C library may not have yet. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
