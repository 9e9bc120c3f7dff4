"""Bytes of a cache directory: those used, those promised to fetches in flight, those left."""

from __future__ import annotations

BLOCK_BYTES = 4096


def allocated_bytes(size_bytes: int) -> int:
    """Return what ``size_bytes`` of file data take on disk, in whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


class Ledger:
    """Keeps used + reserved <= capacity, and the file system's free space above its floor.

    ``capacity_bytes`` None means that only the free-space floor bounds the cache.
    """

    __slots__ = ("capacity_bytes", "free_floor_bytes", "fs_free_bytes", "reserved_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int | None, used_bytes: int = 0) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = used_bytes
        self.reserved_bytes = 0
        self.fs_free_bytes: int | None = None
        self.free_floor_bytes = 0

    def observe(self, fs_free_bytes: int, fs_total_bytes: int, free_space_ratio: float) -> None:
        """Take a fresh look at the file system; bytes written since count down from here."""
        self.fs_free_bytes = fs_free_bytes
        self.free_floor_bytes = int(fs_total_bytes * free_space_ratio)

    def shortage(self, wanted_bytes: int) -> int:
        """Return how many bytes must be freed before ``wanted_bytes`` can be reserved; 0 if none."""
        short = 0
        if self.capacity_bytes is not None:
            short = self.used_bytes + self.reserved_bytes + wanted_bytes - self.capacity_bytes
        if self.fs_free_bytes is not None:
            short = max(short, self.free_floor_bytes + self.reserved_bytes + wanted_bytes - self.fs_free_bytes)
        return max(0, short)

    def reserve(self, wanted_bytes: int) -> bool:
        """Promise ``wanted_bytes``; False if they do not fit now."""
        if self.shortage(wanted_bytes):
            return False
        self.reserved_bytes += wanted_bytes
        return True

    def settle(self, reserved_bytes: int, written_bytes: int) -> None:
        """End a reservation of which ``written_bytes`` now lie on disk."""
        assert 0 <= written_bytes <= reserved_bytes <= self.reserved_bytes
        self.reserved_bytes -= reserved_bytes
        self.used_bytes += written_bytes
        if self.fs_free_bytes is not None:
            self.fs_free_bytes -= written_bytes

    def hold(self, used_bytes: int) -> None:
        """Count ``used_bytes`` as reserved instead: their file belongs to nothing any more, but is still on disk."""
        self.free(used_bytes)
        self.reserved_bytes += used_bytes

    def add(self, written_bytes: int) -> None:
        """Count ``written_bytes`` that were not reserved, as programs write them on their own."""
        self.used_bytes += written_bytes
        if self.fs_free_bytes is not None:
            self.fs_free_bytes -= written_bytes

    def free(self, freed_bytes: int) -> None:
        """Count ``freed_bytes`` as gone from disk."""
        self.used_bytes = max(0, self.used_bytes - freed_bytes)
        if self.fs_free_bytes is not None:
            self.fs_free_bytes += freed_bytes
