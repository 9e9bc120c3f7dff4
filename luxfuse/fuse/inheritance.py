"""The kernel's side of a takeover: what a daemon that was killed had answered, and what it had not.

The kernel sends all requests again that the dead daemon had taken, when it is asked to (FUSE_NOTIFY_RESEND). So they are
asked for twice. First before anything is built: `take` reads them and remembers their numbers. An answer that the estate
has of such a request has not reached the kernel, and is taken back here: opens that were counted, handles that were given.
Then everything is built, with what the kernel knows and nothing else; then the requests are asked for once more, and
answered.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from luxfuse.core.listed_spans import Position
from luxfuse.estate.memory import OPENS_AT, SLOTS, Estate
from luxfuse.estate.words import Word, Words
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.keeper import REQUEST_BYTES, RESEND
from luxfuse.vfs.shares import LOCAL_MASK, VOLUME_SHIFT
from luxfuse.vfs.will import Inherited

RESENT = 1 << 63
"""FUSE_UNIQUE_RESEND: the bit of a request's number that says that it is sent again."""
_IN_HEADER = struct.Struct("=IIQ")
_OPERATION = struct.Struct("=QQQQqQ16x")
_OPERATIONS = 64
_SLOT = struct.Struct("=QQQq")
_SLOTS_AT = OPENS_AT + _OPERATIONS * _OPERATION.size
_WORD = struct.Struct("=Q")
_COUNTED, _TAKING_BACK = 2, 3
HANDLE, DIRECTORY, INIT = b"h", b"d", b"i"
"""What the keys of this side's facts begin with; `luxfuse.vfs.will` has others."""


class HandleFact(msgspec.Struct, array_like=True, frozen=True):
    """A copied open. ``unique``: the number of the request that it answered."""

    unique: int
    inode: int
    writing: bool


class DirectoryFact(msgspec.Struct, array_like=True, frozen=True):
    """An open directory, and by cookie what is left of it after the last answers."""

    unique: int
    inode: int
    positions: dict[int, Position] = {}


class InitFact(msgspec.Struct, array_like=True, frozen=True):
    """The kernel's INIT, and whether passthrough was agreed upon."""

    request: bytes
    offered: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """A registered inode as the predecessor left it; ``file_inode``: the number of its file."""

    number: int
    inode: int
    backing_id: int
    file_inode: int
    opens: int
    writers: int


@dataclass(frozen=True, slots=True)
class Inheritance:
    """``unanswered``: numbers of requests that are sent again. ``slots``: by inode.

    ``passed_over``: slots without opens, of inodes that were registered again in another one.
    """

    unanswered: frozenset[int] = frozenset()
    slots: dict[int, Slot] = field(default_factory=dict)
    passed_over: tuple[Slot, ...] = ()

    def of_volume(self, estate: Estate, volume: int) -> Inherited:
        """Return what a volume finds, with numbers of its own."""
        handles = [(n, fact.inode & LOCAL_MASK, fact.writing) for n, fact in handles_of(estate, volume)]
        directories = [(n, f.inode & LOCAL_MASK, f.positions) for n, f in directories_of(estate, volume)]
        registered = {
            slot.inode & LOCAL_MASK: (slot.opens, slot.writers)
            for slot in self.slots.values()
            if slot.inode >> VOLUME_SHIFT == volume and slot.opens
        }
        return Inherited(registered, handles, directories)


_decode_handle = msgspec.msgpack.Decoder(HandleFact).decode
decode_directory = msgspec.msgpack.Decoder(DirectoryFact).decode


def handles_of(estate: Estate, volume: int) -> list[tuple[int, HandleFact]]:
    """Return (number in the volume, fact) of its copied opens."""
    found = ((int.from_bytes(key, "big"), _decode_handle(value)) for key, value in estate.facts.items(HANDLE))
    return [(number & LOCAL_MASK, fact) for number, fact in found if number >> VOLUME_SHIFT == volume]


def directories_of(estate: Estate, volume: int) -> list[tuple[int, DirectoryFact]]:
    """Return (number in the volume, fact) of its open directories."""
    found = ((int.from_bytes(key, "big"), decode_directory(value)) for key, value in estate.facts.items(DIRECTORY))
    return [(number & LOCAL_MASK, fact) for number, fact in found if number >> VOLUME_SHIFT == volume]


def begin(estate: Estate) -> None:
    """Count opens in the estate from now on, for a successor."""
    passthrough.estate(estate.memory)


