"""Writes to a local directory: to a temporary name beside the file, synced, then renamed over it.

So a reader sees the old file or the new one, also after a power cut. Temporary names are never listed. Ones that an
earlier process left behind go when their directory is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from luxfuse.durable import copy_all, sync_directory
from luxfuse.errors import BucketMissing, NotFound, StoreError
from luxfuse.types import ABSENT, Buffer, ObjectInfo
from luxfuse.understore.base import Abilities
from luxfuse.understore.failures import require_version
from luxfuse.understore.generic.writes import TEMPORARY, FsspecWrites, beside, rejected
from luxfuse.understore.library_failures import failure
from luxfuse.understore.properties import Properties

LEFT_BEHIND_S = 3600.0
ATTEMPTS = 10

ABILITIES = Abilities(metadata=False, conditional=True, multipart=False, part_copy=False, hierarchical=True)
_CLASHES = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EINVAL)


class LocalWrites(FsspecWrites):
    """The writing half of `LocalDriver`."""

    def __init__(self) -> None:
        self._abilities = ABILITIES
        self._replacing = threading.Lock()
        self._directories = threading.Lock()

    def _is_entered(self, prefix: str) -> bool:
        """A symbolic link to a directory is one more directory, and not looked into."""
        return not Path(self._target(prefix, "LIST")).is_symlink()

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"PUT {key!r}"
        if key.endswith("/"):
            return self._make_directory(key, what)

        def fill(fd: int) -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

        return self._replace(key, what, fill, expect)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"PUT {key!r}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise failure(exc, what) from None
        try:
            return self._replace(key, what, lambda target: copy_all(fd, target), expect)
        finally:
            os.close(fd)

    def copy(
        self,
        source: str,
        target: str,
        *,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expect: str | None = None,
        size: int | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"COPY {source!r} to {target!r}"
        if source.endswith("/"):
            return self._make_directory(target, what)
        try:
            fd = os.open(self._target(source, what), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as exc:
            raise failure(exc, what) from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(f"{what}: is not a file")
            found = version_of(status)
            require_version(found, version, what)
            if source == target:
                return describe(target, status)

            def fill(new: int) -> None:
                copy_all(fd, new)
                require_version(version_of(os.fstat(fd)), found, what)

            return self._replace(target, what, fill, expect)
        finally:
            os.close(fd)

    def _replace(self, key: str, what: str, fill: Callable[[int], None], expect: str | None) -> ObjectInfo:
        path = self._target(key, what)
        temporary = beside(path)
        try:
            fd = self._open_new(temporary, what)
            try:
                fill(fd)
                _keep_mode(path, fd)
                os.fsync(fd)
                self._install(temporary, path, expect, what)
                # Renaming changes nothing that the version is made of.
                info = describe(key, os.fstat(fd))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
            _sync_directory(path)
        except (OSError, ValueError) as exc:
            raise self._clash(exc, what) from None
        return info

    def _open_new(self, temporary: str, what: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                return os.open(temporary, flags, 0o666)
            # Meanwhile none of our threads removes the empty directories; other programs may.
            with self._directories:
                self._make_directories(temporary.rpartition("/")[0], what)
                with contextlib.suppress(FileNotFoundError):
                    return os.open(temporary, flags, 0o666)
        return os.open(temporary, flags, 0o666)

    def _make_directories(self, path: str, what: str) -> None:
        root = self._root or "/"
        if not Path(root).is_dir():
            raise BucketMissing(f"{what}: the directory {root!r} does not exist")
        for attempt in range(ATTEMPTS):
            try:
                Path(path).mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:  # somebody removed one of them meanwhile
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def _install(self, temporary: str, path: str, expect: str | None, what: str) -> None:
        if expect is None:
            os.replace(temporary, path)  # noqa: PTH105
            return
        # Exact among our own threads; others may come between the comparison and the renaming.
        with self._replacing:
            try:
                found = version_of(os.stat(path))  # noqa: PTH116
            except FileNotFoundError:
                found = ABSENT
            require_version(found, expect, what)
            os.replace(temporary, path)  # noqa: PTH105

    def _make_directory(self, key: str, what: str) -> ObjectInfo:
        path = self._target(key, what)
        try:
            self._make_directories(path, what)
            _sync_directory(path)
        except (OSError, ValueError) as exc:
            raise self._clash(exc, what) from None
        return ObjectInfo(key, 0, "", 0)

    def _delete_one(self, key: str, what: str) -> None:
        path = self._target(key, what)
        try:
            if key.endswith("/"):
                with self._directories:
                    _remove_directory(path)
            else:
                Path(path).unlink(missing_ok=True)
            _sync_directory(path)
        except (FileNotFoundError, IsADirectoryError):
            return  # a directory is no object of that name
        except NotADirectoryError:
            if key.endswith("/") and Path(path).is_symlink():
                raise rejected(f"{what}: is a symbolic link", errno.ENOTDIR) from None
        except (OSError, ValueError) as exc:
            raise self._clash(exc, what) from None

    def _clash(self, exc: Exception, what: str) -> StoreError:
        number = getattr(exc, "errno", None)
        if number in _CLASHES:
            return rejected(f"{what}: {os.strerror(number)}", number)
        return failure(exc, what)


def version_of(status: os.stat_result) -> str:
    """Return the numbers that change with each write of a file."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def describe(key: str, status: os.stat_result) -> ObjectInfo:
    """Return the `ObjectInfo` of a file."""
    return ObjectInfo(key, status.st_size, version_of(status), status.st_mtime_ns)


def _keep_mode(path: str, fd: int) -> None:
    """Give the new file the permissions, and if possible the owner, of the one that it replaces."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
    except PermissionError:
        pass
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def _sync_directory(path: str) -> None:
    """Make a change of the name ``path`` last. A directory that is gone needs nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        sync_directory(Path(path.rpartition("/")[0] or "/"))


def _remove_directory(path: str) -> None:
    directory = Path(path)
    try:
        directory.rmdir()
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
        for inside in directory.iterdir():
            # A younger one may be a write that still runs.
            if not inside.name.startswith(TEMPORARY) or time.time() - inside.stat().st_mtime < LEFT_BEHIND_S:
                raise
            inside.unlink(missing_ok=True)
        directory.rmdir()
