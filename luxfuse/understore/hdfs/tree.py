"""The calls that the driver makes, whichever protocol of Hadoop carries them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from luxfuse.understore.generic.infos import version_of

MS_NS = 10**6
PIECE_BYTES = 1 << 20


class Body:
    """The bytes of a file that is written, in pieces, with its size told ahead."""

    def __init__(self, pieces: Iterator[bytes], size: int) -> None:
        self._pieces = pieces
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory as HDFS tells it. ``number``: of the file, which a new one has anew; "" if that is not told."""

    is_directory: bool
    size: int
    mtime_ms: int
    atime_ms: int
    mode: int
    number: str = ""

    def info(self, path: str) -> dict[str, Any]:
        """Return it in fsspec's words, and itself."""
        kind, mtime_ns = "directory" if self.is_directory else "file", self.mtime_ms * MS_NS
        version = version_of(self.size, mtime_ns)
        etag = f"{version}-{self.number}" if self.number else version
        return {"name": path, "type": kind, "size": self.size, "mtime": mtime_ns, "ETag": etag, "entry": self}


class Tree(Protocol):
    """A directory tree of HDFS; any number of threads may use it. Raises `OSError` with its errno, or a `StoreError`."""

    def info(self, path: str) -> dict[str, Any]:
        """Describe a file or directory."""

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        """Describe the entries of a directory; a file is alone in its own listing. Nobody asks for the names alone."""

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        """Return a range of a file, cut at its end."""

    def create(self, path: str, body: Body) -> None:
        """Make a new file with a whole content; the directory has to be there."""

    def replace(self, path: str, target: str) -> None:
        """Rename a file, over one that is there in the same step."""

    def set_times(self, path: str, mtime_ms: int, atime_ms: int) -> None:
        """Set the times of a file."""

    def set_mode(self, path: str, mode: int) -> None:
        """Set the permissions of a file."""

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        """Make a directory."""

    def rm_file(self, path: str) -> None:
        """Remove a file, or an empty directory."""
