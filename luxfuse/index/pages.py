"""Which pages of an object are in the cache, with their checksums, and how the index keeps that.

CHUNKS ``id of the object + chunk (4 bytes)`` -> presence bitmap (16 bytes, one bit a page) and one xxh3-64 checksum
(8 bytes, little endian) for each of the chunk's `CHUNK_PAGES` pages.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Iterable, Sequence

from luxfuse.core.members import RANGE_PAGES
from luxfuse.core.spans import page_count
from luxfuse.index.object_records import ObjectRecord
from luxfuse.types import PAGE_BYTES

CHUNK_PAGES = 128
_BITMAP_BYTES = CHUNK_PAGES // 8
RANGE_BYTES = RANGE_PAGES * PAGE_BYTES


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

    def fill(self, checksums: Sequence[int]) -> None:
        """Record every page, of an object of which none was there."""
        self.present[:] = ((1 << self.total) - 1).to_bytes(len(self.present), "little")
        self.checksums[:] = array.array("Q", checksums)
        self.count = self.total

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


def whole_ranges(record: ObjectRecord, chunk: Callable[[int], bytes | None]) -> Iterable[int]:
    """Return the ranges of an object that are all there. ``chunk``: returns the stored form of one by its number."""
    pages = page_count(record.size)
    if record.whole:
        return range(-(-pages // RANGE_PAGES))
    if pages <= RANGE_PAGES:
        return ()
    chunks = range(-(-pages // CHUNK_PAGES))
    return [rng for number in chunks for rng, held in ranges_of_chunk(record.size, number, chunk(number)).items() if held]


def ranges_of_chunk(size: int, number: int, chunk: bytes | None) -> dict[int, bool]:
    """Tell for each range of a chunk, by its number, whether all its pages are there."""
    found = {}
    left = page_count(size) - number * CHUNK_PAGES
    for half in range(CHUNK_PAGES // RANGE_PAGES):
        pages = min(RANGE_PAGES, left - half * RANGE_PAGES)
        if pages > 0:
            bits = chunk[half * RANGE_PAGES // 8 : (half + 1) * RANGE_PAGES // 8] if chunk else b""
            wanted = (1 << pages) - 1
            present = int.from_bytes(bits, "little") & wanted
            found[number * (CHUNK_PAGES // RANGE_PAGES) + half] = present == wanted
    return found


def chunk_key(oid: bytes, number: int) -> bytes:
    """Return the CHUNKS key of one chunk of an object."""
    return oid + number.to_bytes(4, "big")
