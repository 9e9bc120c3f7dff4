"""A local directory (or any mounted one). Reads compare the file's identity on the open descriptor before and after."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from luxfuse.errors import BucketMissing, NotFound
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import PAGE_ENTRIES, OnDescribed
from luxfuse.understore.failures import checked, require_version
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.generic.writes import TEMPORARY
from luxfuse.understore.library_failures import failure
from luxfuse.understore.local.writes import LocalWrites, describe, version_of

_NO_ENTRY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
"""Of an entry that has gone meanwhile, or a link that leads nowhere, in a circle, or to where we may not look."""


class LocalDriver(LocalWrites, FsspecDriver):
    """An `UnderStore` on a directory. Symbolic links are followed; sockets, FIFOs and devices do not exist here."""

    def __init__(self, filesystem: Any, root: str) -> None:
        FsspecDriver.__init__(self, filesystem, root)
        LocalWrites.__init__(self)

    def head(self, key: str) -> ObjectInfo:
        what = f"HEAD {key!r}"
        try:
            status = os.stat(self._local(key, what))  # noqa: PTH116
        except (OSError, ValueError) as exc:
            raise _failure(exc, what) from None
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{what}: is not a file")
        return describe(key, status)

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        what = f"LIST {prefix!r}"
        try:
            with os.scandir(self._local(prefix[:-1], what)) as entries:
                yield from self._scan(prefix, entries)
        except (FileNotFoundError, NotADirectoryError, NotFound):
            if not prefix:
                raise BucketMissing(f"{what}: the directory {self._root!r} does not exist") from None
        except (OSError, ValueError) as exc:
            raise _failure(exc, what) from None

    def _scan(self, prefix: str, entries: Iterator[os.DirEntry[str]]) -> Iterator[ListPage]:
        page, yielded = ListPage(), False
        for entry in entries:
            if entry.name.startswith(TEMPORARY):
                continue
            try:
                status = entry.stat()
            except OSError as exc:
                if exc.errno in _NO_ENTRY:
                    continue
                # Of a file that cannot be looked at now nobody knows that it is not there. A directory is, that of a dead
                # mount, say: what is the matter with it says its own listing.
                if not entry.is_dir(follow_symlinks=False):
                    raise
                status = None
            if status is None or stat.S_ISDIR(status.st_mode):
                page.prefixes.append(f"{prefix}{entry.name}/")
            elif stat.S_ISREG(status.st_mode):
                page.objects.append(describe(prefix + entry.name, status))
            if len(page.objects) + len(page.prefixes) >= PAGE_ENTRIES:
                yield page
                page, yielded = ListPage(), True
        if page.objects or page.prefixes or not yielded:
            yield page

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        what = f"GET {key!r} [{start}, {end})"
        try:
            fd = os.open(self._local(key, what), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as exc:
            raise _failure(exc, what) from None
        try:
            before = version_of(os.fstat(fd))
            require_version(before, version, what)
            data = os.pread(fd, end - start, start) if start < end else b""
            after = version_of(os.fstat(fd))
        except OSError as exc:
            raise _failure(exc, what) from None
        finally:
            os.close(fd)
        return checked(data, end - start, after, version, what)

    def _local(self, key: str, what: str) -> str:
        """Return the path of the file or directory ``key``, "" being the root."""
        return self._file_path(key, what) if key else self._path("")


def _failure(exc: Exception, what: str) -> Exception:
    if isinstance(exc, ValueError):  # a NUL in the name
        return NotFound(f"{what}: no such file")
    return failure(exc, what)
