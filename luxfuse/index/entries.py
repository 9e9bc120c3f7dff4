"""Records of names: the entries of the index and those that a listing brings. The tree itself is `names.Names`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from luxfuse.types import Kind


class Attributes(msgspec.Struct, frozen=True, array_like=True):
    """Attributes of a file, by object metadata or set here; None where nothing is said.

    ``mode`` holds permission bits; that of a `Kind.SPECIAL` has the type bits too. ``rdev`` is a device's number.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    ctime_ns: int | None = None
    rdev: int | None = None
    xattrs: dict[str, bytes] | None = None


NOTHING_SAID = Attributes()


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One name. ``checked_s``: wall-clock time of the store's last word on it. ``listing``: the one that last had it.

    A time in the future (the clock was set back since) counts as the oldest. ``described_s`` tells how old the attributes
    are. Of an object: the second in which it had been changed last when they were heard, by the store's clock; negative:
    not later than that, by ours; 0: not known. Of a directory: when its marker was asked for, by our clock.
    """

    inode: int
    kind: Kind
    size: int
    version: str
    mtime_ns: int
    checked_s: float
    listing: int = 0
    attributes: Attributes | None = None
    described_s: float = 0.0


class Listing(msgspec.Struct, array_like=True, frozen=True):
    """A complete listing of a directory: its serial number (rising), when it began, how many entries it had."""

    serial: int
    fetched_s: float
    entries: int


class Found(msgspec.Struct, gc=False):
    """One entry as a listing brings it."""

    name: bytes
    kind: Kind
    size: int = 0
    version: str = ""
    mtime_ns: int = 0


class Described(NamedTuple):
    """The description of an entry of a directory by the store, asked at ``checked_s``."""

    directory: int
    found: Found
    checked_s: float
    attributes: Attributes


@dataclass(slots=True)
class Changes:
    """The changes by a merged part of a listing. ``names``: those that the kernel has to forget."""

    names: list[bytes] = field(default_factory=list)
    shadowed: int = 0
    """Entries that lost their name to another kind (see core/names)."""
    deferred: list[Found] = field(default_factory=list)
    """Entries to be merged last: a kind that wins over theirs had the name, and may still turn up."""
    retired: list[tuple[int, bytes]] = field(default_factory=list)
    """Inode numbers no longer in use, and their names; `Names` takes note of them once they are committed."""
    given: list[tuple[bytes, bytes]] = field(default_factory=list)
    """New INODES records."""
    was_empty: bool = False
    """Whether the directory had no names at all before."""
    orphans: bool = False
    """Whether there is something for `Names.purger` to do."""


encode = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(Entry).decode
decode_listing = msgspec.msgpack.Decoder(Listing).decode


def distrusted(entry: Entry, believe_from_s: float) -> Entry:
    """Forget the attributes of an entry that was recorded before a run that was killed.

    That run may have changed them in the store without leaving a record here; and a version need not tell.
    """
    if entry.checked_s < believe_from_s and entry.kind is not Kind.SPECIAL:
        entry.attributes = None
    return entry


CLOCKS_APART_S = 2.0
"""How much later than our clock says a store may say that it has made what we sent it; and the other way round."""


def describe(entry: Entry, attributes: Attributes | None, mtime_ns: int, now_s: float) -> None:
    """Note the attributes of an entry. ``mtime_ns``: when the store had changed its object last, 0 if it did not say.

    Its ctime does not go back: that of a rename is only known here.
    """
    changed_ns = entry.attributes.ctime_ns or 0 if entry.attributes is not None else 0
    if attributes is not None and changed_ns > (attributes.ctime_ns or 0):
        attributes = msgspec.structs.replace(attributes, ctime_ns=changed_ns)
    entry.attributes = attributes
    entry.described_s = 0.0
    if attributes is not None:
        entry.described_s = now_s if entry.kind is Kind.DIRECTORY else mtime_ns // 10**9 or -now_s
        if entry.kind is not Kind.DIRECTORY and 0 <= now_s - entry.described_s < CLOCKS_APART_S:
            entry.described_s -= 0.5  # it may change once more in the same second: the next listing does not confirm it


def is_described(entry: Entry, found: Found) -> bool:
    """Whether the attributes of an entry are those of the object that a listing has found, which has the same version.

    A copy of an object onto itself, as for another mode, need not change its version: its time of change tells.
    """
    changed_s = found.mtime_ns // 10**9
    if entry.attributes is None or entry.kind is Kind.DIRECTORY or not entry.described_s or not changed_s:
        return True
    if entry.described_s > 0:
        return changed_s == entry.described_s
    return changed_s <= -entry.described_s + CLOCKS_APART_S


def same(entry: Entry, found: Found) -> bool:
    """Whether a name still stands for the recorded object."""
    return entry.kind == found.kind and (found.kind is Kind.DIRECTORY or entry.version == found.version)
