"""The nouns that several layers share: plain records without behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

import msgspec

PAGE_BYTES = 1 << 20
"""Size of a cache page. Presence and checksums are kept per page."""

Buffer = bytes | bytearray | memoryview
"""Content in memory; a `memoryview` has bytes as its items."""

ABSENT = ""
"""As a version: there is no object. As ``expect`` of a write: there must be none yet."""

Tier = Literal["mem", "ssd", "hdd"]
"""The medium of a cache directory: memory (tmpfs), or a fast or slow disk."""
TIERS: tuple[Tier, ...] = ("mem", "ssd", "hdd")
"""From the highest, the fastest, to the lowest."""
ReadMode = Literal["cache", "cache-promote", "no-cache"]
"""The part of what is read that is kept; ``cache-promote``: in the highest tier."""
TtlAction = Literal["free", "delete"]
"""The action when a time limit is over: drop what is cached, or remove the object in the under-store."""


class Kind(enum.IntEnum):
    """The kind of file that a name refers to."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    SPECIAL = 3
    """A FIFO, socket or device; exists here only, never in the store."""


class WriteMode(enum.StrEnum):
    """When written data goes to the store. In all but ``THROUGH`` it stays in the cache."""

    CACHE_THROUGH = "cache-through"
    """Uploaded before `close` and `fsync` return."""
    ASYNC_THROUGH = "async-through"
    """Journaled before `close` and `fsync` return, uploaded in the background."""
    THROUGH = "through"
    """Uploaded before `close` and `fsync` return, and not kept."""
    MUST_CACHE = "must-cache"
    """Never uploaded."""

    @property
    def is_through(self) -> bool:
        """Whether changes are made in the store first; else they need the journal only."""
        return self in (WriteMode.CACHE_THROUGH, WriteMode.THROUGH)


class ObjectInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One object of an under-store, as a LIST, HEAD or GET describes it.

    ``key`` is the full key inside the under-store's root. ``version`` identifies the content: the ETag where the
    store has one, otherwise a string made of what the store does tell (size and modification time). ``metadata`` holds
    the user metadata with lower-case keys, or None where the request does not return it (a LIST).
    """

    key: str
    size: int
    version: str
    mtime_ns: int
    metadata: dict[str, str] | None = None


Description = tuple[ObjectInfo, float]
"""The store's word on an object, and how many seconds ago it was asked."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """Part of one directory's listing: its objects and the sub-prefixes below it.

    ``objects`` holds full keys (never the directory's own marker ``prefix``); ``prefixes`` holds full prefixes
    ending in ``/``. Order is the store's; an entry may come once only over all pages.
    """

    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
