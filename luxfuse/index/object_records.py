"""The records of cached objects, and the keys under which the index has them.

OBJECTS ``id`` (16 bytes) -> `ObjectRecord`; STANDINGS ``number of the cache directory (1 byte) + segment (1 byte) + rank
(8 bytes) + id`` -> allocated bytes (8 bytes): see `core.eviction`. Those of segment `PINNED` are not evicted. META
``cache_used``, directory, segment: the sum of those, and how many there are (8 bytes each).
"""

from __future__ import annotations

import struct

import msgspec
import xxhash

from luxfuse.core.eviction import SEGMENTS, Standing
from luxfuse.index.uncommitted import U64

PINNED = max(SEGMENTS) + 1
"""The segment of objects that are never evicted: policies do not see it."""
ALL_SEGMENTS = (*SEGMENTS, PINNED)
DIRECTORIES = 64
"""Most cache directories that one index knows at a time."""


class ObjectRecord(msgspec.Struct, array_like=True):
    """The record of one cached object.

    ``epoch`` is the run of the daemon that last vouched for the pages; ``stamp`` is the cache file's mtime in ns after
    our last write to it, so that anybody else's write shows. ``directory`` is the number of the cache directory that has
    the file (see `lifecycle`), ``segment`` and ``rank`` are its standing among the others there, ``cached_us`` is when its
    first page came, in microseconds since the epoch.
    """

    key: str
    version: str
    size: int
    allocated_bytes: int = 0
    used_us: int = 0
    whole: bool = False
    epoch: int = 0
    stamp: int = 0
    directory: int = 0
    cached_us: int = 0
    segment: int = 0
    rank: int = 0

    @property
    def standing(self) -> Standing:
        """How soon it has to go."""
        return Standing(self.segment, self.rank)

    @standing.setter
    def standing(self, standing: Standing) -> None:
        self.segment, self.rank = standing


TOTALS = struct.Struct(">QQ")
encode_record = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(ObjectRecord).decode


def object_id(source_id: str, key: str, version: str) -> bytes:
    """Return the 16-byte id of one version of an object."""
    return xxhash.xxh3_128_digest(f"{source_id}\0{key}\0{version}".encode("utf-8", "surrogateescape"))


def totals_key(directory: int, segment: int) -> bytes:
    """Return the META key of what the objects of a segment come to."""
    return b"cache_used" + bytes((directory, segment))


def standing_key(record: ObjectRecord, oid: bytes) -> bytes:
    """Return the STANDINGS key of an object."""
    return bytes((record.directory, record.segment)) + U64.pack(record.rank) + oid
