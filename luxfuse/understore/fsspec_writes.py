"""The writes that every fsspec file system has. They are as atomic as the file system makes them.

Nothing here keeps metadata or knows conditions. Directories above a file are made as needed.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from luxfuse.errors import NotFound, StoreError, StoreRejected, VersionChanged
from luxfuse.types import ListPage, ObjectInfo
from luxfuse.understore.base import Abilities, Buffer
from luxfuse.understore.delegated import NoMultipart
from luxfuse.understore.fsspec_failures import failure

ABILITIES = Abilities(metadata=False, conditional=False, multipart=False, part_copy=False, hierarchical=True)
COPY_BYTES = 1 << 20


class FsspecWrites(NoMultipart):
    """The writing half of `FsspecDriver`."""

    _abilities: Abilities
    _fs: Any
    _family: str
    _root: str
    _guard: AbstractContextManager[Any]

    @property
    def abilities(self) -> Abilities:
        return self._abilities

    def head(self, key: str) -> ObjectInfo:
        raise NotImplementedError

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        raise NotImplementedError

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
        """Whether `list_all` looks at what is in a directory."""
        return True

    def put(self, key: str, data: Buffer, metadata: Mapping[str, str], *, expect: str | None = None) -> ObjectInfo:
        what = f"PUT {key!r}"
        path = self._target(key, what)
        if key.endswith("/"):
            return self._make_directory(key, what)

        def put() -> None:
            self._fs.pipe_file(path, data if isinstance(data, bytes) else bytes(data))

        self._write(what, path, put)
        return self.head(key)

    def put_file(self, key: str, path: str, metadata: Mapping[str, str], *, expect: str | None = None) -> ObjectInfo:
        what = f"PUT {key!r}"
        target = self._target(key, what)
        self._write(what, target, lambda: self._fs.put_file(path, target))
        return self.head(key)

    def copy(
        self,
        source: str,
        target: str,
        *,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expect: str | None = None,
        size: int | None = None,
    ) -> ObjectInfo:
        what = f"COPY {source!r} to {target!r}"
        if source.endswith("/"):
            return self._make_directory(target, what)
        found = self.head(source)
        if version not in (None, found.version):
            raise VersionChanged(f"{what}: version is {found.version}, not {version}")
        if source == target:
            return found
        from_path, to_path = self._target(source, what), self._target(target, what)
        self._write(what, to_path, lambda: self._copy(from_path, to_path))
        return self.head(target)

    def _copy(self, from_path: str, to_path: str) -> None:
        try:
            self._fs.cp_file(from_path, to_path)
        except NotImplementedError:  # SFTP: the bytes come here and go back
            with self._fs.open(from_path, "rb") as reader, self._fs.open(to_path, "wb") as writer:
                shutil.copyfileobj(reader, writer, COPY_BYTES)

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
            with self._guard:
                if not key.endswith("/"):
                    if not self._fs.isdir(path):  # else there is no file of that name
                        self._fs.rm_file(path)
                elif self._fs.isdir(path):
                    if self._fs.ls(path, detail=False):
                        raise rejected(f"{what}: the directory is not empty", errno.ENOTEMPTY)
                    self._fs.rmdir(path)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family) from None

    def _make_directory(self, key: str, what: str) -> ObjectInfo:
        if not self._abilities.hierarchical:
            raise StoreRejected(f"{what}: the driver cannot write directory markers to this store")
        path = self._target(key, what)
        self._write(what, path, lambda: self._fs.makedirs(path, exist_ok=True))
        return ObjectInfo(key, 0, "", 0)

    def _write(self, what: str, path: str, write: Any) -> None:
        try:
            with self._guard:
                if self._abilities.hierarchical:
                    self._make_parents(path)
                write()
        except Exception as exc:  # noqa: BLE001
            number = getattr(exc, "errno", None)
            if isinstance(exc, NotADirectoryError | IsADirectoryError | FileExistsError):
                raise rejected(f"{what}: a file is in the way of a directory, or a directory of a file", number) from None
            raise failure(exc, what, self._family, bucket_level=True) from None

    def _make_parents(self, path: str) -> None:
        parent = path.rstrip("/").rpartition("/")[0]
        if len(parent) <= len(self._root) or self._fs.isdir(parent):
            return
        if not self._fs.isdir(self._root):
            raise FileNotFoundError(errno.ENOENT, "the root is missing")
        self._fs.makedirs(parent, exist_ok=True)

    def _target(self, key: str, what: str) -> str:
        """Return the path of a file or directory that may be written."""
        raise NotImplementedError


def rejected(text: str, number: int | None) -> StoreRejected:
    """Return the error for a request that clashes with what is there; ``number`` is its errno, if any."""
    error = StoreRejected(text)
    if number:
        error.errno = number
    return error
