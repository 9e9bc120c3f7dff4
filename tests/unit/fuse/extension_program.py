"""What is done with the extension while it is built with sanitizers: `python extension_program.py EXTENSION KIND SEED`.

``prompt``: requests with something wrong, and functions that answer, decline or raise. ``session``: pyfuse3 and libfuse on
a socket in the place of the device. ``calls``: every function of the module with arguments of all kinds. It ends with a
line of how often what was met; memory that nothing refers to any more is reported then.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import random
import select
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import luxfuse.fuse

HEADER = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, SETXATTR = 1, 2, 3, 4, 14, 15, 16, 18, 21
GETXATTR, FLUSH, INIT, OPENDIR, RELEASEDIR, CREATE, FALLOCATE, READDIRPLUS = 22, 25, 26, 27, 29, 35, 43, 44
BODIES = {LOOKUP: 0, GETATTR: 16, SETATTR: 88, CREATE: 16, FLUSH: 24, RELEASE: 24, SETXATTR: 8, READDIRPLUS: 40}
WITH_NAME = (LOOKUP, CREATE, SETXATTR)
GIVE_UP_S = 60.0
REQUESTS = 2_000
CALLS = 20_000


def load(path: str) -> Any:
    """The extension at ``path`` in the place of that of the package, as `luxfuse.fuse.lowlevel` loads it."""
    sys.setdlopenflags(sys.getdlopenflags() | os.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("luxfuse.fuse._passthrough", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = luxfuse.fuse._passthrough = module  # type: ignore[attr-defined]
    return module


def request(opcode: int, unique: int, body: bytes, node: int = 1) -> bytes:
    return HEADER.pack(HEADER.size + len(body), opcode, unique, node, 0, 0, os.getpid(), 0) + body


def give_up_at() -> float:
    return time.monotonic() + GIVE_UP_S


class Kernel:
    """The other end of the socket: what was asked, and what came back."""

    def __init__(self) -> None:
        self.end, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.replies: dict[int, tuple[int, bytes]] = {}

    def take(self, timeout_s: float = 0) -> None:
        while select.select([self.end], [], [], timeout_s)[0]:
            data = self.end.recv(1 << 21)
            size, error, unique = OUT.unpack_from(data)
            assert size == len(data), "a reply of another size than it says"
            assert unique not in self.replies, "answered twice"
            self.replies[unique] = (-error, data[OUT.size :])


# prompt -------------------------------------------------------------------------------------------------------------


def prompts(extension: Any, chance: random.Random) -> Counter[str]:
    """Requests of which some are cut off or of random bytes, four at a time."""
    kernel, met = Kernel(), Counter[str]()
    edges = (0, 1, 999_999_999, 1 << 40, (1 << 63) - 1)

    def answer(kind: str, unique: int, *rest: Any) -> bool:
        met[kind] += 1
        if unique % 5 == 0:
            met["declined"] += 1
            return False
        if unique % 7 == 0:
            raise RuntimeError("on purpose")
        times = [chance.choice((-1, 1)) * chance.choice(edges) for _ in range(5)]
        said = (chance.choice(edges), chance.choice(edges), 8, 0o100644, 1, 0, 0, 0, *times)
        {
            "lookup": lambda: extension.reply_entry(unique, *said),
            "getattr": lambda: extension.reply_attr(unique, *said),
            "setattr": lambda: extension.reply_attr(unique, *said),
            "create": lambda: extension.reply_created(unique, *said, chance.choice(HANDLES)),
            "readdir": lambda: packed(extension, chance, unique, said),
        }.get(kind, lambda: extension.reply_done(unique, chance.choice((0, errno.EIO))))()
        return True

    kinds = ("lookup", "getattr", "create", "flush", "release", "setattr", "readdir")
    functions = tuple(lambda *a, kind=kind: answer(kind, *a) for kind in kinds)
    sys.unraisablehook = lambda _about: met.update(["raised"])
    extension.attach()
    fd = extension.set_prompt(functions)
    extension.start(kernel.device.fileno(), True)
    for first in range(1, REQUESTS, 4):
        for unique in range(first, first + 4):
            kernel.end.send(odd_request(chance, unique))
        finish_at = give_up_at()
        while extension.statistics()["requests"] < first + 3 or select.select([fd], [], [], 0)[0]:
            extension.serve_prompt()
            kernel.take()
            assert time.monotonic() < finish_at, "requests wait for ever"
    extension.set_prompt(None)
    kernel.take()
    assert extension.queued() == REQUESTS - len(kernel.replies)
    return met


class Entry:
    """What is packed knows entries by the names of what they have; something is missing or wrong in some."""

    def __init__(self, chance: random.Random, attributes: object = None) -> None:
        numbers = (0, 0, 1, 2, 511, 1 << 40, (1 << 63) - 1)
        for name in ("inode", "size", "mtime_ns", "mode", "uid", "gid", "atime_ns", "ctime_ns", "rdev"):
            setattr(self, name, chance.choice(numbers))
        self.kind, self.checked_s, self.attributes = chance.randrange(4), chance.choice((0.0, 99.0, 1e300)), attributes
        if chance.random() < 0.05:
            setattr(self, chance.choice(list(vars(self))), chance.choice((1 << 70, "text", None, -1)))
        if chance.random() < 0.02:
            delattr(self, chance.choice(list(vars(self))))


def listed(chance: random.Random) -> list[Any]:
    """Entries of a directory; what runs in between may even change the list."""
    found: list[Any] = []

    class Shrinking(Entry):
        @property
        def size(self) -> int:
            del found[len(found) // 2 :]
            return 1

        @size.setter
        def size(self, _value: int) -> None:
            pass

    for _ in range(chance.randrange(30)):
        said = Entry(chance) if chance.random() < 0.5 else None
        found.append((b"n" * chance.choice((0, 1, 8, 255)), Entry(chance, said)))
    if found and chance.random() < 0.1:
        found[chance.randrange(len(found))] = chance.choice((None, (b"n",), ("n", 1), (b"shrinking", Shrinking(chance))))
    return found


def common(chance: random.Random) -> tuple[object, ...]:
    aside = chance.choice((None, None, {1, 511}, frozenset(), 7))
    return (100.0, 60.0, 0.0, chance.randrange(3), True, 5, 6, 7, 0o22, aside)


def packed(extension: Any, chance: random.Random, unique: int, said: tuple[int, ...]) -> None:
    answer, used = bytearray(chance.choice((0, 100, 200, 4096))), 0
    used = extension.pack_one(answer, used, b".", 1, *said)
    try:
        used, _, _ = extension.pack(
            answer, used, 1 << 50, listed(chance), 0, chance.choice((None, {511: 3})), common(chance)
        )
    except (TypeError, OverflowError, AttributeError):
        pass
    extension.reply_packed(unique, answer, used)


def odd_request(chance: random.Random, unique: int) -> bytes:
    opcode = chance.choice(list(BODIES))
    body = bytearray(chance.randbytes(BODIES[opcode]))
    if opcode == SETATTR:
        body[:8] = struct.pack("=II", chance.choice((1, 6, 0x30, 0x1B1, chance.getrandbits(12))), 0)
        body[24:48] = bytes(24) if chance.random() < 0.9 else body[24:48]  # times from then on
    if opcode in WITH_NAME:
        body += chance.randbytes(chance.randrange(300)).replace(b"\0", b"n") + b"\0"
    if chance.random() < 0.3:
        del body[chance.randrange(len(body) + 1) :]
    return request(opcode, unique, bytes(body), chance.randrange(1, 9))


# session ------------------------------------------------------------------------------------------------------------


HANDLES: list[int] = []


def session(extension: Any, chance: random.Random) -> Counter[str]:
    """Requests with nothing wrong, through libfuse and pyfuse3."""
    import pyfuse3
    import trio

    met = Counter[str]()

    class Operations(pyfuse3.Operations):
        async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
            raise pyfuse3.FUSEError(errno.ENOENT)

        async def getattr(self, inode: int, ctx: Any = None) -> Any:
            return entry(inode)

        async def open(self, inode: int, flags: int, ctx: Any) -> Any:
            met["open"] += 1
            extension.answering(extension.current()[0])
            return pyfuse3.FileInfo(fh=chance.choice([5, *HANDLES]))

        async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
            met["create"] += 1
            extension.answering(extension.current()[0])
            return pyfuse3.FileInfo(fh=chance.choice([5, *HANDLES])), entry(77)

        async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
            met["setxattr"] += extension.xattr_flags() == 1

        async def release(self, fh: int) -> None:
            met["release"] += 1

    def entry(inode: int) -> Any:
        found = pyfuse3.EntryAttributes()
        found.st_ino, found.st_mode, found.st_nlink = inode, 0o100644, 1
        found.entry_timeout, found.attr_timeout = chance.choice((0, 0.5, 1e18, -1)), chance.choice((0, 1, 1e30))
        return found

    def fallocate(number: int, _inode: int, _fh: int, mode: int, _offset: int, _length: int) -> None:
        met["fallocate"] += 1
        if mode == 1:
            raise RuntimeError("on purpose")
        extension.reply_err(number, errno.EOPNOTSUPP)

    async def serve() -> None:
        kernel = Kernel()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = theirs.detach()
        pyfuse3.init(Operations(), f"/dev/fd/{link}", set())
        extension.push(request(INIT, 1, struct.pack("=IIIII", 7, 36, 1 << 20, (1 << 30) - 1, 0) + bytes(44)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.fail_after(GIVE_UP_S):
                await trio.lowlevel.wait_readable(ours)
            ours.recv(4096)
            os.dup2(kernel.device.fileno(), link)
            extension.set_fallocate(fallocate)
            extension.start(kernel.device.fileno(), True)
            for first in range(2, REQUESTS, 8):
                asked = range(first, first + 8)
                for unique in asked:
                    kernel.end.send(whole_request(chance, unique))
                finish_at = give_up_at()
                while not all(unique in kernel.replies for unique in asked):
                    kernel.take()
                    await trio.sleep(0.001)
                    assert time.monotonic() < finish_at, "a request is never answered"
                if first % 200 == 2:
                    extension.set_fallocate(None if chance.random() < 0.3 else fallocate)
            kernel.end.close()
        extension.set_fallocate(None)
        pyfuse3.close(unmount=False)

    sys.unraisablehook = lambda _about: met.update(["raised"])
    extension.attach()
    trio.run(serve)
    return met


def whole_request(chance: random.Random, unique: int) -> bytes:
    body = {
        LOOKUP: b"name\0",
        GETATTR: bytes(16),
        OPEN: struct.pack("=II", chance.choice((os.O_RDONLY, os.O_RDWR)), 0),
        CREATE: struct.pack("=IIII", os.O_RDWR, 0o644, 0o22, 0) + b"new\0",
        SETXATTR: struct.pack("=II", 3, 1) + b"user.x\0abc",
        GETXATTR: struct.pack("=II", 100, 0) + b"security.capability\0",
        RELEASE: struct.pack("=QIIQ", 5, 0, 0, 0),
        FALLOCATE: struct.pack("=QQQII", 5, 0, 4096, chance.choice((0, 1)), 0),
    }
    opcode = chance.choice(list(body))
    return request(opcode, unique, body[opcode], chance.choice((1, 2, 1 << 40)))


# calls --------------------------------------------------------------------------------------------------------------


LEFT_OUT = {"start", "attach", "interrupts", "estate", "reply_err", "set_prompt", "set_fallocate", "push"}
"""What is told of memory, of the device, or of functions: these trust the caller."""
REFUSALS = (TypeError, ValueError, OverflowError, OSError, AttributeError)


def calls(extension: Any, chance: random.Random) -> Counter[str]:
    met = Counter[str]()
    extension.estate(memoryview(bytearray(4096 + 64 * 64 + 32 * (1 << 17))))
    extension.attach()
    with tempfile.TemporaryFile() as file, socket.socket() as device:
        extension.start(device.fileno(), True)
        names = [b"", b"name", b"n" * 255, b"n" * 70_000, b"with\0end"]
        values = [*range(6), file.fileno(), -1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1, 1 << 70, None, True, "text"]
        values += [*names, names, tuple(names), [b"n", "no"], 1.5]
        functions = [v for k, v in vars(extension).items() if callable(v) and not k.startswith("_") and k not in LEFT_OUT]
        for _ in range(CALLS):
            function = chance.choice(functions)
            try:
                function(*arguments(function.__name__, chance, values, names, file.fileno()))
                met[function.__name__] += 1
            except REFUSALS:
                met["refused"] += 1
    return Counter(functions=len(met) - ("refused" in met), of=len(functions), refused=met["refused"])


def arguments(name: str, chance: random.Random, values: list[Any], names: list[bytes], fd: int) -> list[Any]:
    """Those that fit, for two calls of three: else nothing is ever done."""
    inode, later = chance.randrange(1, 9), time.monotonic_ns() + 10**9
    fit: dict[str, list[Any]] = {
        "register": [inode, chance.choice((0, 42)), fd, os.fstat(fd).st_mtime_ns, later, chance.random() < 0.5],
        "inherit": [inode, chance.randrange(20), 0, chance.choice((fd, -1)), -1, chance.random() < 0.5],
        "lend": [inode, fd],
        "offer": [inode, chance.choice(names), inode, 0o100644, 0, 0, 0, 5, 8, 1, 1, 1, later, False, False],
        "offer_missing": [inode, later, later, chance.choice((None, names, tuple(names)))],
        "reply_entry": [5, *range(13)],
        "reply_attr": [5, *range(13)],
        "reply_created": [5, *range(13), chance.choice(HANDLES)],
        "reply_done": [5, 0],
        "pack": [bytearray(500), 0, 0, listed(chance), chance.choice((0, 1, 99)), None, common(chance)],
        "pack_one": [bytearray(500), chance.choice((0, 300, 500)), chance.choice(names), 1, *range(13)],
        "reply_packed": [5, bytearray(500), chance.choice((0, 500, 501))],
        "restamp": [inode, -1, later],
        "acquire": [inode, later, chance.random() < 0.5],
        "grant": [inode, 4096],
        "revoke": [inode, chance.choice(names)],
        "knows": [inode, chance.choice(names)],
        "give_back": [chance.randrange(20)],
        "trace": [chance.random() < 0.5],
        "time_queue": [chance.random() < 0.5],
    }
    none = ("take_", "current", "caller", "xattr_flags", "statistics", "queued", "stop", "revoke_all", "serve_prompt")
    if chance.random() < 0.33:
        return [chance.choice(values) for _ in range(chance.randrange(16))]
    return [] if name.startswith(none) and name != "take_back" else fit.get(name, [inode])


def main() -> None:
    path, kind, seed = sys.argv[1:]
    extension = load(path)
    mark, fast, write = extension.MARK, extension.MARK_FAST, extension.MARK_WRITE
    HANDLES.extend(
        [mark | fast | 3, mark | fast | write | 3, mark | extension.MARK_NOFLUSH | 9, mark | extension.MARK_KEEP_CACHE]
    )
    with tempfile.TemporaryDirectory() as directory:
        backing = Path(directory, "backing")
        backing.write_bytes(b"content")
        with backing.open("rb") as file:
            if kind != "calls":
                extension.register(3, 0, file.fileno(), os.fstat(file.fileno()).st_mtime_ns, time.monotonic_ns() + 10**12)
            met = {"prompt": prompts, "session": session, "calls": calls}[kind](extension, random.Random(int(seed)))
    print(*(word for name, count in sorted(met.items()) for word in (name, count)), flush=True)
    finish_at = give_up_at()
    while extension.stop() or len(os.listdir("/proc/self/task")) > 1:  # the search for leaks fails beside threads that end
        assert time.monotonic() < finish_at, "a lane does not end"
        time.sleep(0.01)
    ctypes.CDLL(None).__lsan_do_recoverable_leak_check()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
