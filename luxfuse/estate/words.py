"""The words of an estate's header."""

from __future__ import annotations

import mmap
from enum import IntEnum


class Word(IntEnum):
    """Where each word stands. The keeper and the C extension know some of these numbers, too."""

    MAGIC = 0
    FORMAT = 1
    STATE = 2
    """`memory.State`; the keeper reads it."""
    RESTARTS = 3
    IDENTITY = 4
    SLOTS_USED = 5
    """Of the slots of the opens, those before this one may be in use; written by the extension."""
    FACTS_HALF = 6
    """Which half of the facts is the one that counts: 0 or 1."""
    FACTS_END = 7
    """Bytes in half 0; those in half 1 are the next word."""
    FACTS_LOST = 9
    TRAIL_START = 10
    TRAIL_END = 11
    TRAIL_LOST = 12
    SERVING_SINCE = 13
    """When the last daemon began to serve, in ms of the monotonic clock; the keeper reads it."""
    INDEX_FORMAT = 14
    """The formats of what the daemon has on disk (`luxfuse.daemon.formats`); 0: it did not say."""
    JOURNAL_FORMAT = 15
    DIRECTORY_FORMAT = 16
    HANDED_OVER = 17
    """1 where the last daemon has left for another one, and did not die."""


class Words:
    """The header as numbers below 2**63."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.plain = memoryview(memory)[:4096].cast("q")
        """For what sets words all the while."""

    def __getitem__(self, word: int) -> int:
        return self.plain[word]

    def __setitem__(self, word: int, value: int) -> None:
        self.plain[word] = value
