"""Attributes, callers and handles: from the forms of pyfuse3 to those of the vfs, and back."""

from __future__ import annotations

import stat as modes
from dataclasses import replace
from typing import Any

from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.vfs.attributes import AttributeChanges, Caller, Stat
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.shares import LOCAL_MASK

NUMBER_MASK = (1 << 48) - 1
"""Of a handle: its number with that of its volume, or the inode where it is in passthrough. Marks are above."""
LONGEST_S = 1e8
"""Most that a time-out says to the kernel."""
CREATED_S = 0.01
"""For how long the kernel may believe the attributes of an empty file that it has just made."""


def ref_of(fh: int) -> Ref:
    """Return the open file that a handle of the kernel means, by its number inside its volume."""
    if fh & passthrough.MARK_FAST:
        return Ref(fh & LOCAL_MASK, None)
    return Ref(None, fh & LOCAL_MASK)


def caller_of(ctx: pyfuse3.RequestContext) -> Caller:
    """Return the caller. The kernel has taken the umask off modes already."""
    return Caller(uid=ctx.uid, gid=ctx.gid, pid=ctx.pid, umask=ctx.umask)


def times_of(stat: Stat, *, created: bool = False) -> tuple[float, float]:
    """Return for how many seconds the kernel may believe a name, and its attributes. ``created``: by this request."""
    entry_s = min(stat.ttl_s, LONGEST_S)
    attr_s = 0.0 if stat.changing else entry_s
    if created and stat.size == 0:  # then it only changes through the kernel, which would ask again within this open(2)
        attr_s = max(attr_s, CREATED_S)
    return entry_s, attr_s


def nanoseconds_of(stat: Stat, *, created: bool = False) -> tuple[int, int]:
    """Return `times_of` in nanoseconds."""
    entry_s, attr_s = times_of(stat, created=created)
    return int(entry_s * 1e9), int(attr_s * 1e9)


def form_of(stat: Stat, base: int) -> tuple[int, ...]:
    """Return attributes in the order in which the extension wants them, without the times of `nanoseconds_of`."""
    return (
        base | stat.inode, stat.size, stat.blocks, stat.mode, stat.nlink, stat.uid, stat.gid, stat.rdev,
        stat.mtime_ns, stat.ctime_ns, stat.atime_ns,
    )  # fmt: skip


def to_kernel(
    stat: Stat, base: int = 0, entry: pyfuse3.EntryAttributes | None = None, *, created: bool = False
) -> pyfuse3.EntryAttributes:
    """Return the kernel's form of ``stat``, in ``entry`` if that is given. ``base``: see `Volume`."""
    if entry is None:
        entry = pyfuse3.EntryAttributes()
    entry.st_ino = base | stat.inode
    entry.st_mode = stat.mode
    entry.st_nlink = stat.nlink
    entry.st_rdev = stat.rdev
    entry.st_size = stat.size
    entry.st_blocks = stat.blocks
    entry.st_blksize = 4096
    entry.st_uid = stat.uid
    entry.st_gid = stat.gid
    entry.st_mtime_ns = stat.mtime_ns
    entry.st_ctime_ns = stat.ctime_ns
    entry.st_atime_ns = stat.atime_ns
    entry.entry_timeout, entry.attr_timeout = times_of(stat, created=created)
    return entry


def changes_of(attr: pyfuse3.EntryAttributes, fields: Any) -> AttributeChanges:
    """Return the changes of a SETATTR. "Now" has become a time on its way here; ctime is not for others to set."""
    return AttributeChanges(
        mode=attr.st_mode & 0o7777 if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
    )


def without_set_ids(changes: AttributeChanges, now: Stat) -> AttributeChanges:
    """Return ``changes`` and the loss of set-id bits, as a write by a stranger has; without ``mode`` if there are none.

    The set-group-id bit of a file that its group may not execute means something else, and stays.
    """
    before = modes.S_IMODE(now.mode) if changes.mode is None else changes.mode
    after = before & ~modes.S_ISUID
    if before & modes.S_IXGRP:
        after &= ~modes.S_ISGID
    return changes if after == before else replace(changes, mode=after)
