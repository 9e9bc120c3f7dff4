"""What is done with the FUSE device and the mount when no daemon is left."""

from __future__ import annotations

import errno
import os
import select
import struct

from luxfuse.keeper import REQUEST_BYTES, RESEND

NO_ANSWER = (2, 36, 42)
"""FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET."""
FSTYPE = "fuse.luxfuse"
MNT_FORCE, MNT_DETACH = 1, 2


def mounted(device: int) -> bool:
    """Whether the connection lives."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)  # POLLERR: the mount is gone


def refuse_all(device: int) -> None:
    """Answer everything with EIO until the mount is gone. Raises OSError."""
    os.set_blocking(device, True)
    try:
        os.write(device, RESEND)
        while True:
            _refuse(device, os.read(device, REQUEST_BYTES))
    except OSError as exc:
        if exc.errno != errno.ENODEV:
            raise


def _refuse(device: int, request: bytes) -> None:
    opcode, unique = struct.unpack_from("=4xIQ", request)
    if opcode not in NO_ANSWER:
        try:
            os.write(device, struct.pack("=IiQ", 16, -errno.EIO, unique))
        except OSError as exc:
            if exc.errno != errno.ENOENT:  # the caller is gone
                raise


def take_away(mountpoint: str, number: str) -> None:
    """Take the mount of device ``number`` (major:minor) away, if it is still what is to be seen there. Raises OSError."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 (pathlib is large)
        lines = [line.split(" - ") for line in file]
    escaped = mountpoint
    for character in "\\\t\n ":
        escaped = escaped.replace(character, f"\\{ord(character):03o}")
    there = [(before.split()[2], after.split()[0]) for before, after in lines if before.split()[4] == escaped]
    if not there or there[-1] != (number, FSTYPE):
        return
    if os.geteuid() != 0:
        _take_away_as_user(mountpoint)
        return
    import ctypes  # large, and only needed at this end

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), MNT_FORCE | MNT_DETACH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _take_away_as_user(mountpoint: str) -> None:
    pid = os.posix_spawnp("fusermount3", ["fusermount3", "-u", "-z", "--", mountpoint], os.environ)
    _, status = os.waitpid(pid, 0)
    if status:
        raise OSError(errno.EIO, f"fusermount3 ended with {os.waitstatus_to_exitcode(status)}")
