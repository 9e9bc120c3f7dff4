"""A process that writes to a mount on orders, so that what happens between its calls is the test's choice."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
from typing import Any

from tests.support.mounted import ORDER_TIMEOUT_S, PATIENCE_S, Hung, Mount, free

PROGRAM = """
import json, os, random, sys
files = {}
def data(what):
    return what.encode() if isinstance(what, str) else random.Random(what[0]).randbytes(what[1])
def open_(name, path, flags): files[name] = os.open(path, flags, 0o644)
def write(name, what, offset=None):
    view = memoryview(data(what))
    done = 0
    while done < len(view):
        if offset is None: done += os.write(files[name], view[done:done + (1 << 20)])
        else: done += os.pwrite(files[name], view[done:done + (1 << 20)], offset + done)
def fsync(name): os.fsync(files[name])
def truncate(name, size): os.ftruncate(files[name], size)
def close(name): os.close(files.pop(name))
def size(name): return os.fstat(files[name]).st_size
verbs = {"open": open_, "write": write, "fsync": fsync, "truncate": truncate, "close": close, "size": size}
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = {"value": verbs[verb](*arguments)}
    except OSError as exc:
        answer = {"errno": exc.errno}
    print(json.dumps(answer), flush=True)
"""
"""Verbs: open, write (text, or [seed, size] as `mounted.content` makes it), fsync, truncate, close, size."""

NEW = os.O_CREAT | os.O_TRUNC | os.O_WRONLY


class Scribe:
    """Writes to a mount. A call that hangs frees the mount and raises `Hung`."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", text=True
        )

    def send(self, verb: str, *arguments: object) -> None:
        """Give an order without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._process.stdin.flush()

    def take(self, timeout_s: float = ORDER_TIMEOUT_S) -> Any:
        """Return the answer to the order under way. Raises OSError as the process met it."""
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], timeout_s)[0]:
            free(str(self._mount.path))
            raise Hung(f"no answer within {timeout_s:g} s")
        answer = json.loads(output.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["value"]

    def answered(self) -> bool:
        """Whether the answer to the order under way is there."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def __call__(self, verb: str, *arguments: object, timeout_s: float = ORDER_TIMEOUT_S) -> Any:
        """Give an order and return its answer."""
        self.send(verb, *arguments)
        return self.take(timeout_s)

    def error(self, verb: str, *arguments: object, timeout_s: float = ORDER_TIMEOUT_S) -> str | None:
        """Return the name of the error that an order meets, None if it succeeds."""
        try:
            self(verb, *arguments, timeout_s=timeout_s)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        return None

    def put(self, name: str, what: object, *, timeout_s: float = ORDER_TIMEOUT_S) -> str | None:
        """Write a whole file; returns the first error, that of close too."""
        for order in (("open", name, f"{self._mount.path}/{name}", NEW), ("write", name, what), ("close", name)):
            if (error := self.error(*order, timeout_s=timeout_s)) is not None:
                return error
        return None

    def end(self) -> None:
        """End the process; its open files are closed."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                free(str(self._mount.path))
                self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
