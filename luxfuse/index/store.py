"""The index environment: an LMDB with a write-behind layer, so that the event loop never waits for a commit.

Theory of operation
-------------------
`get` answers at once: from the changes that are not committed yet, else from LMDB (a memory map; microseconds).
`put` and `delete` only change memory. One writer thread commits: `flusher` about every `COMMIT_INTERVAL_S`, `flush`
now, and `run` together with a function of the caller's in one transaction (used for bulk work such as merging a
listing). Commits use fdatasync without syncing the meta page (integrity over durability): after a power cut the
environment is whole but may lack the last commits; what it describes is a cache and comes back from the under-store.

Where the daemon has a successor (`estate.trail`), a change is in the trail before anybody can see it, until it is
committed: a kill loses none. META ``trail`` says how far a commit went, so that none is made again over what `run` has
changed since; each record says by itself where it was made (`AT`), as those of an index that cannot be opened move.

When a commit fails (ENOSPC, EIO), the changes stay in memory and are tried again; `failing` says so. Beyond
`PENDING_BOUND` changes, further ones are refused with OSError, so memory stays bounded.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

import lmdb
import msgspec
import trio

from luxfuse.durable import make_private
from luxfuse.errors import IndexDamaged, IndexFormatError
from luxfuse.estate.trail import Stream
from luxfuse.index.growth import Growth
from luxfuse.index.transactions import Transaction, scan
from luxfuse.index.uncommitted import U64, Changes, Table, Uncommitted, overlaid

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT_VERSION = 2
MAP_BYTES = 1 << 40
"""Address space only; the file grows with what is in it."""
COMMIT_INTERVAL_S = 0.1
RETRY_INTERVAL_S = 2.0
PENDING_BOUND = 400_000
DOUBTED = "damaged"
"""A file in the directory of an index that is to be set aside."""
AT = b"at"
"""Key of META in the trail only: where that ended before a change. Last of each record, as records that rest move."""
_DAMAGE = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError, lmdb.PanicError)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Table, bytes, bytes | None]]).decode


class IndexStore:
    """One open index. Everything but the commits themselves is called from the event loop's thread."""

    def __init__(self, path: Path, stream: Stream | None = None) -> None:
        """Open or create the index in directory ``path``; ``stream``: its part of the trail. Raises `IndexFormatError`."""
        self.path = path
        self._stream = stream
        self.failing: str | None = None
        self.doubted: str | None = None
        """What is damaged, if that was noticed: the next start sets the index aside."""
        self._growth = Growth(path)
        self._pending = Uncommitted()
        self._committing = Uncommitted()
        self._warm: Changes = {}
        """Records that `warm` read last, as far as they were not changed since."""
        self._warming: set[tuple[Table, bytes]] = set()
        """The keys that it reads now, and that nobody has changed since it began."""
        self._writer = trio.Lock()
        self.commits = 0
        """How many were made that had changes."""
        self._changed = trio.Event()
        self.closed = False
        make_private(path)
        try:
            self._env = lmdb.open(
                str(path),
                map_size=MAP_BYTES,
                max_dbs=len(Table),
                metasync=False,
                mode=0o600,
                max_readers=512,
                readahead=False,
            )
            self._databases = {table: self._env.open_db(table.name.lower().encode()) for table in Table}
        except _DAMAGE as exc:
            raise IndexDamaged(f"index {path} is damaged ({str(exc).removeprefix(f'{path}: ')})") from exc
        except lmdb.Error as exc:
            advice = "free space there" if isinstance(exc, lmdb.DiskError) else "remove it to start with a cold cache"
            raise IndexFormatError(f"index {path} cannot be opened ({exc}); {advice}") from exc
        self.is_new = self._check_format()
        """Whether there was none."""
        self._take_up()

    def _take_up(self) -> None:
        """Make the changes that the daemon before this one had not committed: a new index has nothing to change."""
        if self._stream is None or self.is_new:
            return
        identity, committed = self._stream.identity, 0
        if (stored := self.get(Table.META, b"trail")) is not None and U64.unpack(stored[:8])[0] == identity:
            committed = U64.unpack(stored[8:])[0]
        for position, payload in self._stream.left():
            changes = {(table, key): value for table, key, value in _decode(payload)}
            made_at = changes.pop((Table.META, AT), None)
            if (position if made_at is None else U64.unpack(made_at)[0]) >= committed:
                self._pending.update(changes)
                self._changed.set()

    def _check_format(self) -> bool:
        """Returns whether there is none yet. Raises `IndexFormatError`."""
        found = self.get(Table.META, b"format")
        if found is None:
            self.put(Table.META, b"format", U64.pack(FORMAT_VERSION))
        elif len(found) != U64.size:
            self._env.close()
            raise IndexDamaged(f"index {self.path} is damaged (its format is {found[:8]!r})")
        elif U64.unpack(found)[0] != FORMAT_VERSION:
            version = U64.unpack(found)[0]
            self._env.close()
            raise IndexFormatError(
                f"index {self.path} has format {version}, this luxfuse knows {FORMAT_VERSION}; "
                "use the luxfuse that wrote it, or remove it to start with a cold cache"
            )
        return found is None

    def doubt(self, why: Exception) -> IndexDamaged:
        """Note that a record is damaged, for the next start to set the index aside; returns the error to raise."""
        if self.doubted is None:
            self.doubted = f"the index is damaged ({why}); it is set aside when the source is mounted again"
            log.warning("index %s: %s", self.path, self.doubted)
            try:
                (self.path / DOUBTED).touch(mode=0o600)
            except OSError as exc:
                log.warning("index %s: that it is damaged cannot be noted: %s", self.path, exc.strerror)
        return IndexDamaged(f"index {self.path} is damaged ({why})")

    # -- reading and changing, at once

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the newest value, committed or not; None if there is none."""
        for changes in (self._pending.records, self._committing.records):
            if changes and (table, key) in changes:
                return changes[table, key]
        if (table, key) in self._warm:
            return self._warm[table, key]
        try:
            with self._env.begin(db=self._databases[table], buffers=False) as txn:
                value: bytes | None = txn.get(key)
                return value
        except _DAMAGE as exc:
            raise self.doubt(exc) from exc

    def may_have(self, table: Table, key: bytes) -> bool:
        """Whether a value is committed, or about to be: a kill may leave it, whatever has been changed since."""
        if self._committing.records.get((table, key)) is not None:
            return True
        try:
            with self._env.begin(db=self._databases[table], buffers=False) as txn:
                return txn.get(key) is not None
        except _DAMAGE as exc:
            raise self.doubt(exc) from exc

    @property
    def commits_to_come(self) -> int:
        """What `commits` will be when all that is changed now is on the platter, the meta page one commit later."""
        return self.commits + (3 if self._writer.locked() else 2)

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set a value; committed soon."""
        self._change(table, key, value)

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a key; committed soon."""
        self._change(table, key, None)

    def _change(self, table: Table, key: bytes, value: bytes | None) -> None:
        self.apply({(table, key): value})

    @property
    def refusing(self) -> bool:
        """Whether it cannot be written, and no more changes fit into memory."""
        return self.failing is not None and len(self._pending.records) >= PENDING_BOUND

    def apply(self, changes: Changes) -> None:
        """Make several changes, to be committed together; None removes a key. Raises OSError with none of them made."""
        if self.failing is not None and self.refusing:
            raise OSError(errno.ENOSPC, f"index {self.path} takes no changes: {self.failing}")
        if self._stream is not None:
            made = [(table, key, value) for (table, key), value in changes.items()]
            made.append((Table.META, AT, U64.pack(self._stream.end)))
            self._stream.append(_encode(made))
        self._pending.update(changes)
        if self._warm:
            for changed in self._warm.keys() & changes.keys():
                del self._warm[changed]
        if self._warming:
            self._warming.difference_update(changes)
        self._changed.set()

    async def warm(self, table: Table, keys: Iterable[bytes]) -> None:
        """Read values in a thread; `get` knows them until they are changed, or this is called again.

        For tables that only `apply` changes. Reading LMDB passes the interpreter lock on, and while threads are busy the
        event loop gets it back late: measured, 66 us for each value.
        """
        if self._warming:
            return  # somebody else does it now: do without
        pending, committing = self._pending.records, self._committing.records
        wanted = [key for key in keys if (table, key) not in pending and (table, key) not in committing]
        self._warming = {(table, key) for key in wanted}

        def read() -> list[bytes | None]:
            with self._env.begin(db=self._databases[table], buffers=False) as txn:
                return [txn.get(key) for key in wanted]

        try:
            found = await trio.to_thread.run_sync(read)
            self._warm = {
                (table, key): value for key, value in zip(wanted, found, strict=True) if (table, key) in self._warming
            }
        finally:
            self._warming = set()

    def cool(self) -> None:
        """Forget what `warm` has read, and reads now: it was changed by a function given to `run`."""
        self._warm = {}
        self._warming = set()

    def committed_items(self, table: Table, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` committed (key, value) from ``start`` on; `flush` first if uncommitted ones matter."""
        found = []
        with self._env.begin(db=self._databases[table], buffers=False) as txn, txn.cursor() as cursor:
            for item in scan(cursor, start, prefix):
                found.append(item)
                if len(found) >= limit:
                    break
        return found

    def last_committed_key(self, table: Table, prefix: bytes) -> bytes | None:
        """Return the last committed key that begins with ``prefix``, which does not end in 0xff."""
        beyond = prefix[:-1] + bytes((prefix[-1] + 1,))
        with self._env.begin(db=self._databases[table], buffers=False) as txn, txn.cursor() as cursor:
            if cursor.prev() if cursor.set_range(beyond) else cursor.last():
                key: bytes = cursor.key()
                return key if key.startswith(prefix) else None
        return None

    def current_items(self, table: Table, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Yield `committed_items`, with their newest values, without those deleted since the last commit."""
        found: list[tuple[bytes, bytes]] = []
        with self._env.begin(db=self._databases[table], buffers=False) as txn, txn.cursor() as cursor:
            for key, stored in scan(cursor, start, prefix):
                value: bytes | None = stored
                for changes in (self._committing.records, self._pending.records):
                    value = changes.get((table, key), value)
                if value is not None:
                    found.append((key, value))
                    if len(found) >= limit:
                        break
        return found

    def names(self, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` (key, value) of one directory's NAMES from ``start`` on, as they are now."""
        try:
            return self._names(start, limit)
        except _DAMAGE as exc:
            raise self.doubt(exc) from exc

    def _names(self, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        layers = (self._pending, self._committing)
        found: list[tuple[bytes, bytes]] = []
        with self._env.begin(db=self._databases[Table.NAMES], buffers=False) as txn, txn.cursor() as cursor:
            if not any(layer.has_names(start[:8]) for layer in layers):
                stored = list(islice(cursor.iternext(), limit)) if cursor.set_range(start) else []
                if not stored or stored[-1][0].startswith(start[:8]):
                    return stored
                return [item for item in stored if item[0].startswith(start[:8])]
            for key, value in overlaid(scan(cursor, start, start[:8]), layers, start):
                if value is not None:
                    found.append((key, value))
                    if len(found) >= limit:
                        break
        return found

    def uncommitted_keys(self, table: Table, prefix: bytes) -> list[bytes]:
        """Return the keys with changes that no transaction has begun to commit."""
        return [key for changed, key in self._pending.records if changed is table and key.startswith(prefix)]

    @property
    def uncommitted(self) -> int:
        """Number of changes that are only in memory."""
        return len(self._pending.records) + len(self._committing.records)

    # -- committing

    async def flush(self) -> None:
        """Commit everything changed so far. Raises OSError if the index cannot be written."""
        if self.uncommitted:
            await self.run(lambda _txn: None)

    async def run(self, function: Callable[[Transaction], T]) -> T:
        """Commit all changes and what ``function`` does, in one transaction in the writer thread.

        Raises OSError if the index cannot be written; then nothing of ``function`` is stored.
        """
        async with self._writer:
            self._committing, self._pending = self._pending, Uncommitted()
            changes = self._committing
            mark = 0
            if self._stream is not None:
                mark = self._stream.mark()
                changes.records[Table.META, b"trail"] = U64.pack(self._stream.identity) + U64.pack(self._stream.end)
            try:
                result = await trio.to_thread.run_sync(self._commit, changes.records, function)
            except BaseException:
                changes.update(self._pending.records)
                self._pending, self._committing = changes, Uncommitted()
                raise
            self._committing = Uncommitted()
            self.commits += bool(changes.records)
            if self._stream is not None:
                self._stream.written(mark)
            if self.failing:
                log.info("index %s is written again", self.path)
                self.failing = None
            return result

    async def view(self, function: Callable[[Transaction], T]) -> T:
        """Return the result of ``function``, in a thread, on the index as it is committed at this instant.

        Until it ends the room of records that are removed meanwhile is not used again.
        """

        def read() -> T:
            with self._env.begin() as txn:
                return function(Transaction(txn, self._databases))

        return await trio.to_thread.run_sync(read)

    def _commit(self, changes: Changes, function: Callable[[Transaction], T]) -> T:
        try:
            self._growth.ahead(self._env)
            with self._env.begin(write=True) as txn:
                for (table, key), value in changes.items():
                    if value is None:
                        txn.delete(key, db=self._databases[table])
                    else:
                        txn.put(key, value, db=self._databases[table])
                return function(Transaction(txn, self._databases))
        except lmdb.Error as exc:
            code = getattr(exc, "code", None)
            number = code if isinstance(code, int) and code > 0 else errno.EIO
            raise OSError(number, f"index {self.path}: {exc}") from exc

    async def flusher(self) -> None:
        """Commit in the background until cancelled; a failing commit is logged once and tried again."""
        while True:
            await self._changed.wait()
            await trio.sleep(COMMIT_INTERVAL_S)
            self._changed = trio.Event()
            try:
                await self.flush()
            except OSError as exc:
                if not self.failing:
                    log.warning("index cannot be written, keeping changes in memory: %s", exc)
                self.failing = exc.strerror or str(exc)
                await trio.sleep(RETRY_INTERVAL_S)
                self._changed.set()

    async def sync(self) -> None:
        """Bring all commits to the platter, the meta page included."""
        await trio.to_thread.run_sync(self._env.sync, True)

    def abandon(self) -> None:
        """Close it without a sync: it is not used."""
        self.closed = True
        self._env.close()

    def close(self) -> None:
        """Sync and close; call `flush` before."""
        self.closed = True
        self._env.sync(True)
        self._env.close()
