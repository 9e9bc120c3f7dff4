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

import contextlib
import errno
import logging
import shutil
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import xxhash
from msgspec.structs import replace

from luxfuse.core.holdings import BUCKETS, ENTRY_BYTES, BucketSums, Mark, bucket_of, bucket_start
from luxfuse.errors import IndexFormatError
from luxfuse.index.lifecycle import BOOT_ID

log = logging.getLogger(__name__)

FORMAT = b"1"
MAP_BYTES = 1 << 40
"""Address space only; the file grows with what is in it."""
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
_GROUP = 128
_GROUP_SUMS = struct.Struct(f"<{_GROUP}Q")
_ENTRIES = b"e"
Transition = tuple[bytes, bool]
"""An entry, and whether it is held from now on."""


class Node(msgspec.Struct, array_like=True, frozen=True):
    """A node. ``mark``: up to where its log is known; ``entries``: how many we have of it.

    ``total``: as `BucketSums.total`. ``lacking``: some of its entries were left out. ``retired``: see the module.
    """

    name: str
    log_id: bytes = b""
    sequence: int = 0
    entries: int = 0
    total: int = 0
    lacking: bool = False
    retired: bool = False

    @property
    def mark(self) -> Mark:
        """Up to where its log is known."""
        return Mark(self.log_id, self.sequence)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Node).decode


def new_sums(encoded: bytes | None = None) -> BucketSums:
    """Return sums with the hash that all nodes use."""
    return BucketSums(xxhash.xxh3_64_intdigest, encoded)


