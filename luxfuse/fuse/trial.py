"""A mount that is made for a moment, to learn what the kernel lets this user do."""

from __future__ import annotations

import os
import select
import tempfile

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.session import FUSE_INIT_EXT, FUSE_PASSTHROUGH_2, IN_HEADER_BYTES, INIT_IN, open_device

_DEADLINE_S = 5.0
_REQUEST_BYTES = 1 << 21


def try_mount(*, allow_other: bool) -> tuple[str, bool]:
    """Mount nothing in a temporary directory, and take it away again.

    Returns the version of the kernel's FUSE, and whether it offers passthrough. Raises `MountError` as mounting would.
    """
    assert passthrough is not None
    options = ["default_permissions", *(["allow_other"] if allow_other else [])]
    with tempfile.TemporaryDirectory(prefix="luxfuse-doctor-") as base:
        where = os.path.realpath(base)
        if os.geteuid() == 0:
            device = open_device()
            try:
                mounts.mount_device(device, where, "doctor", [*options, "rootmode=40000", "user_id=0", "group_id=0"],
                                    mounts.MS_NOSUID | mounts.MS_NODEV)  # fmt: skip
            except MountError:
                os.close(device)
                raise
        else:
            device = mounts.fusermount_device(where, "doctor", options)
        try:
            return _first_request(device)
        finally:
            os.close(device)  # before the unmount, which would wait for answers
            mounts.unmount(where, lazy=True)


def _first_request(device: int) -> tuple[str, bool]:
    """Read what the kernel says of itself in its first request."""
    if not select.select([device], [], [], _DEADLINE_S)[0]:
        raise MountError(f"the kernel sends no request within {_DEADLINE_S:g} s of a mount; see dmesg")
    request = os.read(device, _REQUEST_BYTES).ljust(IN_HEADER_BYTES + INIT_IN.size, b"\0")
    major, minor, _, flags, flags2, *_ = INIT_IN.unpack_from(request, IN_HEADER_BYTES)
    return f"{major}.{minor}", bool(flags & FUSE_INIT_EXT and flags2 & FUSE_PASSTHROUGH_2)
