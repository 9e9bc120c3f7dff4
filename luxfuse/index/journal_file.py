"""The files of the journal: LMDB, synchronous, and before it a log, so that a commit is one write to the disk.

Theory of operation
-------------------
A commit is appended to the log (`journal_log`), and is durable then. What the log holds is kept in memory too
(``_logged``), over what LMDB has. When the log is full, all of it goes to LMDB in one transaction, which also notes a new
*generation*: batches of the old one count no more from then on, and the log begins again. A record that was removed
before that never comes to LMDB. After a restart what the log says of the generation that LMDB has noted is put over it.

It cannot be told of a transaction that failed whether it is on the platter, so nor which generation counts. So nothing is
appended until one has succeeded; each tries with all that the log holds. The first commit of a run is a transaction, too.

A commit that is too large for the log, that it cannot take (EIO), or for which there is none, goes straight to LMDB. To
make a log takes as long as a large write; `make_log` does it beside commits.

What the log holds must find room in LMDB on a disk that has become full meanwhile, or the next mount could not begin. So
nothing is appended unless LMDB's file has that room already, `ROOM_FACTOR` logs for at most `LOGGED_RECORDS` records:
their values, a page that each of them changes, and one more where that has to be split.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from heapq import merge
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from luxfuse import lasting
from luxfuse.durable import make_private, sync_directory
from luxfuse.errors import IndexFormatError
from luxfuse.estate.trail import Stream
from luxfuse.index import journal_log
from luxfuse.index.growth import Growth
from luxfuse.index.journal_copy import INLINE_BYTES, JournalCopy, Record
from luxfuse.index.journal_log import JournalLog
from luxfuse.index.records import Decode, encode
from luxfuse.index.uncommitted import U64
from luxfuse.steps import reached

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
LOGLESS_VERSION = 1
"""Of journals without a log, which are taken over."""
GENERATION = b"log"
"""The key in META: absent as long as there is no log."""
OPENING = b"opening"
"""The key in META of the number of the last opening; see `journal_copy`."""
OWNER = b"owner"
"""The key in META of the estate of the daemon that opened it last, 0 for none."""
_OF_THE_FILE = (b"format", GENERATION, OPENING)
"""Keys in META that say something of this file only."""
MAP_BYTES = 1 << 36
"""Address space only; the file grows with what is in it."""
LOGGED_RECORDS = 1024
"""Held in memory at most, and brought to LMDB at once. A batch has one or more; what is removed again counts once."""
ROOM_FACTOR = 3


class Table(IntEnum):
    """The named databases. Keys and values are described in `journal`."""

    META = 0
    FILES = 1
    INLINE = 2
    DELETES = 3
    OPERATIONS = 4
    UPLOADS = 5
    PARTS = 6


Records = dict[tuple[Table, bytes], bytes | None]
"""Values by table and key; None removes a key."""


_decode_change = msgspec.msgpack.Decoder(tuple[Table, bytes, bytes | None]).decode


def inline_bytes(changes: Records) -> int:
    """Return how many bytes of content are among changes."""
    return sum(len(value) for (table, _), value in changes.items() if table is Table.INLINE and value is not None)


class JournalFile:
    """An open environment. ``damaged``: it takes nothing before `reopen`."""

    def __init__(self, path: Path, stream: Stream | None = None, copy: JournalCopy | None = None) -> None:
        """Open or create it in directory ``path``; ``stream``: its part of the trail. Raises `IndexFormatError`.

        ``copy``: beside the staging files; what it says replaces a journal that was not the last to be used with these.
        """
        self.path = path
        self._copy = copy
        self._stream = stream
        self.damaged = False
        self._growth = Growth(path)
        self._using = threading.Lock()
        """Held by what changes the file or closes it: a commit may run on when the journal's owner ends."""
        self._locked = -1
        """The directory, open."""
        self._env: Any = None
        self._logged: Records = {}
        self._log: JournalLog | None = None
        self._closed = False
        self._log_fails = False
        self._settled = False
        """Whether the last transaction of LMDB is known to be on the platter."""
        self._roomy = False
        """Whether LMDB has room for what the log may hold."""
        try:
            self._open()
            version = self._read(Table.META, b"format")
        except (lmdb.Error, OSError) as exc:
            self.close(fails=True)
            raise self.unusable(exc) from exc
        if version not in (None, U64.pack(LOGLESS_VERSION), U64.pack(FORMAT_VERSION)):
            self.close(fails=True)
            raise IndexFormatError(
                f"journal {path} has format {int.from_bytes(version or b'', 'big')}, this luxfuse knows {FORMAT_VERSION}; "
                "use the luxfuse that wrote it: it may hold what was not uploaded yet"
            )
        try:
            self._take_up_log()
            if copy is not None:
                self._agree_with(copy)
        except IndexFormatError:
            self.close(fails=True)
            raise
        except (OSError, lmdb.Error, msgspec.MsgspecError) as exc:
            self.close(fails=True)
            raise self.unusable(exc) from exc

    def _take_up_log(self) -> None:
        generation = self._read(Table.META, GENERATION)
        if generation is None:
            return
        found = journal_log.found(self.path, generation)
        self._logged = {(Table(table), key): value for (table, key), value in found.records.items()}
        self._log = JournalLog(self.path, generation, found.end)

    def unusable(self, exc: Exception) -> IndexFormatError:
        """Return the error that says so."""
        cause = self._error(exc) if isinstance(exc, lmdb.Error) else exc
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return IndexFormatError(f"journal {self.path} cannot be written ({os.strerror(cause.errno)}): free space there")
        return IndexFormatError(
            f"journal {self.path} cannot be used ({exc}); run: mv {self.path} {self.path}.damaged, and mount again: what "
            "was not uploaded yet is brought up by what the copy of the journal in the cache directory says of it"
        )

    def _agree_with(self, copy: JournalCopy) -> None:
        """Take what the copy says where that was used later, and begin the copy of this run. Raises OSError."""
        own = U64.unpack(self.get(Table.META, OPENING) or U64.pack(0))[0]
        found = copy.read()
        if found is not None and found.opening > own:
            changes: Records = {(Table(table), key): None for table, key, _ in self._everything()}
            for (table, key), value in found.records.items():
                in_file = table == Table.FILES and (Table.INLINE, key) not in found.records
                alone = encode(msgspec.structs.replace(Decode.file(value), has_inline=False)) if in_file else value
                changes[Table(table), key] = alone
            self._commit(changes)
            if any(table not in (Table.META, Table.INLINE) for table, _ in found.records):
                log.warning(
                    "journal %s was not the last to be used with the cache directory: what is not in the under-store yet "
                    "is taken from the copy there, %s",
                    self.path,
                    copy.path,
                )
            own = found.opening
        self._commit({(Table.META, OPENING): U64.pack(own + 1)})
        copy.begin(own + 1, self._everything)

    def _everything(self) -> Iterator[Record]:
        for table in Table:
            yield from _copied((table, key, value) for key, value in self.records(table))

    def _open(self) -> None:
        new = not (self.path / "data.mdb").exists()
        make_private(self.path)
        self._lock()
        self._env = lmdb.open(
            str(self.path), map_size=MAP_BYTES, max_dbs=len(Table), sync=True, metasync=True, mode=0o600, readahead=False
        )
        self._env.reader_check()
        self._databases = {table: self._env.open_db(table.name.lower().encode()) for table in Table}
        if new:
            for directory in (self.path, self.path.parent):
                sync_directory(directory)

    def _lock(self) -> None:
        """Have the directory for us alone until `close`: a log is no place for two. Raises `IndexFormatError`."""
        if self._locked >= 0:
            return
        fd = lasting.lock(self.path, os.O_RDONLY | os.O_DIRECTORY)
        if fd is None:
            raise IndexFormatError(
                f"journal {self.path} is in use by another daemon, whose cache directory has the same path, in another "
                "container, say: give each a state directory of its own"
            )
        self._locked = fd

    def reopen(self) -> None:
        """Open it again after LMDB has given it up. Raises OSError; call it in the thread that reads."""
        with self._using:
            self._env.close()
            try:
                self._open()
            except lmdb.Error as exc:
                raise self._error(exc) from exc
        self.damaged = False

    # -- what outlives the daemon before it is committed

    def take_up(self) -> None:
        """Commit what the daemon before this one had not committed. Raises OSError, `IndexFormatError` for another one's.

        That another mount has had the journal in between, as it may where nobody has held the lock, is seen by its owner;
        one that was lost and began anew has none.
        """
        if self._stream is None:
            return
        if self._stream.continued and self.get(Table.META, OWNER) not in (None, self.owner):
            raise IndexFormatError(
                f"journal {self.path} has been used by another mount since, so what programs have open cannot be gone on "
                "with; unmount, and mount again"
            )
        mark = self._stream.mark()
        records: Records = {}
        for _, payload in self._stream.left():
            table, key, value = _decode_change(payload)
            records[table, key] = value
        if records:
            self.commit(records)
        self._stream.written(mark)

    @property
    def owner(self) -> bytes:
        """What META says of the one that has it now."""
        return U64.pack(self._stream.identity if self._stream is not None else 0)

    def outlive(self, table: Table, key: bytes, value: bytes | None) -> None:
        """A change is made that is committed later."""
        if self._stream is not None:
            self._stream.append(encode((table, key, value)))

    def together(self) -> AbstractContextManager[None]:
        """Let changes of journal and index outlive the daemon together; see `Trail.together`."""
        return self._stream.together() if self._stream is not None else nullcontext()

    def mark(self) -> int:
        """A commit begins with all such changes; returns what `written` is to be told."""
        return self._stream.mark() if self._stream is not None else 0

    def written(self, mark: int) -> None:
        """They are committed."""
        if self._stream is not None:
            self._stream.written(mark)

    # -- what is committed

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return a committed value. Raises OSError."""
        logged = self._logged
        return logged[table, key] if (table, key) in logged else self._read(table, key)

    def _read(self, table: Table, key: bytes) -> bytes | None:
        try:
            with self._env.begin(db=self._databases[table], buffers=False) as txn:
                value: bytes | None = txn.get(key)
                return value
        except lmdb.Error as exc:
            raise self._error(exc) from exc

    def records(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield all committed (key, value) of a table, by key. Raises OSError."""
        try:
            with self._env.begin(buffers=False) as txn, txn.cursor(db=self._databases[table]) as cursor:
                yield from over(cursor.iternext(keys=True, values=True), self._logged, table)
        except lmdb.Error as exc:
            raise self._error(exc) from exc

    def make_log(self) -> None:
        """Make the log if there is none. Blocks; commits may go on meanwhile."""
        if self._log is not None:
            return
        made = journal_log.made(self.path)
        with self._using:
            if made is not None and self._closed:
                made.close()
            else:
                self._log = made

    def commit(self, records: Records) -> None:
        """Make changes durable as a whole. Raises OSError with none of them made, as far as can be told."""
        try:
            with self._using:
                self._commit(records)
                if self._copy is not None:
                    noted = _copied((table, key, value) for (table, key), value in records.items())
                    self._copy.append(noted, self._everything)
        except lmdb.Error as exc:
            raise self._error(exc) from exc

    def _commit(self, records: Records) -> None:
        if self._log is not None and self._takes(records):
            try:
                if self._log.append(records):
                    self._logged.update(records)
                    self._log_fails = False
                    return
            except OSError as exc:
                log.log(logging.INFO if self._log_fails else logging.WARNING, "the log of %s fails: %s", self.path, exc)
                self._log_fails = True
        self._write_back(records)

    def _takes(self, records: Records) -> bool:
        """Whether the log may be appended to."""
        return self._settled and self._roomy and len(self._logged) + len(records) <= LOGGED_RECORDS

    def _write_back(self, records: Records) -> None:
        """Bring changes, and what the log holds, to LMDB."""
        changes = {(Table.META, b"format"): U64.pack(FORMAT_VERSION)} | self._logged | records
        if self._log is not None:
            generation = changes[Table.META, GENERATION] = journal_log.new_generation()
        self._settled = False
        self._growth.ahead(self._env)
        with self._env.begin(write=True) as txn:
            for (table, key), value in changes.items():
                if value is None:
                    txn.delete(key, db=self._databases[table])
                else:
                    txn.put(key, value, db=self._databases[table])
        reached("journal.written_back")
        self._logged = {}
        if self._log is not None:
            self._log.restart(generation)
            self._roomy = self._growth.reserve(self._env, ROOM_FACTOR * self._log.bytes)
        self._settled = True

    def _error(self, exc: lmdb.Error) -> OSError:
        self.damaged = self.damaged or isinstance(exc, lmdb.PanicError)
        code = getattr(exc, "code", None)
        number = errno.ENOSPC if isinstance(exc, lmdb.MapFullError) else errno.EIO
        return OSError(code if isinstance(code, int) and code > 0 else number, f"journal {self.path}: {exc}")

    def close(self, *, fails: bool = False) -> None:
        """Close it; if what it is for ``fails``, nobody else may have the directory before a successor."""
        with self._using:
            if self._log is not None:
                self._log.close()
            self._log, self._closed = None, True
            if self._env is not None:
                self._env.close()
            if self._copy is not None:
                self._copy.close()
            if self._locked >= 0:
                (lasting.set_aside if fails else lasting.unlock)(self.path, self._locked)
                self._locked = -1


def _copied(records: Iterable[Record]) -> Iterator[Record]:
    """Leave out contents that are in staging files as well; what there was of them before is gone, too."""
    for table, key, value in records:
        if table == Table.META and key in _OF_THE_FILE:
            continue
        long = table == Table.INLINE and value is not None and len(value) > INLINE_BYTES
        yield table, key, None if long else value


def over(
    stored: Iterable[tuple[bytes, bytes]], logged: Mapping[tuple[Any, bytes], bytes | None], table: Table
) -> Iterator[tuple[bytes, bytes]]:
    """Yield what LMDB has of a table, by key, with what the log says put over it."""
    values = {key: value for (its_table, key), value in logged.items() if its_table == table}
    there = sorted((key, value) for key, value in values.items() if value is not None)
    return merge((each for each in stored if each[0] not in values), there)
