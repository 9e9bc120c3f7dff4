"""Which volume is published where: a small file for each target path, written before anything is mounted.

So a driver that was killed at any point finds what it was at; whether it got there, the mount table says.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from luxfuse.durable import make_private, replace_file


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """One target path. ``key``: of its mount. ``alone``: no other target may be published beside it on this node.

    ``arguments``: a digest of what was asked for, without secrets.
    """

    target: str
    volume_id: str
    key: str
    alone: bool
    arguments: str


class Publications:
    """Those of this node."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        make_private(directory)
        self._directory = directory

    def at(self, target: str) -> Publication | None:
        """Return what is, or is to be, at a target path."""
        return _read(self._file(target))

    def all(self) -> list[Publication]:
        """Return all; those that cannot be read are left out."""
        return [found for path in self._directory.glob("*.json") if (found := _read(path)) is not None]

    def put(self, publication: Publication) -> None:
        """Note one. Raises OSError."""
        replace_file(self._file(publication.target), msgspec.json.encode(publication))

    def remove(self, target: str) -> None:
        """Forget one; fine if there is none."""
        self._file(target).unlink(missing_ok=True)

    def prune(self) -> None:
        """Forget those whose pods are gone: with its pod goes the directory that a target is in."""
        for path in self._directory.glob("*.json"):
            try:
                found = msgspec.json.decode(path.read_bytes(), type=Publication)
            except OSError:
                continue  # it may be read the next time
            except msgspec.DecodeError:
                found = None
            if found is None or not Path(found.target).parent.is_dir():
                path.unlink(missing_ok=True)

    def _file(self, target: str) -> Path:
        return self._directory / f"{hashlib.sha256(target.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> Publication | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Publication)
    except (OSError, msgspec.DecodeError):
        return None
