"""Attributes: those that `stat` shows for an entry, and those that travel with an object.

mode, uid, gid, mtime, atime, ctime and extended attributes travel in object metadata under the keys that s3fs-fuse uses
(numbers, ``mode`` with the file type, times in seconds with a fraction; its wiki page "File attributes", and ``xattr``:
URL-quoted JSON of names and base64 values). rclone uses the same keys, but writes ``mode`` in octal, and ``atime`` as
RFC 3339. We write ``mode`` in octal after a zero, which s3fs reads as C does and rclone as octal; of what they write we
read both. Attributes are known once a HEAD or GET has happened; a listing does not return them.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
import stat
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from luxfuse.index.entries import NOTHING_SAID, Attributes, Entry
from luxfuse.types import Kind

_KIND_BITS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, 0)
"""By `Kind`; the mode of a special file holds its type itself."""
_CLOCK_REALTIME_COARSE = 5
"""Of linux/time.h."""
XATTRS_MOST_BYTES = 1500
"""S3 allows 2 KiB of metadata in all."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The process behind a request."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


@dataclass(frozen=True, slots=True)
class AttributeChanges:
    """The changes of a setattr; None leaves a value. ``mode`` holds permissions only."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def now_ns() -> int:
    """Return the time that a local file system would give to a change made now: that of the last tick."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Stat(msgspec.Struct, gc=False):
    """Attributes of an inode; ``ttl_s`` is for how long the kernel may believe them. ``blocks`` are of 512 bytes.

    ``changing``: the attributes may change at any moment without the kernel being told.
    """

    inode: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    ttl_s: float
    atime_ns: int
    ctime_ns: int
    blocks: int
    nlink: int = 1
    rdev: int = 0
    changing: bool = False


@dataclass(frozen=True, slots=True)
class Defaults:
    """Ownership and modes of what says nothing itself."""

    uid: int
    gid: int
    umask: int
    mtime_ns: int


_TIME = re.compile(r"(\d{1,19})(?:\.(\d*))?|(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""Seconds, or a date and time of day with its zone (RFC 3339); either with a fraction."""


def parse_attributes(metadata: Mapping[str, str] | None) -> Attributes | None:
    """Read object metadata; None where there was none to read, parts that make no sense are left out."""
    if metadata is None:
        return None
    if not metadata:
        return NOTHING_SAID
    mode = _mode(metadata.get("mode"))
    return Attributes(
        mode=None if mode is None else mode & 0o7777,
        uid=_integer(metadata.get("uid")),
        gid=_integer(metadata.get("gid")),
        mtime_ns=_nanoseconds(metadata.get("mtime")),
        atime_ns=_nanoseconds(metadata.get("atime")),
        ctime_ns=_nanoseconds(metadata.get("ctime")),
        xattrs=_xattrs(metadata.get("xattr")),
    )


def marker_attributes(known: Attributes | None, said: Attributes) -> Attributes:
    """Return the attributes of a directory whose marker says ``said``.

    The marker does not hear of it when the entries change: then the times that are known here are later.
    """
    if known is None or (known.ctime_ns or 0) // 10**9 <= (said.ctime_ns or 0) // 10**9:  # s3fs writes whole seconds
        return said
    return msgspec.structs.replace(said, mtime_ns=known.mtime_ns, atime_ns=known.atime_ns, ctime_ns=known.ctime_ns)


def to_metadata(kind: Kind, attributes: Attributes | None) -> dict[str, str]:
    """Return the object metadata that says what ``attributes`` do; what they leave open is left out."""
    known = attributes or NOTHING_SAID
    metadata = {}
    if known.mode is not None:
        metadata["mode"] = f"0{_KIND_BITS[kind] | known.mode:o}"
    for name, number in (("uid", known.uid), ("gid", known.gid)):
        if number is not None:
            metadata[name] = str(number)
    for name, moment in (("mtime", known.mtime_ns), ("atime", known.atime_ns), ("ctime", known.ctime_ns)):
        if moment is not None:
            metadata[name] = f"{moment // 10**9}.{moment % 10**9:09d}"
    if known.xattrs:
        encoded = {name: base64.b64encode(value).decode() for name, value in known.xattrs.items()}
        metadata["xattr"] = urllib.parse.quote(json.dumps(encoded, separators=(",", ":")))
    return metadata


def _xattrs(text: str | None) -> dict[str, bytes] | None:
    try:
        found = json.loads(urllib.parse.unquote(text)) if text else None
        return {str(name): base64.b64decode(value) for name, value in found.items()} if found else None
    except (ValueError, binascii.Error, AttributeError, TypeError):
        return None


_FILE_TYPES = frozenset(
    (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)


def _mode(text: str | None) -> int | None:
    """Read a mode: octal after a zero, else decimal (s3fs), or octal where that alone has a file type (rclone)."""
    for base in (8,) if text and text.startswith("0") else (10, 8):
        value = _integer(text, base)
        if value is not None and value < 1 << 16 and stat.S_IFMT(value) in _FILE_TYPES:
            return value
    return None


def _integer(text: str | None, base: int = 10) -> int | None:
    try:
        value = int(text, base) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1 << 32 else None


def _nanoseconds(text: str | None) -> int | None:
    found = _TIME.fullmatch(text or "")
    if found is None:
        return None
    seconds, fraction, date, date_fraction, zone = found.groups()
    try:
        whole = int(seconds) if seconds else int(datetime.datetime.fromisoformat(date + zone).timestamp())
    except (ValueError, OverflowError):
        return None
    value = whole * 10**9 + int((fraction or date_fraction or "")[:9].ljust(9, "0"))
    return value if 0 <= value < 1 << 63 else None


def with_times(entry: Entry, mtime_ns: int | None = None) -> Attributes:
    """Return the known attributes of an entry with the times that it shows, so that no later change moves those."""
    known = entry.attributes or NOTHING_SAID
    shown_ns = mtime_ns or known.mtime_ns or entry.mtime_ns or None
    return msgspec.structs.replace(
        known, mtime_ns=shown_ns, atime_ns=known.atime_ns if known.atime_ns is not None else known.mtime_ns or shown_ns
    )


def without_set_id(mode: int) -> int:
    """Return permissions as a write by somebody without privileges leaves them."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def stat_of(entry: Entry, defaults: Defaults, ttl_s: float) -> Stat:
    """Return the attributes of an entry."""
    known = entry.attributes or NOTHING_SAID
    permissions = known.mode
    if permissions is None:
        permissions = (0o777 if entry.kind is not Kind.FILE else 0o666) & ~defaults.umask
    if entry.kind is Kind.SYMLINK:
        permissions = 0o777
    mtime_ns = known.mtime_ns if known.mtime_ns is not None else entry.mtime_ns or defaults.mtime_ns
    size = entry.size if entry.kind is not Kind.DIRECTORY else 0
    return Stat(
        inode=entry.inode,
        mode=_KIND_BITS[entry.kind] | permissions,
        size=size,
        uid=known.uid if known.uid is not None else defaults.uid,
        gid=known.gid if known.gid is not None else defaults.gid,
        mtime_ns=mtime_ns,
        ttl_s=ttl_s,
        atime_ns=known.atime_ns if known.atime_ns is not None else mtime_ns,
        ctime_ns=max(known.ctime_ns or 0, mtime_ns),
        blocks=(size + 511) >> 9,
        rdev=known.rdev or 0,
    )