def take(estate: Estate, device: int) -> Inheritance:
    """Find out what the predecessor has not answered, and take back what only the estate has. Raises OSError."""
    unanswered = _unanswered(device)
    for kind, decode in ((HANDLE, _decode_handle), (DIRECTORY, decode_directory)):
        for key, value in estate.facts.items(kind):
            if decode(value).unique in unanswered:
                estate.facts.drop(kind + key)
    slots, passed_over = _slots(estate, unanswered)
    passthrough.estate(estate.memory)
    return Inheritance(unanswered, slots, passed_over)


def _unanswered(device: int) -> frozenset[int]:
    flags = fcntl.fcntl(device, fcntl.F_GETFL)
    fcntl.fcntl(device, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    numbers = set()
    try:
        os.write(device, RESEND)
        while True:
            _, _, unique = _IN_HEADER.unpack_from(os.read(device, REQUEST_BYTES))
            numbers.add(unique & ~RESENT)
    except BlockingIOError:
        return frozenset(numbers)
    finally:
        fcntl.fcntl(device, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)


def _slots(estate: Estate, unanswered: frozenset[int]) -> tuple[dict[int, Slot], tuple[Slot, ...]]:
    """Return the slots by inode, and those that were drained, and not given back, as the inode was registered again."""
    memory = estate.memory
    used = min(Words(memory)[Word.SLOTS_USED], SLOTS)
    _take_back(memory, used, unanswered)
    found: dict[int, Slot] = {}
    passed_over = []
    for slot in _used_slots(memory, used):
        other = found.get(slot.inode)
        if other is None or slot.opens:
            found[slot.inode] = slot
        if other is not None:
            passed_over.append(other if slot.opens else slot)
    return found, tuple(passed_over)


def _slot(memory: mmap.mmap, number: int) -> Slot:
    inode, counts, file_inode, backing_id = _SLOT.unpack_from(memory, _SLOTS_AT + number * _SLOT.size)
    return Slot(number, inode, backing_id, file_inode, counts >> 32, counts & 0xFFFF_FFFF)


def _used_slots(memory: mmap.mmap, used: int) -> Iterator[Slot]:
    for number in range(used):
        slot = _slot(memory, number)
        if slot.inode:
            yield slot


def _slot_of(memory: mmap.mmap, used: int, number: int, inode: int) -> int | None:
    """Return the slot that has the opens of an inode, of which slot ``number`` had one; None: there is none any more."""
    own = _slot(memory, number)
    if not inode or (own.inode == inode and own.opens):
        return number if inode else None
    others = (slot.number for slot in _used_slots(memory, used) if slot.inode == inode and slot.opens)
    return next(others, number if own.inode == inode else None)


def _take_back(memory: mmap.mmap, used: int, unanswered: frozenset[int]) -> None:
    """Take counts back whose answers the kernel has not got; see estate.c. If a kill breaks it off, the next one ends it.

    First it is found out which of them were counted at all: that can be seen only as long as no count is changed. The end
    of an open may have been the last one of a slot that is not the inode's any more.
    """
    for settled in (False, True):
        for number in range(_OPERATIONS):
            at = OPENS_AT + number * _OPERATION.size
            slot_at, before_at, state_at = (at + n * _WORD.size for n in (1, 2, 3))
            unique, slot, before, state, by, inode = _OPERATION.unpack_from(memory, at)
            if not state or unique & ~RESENT not in unanswered:
                continue
            if settled and state != _TAKING_BACK:
                slot = _slot_of(memory, used, slot, inode or _slot(memory, slot).inode)
                if slot is None:
                    _WORD.pack_into(memory, state_at, 0)
                    continue
                _WORD.pack_into(memory, slot_at, slot)  # before it counts: from then on it is gone on with
            counts_at = _SLOTS_AT + slot * _SLOT.size + _WORD.size
            (counts,) = _WORD.unpack_from(memory, counts_at)
            if not settled:
                if state not in (_COUNTED, _TAKING_BACK):
                    _WORD.pack_into(memory, state_at, _COUNTED if counts != before else 0)
                continue
            if state != _TAKING_BACK:
                before = counts
                _WORD.pack_into(memory, before_at, counts)
                _WORD.pack_into(memory, state_at, _TAKING_BACK)
            if counts == before:
                _WORD.pack_into(memory, counts_at, counts - by)
            _WORD.pack_into(memory, state_at, 0)
