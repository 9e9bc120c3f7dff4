"""Staging files: the bytes of files that are written to, until they are in the store. They lie beside the cache files.

``staging/<id as 16 hex digits>`` in a cache directory; ids come from the journal. A cache file becomes a staging file,
and a staging file a cache file, by being renamed in its directory: readers that have it open keep it. New files are made in
the *home* directory.

A file whose removal is not in the journal yet is called ``<id>.gone`` (`retire`).

Creating a file takes a rename where a spare one is ready (``spare-<number>``); `refill` makes spare ones in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from luxfuse.core.spans import page_count
from luxfuse.durable import sync_directory
from luxfuse.shares import shares
from luxfuse.tiers.directory import CacheDirectory, fallocate, ignored_if_read_only, refuse_if_read_only, write_all
from luxfuse.types import PAGE_BYTES

COPY_BYTES = 1 << 20
NUMBERED_NAME_BYTES = 240
_ID = re.compile("[0-9a-f]{16}")
_RETIRED = ".gone"
_FLAGS = os.O_RDWR | os.O_CLOEXEC


class Staging:
    """The staging files of a mount. Threads may share it; `refill`, `sync` and `recover` block for long."""

    def __init__(self, home: CacheDirectory, others: Sequence[CacheDirectory] = ()) -> None:
        """Take the directories' staging files over, but remove the spare ones of an earlier run. Raises OSError."""
        self._home = home
        self.path = home.path / "staging"
        self._home_staging = str(self.path)
        self._elsewhere: dict[int, CacheDirectory] = {}
        """The directories of staging files that are not at home."""
        self._spares: deque[tuple[str, int]] = deque()
        self._numbers = itertools.count()
        self._refilling = threading.Lock()
        self._syncing = threading.Lock()
        self._unsynced: dict[tuple[int, int], Path] = {}
        """Files (device and inode number) whose names are not on the platter yet, and the directories of these."""
        self._tells_holes: bool | None = None
        self._gone: set[int] = set()
        """Files that were about to be removed when the last run was killed; they have their names again."""
        self._nameless: dict[int, CacheDirectory] = {}
        """Those of them that have not, as the disk is read-only: where they are."""
        self._left: set[int] = set()
        """Files that are discarded, and still there, as the disk is read-only."""
        self._bring_back(home)
        with ignored_if_read_only():
            for spare in self.path.glob("spare-*"):
                spare.unlink()
        for directory in others:
            self.add(directory)

    def add(self, directory: CacheDirectory) -> None:
        """Take over what is staged in another directory. Raises OSError."""
        self._bring_back(directory)
        self._elsewhere.update(dict.fromkeys(_stored(directory.path / "staging"), directory))

    def holds(self, directory: CacheDirectory) -> bool:
        """Whether there is a staging file in a directory other than the home directory."""
        return directory in self._elsewhere.values()

    def directory_of(self, number: int) -> CacheDirectory:
        """Return the directory that a staging file lies in, or would be made in."""
        return self._elsewhere.get(number, self._home)

    def path_of(self, number: int) -> Path:
        """Return the path of a staging file."""
        elsewhere = self._elsewhere.get(number)
        directory = self.path if elsewhere is None else elsewhere.path / "staging"
        return directory / f"{number:016x}"

    def place_of(self, number: int) -> str:
        """Return what `path_of` does, as a string, which takes less time."""
        elsewhere = self._elsewhere.get(number)
        directory = self._home_staging if elsewhere is None else f"{elsewhere.path}/staging"
        return f"{directory}/{number:016x}"

    # -- making, taking and giving away

    @property
    def spares_low(self) -> bool:
        """Whether it is time to `refill`."""
        return len(self._spares) <= shares().spares // 2

    def refill(self) -> None:
        """Make spare files. Blocks. Raises OSError."""
        with self._refilling:
            while len(self._spares) < shares().spares:
                path = f"{self._home_staging}/spare-{next(self._numbers)}"
                self._spares.append((path, os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)))

    def take(self, path: str | Path) -> int:
        """Give a new empty file the name ``path``; returns a descriptor for reading and writing. Raises OSError."""
        while True:
            try:
                spare, fd = self._spares.popleft()
            except IndexError:
                return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.rename(spare, path)  # noqa: PTH104 (strings take less time)
            except FileNotFoundError:  # the directory was lost and made anew
                os.close(fd)
            except BaseException:
                self._spares.append((spare, fd))
                raise
            else:
                return fd

    def create(self, number: int) -> int:
        """Make an empty staging file and open it for reading and writing; the caller closes it.

        Raises OSError, EEXIST if there is one of this id.
        """
        path = self.place_of(number)
        if number in self._left:
            self.remove(number)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        fd = self.take(path)
        self._unsynced[_identity(os.fstat(fd))] = self.path
        return fd

    def write_anew(self, number: int, content: bytes, stamp_ns: int | None) -> int:
        """Replace a staging file, if there is one, by another with this content and mtime; returns a descriptor of it.

        All of it or nothing, whatever fails. Raises OSError.
        """
        path = self.path_of(number)
        part = path.with_name(f"spare-anew-{number:x}")
        fd = os.open(part, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(fd, content, 0)
            if stamp_ns is not None:
                os.utime(fd, ns=(stamp_ns, stamp_ns))
            part.rename(path)
        except BaseException:
            os.close(fd)
            part.unlink(missing_ok=True)
            raise
        self._left.discard(number)
        self._unsynced[_identity(os.fstat(fd))] = path.parent
        return fd

    def adopt(self, directory: CacheDirectory, oid: bytes, number: int) -> int:
        """Make an object's cache file a staging file; returns a descriptor for reading and writing. Raises OSError."""
        source, target = directory.file_of(oid), directory.path / "staging" / f"{number:016x}"
        fd = os.open(source, _FLAGS)
        try:
            source.rename(target)
        except BaseException:
            os.close(fd)
            raise
        if directory is not self._home:
            self._elsewhere[number] = directory
        directory.last_writes.forget(oid)
        self._left.discard(number)
        self._unsynced[_identity(os.fstat(fd))] = target.parent
        return fd

    def taken_over(self, number: int, fd: int) -> None:
        """A file of an earlier run is gone on with: it may have been killed before the name was on the platter."""
        self._unsynced[_identity(os.fstat(fd))] = self.path_of(number).parent

    def publish(self, number: int, oid: bytes) -> None:
        """Make a staging file an object's cache file; one that is there is replaced. Raises OSError."""
        directory, path = self.directory_of(number), self.place_of(number)
        target = directory.place_of(oid)
        file = _identity(os.stat(path))  # noqa: PTH116 (strings take less time)
        try:
            os.rename(path, target)  # noqa: PTH104
        except FileNotFoundError:
            directory.file_of(oid).parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(path, target)  # noqa: PTH104
        self._unsynced.pop(file, None)
        self._elsewhere.pop(number, None)
        directory.last_writes.forget(oid)

    def remove(self, number: int) -> None:
        """Remove a staging file; it need not exist. Raises OSError."""
        path = self.path_of(number)
        with contextlib.suppress(FileNotFoundError):
            file = _identity(path.stat())
            path.unlink()
            self._unsynced.pop(file, None)
        self._left.discard(number)
        self._elsewhere.pop(number, None)

    def discard(self, number: int) -> None:
        """As `remove`; on a file system that has become read-only it stays, for `create` or a later run. Raises OSError."""
        self._left.add(number)
        with ignored_if_read_only():
            self.remove(number)

    def is_left(self, number: int) -> bool:
        """Whether a file is discarded, and still there."""
        return number in self._left

    def retire(self, number: int) -> Callable[[], None]:
        """Take a staging file's name away; it need not exist. Returns what then removes it. Both raise OSError.

        Between the two it is said durably that nothing belongs in it any more: `was_retired`.
        """
        path = self.path_of(number)
        retired = path.with_name(path.name + _RETIRED)
        with contextlib.suppress(FileNotFoundError):
            file = _identity(path.stat())
            path.rename(retired)
            self._unsynced.pop(file, None)
        self._elsewhere.pop(number, None)
        return functools.partial(retired.unlink, missing_ok=True)

    def was_retired(self, number: int) -> bool:
        """Whether a file was about to be removed when the last run was killed; it was, if nothing is known of it."""
        return number in self._gone

    def _bring_back(self, directory: CacheDirectory) -> None:
        for path in (directory.path / "staging").glob(f"*{_RETIRED}"):
            number = int(path.stem, 16)
            self._gone.add(number)
            self._nameless[number] = directory
            with ignored_if_read_only():
                self.give_name_back(number)

    def give_name_back(self, number: int) -> None:
        """Let a file have its name that was about to be removed. Raises OSError while the disk is read-only."""
        if (directory := self._nameless.get(number)) is not None:
            path = directory.path / "staging" / f"{number:016x}"
            with contextlib.suppress(FileNotFoundError):  # the directory was emptied meanwhile
                path.with_name(path.name + _RETIRED).rename(path)
            del self._nameless[number]
            if directory is not self._home:
                self._elsewhere[number] = directory

    def stored(self) -> Iterator[int]:
        """Yield the id of every staging file."""
        yield from _stored(self.path)
        yield from list(self._elsewhere)

    def recover(self, number: int, to: Path) -> Path:
        """Move a staging file out, durably, to ``to`` or, where that exists, to a name with a number; returns its path.

        ``to`` may be on another file system; holes stay holes. Blocks. Raises OSError, with the file where it was.
        """
        source = self.path_of(number)
        refuse_if_read_only(source.parent)  # else all of it might be copied first
        to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            target = _reserve(to)
            try:
                self._move(source, fd, target)
            except BaseException:
                if source.exists():
                    target.unlink()
                raise
            sync_directory(target.parent)
            self._unsynced.pop(_identity(os.fstat(fd)), None)
            self._elsewhere.pop(number, None)
        finally:
            os.close(fd)
        return target

    def _move(self, source: Path, fd: int, target: Path) -> None:
        try:
            source.rename(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            part = target.with_name(f".{target.name[: NUMBERED_NAME_BYTES // 4]}.{os.getpid()}.part")
            try:
                _copy(fd, part)
                part.rename(target)
            finally:
                part.unlink(missing_ok=True)
            sync_directory(target.parent)
            source.unlink()

    @staticmethod
    def present(directories: Iterable[CacheDirectory]) -> dict[int, Path]:
        """Return the paths of the staging files that there are now, by id. Raises OSError."""
        found = {}
        for directory in directories:
            staging = directory.path / "staging"
            found.update({number: staging / f"{number:016x}" for number in _stored(staging)})
        return found

    # -- content

    def sync(self, fd: int) -> None:
        """Bring a staging file to the platter, and its name if that is new. Blocks. Raises OSError."""
        file = _identity(os.fstat(fd))
        if file not in self._unsynced:
            os.fdatasync(fd)
            return
        os.fsync(fd)
        with self._syncing:  # one that waits here finds its name synced
            if (directory := self._unsynced.get(file)) is not None:
                named = [other for other, where in list(self._unsynced.items()) if where == directory]
                sync_directory(directory)
                for other in named:
                    self._unsynced.pop(other, None)

    def data_ranges(self, fd: int, size: int) -> list[range]:
        """Return the pages below ``size`` that have no hole in them, as ranges of page numbers.

        Raises OSError: EOPNOTSUPP where the file system does not tell holes, EROFS where that cannot be found out.
        """
        if not self._holes_are_told(fd):
            raise OSError(errno.EOPNOTSUPP, f"the file system of {self.path} does not tell where files have holes")
        ranges = []
        position = 0
        while position < size:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                break
            position = os.lseek(fd, start, os.SEEK_HOLE)
            last = page_count(size) if position >= size else position // PAGE_BYTES
            pages = range(page_count(start), last)
            if pages:
                ranges.append(pages)
        return ranges

    def _holes_are_told(self, fd: int) -> bool:
        if self._tells_holes is None:
            try:
                self._tells_holes = self._try_holes()
            except OSError as exc:
                if exc.errno != errno.EROFS or os.lseek(fd, 0, os.SEEK_HOLE) >= os.fstat(fd).st_size:
                    raise
                self._tells_holes = True  # this one is
        return self._tells_holes

    def _try_holes(self) -> bool:
        path = self.path / f"spare-holes-{next(self._numbers)}"
        fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            path.unlink()
            os.ftruncate(fd, 4 * PAGE_BYTES)
            os.pwrite(fd, b"\1", 3 * PAGE_BYTES)
            return os.lseek(fd, 0, os.SEEK_DATA) > 0
        finally:
            os.close(fd)

    @staticmethod
    def has_writers(path: str | Path) -> bool:
        """Whether a file is open for writing, or mapped shared and writable, in any process (this one too).

        False where the file system cannot tell. Raises OSError if it cannot be opened.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A read lease is not given where there are writers. An open for writing while we have it would send us
            # SIGIO, which ends a process; SIGURG is ignored.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EINVAL, errno.ENOLCK):
                return exc.errno == errno.EAGAIN
            raise
        finally:
            os.close(fd)
        return False

    def close(self) -> None:
        """Remove the spare files."""
        with self._refilling:
            while self._spares:
                spare, fd = self._spares.popleft()
                os.close(fd)
                with contextlib.suppress(OSError):  # the next run does, when it can
                    Path(spare).unlink()


def staged_in(directory: CacheDirectory) -> list[int]:
    """Return the ids of the staging files in a directory, also of earlier runs. Blocks. Raises OSError."""
    return list(_stored(directory.path / "staging"))


def _stored(staging: Path) -> Iterator[int]:
    for entry in os.scandir(staging):
        if _ID.fullmatch(entry.name):
            yield int(entry.name, 16)


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """As `fallocate`, and where the file system cannot reserve (``mode`` 0), write zeros. Raises OSError."""
    if mode == 0:
        os.posix_fallocate(fd, offset, length)
    else:
        fallocate(fd, mode, offset, length)


def _identity(st: os.stat_result) -> tuple[int, int]:
    return st.st_dev, st.st_ino


def _reserve(wanted: Path) -> Path:
    """Make an empty file of the wanted name or one like it, for a rename to replace."""
    for attempt in itertools.count():
        name = os.fsdecode(os.fsencode(wanted.name)[:NUMBERED_NAME_BYTES]) if attempt else wanted.name
        path = wanted.with_name(f"{name}.{attempt}" if attempt else name)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return path
    raise AssertionError


def _copy(fd: int, target: Path) -> None:
    """Copy an open file, its holes as holes, its times and mode too, and bring it to the platter."""
    st = os.fstat(fd)
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(out, st.st_size)
        position = 0
        while position < st.st_size:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                break
            end = os.lseek(fd, position, os.SEEK_HOLE)
            while position < end and (data := os.pread(fd, min(COPY_BYTES, end - position), position)):
                write_all(out, data, position)
                position += len(data)
        os.utime(out, ns=(st.st_atime_ns, st.st_mtime_ns))
        os.fsync(out)
    finally:
        os.close(out)
