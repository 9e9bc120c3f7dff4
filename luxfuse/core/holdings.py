"""Holdings of nodes: a node's numbered log of what came to its cache and went, and sums that find differences cheaply.

Theory of operation
-------------------
A node's holdings are a set of *entries*: the first 10 bytes of an object's id, and the number of a range of 64 MiB (3
bytes). A node writes each addition and removal into its *log*, and keeps the last ones. Others ask for what came after
the number that they have seen last. A node that has seen too little, or another log (each start of a daemon begins
one), compares *sums*: the hash space is cut into buckets, and a bucket's sum is the exclusive or of a hash of each
entry. Only what differs is sent, as the content of whole buckets.

Changes say what is the case from then on, so they can be applied twice, and over content that is newer than they are: in
the end the last change of each entry counts. So content is read without holding up anything, and the changes since the
sums were taken are applied on top.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from luxfuse.core.members import OBJECT_HASH_BYTES

ENTRY_BYTES = OBJECT_HASH_BYTES + 3
MOST_RANGES = 1 << 23
"""Ranges beyond (512 TiB) are not told of: the highest bit of the number says that a change is a removal."""
LOG_ID_BYTES = 8
LOGGED = 1 << 16
"""Changes that a log keeps."""
BUCKETS = 4096
_BUCKET_SHIFT = 4
"""A bucket is what the first 12 bits of an entry say."""
_REMOVED = 0x80
_FLAG_AT = OBJECT_HASH_BYTES


def entry_of(oid: bytes, range_number: int) -> bytes:
    """Return the entry of a range of an object, whose number is below `MOST_RANGES`."""
    return oid[:OBJECT_HASH_BYTES] + range_number.to_bytes(3, "big")


def change_of(entry: bytes, held: bool) -> bytes:
    """Return the change that says that an entry is held, or is not, from now on."""
    if held:
        return entry
    return entry[:_FLAG_AT] + bytes((entry[_FLAG_AT] | _REMOVED,)) + entry[_FLAG_AT + 1 :]


def changes_in(changes: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield (entry, whether it is held) of changes that were put one behind the other."""
    for start in range(0, len(changes), ENTRY_BYTES):
        change = changes[start : start + ENTRY_BYTES]
        if change[_FLAG_AT] & _REMOVED:
            yield change[:_FLAG_AT] + bytes((change[_FLAG_AT] ^ _REMOVED,)) + change[_FLAG_AT + 1 :], False
        else:
            yield change, True


def bucket_of(entry: bytes) -> int:
    """Return the number of an entry's bucket."""
    return (entry[0] << 8 | entry[1]) >> _BUCKET_SHIFT


def bucket_start(bucket: int) -> bytes:
    """Return what no entry of the bucket, or of a later one, is below."""
    return (bucket << _BUCKET_SHIFT).to_bytes(2, "big") if bucket < BUCKETS else b"\xff" * (ENTRY_BYTES + 1)


class HoldingsLog:
    """The last changes of what one node holds. ``log_id``: random, of this run of the daemon."""

    def __init__(self, log_id: bytes, kept: int = LOGGED) -> None:
        assert len(log_id) == LOG_ID_BYTES
        self.log_id = log_id
        self.sequence = 0
        """Number of the last change; the first is 1."""
        self._kept = kept
        self._ring = bytearray(kept * ENTRY_BYTES)

    def append(self, change: bytes) -> None:
        """Note a change."""
        start = self.sequence % self._kept * ENTRY_BYTES
        self._ring[start : start + ENTRY_BYTES] = change
        self.sequence += 1

    def since(self, sequence: int, limit: int) -> bytes | None:
        """Return up to ``limit`` changes after number ``sequence``; None if they are not all known."""
        if not max(0, self.sequence - self._kept) <= sequence <= self.sequence:
            return None
        count = min(limit, self.sequence - sequence)
        start = sequence % self._kept
        until_end = min(count, self._kept - start)
        ring = self._ring
        return bytes(
            ring[start * ENTRY_BYTES : (start + until_end) * ENTRY_BYTES] + ring[: (count - until_end) * ENTRY_BYTES]
        )


