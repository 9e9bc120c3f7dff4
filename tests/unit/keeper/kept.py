"""A keeper as a process, whose daemons are small programs, and whose device is an end of a pair of sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from luxfuse.estate.memory import State
from luxfuse.estate.words import Word
from tests.support.mounted import REPOSITORY

DAEMON = """
import os, signal, socket, struct, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
estate, said = int(arguments["--estate-fd"]), int(arguments["--keeper-fd"])
keeper = socket.socket(fileno=said)
with open(NOTES, "a") as notes:
    notes.write("began\\n")
def serve():
    os.pwrite(estate, struct.pack("=q", time.monotonic_ns() // 1_000_000), {since})
    os.pwrite(estate, struct.pack("=q", {serving}), {state})
"""
KEEPER = """
import sys
sys.path.append({repository!r})
import errno, os
from luxfuse.keeper import device, keeping, link, process, starting
{changes}
sys.exit(keeping.main())
"""
GETATTR, FORGET = 3, 2


class Kept:
    """One keeper. ``program``: what a daemon does; ``changes``: of the keeper; ``served``: whether the mount was before."""

    def __init__(
        self,
        directory: Path,
        program: str,
        *,
        changes: str = "",
        most: int = 3,
        served: bool = True,
        foreground: bool = False,
        former: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._device, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        estate = os.memfd_create("estate")
        os.pwrite(estate, struct.pack("=q", State.SERVING if served else State.NEW), 8 * Word.STATE)
        settings = os.memfd_create("settings")
        self.state, self.err = directory / "keeper", directory / "err"
        held = f"{theirs.fileno()},{estate},{settings},-1,0:0"
        command = self.daemon("daemon", program)
        old = [] if former is None else ["--former", str(len(command)), *self.daemon("former", former)]
        mountpoint, log = str(directory / "mnt"), "" if foreground else str(self.err)
        text = KEEPER.format(repository=str(REPOSITORY), changes=changes)
        arguments = ["--goes-on", held, *old, "-1", str(self.state), str(most), mountpoint, log, *command]
        fds = [theirs.fileno(), estate, settings]
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", text, *arguments],
                stdin=subprocess.DEVNULL, stderr=err, pass_fds=fds, env={**os.environ, **(environment or {})},
            )  # fmt: skip
        for fd in (estate, settings):
            os.close(fd)
        theirs.close()

    def daemon(self, name: str, program: str) -> list[str]:
        """Return the command of a daemon."""
        numbers = {"since": 8 * Word.SERVING_SINCE, "state": 8 * Word.STATE, "serving": int(State.SERVING)}
        text = f"NOTES = {str(self._directory / f'{name}.notes')!r}\n" + DAEMON.format(**numbers) + program
        return [sys.executable, "-I", "-S", "-c", text]

    def begun(self, name: str = "daemon") -> int:
        """How many daemons have begun."""
        notes = self._directory / f"{name}.notes"
        return len(notes.read_text().splitlines()) if notes.exists() else 0

    def send(self, opcode: int, unique: int) -> None:
        """Send a request as the kernel does."""
        self._device.send(struct.pack("=IIQQIIII", 40, opcode, unique, 1, 0, 0, 0, 0))

    def answer(self, opcode: int = GETATTR, unique: int = 7) -> tuple[int, int]:
        """Send a request; returns the number and the error of the first answer."""
        self.send(opcode, unique)
        self._device.settimeout(60)
        while True:
            _, error, number = struct.unpack("=IiQ", self._device.recv(100)[:16])
            if number:  # 0: a notice to the kernel
                return number, error

    def said(self) -> str:
        """What the keeper has said."""
        return self.err.read_text()

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for its end."""
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """Leave no process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            left = children.read_text().split()
            self.process.kill()
            for pid in left:
                os.kill(int(pid), signal.SIGKILL)
        self.process.wait(60)
        self._device.close()
