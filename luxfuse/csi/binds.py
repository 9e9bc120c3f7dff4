"""Bind mounts: one mount shown at further places. Nothing here touches what is mounted, which may hang."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.mountpoint import MS_NODEV, MS_NOSUID, MS_RDONLY, MountInfo
from luxfuse.steps import reached

MS_REMOUNT, MS_BIND = 32, 4096


def show(source: MountInfo, target: str, *, read_only: bool) -> None:
    """Show a mount also at ``target`` (resolved), a directory that is made if needed. Raises MountError.

    Fine if that is so already. What a dead daemon has left there is taken away.
    """
    there = mounts.find_mount(target)
    while there is not None and there.device != source.device:
        if there.fstype != mounts.FSTYPE:
            raise MountError(f"{target}: {there.source} ({there.fstype}) is mounted there")
        mounts.unmount(target, lazy=True)
        there = mounts.find_mount(target)
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
