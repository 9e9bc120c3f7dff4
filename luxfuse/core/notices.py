"""Notices of changes in an under-store, from the node that made them: the others then ask again before they believe.

A notice is a datagram's worth of changes. Many changes in one directory become one, of the directory.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator

import msgspec

NOTICE = b"N"
"""First byte of a notice among what is gossiped."""
MOST_BYTES = 1000
"""Length of a notice: as much as one datagram of the membership protocol carries."""
SINGLY = 16
"""So many changes in one directory are named one by one; for more it is said that the directory changed."""
REMEMBERED = 4096
"""Notices that are known again when they come a second time, on another way."""
_OVERHEAD_BYTES = 32


class ChangeKind(enum.IntEnum):
    """A change of a key."""

    WRITTEN = 0
    GONE = 1
    BELOW = 2
    """Objects directly in the directory, whose key ends in "/" or is "", were written or are gone."""


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One change."""

    key: str
    kind: ChangeKind


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """Changes in the under-store ``source`` (its id, 8 bytes). ``number``: of the origin's notices, for telling repeats."""

    number: int
    source: bytes
    changes: tuple[Change, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Notice).decode


def coalesce(changes: Iterable[tuple[str, bool]]) -> list[Change]:
    """Turn (key, whether it is gone), oldest first, into as few changes as tell enough."""
    latest = dict(changes)
    by_directory: dict[str, list[Change]] = defaultdict(list)
    for key, gone in latest.items():
        directory = key[: key.rstrip("/").rfind("/") + 1]
        by_directory[directory].append(Change(key, ChangeKind.GONE if gone else ChangeKind.WRITTEN))
    found: list[Change] = []
    for directory, below in by_directory.items():
        found += below if len(below) <= SINGLY else [Change(directory, ChangeKind.BELOW)]
    return found


def encode(first_number: int, source: bytes, changes: Iterable[Change]) -> Iterator[bytes]:
    """Yield notices with the changes, each of `MOST_BYTES` at most. A key that is too long for one is left out."""
    number, size = first_number, _OVERHEAD_BYTES
    batch: list[Change] = []
    for change in changes:
        more = len(change.key.encode("utf-8", "surrogateescape")) + 8
        if more + _OVERHEAD_BYTES > MOST_BYTES:
            continue
        if batch and size + more > MOST_BYTES:
            yield NOTICE + _encode(Notice(number, source, tuple(batch)))
            number, batch, size = number + 1, [], _OVERHEAD_BYTES
        batch.append(change)
        size += more
    if batch:
        yield NOTICE + _encode(Notice(number, source, tuple(batch)))


class Heard:
    """Notices that came: each counts once, though it comes directly and by gossip."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()

    def take(self, origin: str, payload: bytes) -> Notice | None:
        """Return the notice, None if it was here before. Raises ValueError if it is none."""
        try:
            notice = _decode(payload[len(NOTICE) :])
        except msgspec.MsgspecError as exc:
            raise ValueError(f"a notice is not understood: {exc}") from None
        if (origin, notice.number) in self._seen:
            return None
        self._seen[origin, notice.number] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return notice
