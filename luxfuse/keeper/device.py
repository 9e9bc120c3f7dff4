"""What is done with the FUSE device and the mount when no daemon is left."""

from __future__ import annotations

import errno
import os
import select
import struct
import time
from collections.abc import Callable

from luxfuse.keeper import REQUEST_BYTES, RESEND

NO_ANSWER = (2, 36, 42)
"""FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET."""
GONE = (errno.ENODEV, errno.ECONNABORTED)
NOTHING_READ = (errno.EAGAIN, errno.EINTR, errno.ENOENT)
"""ENOENT: the caller has given up as its request was being read."""
FSTYPE = "fuse.luxfuse"
MNT_FORCE, MNT_DETACH = 1, 2


def mounted(device: int) -> bool:
    """Whether the connection lives."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)  # POLLERR: the mount is gone


def refuse_all(device: int, beat: Callable[[], None], every_s: float | None) -> None:
    """Answer everything with EIO until the mount is gone, and call ``beat`` that often. Raises OSError."""
    os.set_blocking(device, False)
    poll = select.poll()
    poll.register(device, select.POLLIN)
    beat_at = 0.0
    try:
        os.write(device, RESEND)
        while True:
            if every_s is not None and time.monotonic() >= beat_at:
                beat_at = time.monotonic() + every_s
                beat()
            poll.poll(None if every_s is None else every_s * 1000)
            try:
                request = os.read(device, REQUEST_BYTES)
            except OSError as exc:
                if exc.errno not in NOTHING_READ:
                    raise
            else:
                _refuse(device, request)
    except OSError as exc:
        if exc.errno not in GONE:
            raise


def _refuse(device: int, request: bytes) -> None:
    opcode, unique = struct.unpack_from("=4xIQ", request)
    if opcode not in NO_ANSWER:
        try:
            os.write(device, struct.pack("=IiQ", 16, -errno.EIO, unique))
        except OSError as exc:
            if exc.errno != errno.ENOENT:  # the caller is gone
                raise


def take_away(mountpoint: str, number: str) -> bool:
    """Take the mount of device ``number`` (major:minor) away, if it is still what is to be seen there. Raises OSError.

    ``number`` "": whatever mount of luxfuse is. Returns whether there was one.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 (pathlib is large)
        lines = [line.split(" - ") for line in file]
    escaped = mountpoint
    for character in "\\\t\n ":
        escaped = escaped.replace(character, f"\\{ord(character):03o}")
    there = [(before.split()[2], after.split()[0]) for before, after in lines if before.split()[4] == escaped]
    if not there or there[-1][1] != FSTYPE or number not in ("", there[-1][0]):
        return False
    if os.geteuid() != 0:
        _take_away_as_user(mountpoint)
        return True
    import ctypes  # large, and only needed at this end

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), MNT_FORCE | MNT_DETACH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True


def _take_away_as_user(mountpoint: str) -> None:
    pid = os.posix_spawnp("fusermount3", ["fusermount3", "-u", "-z", "--", mountpoint], os.environ)
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(errno.EIO, f"fusermount3 ended with {os.waitstatus_to_exitcode(status)}")
