"""Random I/O on one file, compared with a bytearray after every read, in the manner of fsx.

``python tests/support/fsx.py PATH --ops N --seed S`` prints the seed, then either ``done SIZE SHA256`` or the mismatch:
the seed, the number of the operation, the first differing offset and the operations before it. The same seed and
options give the same operations.

What the caller does in between is a hook: ``--remount-every N`` and ``--evict-every N`` print ``hook remount`` or
``hook evict`` and wait for a line on stdin. A remount finds everything closed; an eviction may find files open. Standard
library only and no package imports, so that it can run by path, as a process that a hung mount may hang.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import hashlib
import math
import mmap
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20
PAGE = mmap.PAGESIZE
LONGEST = 256 * KIB
SHOWN = 20
KEEP_SIZE, PUNCH_HOLE = 1, 2  # modes of fallocate(2)
KINDS = (os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDONLY, os.O_WRONLY)

WEIGHTS: Mapping[str, float] = {
    "write": 16, "pwrite": 14, "append": 6, "read": 18, "peek": 6, "whole": 0.5, "stat": 6, "shrink": 3, "grow": 3,
    "empty": 0.3, "zero": 3, "punch": 3, "allocate": 2, "copy": 3, "map": 3, "map_write": 9, "map_read": 8, "unmap": 1,
    "msync": 2, "holes": 2, "fsync": 1.5, "reopen": 3, "rename": 0.7,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Mismatch(AssertionError):
    """The file is not what it should be."""


@dataclass
class Hook:
    """Called after every ``every``-th operation; ``closed`` says that nothing may be open then."""

    every: int
    call: Callable[[], None]
    closed: bool


@dataclass
class Handle:
    """An open file of one of `KINDS`."""

    fd: int
    flags: int

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)


class Fsx:
    """One run. ``handles`` files are kept open at once, of `KINDS` in turn; 1 means one for reading and writing."""

    def __init__(self, path: str, seed: int, *, handles: int = 1, max_bytes: int = 4 * MIB,
                 weights: Mapping[str, float] = WEIGHTS, hooks: Mapping[str, Hook] | None = None) -> None:  # fmt: skip
        self.path = self._first_path = path
        self.seed = seed
        self.max_bytes = max_bytes
        self.hooks = dict(hooks or {})
        self.rng = random.Random(seed)
        self.model = bytearray()
        self.operation = 0
        self.last: deque[str] = deque(maxlen=SHOWN)
        self.trace = False
        self._pool = random.Random(seed + 1).randbytes(2 * MIB)
        self._names, self._weights = list(weights), list(weights.values())
        self._count = handles
        self._handles: list[Handle] = []
        self._mapping: mmap.mmap | None = None

    def run(self, operations: int) -> None:
        """Make the file anew and work on it; everything is closed afterwards. Raises `Mismatch`."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
        try:
            self._open_all()
            for self.operation in range(1, operations + 1):
                name = self.rng.choices(self._names, self._weights)[0]
                self._log(name)
                try:
                    getattr(self, f"_{name}")()
                    for hook_name, hook in self.hooks.items():
                        if self.operation % hook.every == 0:
                            self._call(hook_name, hook)
                except OSError as error:
                    raise Mismatch(self._report(f"{error!r}")) from error
            self._log("end")
            self._close_all()
            if self.path != self._first_path:
                self._rename()
            self._check_whole()
        finally:
            self._close_all()

    def digest(self) -> str:
        """SHA-256 of what the file should hold."""
        return hashlib.sha256(self.model).hexdigest()

    # -- handles and hooks

    def _open(self, flags: int) -> Handle:
        return Handle(os.open(self.path, flags), flags)

    def _open_all(self) -> None:
        self._handles = [self._open(KINDS[i % len(KINDS)]) for i in range(self._count)]

    def _close_all(self) -> None:
        self._unmap()
        while self._handles:
            os.close(self._handles.pop().fd)

    def _call(self, name: str, hook: Hook) -> None:
        close = hook.closed or self.rng.random() < 0.5
        self._log(f"hook {name}" + (", all closed" if close else ""))
        if close:
            self._close_all()
        hook.call()
        if close:
            self._open_all()
        self._check_whole()

    def _reader(self) -> Handle:
        return self.rng.choice([h for h in self._handles if h.readable])

    def _writer(self) -> Handle:
        return self.rng.choice([h for h in self._handles if h.writable and not h.appends])

    # -- choices

    def _length(self, most: int) -> int:
        """Short more often than long; often whole pages."""
        length = int(math.exp(self.rng.uniform(0, math.log(LONGEST))))
        if self.rng.random() < 0.25:
            length = -(-length // PAGE) * PAGE
        return max(1, min(length, most))

    def _offset(self, limit: int) -> int:
        """Below ``limit``, which is above 0; often at a page's beginning."""
        offset = self.rng.randrange(limit)
        return offset // PAGE * PAGE if self.rng.random() < 0.35 else offset

    def _place(self) -> tuple[int, int]:
        """Where to change something: mostly inside the file or across its end, sometimes beyond it."""
        limit = self.max_bytes if self.rng.random() < 0.08 else min(len(self.model) + 1, self.max_bytes)
        offset = self._offset(limit)
        return offset, self._length(self.max_bytes - offset)

    def _data(self, length: int) -> bytes:
        at = self.rng.randrange(len(self._pool) - length)
        return self._pool[at : at + length]

    # -- the model

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model += bytes(offset - len(self.model))
        self.model[offset : offset + len(data)] = data

    def _resize(self, size: int) -> None:
        if size < len(self.model):
            del self.model[size:]
        else:
            self.model += bytes(size - len(self.model))

    def _log(self, text: str) -> None:
        self.last.append(f"{self.operation}: {text}")
        if self.trace:
            print(self.last[-1], file=sys.stderr, flush=True)

    def _detail(self, text: str) -> None:
        self.last[-1] += f" {text}"
        if self.trace:
            print(self.last[-1], file=sys.stderr, flush=True)

    def _report(self, what: str) -> str:
        """What went wrong, after what."""
        return "\n".join(
            [f"{what}", f"seed {self.seed}, operation {self.operation}, size {len(self.model)}, the last operations:"]
            + [f"  {line}" for line in self.last]
        )

    def _check(self, how: str, offset: int, data: bytes, wanted: int) -> None:
        expected = self.model[offset : offset + wanted]
        if data == expected:
            return
        where = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), None)
        if where is None:
            raise Mismatch(self._report(
                f"{how} at {offset}+{wanted}: first difference at offset {offset + min(len(data), len(expected))}: "
                f"{len(data)} bytes, expected {len(expected)}"
            ))  # fmt: skip
        different = sum(a != b for a, b in zip(data, expected, strict=False))
        raise Mismatch(self._report(
            f"{how} at {offset}+{wanted}: first difference at offset {offset + where}, {different} bytes differ; "
            f"got {data[where : where + 16].hex()}, expected {expected[where : where + 16].hex()}"
        ))  # fmt: skip

    def _check_whole(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            data = b""
            while part := os.read(fd, self.max_bytes + 1):
                data += part
        finally:
            os.close(fd)
        self._check("the whole file", 0, data, self.max_bytes + 1)

    # -- operations: writing

    def _write(self) -> None:
        handle, (offset, length) = self._writer(), self._place()
        self._detail(f"{offset}+{length}")
        data = self._data(length)
        os.lseek(handle.fd, offset, os.SEEK_SET)
        self._written(os.write(handle.fd, data), length)
        self._put(offset, data)

    def _pwrite(self, data: bytes | None = None) -> None:
        handle, (offset, length) = self._writer(), self._place()
        self._detail(f"{offset}+{length}")
        data = self._data(length) if data is None else data[:length]
        self._written(os.pwrite(handle.fd, data, offset), len(data))
        self._put(offset, data)

    def _zero(self) -> None:
        self._pwrite(bytes(LONGEST))

    def _append(self) -> None:
        appending = [h for h in self._handles if h.appends]
        handle = self.rng.choice(appending) if appending else self._writer()
        offset = len(self.model)
        length = self._length(max(self.max_bytes - offset, 0))
        if offset + length > self.max_bytes:
            return
        self._detail(f"{offset}+{length}")
        data = self._data(length)
        os.lseek(handle.fd, 0, os.SEEK_SET if handle.appends else os.SEEK_END)
        self._written(os.write(handle.fd, data), length)
        self._put(offset, data)

    def _written(self, count: int, length: int) -> None:
        if count != length:
            raise Mismatch(self._report(f"{count} bytes written of {length}"))

    def _shrink(self) -> None:
        self._truncate(self._offset(len(self.model) + 1))

    def _grow(self) -> None:
        self._truncate(len(self.model) + self._length(max(self.max_bytes - len(self.model), 1)))

    def _empty(self) -> None:
        """Opened with O_TRUNC."""
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self._resize(0)

    def _truncate(self, size: int) -> None:
        size = min(size, self.max_bytes)
        by_path = self.rng.random() < 0.3
        self._detail(f"from {len(self.model)} to {size}" + (" by path" if by_path else ""))
        if by_path:
            os.truncate(self.path, size)
        else:
            os.ftruncate(self._writer().fd, size)
        self._resize(size)

    def _punch(self) -> None:
        handle, (offset, length) = self._writer(), self._place()
        self._detail(f"{offset}+{length}")
        if _fallocate(handle.fd, PUNCH_HOLE | KEEP_SIZE, offset, length):
            length = max(0, min(length, len(self.model) - offset))
        else:
            self._written(os.pwrite(handle.fd, bytes(length), offset), length)
        if length:
            self._put(offset, bytes(length))

    def _allocate(self) -> None:
        handle, (offset, length) = self._writer(), self._place()
        keep = self.rng.random() < 0.3
        self._detail(f"{offset}+{length}" + (", size kept" if keep else ""))
        if _fallocate(handle.fd, KEEP_SIZE if keep else 0, offset, length) and not keep:
            self._resize(max(len(self.model), offset + length))

    def _copy(self) -> None:
        """copy_file_range within the file."""
        source, target = self._reader(), self._writer()
        if len(self.model) < 2:
            return
        length = self._length(len(self.model) // 2)
        start = self._offset(len(self.model) - length)
        room = [(0, start - length), (start + length, self.max_bytes - length)]
        low, high = self.rng.choice([r for r in room if r[1] >= r[0]])
        to = min(self.rng.randint(low, high), len(self.model))
        if abs(to - start) < length:
            return
        self._detail(f"{start}+{length} to {to}")
        done = 0
        while done < length:
            count = os.copy_file_range(source.fd, target.fd, length - done, start + done, to + done)
            if count == 0:
                raise Mismatch(self._report(f"copy_file_range ended after {done} of {length} bytes"))
            done += count
        self._put(to, bytes(self.model[start : start + length]))

    # -- operations: reading

    def _range(self) -> tuple[int, int]:
        """Where to read; may go across the end."""
        offset = self._offset(len(self.model) + 1)
        return offset, self._length(self.max_bytes)

    def _read(self) -> None:
        handle, (offset, length) = self._reader(), self._range()
        self._detail(f"{offset}+{length}")
        self._check("read", offset, os.pread(handle.fd, length, offset), length)

    def _peek(self) -> None:
        """Read through a new descriptor."""
        offset, length = self._range()
        self._detail(f"{offset}+{length}")
        fd = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(fd, length, offset)
        finally:
            os.close(fd)
        self._check("read after open", offset, data, length)

    def _whole(self) -> None:
        self._check_whole()

    def _stat(self) -> None:
        by_handle, by_path = os.fstat(self._handles[0].fd).st_size, os.stat(self.path).st_size
        if (by_handle, by_path) != (len(self.model), len(self.model)):
            raise Mismatch(self._report(f"fstat says {by_handle} bytes, stat {by_path}, expected {len(self.model)}"))

    def _holes(self) -> None:
        """What SEEK_DATA passes over must be zeros."""
        if not self.model:
            return
        handle, offset = self._reader(), self._offset(len(self.model))
        self._detail(f"from {offset}")
        try:
            data_at = os.lseek(handle.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data_at = len(self.model)
        self._check("a hole", offset, bytes(data_at - offset), data_at - offset)
        hole_at = os.lseek(handle.fd, offset, os.SEEK_HOLE)
        if not offset <= hole_at <= len(self.model):
            raise Mismatch(self._report(f"SEEK_HOLE from {offset} found {hole_at}"))

    # -- operations: the mapping, which stays while its descriptor goes

    def _mapped(self) -> int:
        """Bytes of the mapping that are in the file."""
        return 0 if self._mapping is None else min(len(self._mapping), len(self.model))

    def _map(self) -> None:
        self._unmap()
        if self.model:
            self._mapping = mmap.mmap(next(h for h in self._handles if h.flags == os.O_RDWR).fd, len(self.model))

    def _map_write(self) -> None:
        if not self._mapped():
            self._map()
        if self._mapping is None:
            return
        offset = self._offset(self._mapped())
        data = self._data(self._length(self._mapped() - offset))
        self._detail(f"{offset}+{len(data)}")
        self._mapping[offset : offset + len(data)] = data
        self._put(offset, data)

    def _map_read(self) -> None:
        if self._mapping is not None and self._mapped():
            offset = self._offset(self._mapped())
            length = self._length(self._mapped() - offset)
            self._detail(f"{offset}+{length}")
            self._check("mmap", offset, self._mapping[offset : offset + length], length)

    def _msync(self) -> None:
        if self._mapping is not None and self._mapped():
            # Pages that are no longer in the file cannot be synchronised.
            self._mapping.flush(0, min(-(-self._mapped() // PAGE) * PAGE, len(self._mapping)))

    def _unmap(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    # -- operations: the file

    def _fsync(self) -> None:
        handle = self.rng.choice(self._handles)
        self.rng.choice((os.fsync, os.fdatasync))(handle.fd)

    def _reopen(self) -> None:
        """Close one and open it again; sometimes all of them."""
        if self.rng.random() < 0.4:
            self._detail("all")
            self._close_all()
            self._open_all()
            return
        i = self.rng.randrange(len(self._handles))
        os.close(self._handles[i].fd)
        self._handles[i] = self._open(self._handles[i].flags)

    def _rename(self) -> None:
        target = self._first_path if self.path != self._first_path else f"{self._first_path}.moved"
        os.rename(self.path, target)
        self.path = target


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Whether the file system can; other errors are raised."""
    if _libc.fallocate(fd, mode, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def _ask(name: str) -> Callable[[], None]:
    def call() -> None:
        print(f"hook {name}", flush=True)
        if not sys.stdin.readline():
            raise SystemExit("nobody answers the hook")

    return call


def main() -> int:
    parser = argparse.ArgumentParser(prog="fsx", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--ops", type=int, default=20_000)
    parser.add_argument("--seed", type=int, help="default: LUXFUSE_SEED, or a new one")
    parser.add_argument("--handles", type=int, default=1)
    parser.add_argument("--max-bytes", type=int, default=4 * MIB)
    parser.add_argument("--trace", action="store_true", help="print each operation, for one that kills the process")
    parser.add_argument("--remount-every", type=int, metavar="N")
    parser.add_argument("--evict-every", type=int, metavar="N")
    arguments = parser.parse_args()
    seed = arguments.seed
    if seed is None:
        seed = int(os.environ.get("LUXFUSE_SEED") or random.SystemRandom().getrandbits(32))
    hooks = {}
    if arguments.evict_every:
        hooks["evict"] = Hook(arguments.evict_every, _ask("evict"), closed=False)
    if arguments.remount_every:
        hooks["remount"] = Hook(arguments.remount_every, _ask("remount"), closed=True)
    print(f"seed {seed}", flush=True)
    run = Fsx(arguments.path, seed, handles=arguments.handles, max_bytes=arguments.max_bytes, hooks=hooks)
    run.trace = arguments.trace
    faulthandler.enable()  # a mapping's page that cannot be had ends the process with SIGBUS
    try:
        run.run(arguments.ops)
    except Mismatch as mismatch:
        print(mismatch, flush=True)
        return 1
    print(f"done {len(run.model)} {run.digest()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