class LocationTable:
    """The open table. All but `holders` and what is in memory blocks: call it in a thread. Raises OSError if it fails.

    The entries of one number are changed by one thread at a time; different numbers may be changed at once.
    """

    def __init__(self, path: Path, most_entries: int = MOST_ENTRIES) -> None:
        """Open or create it in directory ``path``. Raises `IndexFormatError`."""
        self.path = path
        self.damaged = False
        self.left_out = 0
        """Entries of others for which there was no room."""
        self._most = most_entries
        self._writing = threading.Lock()
        """Held until memory agrees with what was written."""
        self._nodes: dict[int, Node] = {}
        self._numbers: dict[str, int] = {}
        self._users = threading.Condition()
        self._in_use = 0
        self._closing = False
        try:
            try:
                self.clean = self._open()
            except (lmdb.Error, OSError, ValueError) as exc:
                log.info("what other nodes hold is learnt anew: %s", exc)
                shutil.rmtree(path, ignore_errors=True)
                self.clean = self._open()
        except (lmdb.Error, OSError, ValueError) as exc:
            raise IndexFormatError(f"{path} cannot be used ({exc}); remove it: it comes back by itself") from exc

    def _open(self) -> bool:
        """Open the environment; returns whether it was left cleanly, or is new. Raises ValueError if it must go."""
        new = not (self.path / "data.mdb").exists()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._env = lmdb.open(
            str(self.path),
            map_size=MAP_BYTES,
            max_dbs=5,
            sync=False,
            metasync=False,
            mode=0o600,
            max_readers=512,
            readahead=False,
        )
        try:
            self._meta = self._env.open_db(b"meta")
            self._rows = self._env.open_db(b"nodes")
            self._sums = self._env.open_db(b"sums")
            self._others = self._env.open_db(b"others", dupsort=True, dupfixed=True)
            self._own = self._env.open_db(b"own", dupsort=True, dupfixed=True)
            boot = BOOT_ID.read_bytes().strip()
            with self._env.begin(write=True) as txn:
                clean = txn.get(b"clean", db=self._meta) is not None
                if not new:
                    self._check(txn, boot, clean=clean)
                txn.put(b"format", FORMAT, db=self._meta)
                txn.put(b"boot", boot, db=self._meta)
                txn.delete(b"clean", db=self._meta)
                with txn.cursor(db=self._rows) as cursor:
                    nodes = {int.from_bytes(key, "big"): _decode(value) for key, value in cursor}
            self._env.sync(True)
        except BaseException:
            self._env.close()
            raise
        self._nodes = {OWN: Node("")} | nodes
        self._numbers = {node.name: n for n, node in self._nodes.items() if n != OWN and not node.retired}
        return clean or new

    def _check(self, txn: Any, boot: bytes, *, clean: bool) -> None:
        found = txn.get(b"format", db=self._meta)
        if found != FORMAT:
            raise ValueError(f"format {found!r}, this luxfuse knows {FORMAT!r}")
        if not clean and txn.get(b"boot", db=self._meta) != boot:
            raise ValueError("the machine stopped while it was in use")

    def close(self) -> None:
        """Close it, so that it is known to be as it should. Blocks; waits for what is under way, and lets nothing begin."""
        with self._users:
            self._closing = True
            self._users.wait_for(lambda: self._in_use == 0)
        if not self.damaged:
            with contextlib.suppress(lmdb.Error):
                with self._env.begin(write=True) as txn:
                    txn.put(b"clean", b"1", db=self._meta)
                self._env.sync(True)
        self._env.close()
        if self.damaged:
            shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """Keep it open for the block: LMDB does not survive what is done to a closed environment. Raises OSError."""
        with self._users:
            if self._closing:
                raise OSError(errno.EBADF, f"{self.path}: is closed")
            self._in_use += 1
        try:
            yield
        finally:
            with self._users:
                self._in_use -= 1
                self._users.notify_all()

    @contextlib.contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Any]:
        try:
            with self._used(), self._env.begin(write=write) as txn:
                yield txn
        except (lmdb.CorruptedError, lmdb.PanicError, lmdb.PageNotFoundError) as exc:
            self._give_up(exc)
            raise OSError(errno.EIO, f"{self.path}: {exc}") from exc
        except lmdb.Error as exc:
            code = getattr(exc, "code", None)
            raise OSError(code if isinstance(code, int) and code > 0 else errno.EIO, f"{self.path}: {exc}") from exc

    def _give_up(self, why: Exception) -> None:
        if not self.damaged:
            log.warning("what other nodes hold cannot be read any more (%s); it is learnt anew after a restart", why)
        self.damaged = True

    # -- in memory, and for the event loop

    def holders(self, entry: bytes) -> list[str]:
        """Return the names of the nodes that hold an entry, for all we know. Takes microseconds."""
        names: list[str] = []
        try:
            with self._used(), self._env.begin(db=self._others) as txn, txn.cursor() as cursor:
                value = cursor.set_range_dup(_ENTRIES, entry + b"\0\0") and cursor.value()
                while value and value.startswith(entry):
                    node = self._nodes.get(int.from_bytes(value[ENTRY_BYTES:], "big"))
                    if node is not None and not node.retired:
                        names.append(node.name)
                    value = cursor.next_dup() and cursor.value()
        except lmdb.Error as exc:
            self._give_up(exc)
            return []
        except OSError:  # closed: the node leaves
            return []
        return names

    def node(self, name: str) -> Node | None:
        """Return what is known of a node."""
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
        try:
            with self._used():
                pages: int = self._env.info()["last_pgno"] + 1
                return pages * int(self._env.stat()["psize"])
        except OSError:  # closed
            return 0

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
        table = self._own if number == OWN else self._others
        made: list[Transition] = []
        left_out = 0
        with self._writing:
            node = self._nodes.get(number)
            if node is None or node.retired:
                return made
            with self._transaction(write=True) as txn:
                sums = _Sums(txn, self._sums, number)
                room = len(changes) if number == OWN else self._most - txn.stat(table)["entries"]
                for entry, held in changes:
                    if not held:
                        done = txn.delete(_ENTRIES, entry + suffix, db=table)
                    elif room > 0:
                        done = txn.put(_ENTRIES, entry + suffix, dupdata=False, db=table)
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
        txn.put(number.to_bytes(2, "big"), _encode(node), db=self._rows)

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
            with self._transaction(write=True) as txn:
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
                with self._transaction(write=True) as txn:
                    self._retire(txn, number)
                del self._numbers[name]

    def accept(self, name: str) -> None:
        """Do not take a node's entries for incomplete any more: they are to be compared again."""
        with self._writing:
            number = self._number(name)
            node = replace(self._nodes[number], lacking=False)
            with self._transaction(write=True) as txn:
                self._put_node(txn, number, node)
            self._nodes[number] = node

    def _retire(self, txn: Any, number: int) -> None:
        self._nodes[number] = node = replace(self._nodes[number], retired=True)
        self._put_node(txn, number, node)
        for group in range(BUCKETS // _GROUP):
            txn.delete(_sums_key(number, group), db=self._sums)

    def sweep(self, after: bytes, retired: frozenset[int]) -> bytes | None:
        """Remove some of the entries of these numbers, which were retired before the first call, with ``after`` b"".

        Returns ``after`` for the next call; None at the end: the numbers are free then.
        """
        doomed: list[bytes] = []
        suffixes = {number.to_bytes(2, "big") for number in retired}
        seen, value = 0, after
        with self._transaction() as txn, txn.cursor(db=self._others) as cursor:
            for value in islice(_values(cursor, after.ljust(ENTRY_BYTES + 2, b"\0")), SCANNED):
                seen += 1
                if value[ENTRY_BYTES:] in suffixes:
                    doomed.append(value)
                    if len(doomed) == WRITE_ENTRIES:
                        break
        ended = seen < SCANNED and len(doomed) < WRITE_ENTRIES
        if doomed or ended:
            with self._writing, self._transaction(write=True) as txn:
                for gone in doomed:
                    txn.delete(_ENTRIES, gone, db=self._others)
                for number in retired if ended else ():
                    txn.delete(number.to_bytes(2, "big"), db=self._rows)
        for number in retired if ended else ():
            self._nodes.pop(number, None)
        return None if ended else value

    # -- comparing

    def sums(self, name: str | None = None) -> BucketSums:
        """Return the sums of a node's entries; of our own for None."""
        number = OWN if name is None else self._number(name)
        with self._transaction() as txn:
            groups = [txn.get(_sums_key(number, group), db=self._sums) for group in range(BUCKETS // _GROUP)]
        return new_sums(b"".join(stored or bytes(8 * _GROUP) for stored in groups))

    def content(self, buckets: Sequence[int], after: bytes, limit: int) -> tuple[bytes, bytes]:
        """Return our own entries of ``buckets`` (ascending) after the entry ``after``, and up to which; b"": all."""
        found: list[bytes] = []
        with self._transaction() as txn, txn.cursor(db=self._own) as cursor:
            for bucket in buckets:
                end = bucket_start(bucket + 1)
                if after >= end:
                    continue
                for value in _values(cursor, max(bucket_start(bucket).ljust(ENTRY_BYTES, b"\0"), after)):
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
        with self._transaction() as txn, txn.cursor(db=self._own) as cursor:
            for value in _values(cursor, after or bytes(ENTRY_BYTES)):
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
        with self._transaction() as txn, txn.cursor(db=self._others) as cursor:
            start = max(bucket_start(bucket).ljust(ENTRY_BYTES + 2, b"\0"), after + b"\0\0" if after else b"")
            for seen, value in enumerate(_values(cursor, start)):
                entry = value[:ENTRY_BYTES]
                if entry >= end or (until and entry > until):
                    return
                if value[ENTRY_BYTES:] == suffix and entry != after:
                    yield entry
                if seen % SCANNED == SCANNED - 1:
                    time.sleep(BREATH_S)


class _Sums:
    """The sums of a node in one transaction."""

    def __init__(self, txn: Any, database: Any, number: int) -> None:
        self._txn = txn
        self._database = database
        self._number = number
        self.toggled = 0
        """What to add to the sum over all buckets."""
        self._groups: dict[int, list[int]] = {}

    def toggle(self, entry: bytes) -> None:
        """As for `BucketSums`."""
        group, place = divmod(bucket_of(entry), _GROUP)
        sums = self._groups.get(group)
        if sums is None:
            stored = self._txn.get(_sums_key(self._number, group), db=self._database)
            sums = self._groups[group] = list(_GROUP_SUMS.unpack(stored or bytes(8 * _GROUP)))
        value = xxhash.xxh3_64_intdigest(entry)
        sums[place] ^= value
        self.toggled ^= value

    def store(self) -> None:
        """Write what has changed."""
        for group, sums in self._groups.items():
            self._txn.put(_sums_key(self._number, group), _GROUP_SUMS.pack(*sums), db=self._database)


def _sums_key(number: int, group: int) -> bytes:
    return number.to_bytes(2, "big") + bytes((group,))


def _values(cursor: Any, start: bytes) -> Iterator[bytes]:
    if cursor.set_range_dup(_ENTRIES, start):
        yield from cursor.iternext_dup()
