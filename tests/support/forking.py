"""Runs luxfuse commands as processes that are forked instead of started; see `forked`."""

from __future__ import annotations

import atexit
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PROGRAM = Path(__file__).with_name("forked.py")
_ORDER_MAX_BYTES = 1 << 20


class _Forker:
    """The program that forks. It ends when this process does."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ORDER_MAX_BYTES)
        with theirs:
            # The last word is for those who look for daemons: what is forked has this command line.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), str(theirs.fileno()), "luxfuse.daemon"],
                stdin=subprocess.DEVNULL, cwd="/", pass_fds=[theirs.fileno()],
            )  # fmt: skip
        # The kernel says that a program has begun before its command line can be seen.
        environment = Path(f"/proc/{self._process.pid}/environ")
        while self._process.poll() is None and not environment.read_bytes():
            time.sleep(0.001)

    def send(self, order: Mapping[str, object], fds: Sequence[int]) -> None:
        socket.send_fds(self._orders, [json.dumps(order).encode()], fds)

    def close(self) -> None:
        self._orders.close()
        self._process.wait(60)


@functools.cache
def start() -> _Forker:
    """Start the program that forks, once for this process."""
    forker = _Forker()
    atexit.register(forker.close)
    return forker


class Command:
    """A ``luxfuse`` command in a process of its own; has of `subprocess.Popen` what its users need."""

    def __init__(
        self, arguments: Sequence[str | os.PathLike[str]], environment: Mapping[str, str], network: str | None = None
    ) -> None:
        """``network``: the path of the network namespace that it runs in."""
        self.args = ["luxfuse", *map(os.fspath, arguments)]
        self.returncode: int | None = None
        self.pid: int | None = None
        self._received = {"out": b"", "err": b"", "answers": b""}
        self._selector = selectors.DefaultSelector()
        pipes = {name: os.pipe() for name in self._received}
        try:
            for name, (reading, _) in pipes.items():
                self._selector.register(reading, selectors.EVENT_READ, name)
            order = {"arguments": self.args[1:], "environment": dict(environment), "network": network}
            start().send(order, [writing for _, writing in pipes.values()])
        finally:
            for _, writing in pipes.values():
                os.close(writing)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; returns stdout and stderr. Raises `subprocess.TimeoutExpired`."""
        give_up_at = time.monotonic() + timeout
        while self._selector.get_map():
            for key, _ in self._selector.select(max(0.0, give_up_at - time.monotonic())):
                chunk = os.read(key.fd, 1 << 16)
                self._received[key.data] += chunk
                if not chunk:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
            if time.monotonic() > give_up_at and self._selector.get_map():
                raise subprocess.TimeoutExpired(self.args, timeout)
        answers = self._received["answers"].split()
        assert len(answers) == 2, f"{self.args}: what forks it has died: {answers}"
        self.returncode = int(answers[1])
        return self._text("out"), self._text("err")

    def _text(self, name: str) -> str:
        return self._received[name].decode(errors="surrogateescape")

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        if (pid := self._received["answers"].split()[:1]) and self.returncode is None:
            os.kill(int(pid[0]), signal.SIGKILL)
