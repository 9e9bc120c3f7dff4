"""What luxfuse needs of a store. Drivers are synchronous and thread-safe; `retrying` adds deadlines and retries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from luxfuse.types import ListPage, ObjectInfo

Buffer = bytes | bytearray | memoryview


class UnderStore(Protocol):
    """One bucket (or directory tree) below ``root``; every key is relative to it.

    All methods block, may be called from many threads at once, make one attempt (no retries of their own beyond
    paging) and end within the driver's connect and read time-outs. They raise only `luxfuse.errors.StoreError`
    subclasses: `NotFound`, `AccessDenied`, `VersionChanged`, `StoreRejected`, `StoreUnavailable`, `BucketMissing`.
    No message contains a secret.
    """

    driver: str
    """"obstore" or "fsspec"."""

    def probe(self) -> None:
        """Make the cheapest request that proves that bucket, endpoint and credentials work."""

    def head(self, key: str) -> ObjectInfo:
        """Describe one object, user metadata included where the store has it."""

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        """List one directory level below ``prefix`` ("" or ending in "/"). No entry at all: yields no page.

        A marker object of the directory itself (key == prefix) is yielded as nothing, but makes the iterator yield at
        least one (then empty) page, so that an empty directory differs from a missing one.
        """

    def has_prefix(self, prefix: str) -> bool:
        """Whether any key starts with ``prefix`` (which ends in "/"), the marker itself included."""

    def read(self, key: str, start: int, end: int, version: str) -> Buffer:
        """Return bytes [start, end) of exactly ``version`` of the object; exactly ``end - start`` bytes.

        Raises `VersionChanged` if the store now holds another version (If-Match, and the returned ETag is compared
        because some servers ignore If-Match), `NotFound` if it is gone, `StoreUnavailable` for a short body.
        """

    def close(self) -> None:
        """Free connections. Further calls are errors."""
