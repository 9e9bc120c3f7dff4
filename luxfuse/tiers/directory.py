"""Cache files in one directory. Every method here blocks: call it in a thread.

Layout below the directory: ``cache.json`` (format version, identity), ``lock``, ``objects/ab/<id in hex>``, ``moving``
(files that come from another directory, or have gone to one), and ``staging``, which is made here and otherwise left
alone (see `staging`). An object file is sparse and holds each cached
page at its own offset. The identity ties the files to the index that describes them: when they do not match, the files
are worthless and are removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from luxfuse import lasting
from luxfuse.durable import make_private
from luxfuse.errors import ConfigError
from luxfuse.tiers.last_writes import LastWrites
from luxfuse.tiers.slots import MOST_SLOTS, slots_of, taken
from luxfuse.types import Buffer

CANNOT_WRITE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Of a disk that can be read."""
FORMAT_VERSION = 1
FILE_LOCKS = 64
_OID = re.compile("[0-9a-f]{32}")
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class FileSystemSpace:
    """The file system that holds the directory, in bytes."""

    free_bytes: int
    total_bytes: int


class Unreadable(OSError):
    """The disk below a cache directory cannot be read."""


class CacheDirectory:
    """One directory of cache files, used by one daemon at a time."""

    def __init__(self, base: Path, source_id: str, slot: str | None = None) -> None:
        """Claim ``base``/``source_id`` or, where another daemon has it, ``source_id.1`` and so on; ``slot``: just that one.

        One that was set aside, or left by a predecessor, comes first. Raises `ConfigError` where the directory cannot be
        used, `MountError` where another daemon has the slot.
        """
        self.name = str(base)
        self._writers = threading.BoundedSemaphore(os.cpu_count() or 1)
        self.last_writes = LastWrites()
        self._expected: set[bytes] = set()
        self.can_punch = True
        """Whether the file system can give the room of a part of a file back, as far as we know."""
        self._file_locks = [threading.Lock() for _ in range(FILE_LOCKS)]
        try:
            self._claim(base, source_id, slot)
            self._objects = str(self.path / "objects")
            self._described = self.path / "cache.json"
            self.device = self.path.stat().st_dev
            self._take_up()
        except OSError as exc:
            raise ConfigError(f"--cache-dir {base}: {exc.strerror}; give a directory that can be written") from None

    def _claim(self, base: Path, source_id: str, slot: str | None) -> None:
        for each in slots_of(base, source_id) if slot is None else [slot]:
            self.path = base / each
            make_private(self.path)
            if (lock := lasting.lock(self.path / "lock")) is not None:
                self._lock = lock
                return
        if slot is not None:
            raise taken(self.path)
        raise ConfigError(f"--cache-dir {base}: {MOST_SLOTS} daemons use this source here; give another directory")

    @property
    def slot(self) -> str:
        """The claimed subdirectory's name; the index of this cache goes by it."""
        return self.path.name

    def _take_up(self) -> None:
        try:
            # A full disk is read from, and a read-only one may hold what is to be uploaded yet.
            self.identity = self._prepare(fine=CANNOT_WRITE)
            with ignored_if_read_only():
                self.remove_left(self.left_of_moves())
        except BaseException:
            self.set_aside()
            raise

    def _prepare(self, *, fine: tuple[int, ...] = ()) -> str:
        """Make what is missing and return the identity. A file cannot be written: errors of ``fine`` are no matter."""
        objects = self.path / "objects"
        objects.mkdir(mode=0o700, exist_ok=True)
        make_private(self.path / "staging")
        make_private(self.path / "moving")
        try:
            found = json.loads(self._described.read_text())
        except (FileNotFoundError, ValueError):
            found = {"format": FORMAT_VERSION, "identity": secrets.token_hex(8)}
            self._described.write_text(json.dumps(found))
        version = found.get("format") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise ConfigError(f"--cache-dir {self.name}: {self._described} has format {version}, this luxfuse knows "
                              f"{FORMAT_VERSION}; give another directory or remove it")  # fmt: skip
        probe = objects / ".probe"
        try:
            probe.write_bytes(bytes(4096))
        except OSError as exc:
            if exc.errno not in fine:
                raise
        with ignored_if_read_only():  # nothing is there then
            probe.unlink(missing_ok=True)
        return str(found["identity"])

    def probe(self) -> bool:
        """Return whether files can be written again; makes a lost directory anew, on the same file system only.

        A cache disk that went away leaves an empty mountpoint on another file system: filling that would be wrong.
        Raises OSError while it cannot be written. False: it can, but the files that were here are lost.
        """
        if _existing_parent(self.path).stat().st_dev != self.device:
            raise OSError(errno.ENODEV, "the cache directory's file system is gone")
        make_private(self.path)
        self._lock_again()
        before, self.identity = self.identity, self._prepare()
        return before == self.identity

    def _lock_again(self) -> None:
        """Hold the lock of the directory as it is now; the lock file may have been removed with all the rest."""
        path = self.path / "lock"
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(self._lock)):
                return
        lock = lasting.lock(path)
        if lock is None:
            raise OSError(errno.EBUSY, "another daemon has taken the cache directory")
        os.close(self._lock)  # and so does the keeper, as it has the new one by the same path
        self._lock = lock

    def space(self) -> FileSystemSpace:
        """Return the file system's free (to us) and total bytes."""
        st = os.statvfs(self.path)
        return FileSystemSpace(st.f_bavail * st.f_frsize, st.f_blocks * st.f_frsize)

    def look(self) -> FileSystemSpace:
        """Do what `space` does, and find out whether the disk can be read and written, without writing.

        Raises OSError, `Unreadable` where the disk gives nothing of what it holds.
        """
        try:
            space, flags = self.space(), os.statvfs(self.path).f_flag
            with contextlib.suppress(FileNotFoundError):  # somebody has removed that alone
                self._read_past_memory()
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise Unreadable(exc.errno, exc.strerror) from exc
        if flags & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return space

    def _read_past_memory(self) -> None:
        """Read a block from the disk itself."""
        fd = _open_unbuffered(self._described)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as memory:
                os.preadv(fd, [memory], 0)
        finally:
            os.close(fd)

    # -- object files

    def file_of(self, oid: bytes) -> Path:
        """Return the path of an object's file."""
        text = oid.hex()
        return self.path / "objects" / text[:2] / text

    def place_of(self, oid: bytes) -> str:
        """Return what `file_of` does, as a string, which takes less time."""
        text = oid.hex()
        return f"{self._objects}/{text[:2]}/{text}"

    def open(self, oid: bytes, *, create: bool = False) -> int:
        """Open an object's file for reading and writing and return the descriptor; the caller closes it."""
        path = self.place_of(oid)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            if not create:
                raise
            self.file_of(oid).parent.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)

    def open_unbuffered(self, oid: bytes) -> int:
        """Open an object's file for reads from the disk itself, past the page cache, where the file system has those.

        They must begin at a multiple of 4 KiB and go to memory that does. Raises OSError.
        """
        return _open_unbuffered(self.file_of(oid))

    def expect(self, oid: bytes) -> None:
        """An object gets its file here: a file under its name, left by a crash, belongs to nothing. Quick."""
        self._expected.add(oid)

    def expect_no_more(self, oid: bytes) -> None:
        """Take `expect` back: nothing came, or all of it over what lay there. Quick."""
        self._expected.discard(oid)

    def create(self, oid: bytes) -> int:
        """Open a file; one that lies there and is not the expected one gives way to a new one. Raises OSError."""
        fd = self.open(oid, create=True)
        if oid in self._expected:
            if os.fstat(fd).st_size:
                os.close(fd)
                self.remove(oid)
                fd = self.open(oid, create=True)
            self._expected.discard(oid)
        return fd

    @contextlib.contextmanager
    def writing(self, oid: bytes) -> Iterator[None]:
        """Wait for a turn to write to an object's file.

        Writers of one file wait for each other in the kernel, spinning (ext4's inode lock): measured with 32 of them, a
        tenth of all CPU time. Waiting here costs nothing.
        """
        with self._file_locks[oid[0] % FILE_LOCKS], self._writers:
            yield

    def remove(self, oid: bytes) -> None:
        """Remove an object's file; it need not exist."""
        with contextlib.suppress(FileNotFoundError):
            self.file_of(oid).unlink()
        self.last_writes.forget(oid)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Give the room of a part of a file back. Raises OSError."""
        try:
            fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
        except OSError as exc:
            self.can_punch = exc.errno != errno.EOPNOTSUPP
            raise

    def rename(self, oid: bytes, new_oid: bytes) -> None:
        """Give an object's file to another id. Raises OSError."""
        target = self.file_of(new_oid)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        self.file_of(oid).rename(target)
        self.last_writes.forget(oid)

    # -- to and from other directories

    def open_arrival(self, oid: bytes, size_bytes: int | None) -> int:
        """Open the file that an object comes in, for the caller to close; with a size: a new one. Raises OSError."""
        if size_bytes is None:
            return os.open(self._arrival(oid), os.O_RDWR | os.O_CLOEXEC)
        fd = os.open(self._arrival(oid), os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def arrive(self, oid: bytes) -> os.stat_result:
        """Make the file that an object came in its cache file, and return its state. Raises OSError."""
        target = self.file_of(oid)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        self._arrival(oid).rename(target)
        self.last_writes.forget(oid)
        return target.stat()

    def forget_arrival(self, oid: bytes) -> None:
        """The object does not come. Raises OSError."""
        self._arrival(oid).unlink(missing_ok=True)

    def put_aside(self, oid: bytes) -> None:
        """Take the name of an object's file away, for `remove_aside` to remove it. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.file_of(oid).rename(self._aside(oid))
        self.last_writes.forget(oid)

    def remove_aside(self, oid: bytes) -> None:
        """Remove what `put_aside` has left. Raises OSError."""
        self._aside(oid).unlink(missing_ok=True)

    def left_of_moves(self) -> list[bytes]:
        """Return the objects of which moves, ended or not, have left something here. Raises OSError."""
        names = [path.name.removeprefix("gone-") for path in (self.path / "moving").iterdir()]
        return [bytes.fromhex(name) for name in names if _OID.fullmatch(name)]

    def remove_left(self, oids: Iterable[bytes]) -> None:
        """Remove what moves of these objects have left. Raises OSError."""
        for oid in oids:
            self.forget_arrival(oid)
            self.remove_aside(oid)

    def _arrival(self, oid: bytes) -> Path:
        return self.path / "moving" / oid.hex()

    def _aside(self, oid: bytes) -> Path:
        return self.path / "moving" / f"gone-{oid.hex()}"

    def stored(self) -> Iterator[bytes]:
        """Yield the id of every object file (for the sweep after an unclean stop)."""
        for group in sorted((self.path / "objects").iterdir()):
            if group.is_dir():
                for entry in os.scandir(group):
                    with contextlib.suppress(ValueError):
                        yield bytes.fromhex(entry.name)

    def foreign(self) -> Iterator[Path]:
        """Yield what lies among the object files, but is none by its name and place; nobody counts or removes it."""
        for group in sorted((self.path / "objects").iterdir()):
            if not group.is_dir():
                if group.name != ".probe":
                    yield group
                continue
            for entry in os.scandir(group):
                if not (_OID.fullmatch(entry.name) and entry.name.startswith(group.name)):
                    yield group / entry.name

    def doom_all(self) -> None:
        """Put every object file out of the way, because the index knows none of them; `remove_doomed` takes its time."""
        (self.path / "objects").rename(self.path / f"doomed-{secrets.token_hex(4)}")
        (self.path / "objects").mkdir(mode=0o700)

    def remove_doomed(self) -> None:
        """Remove what `doom_all` put out of the way, in this run or an earlier one."""
        for old in self.path.glob("doomed-*"):
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Give the directory up, if that has not been done."""
        if self._lock >= 0:
            lasting.unlock(self.path / "lock", self._lock)
            self._lock = -1

    def set_aside(self) -> None:
        """Let the directory go, but to nobody else than the next that claims it here or in a successor."""
        if self._lock >= 0:
            lasting.set_aside(self.path / "lock", self._lock)
            self._lock = -1


def _open_unbuffered(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def ignored_if_read_only() -> Iterator[None]:
    """Tidy up, unless the file system has become read-only."""
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise


def refuse_if_read_only(path: str | Path) -> None:
    """Raise OSError EROFS where nothing can be changed: before what would be begun in vain."""
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    if _libc.fallocate(fd, ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data`` at ``offset``. Raises OSError, ENOSPC for a short write."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[written:]
        offset += written


def read_exact(fd: int, length: int, offset: int) -> bytes:
    """Read ``length`` bytes at ``offset``; fewer only at the end of the file."""
    parts = []
    while length > 0:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
