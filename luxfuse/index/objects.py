"""Cache objects: which pages of which object version lie in the cache, with checksums, and when they were last used.

Keys: OBJECTS ``id`` (16 bytes) -> `ObjectRecord`; CHUNKS ``id + chunk (4 bytes)`` -> presence bitmap (16 bytes, one
bit a page) and one xxh3-64 checksum (8 bytes, little endian) for each of the chunk's pages; RECENCY ``number of the
cache directory (1 byte) + last use (8 bytes, microseconds) + id`` -> allocated bytes (8 bytes). META ``cache_used`` and
the number of a directory: the sum of those; ``cache_objects``: how many there are.
"""

from __future__ import annotations

import array
import contextlib
import logging
import sys
from collections.abc import Iterable
from itertools import islice

import msgspec
import xxhash

from luxfuse.core.eviction import choose_victims
from luxfuse.core.spans import page_count
from luxfuse.index.store import U64, Changes, IndexStore, Table, Transaction

log = logging.getLogger(__name__)

CHUNK_PAGES = 128
_BITMAP_BYTES = CHUNK_PAGES // 8
VICTIM_SCAN = 10_000
CLEAR_BATCH = 2_000
DIRECTORIES = 64
"""Most cache directories that one index knows at a time."""


class ObjectRecord(msgspec.Struct, array_like=True):
    """What is stored of one cached object.

    ``epoch`` is the run of the daemon that last vouched for the pages; ``stamp`` is the cache file's mtime in ns after
    our last write to it, so that anybody else's write shows. ``directory`` is the number of the cache directory that has
    the file (see `lifecycle`).
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


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ObjectRecord).decode


def object_id(source_id: str, key: str, version: str) -> bytes:
    """Return the 16-byte id of one version of an object."""
    return xxhash.xxh3_128_digest(f"{source_id}\0{key}\0{version}".encode("utf-8", "surrogateescape"))


class Pages:
    """Presence and checksums of the pages of one object, in memory."""

    __slots__ = ("checksums", "count", "present", "total")

    def __init__(self, size_bytes: int) -> None:
        self.total = page_count(size_bytes)
        self.present = bytearray(-(-self.total // 8))
        self.checksums = array.array("Q", bytes(8 * self.total))
        self.count = 0

    def has(self, page: int) -> bool:
        """Whether the page is in the cache."""
        return bool(self.present[page >> 3] & (1 << (page & 7)))

    def add(self, page: int, checksum: int) -> None:
        """Record a page."""
        if not self.has(page):
            self.count += 1
        self.present[page >> 3] |= 1 << (page & 7)
        self.checksums[page] = checksum

    def remove(self, page: int) -> None:
        """Forget a page."""
        if self.has(page):
            self.count -= 1
        self.present[page >> 3] &= ~(1 << (page & 7))

    @property
    def whole(self) -> bool:
        """Whether every page is there."""
        return self.count == self.total

    def chunk(self, number: int) -> bytes:
        """Return the stored form of one chunk."""
        first = number * CHUNK_PAGES
        bitmap = bytes(self.present[first >> 3 : (first + CHUNK_PAGES) >> 3]).ljust(_BITMAP_BYTES, b"\0")
        return bitmap + _little(self.checksums[first : first + CHUNK_PAGES])

    def load(self, number: int, stored: bytes) -> None:
        """Take over a stored chunk."""
        first = number * CHUNK_PAGES
        pages = min(CHUNK_PAGES, self.total - first)
        bitmap = stored[: -(-pages // 8)]
        self.present[first >> 3 : (first >> 3) + len(bitmap)] = bitmap
        sums = array.array("Q", stored[_BITMAP_BYTES : _BITMAP_BYTES + 8 * pages])
        if sys.byteorder == "big":
            sums.byteswap()
        self.checksums[first : first + pages] = sums
        self.count += sum(byte.bit_count() for byte in bitmap)


def _little(sums: array.array[int]) -> bytes:
    if sys.byteorder == "big":
        sums = array.array("Q", sums)
        sums.byteswap()
    return sums.tobytes()


class Objects:
    """The cache objects of all cache directories. ``now_us`` arguments are wall-clock microseconds."""

    def __init__(self, store: IndexStore) -> None:
        self._store = store
        self._used: dict[int, int] = {}
        for number in range(DIRECTORIES):
            if (stored := store.get(Table.META, _used_key(number))) is not None:
                self._used[number] = U64.unpack(stored)[0]
        stored = store.get(Table.META, b"cache_objects")
        self.count = U64.unpack(stored)[0] if stored else 0
        self.refused = 0
        """Changes that were lost because the index took none."""

    @property
    def used_bytes(self) -> int:
        """Bytes that all files take."""
        return sum(self._used.values())

    def used_bytes_in(self, directory: int) -> int:
        """Return the bytes that the files of a cache directory take."""
        return self._used.get(directory, 0)

    def load(self, oid: bytes) -> tuple[ObjectRecord, Pages] | None:
        """Return what is known of an object; None if it is not cached."""
        value = self._store.get(Table.OBJECTS, oid)
        if value is None:
            return None
        record = _decode(value)
        pages = Pages(record.size)
        for number in range(-(-pages.total // CHUNK_PAGES)):
            if (chunk := self._store.get(Table.CHUNKS, _chunk_key(oid, number))) is not None:
                pages.load(number, chunk)
        return record, pages

    async def flush(self) -> None:
        """Commit what was changed, so that `scan` finds it; while the index cannot be written, it does not."""
        with contextlib.suppress(OSError):
            await self._store.flush()

    def scan(self, after: bytes, limit: int) -> list[tuple[bytes, ObjectRecord]]:
        """Return up to ``limit`` objects with the ids after ``after``, as they are recorded now."""
        start = after + b"\0" if after else b""
        return [(oid, _decode(value)) for oid, value in self._store.current_items(Table.OBJECTS, start, b"", limit)]

    async def expect(self, oids: Iterable[bytes]) -> None:
        """Prepare for these objects to be loaded soon, and saved for the first time."""
        await self._store.warm(Table.OBJECTS, oids)

    @property
    def refusing(self) -> bool:
        """Whether the index takes no changes now."""
        return self._store.refusing

    def save(
        self, oid: bytes, record: ObjectRecord, pages: Pages | None = None, changed: range | None = None
    ) -> bool:
        """Store a record, and the chunks that hold the ``changed`` pages: all of it, or nothing and False."""
        old = self._store.get(Table.OBJECTS, oid)
        before = _decode(old) if old is not None else None
        changes: Changes = {}
        if before is not None:
            changes[Table.RECENCY, _recency_key(before, oid)] = None
        changes[Table.OBJECTS, oid] = _encode(record)
        changes[Table.RECENCY, _recency_key(record, oid)] = U64.pack(record.allocated_bytes)
        if pages is not None and changed is not None and len(changed):
            for number in range(changed.start // CHUNK_PAGES, (changed.stop - 1) // CHUNK_PAGES + 1):
                changes[Table.CHUNKS, _chunk_key(oid, number)] = pages.chunk(number)
        deltas = {record.directory: record.allocated_bytes}
        if before is not None:
            deltas[before.directory] = deltas.get(before.directory, 0) - before.allocated_bytes
        return self._change(changes, deltas, 0 if before else 1)

    def touch(self, oid: bytes, now_us: int) -> None:
        """Record a use of an object that is not loaded."""
        value = self._store.get(Table.OBJECTS, oid)
        if value is not None:
            record = _decode(value)
            record.used_us = max(now_us, record.used_us)
            self.save(oid, record)

    def drop(self, oid: bytes) -> int | None:
        """Forget an object; returns the bytes that its file takes, None if the index takes no changes now."""
        value = self._store.get(Table.OBJECTS, oid)
        if value is None:
            return 0
        record = _decode(value)
        changes: Changes = {(Table.OBJECTS, oid): None, (Table.RECENCY, _recency_key(record, oid)): None}
        for number in range(-(-page_count(record.size) // CHUNK_PAGES)):
            changes[Table.CHUNKS, _chunk_key(oid, number)] = None
        return record.allocated_bytes if self._change(changes, {record.directory: -record.allocated_bytes}, -1) else None

    def known(self, oid: bytes) -> bool:
        """Whether the object is recorded."""
        return self._store.get(Table.OBJECTS, oid) is not None

    def allocated_bytes(self, oid: bytes) -> int:
        """Return the bytes that an object's file takes; 0 if it is not recorded."""
        value = self._store.get(Table.OBJECTS, oid)
        return 0 if value is None else _decode(value).allocated_bytes

    def directory_of(self, oid: bytes) -> int | None:
        """Return the number of the directory that has an object's file; None if the object is not cached."""
        value = self._store.get(Table.OBJECTS, oid)
        return None if value is None else _decode(value).directory

    async def victims(self, directory: int, in_use: set[bytes], needed_bytes: int) -> list[bytes]:
        """Choose the least recently used objects of a directory that free ``needed_bytes``; nothing is dropped yet."""
        await self._store.flush()
        prefix = bytes((directory,))
        items = self._store.committed_items(Table.RECENCY, prefix, prefix, VICTIM_SCAN + len(in_use))
        return choose_victims(((key[9:], U64.unpack(value)[0]) for key, value in items), in_use, needed_bytes)

    async def clear(self, directory: int) -> None:
        """Forget every object of a directory, because it is another one now, or was emptied."""
        prefix = bytes((directory,))

        def forget(txn: Transaction) -> int:
            gone = list(islice(txn.items(Table.RECENCY, prefix, prefix), CLEAR_BATCH))
            for key, _ in gone:
                oid = key[9:]
                value = txn.get(Table.OBJECTS, oid)
                if value is not None:
                    for number in range(-(-page_count(_decode(value).size) // CHUNK_PAGES)):
                        txn.delete(Table.CHUNKS, _chunk_key(oid, number))
                    txn.delete(Table.OBJECTS, oid)
                txn.delete(Table.RECENCY, key)
            return len(gone)

        while count := await self._store.run(forget):
            self._store.cool()
            self._change({}, {}, -count)
        self._change({}, {directory: -self.used_bytes_in(directory)}, 0)

    def _change(self, changes: Changes, delta_bytes: dict[int, int], delta_objects: int) -> bool:
        """Make ``changes`` and count them, bytes by directory; False if the index takes none: it is only a cache."""
        used = {number: max(0, self.used_bytes_in(number) + delta) for number, delta in delta_bytes.items() if delta}
        count = max(0, self.count + delta_objects)
        for number, total in used.items():
            changes[Table.META, _used_key(number)] = U64.pack(total)
        if delta_objects:
            changes[Table.META, b"cache_objects"] = U64.pack(count)
        try:
            self._store.apply(changes)
        except OSError as exc:
            if not self.refused:
                log.warning("what changes in the cache is not recorded: %s", exc)
            self.refused += 1
            return False
        self._used.update(used)
        self.count = count
        return True


def _used_key(directory: int) -> bytes:
    return b"cache_used" + bytes((directory,))


def _recency_key(record: ObjectRecord, oid: bytes) -> bytes:
    return bytes((record.directory,)) + U64.pack(record.used_us) + oid


def _chunk_key(oid: bytes, number: int) -> bytes:
    return oid + number.to_bytes(4, "big")
