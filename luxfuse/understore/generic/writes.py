"""The writes that every fsspec file system has. They are as atomic as the file system makes them.

Nothing here keeps metadata or knows conditions. Directories above a file are made as needed.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from luxfuse.errors import NotFound, StoreError, StoreRejected
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import Abilities
from luxfuse.understore.delegated import NoMultipart
from luxfuse.understore.failures import require_version
from luxfuse.understore.generic.infos import describe, kind_of
from luxfuse.understore.generic.pool import FileSystems
from luxfuse.understore.library_failures import failure, status_of
from luxfuse.understore.properties import Properties

T = TypeVar("T")

ABILITIES = Abilities(metadata=False, conditional=False, multipart=False, part_copy=False, hierarchical=True)
COPY_BYTES = 1 << 20
TICK_S = 1.02
"""As long as the coarsest times of files stay the same."""

ATTEMPTS = 3

TEMPORARY = ".luxfuse-new-"
"""How names begin under which a file is written before it is renamed; they are never listed."""


class FsspecWrites(NoMultipart):
    """The writing half of `FsspecDriver`."""

    _abilities: Abilities
    _family: str
    _filesystems: FileSystems
    _root: str

    @property
    def abilities(self) -> Abilities:
        return self._abilities

    def head(self, key: str) -> ObjectInfo:
        raise NotImplementedError

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        raise NotImplementedError

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        return Properties(self.head(key))

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        waiting = [prefix]
        while waiting:
            directory = waiting.pop()
            for number, page in enumerate(self.list_directory(directory)):
                if not number and directory:
                    yield ListPage([ObjectInfo(directory, 0, "", 0)])
                if page.objects:
                    yield ListPage(page.objects)
                for inner in page.prefixes:
                    if self._is_entered(inner):
                        waiting.append(inner)
                    else:
                        yield ListPage([ObjectInfo(inner, 0, "", 0)])

    def _is_entered(self, prefix: str) -> bool:
        """Whether `list_all` looks into a directory."""
        return True

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
        path = self._target(key, what)
        if key.endswith("/"):
            return self._make_directory(key, what)
        content = data if isinstance(data, bytes) else bytes(data)
        return self._overwrite(key, what, lambda filesystem: filesystem.pipe_file(path, content))

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
        target = self._target(key, what)
        return self._overwrite(key, what, lambda filesystem: filesystem.put_file(path, target))

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
        found = self.head(source)
        require_version(found.version, version, what)
        if source == target:
            return found
        return self._copy_object(found, target, what)

    def _copy_object(self, found: ObjectInfo, target: str, what: str) -> ObjectInfo:
        """Copy the object that was found under another key."""
        from_path, to_path = self._target(found.key, what), self._target(target, what)
        return self._overwrite(target, what, lambda filesystem: copy_file(filesystem, from_path, to_path))

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        for key in keys:
            try:
                self._delete_one(key, f"DELETE {key!r}")
            except NotFound:
                pass
            except StoreError as exc:
                if len(keys) == 1 and exc.retryable:
                    raise
                failures[key] = exc
        return failures

    def _delete_one(self, key: str, what: str) -> None:
        path = self._target(key, what)
        try:
            self._filesystems.run(lambda filesystem: self._remove(filesystem, key, path, what), again=False)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family) from None

    def _remove(self, filesystem: Any, key: str, path: str, what: str) -> None:
        """Remove what is at the path if it is what the key says: a file, or a directory that is empty."""
        if not key.endswith("/"):
            if kind_of(filesystem, path) != "directory":  # else there is no file of that name
                filesystem.rm_file(path)
        elif kind_of(filesystem, path) == "directory":
            if filesystem.ls(path, detail=False):
                raise rejected(f"{what}: the directory is not empty", errno.ENOTEMPTY)
            filesystem.rmdir(path)

    def _make_directory(self, key: str, what: str) -> ObjectInfo:
        if not self._abilities.hierarchical:
            raise StoreRejected(f"{what}: the driver cannot write directory markers to this store")
        path = self._target(key, what)
        self._write(what, path, lambda filesystem: self._make_all(filesystem, path))
        return ObjectInfo(key, 0, "", 0)

    def _overwrite(self, key: str, what: str, write: Callable[[Any], Any]) -> ObjectInfo:
        """Write a file; its version differs from that of the one before, also where it is made of size and time."""
        path = self._target(key, what)
        for _ in range(ATTEMPTS):
            before = self._find(key, path, what)
            self._write(what, path, write)
            written = self.head(key)
            if before is None or written.version != before.version or not written.mtime_ns:
                break
            time.sleep(TICK_S)
        return written

    def _find(self, key: str, path: str, what: str) -> ObjectInfo | None:
        """Describe the file that is to be replaced, if there is one."""
        if not self._abilities.hierarchical:
            return None
        try:
            info = self._filesystems.run(lambda filesystem: filesystem.info(path), again=True)
        except Exception as exc:  # noqa: BLE001
            error = failure(exc, what, self._family)
            if isinstance(error, NotFound):
                return None
            raise error from None
        if info["type"] == "directory":
            raise rejected(f"{what}: a directory is in the way of a file", errno.EISDIR)
        return describe(key, info)

    def _write(self, what: str, path: str, write: Callable[[Any], T]) -> T:
        """Return ``write(file system)``, which makes something of that path. Raises `StoreError`."""

        def make(filesystem: Any) -> T:
            try:
                return write(filesystem)
            except Exception as exc:
                if not self._abilities.hierarchical:
                    raise
                made = self._make_parents(filesystem, path)
                if not made and not self._is_missing(exc):
                    raise
                return write(filesystem)  # also where others have made them since the first try

        try:
            return self._filesystems.run(make, again=False)
        except Exception as exc:  # noqa: BLE001
            number = getattr(exc, "errno", None)
            if isinstance(exc, NotADirectoryError | IsADirectoryError | FileExistsError):
                raise rejected(f"{what}: a file is in the way of a directory, or a directory of a file", number) from None
            raise failure(exc, what, self._family, bucket_level=True) from None

    def _is_missing(self, exc: Exception) -> bool:
        """Whether a write failed because a directory above it was missing, as far as the store tells (WebDAV: 409)."""
        return isinstance(failure(exc, "", self._family), NotFound) or status_of(exc)[0] == 409

    def _make_parents(self, filesystem: Any, path: str) -> bool:
        """Make the directories above a path; False if there was nothing to make."""
        parent = path.rstrip("/").rpartition("/")[0]
        return len(parent) >= len(self._root) and self._make_all(filesystem, parent or "/")

    def _make_all(self, filesystem: Any, path: str) -> bool:
        """Make a directory and those above it; False if there is one."""
        kind = kind_of(filesystem, path)
        if kind == "directory":
            return False
        if kind is not None:
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way")
        if path.rstrip("/") == self._root:
            raise FileNotFoundError(errno.ENOENT, "the root is missing")
        self._make_parents(filesystem, path)
        try:
            filesystem.mkdir(path, create_parents=False)
        except Exception:
            if kind_of(filesystem, path) != "directory":  # nobody else has made it meanwhile
                raise
        return True

    def _target(self, key: str, what: str) -> str:
        """Return the path of a file or directory that may be written."""
        raise NotImplementedError


def copy_file(filesystem: Any, from_path: str, to_path: str) -> None:
    """Copy in the store where the file system can; else (FTP) the bytes come here and go back."""
    try:
        filesystem.cp_file(from_path, to_path)
    except NotImplementedError:
        with filesystem.open(from_path, "rb") as reader, filesystem.open(to_path, "wb") as writer:
            shutil.copyfileobj(reader, writer, COPY_BYTES)


def rejected(text: str, number: int | None) -> StoreRejected:
    """Return the error for a request that clashes with a present entry; ``number`` is its errno, if any."""
    error = StoreRejected(text)
    if number:
        error.errno = number
    return error


def beside(path: str) -> str:
    """Return a new name in the directory of a path, under which a file is written before it is renamed to the path."""
    return f"{path.rpartition('/')[0]}/{TEMPORARY}{secrets.token_hex(8)}"


def put_in_place(rename: Callable[[str, str], object], path: str, target: str) -> str:
    """Rename a file over a present one, in two steps; returns where that is then, to be removed."""
    aside = beside(target)
    try:
        rename(target, aside)
        rename(path, target)
    except Exception:  # else there might be neither of both: what is not answered in time may have been done
        with contextlib.suppress(Exception):
            rename(aside, target)
        raise
    return aside


def listed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of a directory without files that are still being written."""
    return [entry for entry in entries if not entry["name"].rpartition("/")[2].startswith(TEMPORARY)]
