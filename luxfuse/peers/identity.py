"""A node's identity, from start to start: ``node.json`` in the state directory of its mount, mode 0600.

The name is made once. It belongs to one machine: where the file was made on another one (``/etc/machine-id`` tells, if
both have one), it was copied, and a new name is made. Copies that this does not tell, such as clones of a whole machine,
show when they meet: datagrams sealed by a namesake are rejected and logged.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from luxfuse.durable import replace_file
from luxfuse.errors import ConfigError

log = logging.getLogger(__name__)

FILE = "node.json"
FORMAT = 1
MACHINE_ID = Path("/etc/machine-id")


class _Record(msgspec.Struct, frozen=True):
    format: int
    name: str
    machine: str
    incarnation: int
    stamp_ns: int


class Identity:
    """The name of a node, and the numbers that have to rise from start to start."""

    def __init__(self, path: Path, record: _Record) -> None:
        self._path = path
        self._record = record

    @classmethod
    def open(cls, directory: Path, clock_ns: Callable[[], int] = time.time_ns) -> Identity:
        """Begin a life of the node whose state is in ``directory``. Raises `ConfigError` with one line."""
        path = directory / FILE
        machine = _machine()
        try:
            known = _read(path)
            if known is not None and known.machine and machine and known.machine != machine:
                log.warning("%s comes from another machine: this node gets a name of its own", path)
                known = None
            now_ns = clock_ns()
            # By the clock, what was not noted before a crash does not matter; the file is for clocks that are set back.
            record = _Record(
                FORMAT,
                known.name if known else secrets.token_hex(8),
                machine or (known.machine if known else ""),
                max(now_ns // 10**9, known.incarnation + 1 if known else 1),
                max(now_ns, known.stamp_ns + 1 if known else 0),
            )
            replace_file(path, msgspec.json.encode(record))
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror}; make it writable") from None
        return cls(path, record)

    @property
    def name(self) -> str:
        """16 hexadecimal digits."""
        return self._record.name

    @property
    def incarnation(self) -> int:
        """The last one that was noted; at first, higher than that of the last life."""
        return self._record.incarnation

    @property
    def stamp_ns(self) -> int:
        """When this life began: wall-clock time, but later than when the last one did."""
        return self._record.stamp_ns

    def note(self, incarnation: int) -> None:
        """Keep the incarnation for the next life. Blocks. Raises OSError."""
        record = msgspec.structs.replace(self._record, incarnation=incarnation)
        replace_file(self._path, msgspec.json.encode(record))
        self._record = record


def _machine() -> str:
    """Return what tells this machine from others, without giving its id away; "" if it has none."""
    try:
        text = MACHINE_ID.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return hashlib.sha256(b"luxfuse node" + text.encode()).hexdigest()[:16] if len(text) >= 32 else ""


def _read(path: Path) -> _Record | None:
    """Return what is known; None if there is nothing, or nothing that can be read. Raises `ConfigError`, OSError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = msgspec.json.decode(content, type=_Record)
        usable = len(bytes.fromhex(record.name)) == 8
    except (msgspec.DecodeError, ValueError):
        usable = False
    if not usable:
        log.warning("%s cannot be read: this node gets a new name", path)
        return None
    if record.format != FORMAT:
        raise ConfigError(f"{path}: format {record.format} is of another version of luxfuse; use that, or remove the file")
    return record
