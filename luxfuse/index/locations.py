"""Which node holds what, as far as this one knows: an LMDB of its own, which may be lost at any time.

Theory of operation
-------------------
OTHERS: one key whose values are sorted and of one length, ``entry (13 bytes) + number of the node (2 bytes)``, so the
holders of an entry are one seek away, and an entry costs its bytes and what a B-tree leaves free. OWN: likewise, our
own entries. SUMS: ``number (2 bytes) + group (1 byte)`` -> the sums of 128 buckets; our own have number 0. NODES:
number -> `Node`.

An entry, the sum that it changes and the mark up to which a node's log is known are written in one transaction, so they
agree whatever happens. Nothing is synced before the end: after a crash of the daemon the kernel has it all; after one of
the machine, which the boot id tells, the table is begun anew, and so it is if it is damaged or of another format.

Transactions are small: LMDB writes each page that changes to a new place, and random entries are on as many pages, which
are free for use only two transactions later. Measured: 1,000,000 entries of 20 nodes, all replaced at random, take 27.4
bytes each, what is free in the file included.

A number names a node until that is forgotten, or is to be learnt anew; then the number is *retired*: it is nobody's until
all entries with it are swept, so forgetting takes no time.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from luxfuse.core.holdings import ENTRY_BYTES, BucketSums, Mark, bucket_of, bucket_start
from luxfuse.index.location_file import ENTRIES, LocationFile, Node, values
from luxfuse.index.location_sums import SumsChange, forget_sums, stored_sums

MOST_ENTRIES = 1 << 26
"""Entries of others, about 1.8 GB. Further ones are left out, and counted."""
WRITE_ENTRIES = 256
"""Changes of one transaction."""
BREATH_S = 0.0005
"""The thread rests between transactions, so that the event loop gets the interpreter lock."""
SCANNED = 4096
"""Values that a scan looks at between two rests."""
OWN = 0
_NODES = 1 << 16
Transition = tuple[bytes, bool]
"""An entry, and whether it is held from now on."""

_encode = msgspec.msgpack.Encoder().encode


class LocationTable:
    """The open table. All but `holders` and what is in memory blocks: call it in a thread. Raises OSError if it fails.

    The entries of one number are changed by one thread at a time; different numbers may be changed at once.
    """

    def __init__(self, path: Path, most_entries: int = MOST_ENTRIES) -> None:
        """Open or create it in directory ``path``. Raises `IndexFormatError`."""
        self._file = LocationFile(path)
        self.path = path
        self.clean = self._file.clean
        """Whether it was left cleanly, or is new."""
        self.left_out = 0
        """Entries of others for which there was no room."""
        self._most = most_entries
        self._writing = threading.Lock()
        """Held until memory agrees with the file."""
        self._nodes: dict[int, Node] = {OWN: Node("")} | self._file.found
        self._numbers = {node.name: n for n, node in self._nodes.items() if n != OWN and not node.retired}

    def close(self) -> None:
        """Close it, so that it is known to be as it should. Blocks; waits for what is under way, and lets nothing begin."""
        self._file.close()

    # -- in memory, and for the event loop

    def holders(self, entry: bytes) -> list[str]:
        """Return the names of the nodes that hold an entry, for all we know. Takes microseconds."""
        nodes = (self._nodes.get(number) for number in self._file.holders(entry))
        return [node.name for node in nodes if node is not None and not node.retired]

    def node(self, name: str) -> Node | None:
        """Return the record of a node."""
        number = self._numbers.get(name)
        return None if number is None else self._nodes[number]

    def names(self) -> list[str]:
        """Return the names of all nodes of which something is known."""
        return list(self._numbers)

    @property
    def own_entries(self) -> int:
        """How many entries are our own."""
        return self._nodes[OWN].entries

    @property
    def room(self) -> int:
        """How many entries of others can still be taken in."""
        return max(0, self._most - sum(node.entries for number, node in list(self._nodes.items()) if number != OWN))

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that are in use, or were."""
        return self._file.file_bytes

    @property
    def retired(self) -> frozenset[int]:
        """The numbers whose entries are to be swept."""
        return frozenset(number for number, node in list(self._nodes.items()) if node.retired)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            raise OSError(errno.ENOENT, f"{self.path}: {name} was forgotten")
        return number

    # -- changing

    def apply_own(self, changes: Sequence[Transition]) -> list[Transition]:
        """Make changes of our own entries; returns those that were none before, in order."""
        return self._apply(OWN, changes, None)

    def apply(self, name: str, changes: Sequence[Transition], mark: Mark | None = None) -> None:
        """Make changes of a node's entries; when all are made, its log is known up to ``mark``."""
        self._apply(self._number(name), changes, mark)

    def _apply(self, number: int, changes: Sequence[Transition], mark: Mark | None) -> list[Transition]:
        made: list[Transition] = []
        for start in range(0, len(changes) or 1, WRITE_ENTRIES):
            if start:
                time.sleep(BREATH_S)
            end = start + WRITE_ENTRIES
            made += self._write(number, changes[start:end], mark if end >= len(changes) else None)
        return made

    def _write(self, number: int, changes: Sequence[Transition], mark: Mark | None) -> list[Transition]:
        """One transaction of `_apply`."""
        suffix = b"" if number == OWN else number.to_bytes(2, "big")
        table = self._file.own if number == OWN else self._file.others
        made: list[Transition] = []
        left_out = 0
        with self._writing:
            node = self._nodes.get(number)
            if node is None or node.retired:
                return made
            with self._file.transaction(write=True) as txn:
                sums = SumsChange(txn, self._file.sums, number)
                room = len(changes) if number == OWN else self._most - txn.stat(table)["entries"]
                for entry, held in changes:
                    if not held:
                        done = txn.delete(ENTRIES, entry + suffix, db=table)
                    elif room > 0:
                        done = txn.put(ENTRIES, entry + suffix, dupdata=False, db=table)
                    else:
                        done, left_out = False, left_out + 1
                    if done:
                        made.append((entry, held))
                        sums.toggle(entry)
                        room += -1 if held else 1
                sums.store()
                node = replace(
                    node,
                    entries=node.entries + sum(1 if held else -1 for _, held in made),
                    total=node.total ^ sums.toggled,
                    lacking=node.lacking or left_out > 0,
                )
                if mark is not None:
                    node = replace(node, log_id=mark.log_id, sequence=mark.sequence)
                self._put_node(txn, number, node)
            self._nodes[number] = node
            self.left_out += left_out
        return made

    def _put_node(self, txn: Any, number: int, node: Node) -> None:
        txn.put(number.to_bytes(2, "big"), _encode(node), db=self._file.nodes)

    def enrol(self, name: str, *, anew: bool = False) -> Node:
        """Give a node a number; ``anew``: one without entries, whatever it has now."""
        with self._writing:
            old = self._numbers.get(name)
            if old is not None and (not anew or self._nodes[old].entries == 0):
                return self._nodes[old]
            number = next((n for n in range(1, _NODES) if n not in self._nodes), None)
            if number is None:
                raise OSError(errno.EUSERS, f"{self.path}: there are no numbers left for nodes")
            node = Node(name)
            with self._file.transaction(write=True) as txn:
                self._put_node(txn, number, node)
                if old is not None:
                    self._retire(txn, old)
            self._nodes[number] = node
            self._numbers[name] = number
            return node

    def forget(self, name: str) -> None:
        """Forget what a node holds."""
        with self._writing:
            number = self._numbers.get(name)
            if number is not None:
                with self._file.transaction(write=True) as txn:
                    self._retire(txn, number)
                del self._numbers[name]

    def accept(self, name: str) -> None:
        """Do not take a node's entries for incomplete any more: they are to be compared again."""
        with self._writing:
            number = self._number(name)
            node = replace(self._nodes[number], lacking=False)
            with self._file.transaction(write=True) as txn:
                self._put_node(txn, number, node)
            self._nodes[number] = node

    def _retire(self, txn: Any, number: int) -> None:
        self._nodes[number] = node = replace(self._nodes[number], retired=True)
        self._put_node(txn, number, node)
        forget_sums(txn, self._file.sums, number)

    def sweep(self, after: bytes, retired: frozenset[int]) -> bytes | None:
        """Remove some of the entries of these numbers, which were retired before the first call, with ``after`` b"".

        Returns ``after`` for the next call; None at the end: the numbers are free then.
        """
        doomed: list[bytes] = []
        suffixes = {number.to_bytes(2, "big") for number in retired}
        seen, value = 0, after
        with self._file.transaction() as txn, txn.cursor(db=self._file.others) as cursor:
            for value in islice(values(cursor, after.ljust(ENTRY_BYTES + 2, b"\0")), SCANNED):
                seen += 1
                if value[ENTRY_BYTES:] in suffixes:
                    doomed.append(value)
                    if len(doomed) == WRITE_ENTRIES:
                        break
        ended = seen < SCANNED and len(doomed) < WRITE_ENTRIES
        if doomed or ended:
            with self._writing, self._file.transaction(write=True) as txn:
                for gone in doomed:
                    txn.delete(ENTRIES, gone, db=self._file.others)
                for number in retired if ended else ():
                    txn.delete(number.to_bytes(2, "big"), db=self._file.nodes)
        for number in retired if ended else ():
            self._nodes.pop(number, None)
        return None if ended else value

    # -- comparing

    def sums(self, name: str | None = None) -> BucketSums:
        """Return the sums of a node's entries; of our own for None."""
        number = OWN if name is None else self._number(name)
        with self._file.transaction() as txn:
            return stored_sums(txn, self._file.sums, number)

    def content(self, buckets: Sequence[int], after: bytes, limit: int) -> tuple[bytes, bytes]:
        """Return our own entries of ``buckets`` (ascending) after the entry ``after``, and up to which; b"": all."""
        found: list[bytes] = []
        with self._file.transaction() as txn, txn.cursor(db=self._file.own) as cursor:
            for bucket in buckets:
                end = bucket_start(bucket + 1)
                if after >= end:
                    continue
                for value in values(cursor, max(bucket_start(bucket).ljust(ENTRY_BYTES, b"\0"), after)):
                    if value >= end:
                        break
                    if value != after:
                        found.append(value)
                        if len(found) >= limit:
                            return b"".join(found), value
        return b"".join(found), b""

    def own_after(self, after: bytes, until: bytes, limit: int) -> list[bytes]:
        """Return up to ``limit`` of our own entries after ``after``, up to and with ``until``; b"": all."""
        found: list[bytes] = []
        with self._file.transaction() as txn, txn.cursor(db=self._file.own) as cursor:
            for value in values(cursor, after or bytes(ENTRY_BYTES)):
                if (until and value > until) or len(found) == limit:
                    break
                if value != after or not after:
                    found.append(value)
        return found

    def replace(self, name: str, buckets: Sequence[int], after: bytes, entries: bytes, until: bytes) -> None:
        """Make a node's ``buckets`` (ascending), after the entry ``after`` and up to ``until``, be ``entries``."""
        number = self._number(name)
        sums = self.sums(name).sums
        theirs: dict[int, list[bytes]] = defaultdict(list)
        for start in range(0, len(entries), ENTRY_BYTES):
            entry = entries[start : start + ENTRY_BYTES]
            theirs[bucket_of(entry)].append(entry)
        changes: list[Transition] = []
        for bucket in buckets:
            ours = set(self._of(number, bucket, after, until)) if sums[bucket] else set()
            changes += [(entry, False) for entry in sorted(ours.difference(theirs[bucket]))]
            changes += [(entry, True) for entry in theirs[bucket] if entry not in ours]
        self._apply(number, changes, None)

    def _of(self, number: int, bucket: int, after: bytes, until: bytes) -> Iterator[bytes]:
        end = bucket_start(bucket + 1)
        suffix = number.to_bytes(2, "big")
        with self._file.transaction() as txn, txn.cursor(db=self._file.others) as cursor:
            start = max(bucket_start(bucket).ljust(ENTRY_BYTES + 2, b"\0"), after + b"\0\0" if after else b"")
            for seen, value in enumerate(values(cursor, start)):
                entry = value[:ENTRY_BYTES]
                if entry >= end or (until and entry > until):
                    return
                if value[ENTRY_BYTES:] == suffix and entry != after:
                    yield entry
                if seen % SCANNED == SCANNED - 1:
                    time.sleep(BREATH_S)