class BucketSums:
    """A sum for each bucket. ``hash_of``: a 64-bit hash of an entry, the same on all nodes."""

    __slots__ = ("hash_of", "sums")

    def __init__(self, hash_of: Callable[[bytes], int], encoded: bytes | None = None) -> None:
        """``encoded``: what `encode` returned, of any node. Raises ValueError if it is something else."""
        self.hash_of = hash_of
        self.sums = array("Q", bytes(8 * BUCKETS) if encoded is None else encoded)
        if len(self.sums) != BUCKETS:
            raise ValueError(f"{len(self.sums)} sums instead of {BUCKETS}")
        if encoded is not None and sys.byteorder == "big":
            self.sums.byteswap()

    def toggle(self, entry: bytes) -> None:
        """Take note that an entry that was not held is held now, or the other way round."""
        self.sums[bucket_of(entry)] ^= self.hash_of(entry)

    @property
    def total(self) -> int:
        """One sum over all."""
        total = 0
        for value in self.sums:
            total ^= value
        return total

    def differing(self, other: BucketSums) -> list[int]:
        """Return the buckets whose content is not the same."""
        if self.sums == other.sums:
            return []
        return [number for number, (a, b) in enumerate(zip(self.sums, other.sums, strict=True)) if a != b]

    def encode(self) -> bytes:
        """Return the sums as bytes."""
        if sys.byteorder == "big":
            swapped = array("Q", self.sums)
            swapped.byteswap()
            return swapped.tobytes()
        return self.sums.tobytes()


class Holdings:
    """The account of its own holdings that a node gives others: the log, and the sums at the log's end."""

    def __init__(self, log: HoldingsLog, sums: BucketSums) -> None:
        self.log = log
        self.sums = sums
        self.total = sums.total
        """The sum over all buckets, kept up to date."""

    def note(self, transitions: Iterable[tuple[bytes, bool]]) -> None:
        """Note entries that came or went: each must have been the other way before."""
        for entry, held in transitions:
            self.log.append(change_of(entry, held))
            self.sums.toggle(entry)
            self.total ^= self.sums.hash_of(entry)


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where the log of a node is known. A log id of b"" is no node's."""

    log_id: bytes = b""
    sequence: int = 0


@dataclass(slots=True)
class Follower:
    """The next question for a node, so that its holdings become known as they are. ``mark``: known so far.

    While ``buckets`` are to be fetched, ``goal`` is the mark that holds when they are.
    """

    mark: Mark = field(default_factory=Mark)
    goal: Mark = field(default_factory=Mark)
    buckets: list[int] = field(default_factory=list)
    after: bytes = b""
    """The content up to this entry is here."""

    @property
    def fetching(self) -> bool:
        """Whether buckets are to be fetched."""
        return bool(self.buckets)

    def compare(self) -> None:
        """Compare the sums next, whatever is known."""
        self.mark = Mark()
        self.buckets = []

    def fetch(self, buckets: list[int], goal: Mark) -> None:
        """These buckets differ (ascending), as of ``goal``."""
        self.buckets, self.goal, self.after = buckets, goal, b""
        if not buckets:
            self.mark = goal

    def expects(self, log_id: bytes) -> bool:
        """Whether content of the node's log is what was asked for; else, it was started again, and all begins anew."""
        if log_id != self.goal.log_id:
            self.compare()
            return False
        return True

    def fetched(self, until: bytes) -> None:
        """The content up to entry ``until`` is here; b"": all that was asked for."""
        if until:
            self.after = until
            self.buckets = [bucket for bucket in self.buckets if bucket_start(bucket + 1) > until]
        else:
            self.buckets = []
        if not self.buckets:
            self.mark = self.goal
