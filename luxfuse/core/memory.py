"""How the memory of a daemon is divided."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
MOST_BYTES = 2 << 30
"""The limit where nothing is said, on a machine with much memory."""
PART_OF_MACHINE = 4
BASE_BYTES = 112 * MIB
"""Taken by the daemon before it caches a byte: code, metadata."""
SHARES = 5
"""A part each for requests in flight, for pages kept, for uploads, and for what is noted of files that the store does not
have; one for replies on their way and what malloc keeps (measured with 500 readers of cold files, copied: 50 MiB where the
first three had 72 MiB each)."""
LEAST_BYTES = 16 * MIB
"""Of each: a part of an upload, or four requests of 4 MiB."""
DIRTY_BYTES = 5 << 10
"""Noted of one such file, or of a removal (measured: 4.7 to 5.0 KB)."""
LEAST_DIRTY, MOST_DIRTY = 10_000, 300_000
MOST_KEPT_BYTES = 96 * MIB
MOST_SENT_BYTES = 256 * MIB
"""More makes nothing faster: it is 100 ms of 20 Gbit/s."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Bytes for requests in flight, pages kept in memory for a moment, and parts of files being uploaded.

    ``most_dirty``: how many files and the like may not be in the store yet, removals that it has not made among them.
    """

    flights_bytes: int
    kept_bytes: int
    uploads_bytes: int
    most_dirty: int = LEAST_DIRTY


def default_limit(machine_bytes: int) -> int:
    """Return the limit on a machine, or in a container, with so much memory."""
    return min(MOST_BYTES, machine_bytes // PART_OF_MACHINE)


def shares(limit_bytes: int) -> Shares:
    """Divide what ``limit_bytes`` leave; the least that the daemon works with may be more."""
    each = max(LEAST_BYTES, (limit_bytes - BASE_BYTES) // SHARES)
    sent, kept = min(each, MOST_SENT_BYTES), min(each, MOST_KEPT_BYTES)
    left = limit_bytes - BASE_BYTES - 3 * sent - kept  # flights, uploads and replies
    return Shares(sent, kept, sent, max(LEAST_DIRTY, min(MOST_DIRTY, left // DIRTY_BYTES)))


def least_of(texts: list[str], machine_bytes: int) -> int:
    """Return the memory there is: that of the machine, or the least limit of the control groups (``memory.max``)."""
    return min([machine_bytes, *(int(text) for text in map(str.strip, texts) if text.isdigit())])
