"""``attached.json``: the volumes that the next mount attaches again; for its owner alone, as options may hold secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from luxfuse.durable import replace_file
from luxfuse.errors import MountError

FILE = "attached.json"
FORMAT = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The record for the next mount. ``path``: relative to the mount; ``options``: as the user wrote them."""

    path: str
    source: str
    options: dict[str, Any]
    number: int


class Recorded(msgspec.Struct, kw_only=True):
    """The whole file."""

    format: int = FORMAT
    last_number: int = 0
    """Numbers are not used again soon: the kernel may remember inodes of a volume that is gone."""
    attached: list[Record] = []


class AttachedFile:
    """The record of one mount. Its methods block."""

    def __init__(self, directory: Path) -> None:
        """``directory``: the state of the mount."""
        self._path = directory / FILE

    def read(self) -> Recorded:
        """Return what is recorded. Raises `MountError`."""
        try:
            recorded = msgspec.json.decode(self._path.read_bytes(), type=Recorded)
        except FileNotFoundError:
            return Recorded()
        except (OSError, msgspec.DecodeError) as exc:
            raise MountError(f"{self._path}: the record of attachments cannot be read: {exc}; mend or remove it") from None
        if recorded.format != FORMAT:
            raise MountError(f"{self._path}: has format {recorded.format}, of another version of luxfuse; remove it")
        return recorded

    def write(self, recorded: Recorded) -> None:
        """Replace the record. Raises `MountError`."""
        try:
            replace_file(self._path, msgspec.json.encode(recorded))
        except OSError as exc:
            raise MountError(
                f"{self._path}: cannot be written, so the next mount would not know what is attached: {exc.strerror}"
            ) from None
