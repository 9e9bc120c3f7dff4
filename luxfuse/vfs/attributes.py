"""What `stat` shows for an entry.

mode, uid, gid and mtime travel in object metadata under the keys that s3fs-fuse uses (decimal numbers; the wiki page
"File attributes" of s3fs-fuse). rclone writes ``mtime`` as seconds with a fraction. They are known once a HEAD or GET
has happened; a listing does not return them.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from luxfuse.index.names import Attributes, Entry
from luxfuse.types import Kind

_KIND_BITS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""By `Kind`."""


class Stat(msgspec.Struct, gc=False):
    """Attributes of an inode; ``ttl_s`` is for how long the kernel may believe them."""

    inode: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Defaults:
    """Ownership and modes of what says nothing itself."""

    uid: int
    gid: int
    umask: int
    mtime_ns: int


_NOTHING_SAID = Attributes()


def parse_attributes(metadata: Mapping[str, str] | None) -> Attributes | None:
    """Read object metadata; None where there was none to read, parts that make no sense are left out."""
    if metadata is None:
        return None
    mode = _integer(metadata.get("mode"))
    return Attributes(
        mode=None if mode is None else mode & 0o7777,
        uid=_integer(metadata.get("uid")),
        gid=_integer(metadata.get("gid")),
        mtime_ns=_nanoseconds(metadata.get("mtime")),
    )


def _integer(text: str | None) -> int | None:
    try:
        value = int(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1 << 32 else None


def _nanoseconds(text: str | None) -> int | None:
    if not text:
        return None
    seconds, _, fraction = text.partition(".")
    try:
        value = int(seconds) * 10**9 + int(fraction[:9].ljust(9, "0") or 0)
    except ValueError:
        return None
    return value if 0 <= value < 1 << 63 else None


def stat_of(entry: Entry, defaults: Defaults, ttl_s: float) -> Stat:
    """Return the attributes of an entry."""
    known = entry.attributes or _NOTHING_SAID
    permissions = known.mode
    if permissions is None:
        permissions = (0o777 if entry.kind is not Kind.FILE else 0o666) & ~defaults.umask
    if entry.kind is Kind.SYMLINK:
        permissions = 0o777
    mtime_ns = known.mtime_ns if known.mtime_ns is not None else entry.mtime_ns
    return Stat(
        inode=entry.inode,
        mode=_KIND_BITS[entry.kind] | permissions,
        size=entry.size if entry.kind is not Kind.DIRECTORY else 0,
        uid=known.uid if known.uid is not None else defaults.uid,
        gid=known.gid if known.gid is not None else defaults.gid,
        mtime_ns=mtime_ns or defaults.mtime_ns,
        ttl_s=ttl_s,
    )
