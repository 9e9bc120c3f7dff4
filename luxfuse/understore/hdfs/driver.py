"""An under-store on HDFS: files are written beside their places, and renamed over the old ones in one step."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from luxfuse.errors import StoreUnavailable
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.failures import require_version
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.generic.infos import describe, info_of, kind_of
from luxfuse.understore.generic.writes import beside, listed, rejected
from luxfuse.understore.hdfs.tree import PIECE_BYTES, Body, Tree
from luxfuse.understore.properties import Properties

COPIED_BYTES = 8 << 20
"""Of a file that is copied, so much is in memory."""


class HdfsDriver(FsspecDriver):
    """Versions are size and modification time in milliseconds, and the file's number where the protocol tells it."""

    def _pages(self, prefix: str, path: str, entries: list[dict[str, Any]]) -> Iterator[ListPage]:
        yield from super()._pages(prefix, path, listed(entries))

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

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(data), PIECE_BYTES):
                yield bytes(data[start : start + PIECE_BYTES])

        return self._install(key, what, len(data), pieces)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        def pieces() -> Iterator[bytes]:
            with Path(path).open("rb") as source:
                while piece := source.read(PIECE_BYTES):
                    yield piece

        return self._install(key, f"PUT {key!r}", Path(path).stat().st_size, pieces)

    def _copy_object(self, found: ObjectInfo, target: str, what: str) -> ObjectInfo:
        from_path = self._target(found.key, what)

        def pieces() -> Iterator[bytes]:  # HDFS has no copy: the bytes come here and go back
            for start in range(0, found.size, COPIED_BYTES):
                end = min(start + COPIED_BYTES, found.size)
                yield self._ask(what, partial(_piece, from_path, start, end))
            require_version(self.head(found.key).version, found.version, what)

        return self._install(target, what, found.size, pieces)

    def _install(self, key: str, what: str, size: int, pieces: Any) -> ObjectInfo:
        """Write a file of ``pieces()`` beside ``key`` and rename it over the present one."""
        path = self._target(key, what)
        temporary = beside(path)

        def install(tree: Tree) -> ObjectInfo:
            old = info_of(tree, path)
            if old is not None and old["type"] == "directory":
                raise rejected(f"{what}: a directory is in the way of a file", errno.EISDIR)
            try:
                tree.create(temporary, Body(pieces(), size))
                new = tree.info(temporary)
                if new["size"] != size:
                    raise StoreUnavailable(f"{what}: {new['size']} bytes of {size} arrived")
                info = self._settle(tree, key, temporary, old, new)
                tree.replace(temporary, path)
            except Exception:
                _remove_quietly(tree, temporary)
                raise
            return info

        return self._write(what, path, install)

    def _settle(self, tree: Tree, key: str, temporary: str, old: Any, new: Any) -> ObjectInfo:
        """Give the new file the permissions of the old one, and a version that differs from its."""
        if old is not None:
            before, entry = old["entry"], new["entry"]
            if before.mode != entry.mode:
                tree.set_mode(temporary, before.mode)
            if old["ETag"] == new["ETag"]:
                new = dataclasses.replace(entry, mtime_ms=entry.mtime_ms + 1).info(temporary)
                tree.set_times(temporary, entry.mtime_ms + 1, entry.atime_ms)
        return describe(key, new)

    def _remove(self, filesystem: Tree, key: str, path: str, what: str) -> None:
        kind = kind_of(filesystem, path)
        if kind is None or (kind == "directory") != key.endswith("/"):
            return
        try:
            filesystem.rm_file(path)  # a directory only if it is empty
        except OSError as exc:
            if exc.errno == errno.ENOTEMPTY:
                raise rejected(f"{what}: the directory is not empty", errno.ENOTEMPTY) from None
            raise


def _piece(path: str, start: int, end: int, tree: Tree) -> bytes:
    return tree.cat_file(path, start, end)


def _remove_quietly(tree: Tree, path: str) -> None:
    try:
        tree.rm_file(path)
    except Exception:  # noqa: BLE001, S110 - the caller has to know the first error
        pass
