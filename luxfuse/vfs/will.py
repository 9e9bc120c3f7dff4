"""What a volume leaves to its successor, if the daemon is killed: what only memory knows of the inodes that are open.

Names and numbers of inodes are in the index, and what is dirty in the journal, both exact by the trail (`estate.trail`).
Facts (`estate.facts`) are kept here of what has no place there: the version that an open inode is, though its name may
stand for another one by now or be gone, and the content of files without a name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from luxfuse.core.listed_spans import Position
from luxfuse.estate.facts import Facts
from luxfuse.index.entries import Entry
from luxfuse.index.records import FileRecord

_KEY = struct.Struct(">BQ")
BACKING, COPIED, NAMELESS = b"b", b"c", b"n"
"""What the keys of facts begin with."""


class BackingFact(msgspec.Struct, array_like=True, frozen=True):
    """An inode with a backing, see `vfs.backings.Backing`.

    ``staged``: that is a staging file, and what it has since it was opened is not what ``entry`` says.
    """

    parent: int
    name: bytes
    key: str
    entry: Entry
    oid: bytes | None
    nameless: bool
    staged: bool = False


class CopiedFact(msgspec.Struct, array_like=True, frozen=True):
    """An inode with copied opens; ``key``: of its object, None if it is empty or has only been written here."""

    entry: Entry
    key: str | None
    nameless: bool


class NamelessFact(msgspec.Struct, array_like=True, frozen=True):
    """A dirty file without a name; ``number``: of its staging file."""

    number: int
    record: FileRecord
    entry: Entry


_encode = msgspec.msgpack.Encoder().encode
_decode_backing = msgspec.msgpack.Decoder(BackingFact).decode
_decode_copied = msgspec.msgpack.Decoder(CopiedFact).decode
_decode_nameless = msgspec.msgpack.Decoder(NamelessFact).decode


@dataclass(frozen=True)
class Inherited:
    """What a volume finds of its predecessor's opens. Inode and handle numbers are the volume's own.

    ``registered``: (opens, those that write) by inode, of those in passthrough or read by lanes; ``handles``: (number,
    inode, whether it writes) of copied opens; ``directories``: (number, inode, last positions by cookie).
    """

    registered: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    handles: Sequence[tuple[int, int, bool]] = ()
    directories: Sequence[tuple[int, int, Mapping[int, Position]]] = ()

    @cached_property
    def _open(self) -> frozenset[int]:
        return frozenset((*self.registered, *(inode for _, inode, _ in self.handles)))

    def is_open(self, inode: int) -> bool:
        """Whether a program has it open."""
        return inode in self._open


class Will:
    """The facts of one volume; without a successor (``facts`` None) none are kept."""

    def __init__(self, facts: Facts | None, volume: int) -> None:
        self._facts = facts
        self._volume = volume
        self.wanted = facts is not None
        """Whether there may be a successor."""

    def _put(self, kind: bytes, number: int, fact: object) -> None:
        if self._facts is not None:
            self._facts.put(kind + _KEY.pack(self._volume, number), _encode(fact))

    def _drop(self, kind: bytes, number: int) -> None:
        if self._facts is not None:
            self._facts.drop(kind + _KEY.pack(self._volume, number))

    # -- written by a daemon

    def backing(self, inode: int, fact: BackingFact) -> None:
        """An inode is about to have a backing, or that has changed."""
        self._put(BACKING, inode, fact)

    def no_backing(self, inode: int) -> None:
        """It has none any more."""
        self._drop(BACKING, inode)

    def copied(self, inode: int, fact: CopiedFact) -> None:
        """An inode has copied opens, or what they are has changed."""
        self._put(COPIED, inode, fact)

    def not_copied(self, inode: int) -> None:
        """It has none any more."""
        self._drop(COPIED, inode)

    def nameless(self, inode: int, fact: NamelessFact) -> None:
        """A dirty file has lost its name, and is open."""
        self._put(NAMELESS, inode, fact)

    def not_nameless(self, inode: int) -> None:
        """It is closed."""
        self._drop(NAMELESS, inode)

    # -- read by its successor

    def _read(self, kind: bytes) -> list[tuple[int, bytes]]:
        if self._facts is None:
            return []
        prefix = kind + bytes((self._volume,))
        return [(int.from_bytes(key, "big"), value) for key, value in self._facts.items(prefix)]

    def backings(self) -> dict[int, BackingFact]:
        """Return what there is, by inode."""
        return {inode: _decode_backing(value) for inode, value in self._read(BACKING)}

    def copied_inodes(self) -> dict[int, CopiedFact]:
        """Return what there is, by inode."""
        return {inode: _decode_copied(value) for inode, value in self._read(COPIED)}

    def nameless_files(self) -> dict[int, NamelessFact]:
        """Return what there is, by inode."""
        return {inode: _decode_nameless(value) for inode, value in self._read(NAMELESS)}
