"""What a request was about, for people: which program, which file, how many bytes and where from."""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luxfuse.fuse.attributes import NUMBER_MASK
from luxfuse.fuse.errnos import UNKNOWN, Running
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.origins import STAGING
from luxfuse.vfs.paths import inode_of, name_in, path_of, size_of, source_of
from luxfuse.vfs.volumes import Volumes

_OF_NAMES = frozenset({"lookup", "create", "mkdir", "mknod", "rename", "symlink", "unlink", "rmdir"})
_OF_HANDLES = frozenset({"read", "write", "flush", "fsync", "fallocate"})
_OF_DIRECTORIES = frozenset({"readdir", "fsyncdir"})
SILENT = frozenset({"release", "releasedir", "access", "statfs"})
"""Not told of: closes, and what the kernel asks for by itself."""
_THREADS_KEPT = 1024
_BELIEVED_S = 10.0


@dataclass(slots=True)
class Access:
    """A request that has ended. ``began_s``: by `time.perf_counter`; ``thread``: of the caller, 0 for the kernel itself,
    `UNKNOWN` (as ``user`` and ``process`` are then) if the request began before anybody watched.

    ``queued_s``: how long it waited before Python looked at it, as far as that is known; ``bytes`` that were read or
    written, of an open that may read the size of the file. ``sources``: bytes by source. ``way``: of an open, what reads
    the file from then on; of what the lanes answered, ``dataplane``. ``waited``: of a slow one, seconds by what it waited
    for. ``to``: the name that a rename or a link gave.
    """

    operation: str
    path: str | None
    thread: int
    user: int
    began_s: float
    took_s: float
    queued_s: float = 0.0
    offset: int = 0
    bytes: int = 0
    sources: dict[str, int] | None = None
    waited: dict[str, float] | None = None
    way: str = ""
    code: int = 0
    process: int = 0
    program: str = "?"
    to: str | None = None

    @property
    def file(self) -> str:
        """What it was about, by its names."""
        name = "a file without a name" if self.path is None else self.path or "/"
        return name if self.to is None else f"{name} -> {self.to}"

    def is_below(self, path: str) -> bool:
        """Whether it was about what is at or below a path: "" is the mount's root. By each of its names."""
        return not path or any(
            name is not None and (name == path or name.startswith(f"{path}/")) for name in (self.path, self.to)
        )

    @property
    def error(self) -> str:
        """The name of the error, empty if there was none."""
        return errno.errorcode.get(self.code, str(self.code)) if self.code else ""


def access_of(
    operations: Operations, running: Running, arguments: tuple[Any, ...], result: Any, code: int, *, in_kernel: bool
) -> Access:
    """Return what a handler has done. ``in_kernel``: registered files are read in passthrough."""
    name, now_s = running.name, time.perf_counter()
    found = Access(name, None, running.thread, running.user, running.began_s, now_s - running.began_s, code=code)
    found.queued_s = running.queued_s
    found.path, found.to = _path(operations, name, arguments), _new_name(operations.volumes, name, arguments)
    if running.origins is not None and running.origins.bytes:
        found.sources = dict(running.origins.bytes)
    found.waited = running.places
    if name in ("read", "write"):
        found.offset = arguments[1]
        found.bytes = len(result) if name == "read" and not code else result or 0
    elif name == "open" and not code:
        fast = result.fh & passthrough.MARK_FAST
        found.way = "copied" if not fast else "passthrough" if in_kernel else "dataplane"
        if running.is_watched and arguments[1] & os.O_ACCMODE != os.O_WRONLY:  # else it is not known where bytes are from
            note_size(found, operations.volumes, arguments[0])
    elif name == "lookup" and result is not None and not result.st_ino:
        found.code = errno.ENOENT  # the answer is no error for the kernel, which is to remember it
    return found


def note_size(opened: Access, volumes: Volumes, inode: int) -> None:
    """Note what an open for reading lets the kernel read: the file, and whether that is one of the staging directory."""
    opened.bytes = size_of(volumes, inode)
    rest = opened.bytes - sum((opened.sources or {}).values())
    if opened.way == "passthrough" and rest > 0 and source_of(volumes, inode) == STAGING:
        opened.sources = {**(opened.sources or {}), STAGING: rest}


def inode_at(volumes: Volumes, handle: int) -> int | None:
    """Return the inode of a file's handle as the kernel has it, with marks; None if it is not open any more."""
    number = handle & NUMBER_MASK
    return number if handle & passthrough.MARK_FAST else inode_of(volumes, number)


def _path(operations: Operations, name: str, arguments: tuple[Any, ...]) -> str | None:
    volumes = operations.volumes
    if name in _OF_NAMES:
        return name_in(volumes, arguments[0], bytes(arguments[1]))
    if name in _OF_DIRECTORIES:
        directory = operations.directory_of(arguments[0])
        return None if directory is None else path_of(volumes, directory)
    if name in _OF_HANDLES:
        inode = inode_at(volumes, arguments[0])
        return None if inode is None else path_of(volumes, inode)
    return path_of(volumes, arguments[0]) if arguments and isinstance(arguments[0], int) else None


def _new_name(volumes: Volumes, name: str, arguments: tuple[Any, ...]) -> str | None:
    if name == "rename":
        return name_in(volumes, arguments[2], bytes(arguments[3]))
    if name == "link":
        return name_in(volumes, arguments[1], bytes(arguments[2]))
    return None


class Programs:
    """The programs that threads belong to, from /proc; remembered for a moment, as many requests follow each other."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[float, int, str]] = OrderedDict()

    def of(self, thread: int) -> tuple[int, str]:
        """Return process and program of a thread; ``?`` where it has ended, or is in another process namespace."""
        now_s = time.monotonic()
        found = self._known.get(thread)
        if found is None or now_s - found[0] > _BELIEVED_S:
            found = self._known[thread] = (now_s, *_look(thread))
            self._known.move_to_end(thread)
            if len(self._known) > _THREADS_KEPT:
                self._known.popitem(last=False)
        return found[1], found[2]


def _look(thread: int) -> tuple[int, str]:
    if thread in (0, UNKNOWN):
        return thread, "?" if thread else "kernel"
    process, program = thread, "?"
    try:
        for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines()[:8]:
            name, _, value = line.partition(":\t")
            if name == "Tgid":
                process = int(value)
        program = Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
    except (OSError, ValueError):
        pass
    return process, program
