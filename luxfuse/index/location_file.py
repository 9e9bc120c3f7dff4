"""The LMDB of the locations: opening, transactions, and beginning anew where it cannot be believed."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from luxfuse.core.holdings import ENTRY_BYTES, Mark
from luxfuse.errors import IndexFormatError
from luxfuse.index.lifecycle import boot_id

log = logging.getLogger(__name__)

FORMAT = b"1"
MAP_BYTES = 1 << 40
"""Address space only; the file grows with what is in it."""
ENTRIES = b"e"
"""The one key of the tables of entries."""


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


_decode = msgspec.msgpack.Decoder(Node).decode


class LocationFile:
    """The open environment, with its tables. Used by any thread."""

    def __init__(self, path: Path) -> None:
        """Open or create it in directory ``path``. Raises `IndexFormatError`."""
        self.path = path
        self.damaged = False
        self.found: dict[int, Node] = {}
        """The nodes that it had when it was opened, by number."""
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
            self.nodes = self._env.open_db(b"nodes")
            self.sums = self._env.open_db(b"sums")
            self.others = self._env.open_db(b"others", dupsort=True, dupfixed=True)
            self.own = self._env.open_db(b"own", dupsort=True, dupfixed=True)
            boot = boot_id()
            with self._env.begin(write=True) as txn:
                clean = txn.get(b"clean", db=self._meta) is not None
                if not new:
                    self._check(txn, boot, clean=clean)
                txn.put(b"format", FORMAT, db=self._meta)
                txn.put(b"boot", boot, db=self._meta)
                txn.delete(b"clean", db=self._meta)
                with txn.cursor(db=self.nodes) as cursor:
                    self.found = {int.from_bytes(key, "big"): _decode(value) for key, value in cursor}
            self._env.sync(True)
        except BaseException:
            self._env.close()
            raise
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
    def used(self) -> Iterator[None]:
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
    def transaction(self, *, write: bool = False) -> Iterator[Any]:
        """Begin a transaction, which is committed if the block ends well. Raises OSError."""
        try:
            with self.used(), self._env.begin(write=write) as txn:
                yield txn
        except (lmdb.CorruptedError, lmdb.PanicError, lmdb.PageNotFoundError) as exc:
            self.give_up(exc)
            raise OSError(errno.EIO, f"{self.path}: {exc}") from exc
        except lmdb.Error as exc:
            code = getattr(exc, "code", None)
            raise OSError(code if isinstance(code, int) and code > 0 else errno.EIO, f"{self.path}: {exc}") from exc

    def give_up(self, why: Exception) -> None:
        """Remove it when it is closed: it is damaged."""
        if not self.damaged:
            log.warning("what other nodes hold cannot be read any more (%s); it is learnt anew after a restart", why)
        self.damaged = True

    # -- for the event loop

    def holders(self, entry: bytes) -> list[int]:
        """Return the numbers of the nodes that hold an entry. Takes microseconds."""
        numbers: list[int] = []
        try:
            with self.used(), self._env.begin(db=self.others) as txn, txn.cursor() as cursor:
                value = cursor.set_range_dup(ENTRIES, entry + b"\0\0") and cursor.value()
                while value and value.startswith(entry):
                    numbers.append(int.from_bytes(value[ENTRY_BYTES:], "big"))
                    value = cursor.next_dup() and cursor.value()
        except lmdb.Error as exc:
            self.give_up(exc)
            return []
        except OSError:  # closed: the node leaves
            return []
        return numbers

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that are in use, or were."""
        try:
            with self.used():
                pages: int = self._env.info()["last_pgno"] + 1
                return pages * int(self._env.stat()["psize"])
        except OSError:  # closed
            return 0


def values(cursor: Any, start: bytes) -> Iterator[bytes]:
    """Yield the values of a table of entries from ``start`` on."""
    if cursor.set_range_dup(ENTRIES, start):
        yield from cursor.iternext_dup()
