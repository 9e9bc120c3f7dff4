"""What systemd does for a service of Type=notify: hears what it is told, and keeps descriptors for its next process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

LAUNCH = """
import os, sys
count = int(sys.argv[1])
for number, fd in enumerate(map(int, sys.argv[2 : 2 + count]), 100):
    os.dup2(fd, number)
for number in range(count):
    os.dup2(100 + number, 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2 + count], sys.argv[2 + count :])
"""


class FakeSystemd:
    """One service. ``told``: all messages so far, ``store``: descriptors by name, ``most`` of them."""

    def __init__(self, directory: Path, *, most: int = 512) -> None:
        self._most = most
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self.told: list[str] = []
        self.store: dict[str, int] = {}

    def start(self, command: Sequence[object], environment: Mapping[str, str], err: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the main process, with what was stored."""
        given = {
            "NOTIFY_SOCKET": str(self._path), "LISTEN_FDS": str(len(self.store)), "LISTEN_FDNAMES": ":".join(self.store),
            "WATCHDOG_USEC": "1000000",
        }  # fmt: skip
        fds = list(self.store.values())
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, len(fds), *fds, *command]
        return subprocess.Popen(
            [str(word) for word in launch],
            env={**environment, **given},
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stderr=err,
            cwd="/",
        )

    def hear(self, what: str, *, timeout_s: float = 120) -> None:
        """Wait until something is told from now on."""
        give_up_at = time.monotonic() + timeout_s
        while (left := give_up_at - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                if what in self._take():
                    return
        raise AssertionError(f"{what} was not told: {self.told}")

    def hear_the_rest(self) -> None:
        """Hear what has come already."""
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take()

    def _take(self) -> list[str]:
        message, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
        said = message.decode().split("\n")
        self.told += said
        values = dict(line.split("=", 1) for line in said)
        if "FDSTORE" in values:
            assert values["FDPOLL"] == "0", "a device that is polled wakes us for each request"
            self._keep(values["FDNAME"], *fds)
        elif "FDSTOREREMOVE" in values and values["FDNAME"] in self.store:
            os.close(self.store.pop(values["FDNAME"]))
        return said

    def _keep(self, name: str, fd: int) -> None:
        """Keep a descriptor as systemd does: one that it has already is not kept twice, nor one too many."""
        assert len(name) <= 255
        assert all(" " <= each < "\x7f" and each != ":" for each in name), name
        if name in self.store:
            assert os.path.sameopenfile(self.store[name], fd), f"{name} is another one"
        if name in self.store or len(self.store) >= self._most:
            os.close(fd)
        else:
            self.store[name] = fd

    def close(self) -> None:
        """Let go of everything."""
        self._socket.close()
        for fd in self.store.values():
            os.close(fd)
