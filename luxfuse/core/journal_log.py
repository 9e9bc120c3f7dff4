"""The log that comes before the journal's LMDB: the form of its batches, and what is found of them after a crash.

A log is a file of fixed size that begins with batches, one after the other, each at a multiple of `BLOCK_BYTES`: so what
was acknowledged is not written again. A *batch* is what one commit makes durable, as a whole or not at all. All numbers
are big-endian:

    name and version of the form   8 bytes, `MAGIC`
    checksum                       8 bytes: of all that follows, to the end of the records
    generation                     16 bytes, random: the journal says which one counts (META ``log``)
    position                       4 bytes: the block of the log in which the batch begins
    length of the records          4 bytes
    records                        each: table (1 byte), length of the key (2), of the value (4), key, value;
                                   a record that is removed has no value, and `REMOVED` for its length
    zeros                          to the end of the block

A batch has one checksum and its records have none, since nothing could be done with a part of it. Values are absolute, so
applying the batches of a generation once more changes nothing.

Blocks behind the last batch hold what they held before. A crash in the middle of an append leaves a batch there whose
checksum is wrong: the *torn tail*, which nobody was told of. If a batch of the same generation stands behind it, then it
was not the last one, and what was acknowledged is damaged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

BLOCK_BYTES = 4096
"""A multiple of what any disk, and any page of the kernel's cache here, writes at once."""
MAGIC = b"LUXLOG\0\1"
GENERATION_BYTES = 16
REMOVED = 0xFFFF_FFFF

_HEAD = struct.Struct(">8s8s")
_SUMMED = struct.Struct(">16sII")
_START = _HEAD.size + _SUMMED.size
_RECORD = struct.Struct(">BHI")

Sum = Callable[[bytes], int]
"""A checksum of 64 bits."""
Records = Mapping[tuple[Any, bytes], bytes | None]
"""Values by table and key; None removes one."""


class DamagedLog(Exception):
    """Something that was acknowledged cannot be read any more."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a log says. ``end``: the position of the next batch, in bytes."""

    records: dict[tuple[int, bytes], bytes | None]
    end: int


def encode_batch(checksum: Sum, generation: bytes, position: int, records: Records) -> bytes:
    """Return the blocks of a batch that begins at ``position``, in bytes."""
    parts = [b""]
    for (table, key), value in records.items():
        parts += (_RECORD.pack(table, len(key), REMOVED if value is None else len(value)), key, value or b"")
    parts[0] = _SUMMED.pack(generation, position // BLOCK_BYTES, sum(map(len, parts)))
    summed = b"".join(parts)
    padding = bytes(-(_HEAD.size + len(summed)) % BLOCK_BYTES)
    return b"".join((MAGIC, checksum(summed).to_bytes(8, "big"), summed, padding))


def replay(checksum: Sum, generation: bytes, log: bytes) -> Found:
    """Return what all batches of a generation say together. Raises `DamagedLog`."""
    records: dict[tuple[int, bytes], bytes | None] = {}
    position = 0
    if not log or len(log) % BLOCK_BYTES:
        raise DamagedLog(f"it has {len(log)} bytes")
    while (batch := _batch_at(checksum, generation, log, position)) is not None:
        _apply(records, batch)
        position += -(-(_START + len(batch)) // BLOCK_BYTES) * BLOCK_BYTES
    for later in range(position + BLOCK_BYTES, len(log), BLOCK_BYTES):
        if _batch_at(checksum, generation, log, later) is not None:
            raise DamagedLog(f"the batch at byte {position} is damaged, and not the last one")
    return Found(records, position)


def _batch_at(checksum: Sum, generation: bytes, log: bytes, position: int) -> bytes | None:
    """Return the records of the batch at a position; None if there is none, or only part of one."""
    start = position + _START
    if start > len(log):
        return None
    magic, summed = _HEAD.unpack_from(log, position)
    its_generation, block, length = _SUMMED.unpack_from(log, position + _HEAD.size)
    if (magic, its_generation, block * BLOCK_BYTES) != (MAGIC, generation, position) or start + length > len(log):
        return None
    if checksum(log[position + _HEAD.size : start + length]).to_bytes(8, "big") != summed:
        return None
    return log[start : start + length]


def _apply(records: dict[tuple[int, bytes], bytes | None], batch: bytes) -> None:
    at = 0
    while at < len(batch):
        table, key_length, value_length = _RECORD.unpack_from(batch, at)
        at += _RECORD.size
        key = batch[at : at + key_length]
        at += key_length
        if value_length == REMOVED:
            records[table, key] = None
        else:
            records[table, key] = batch[at : at + value_length]
            at += value_length
