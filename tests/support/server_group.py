"""Real servers that take several processes: on loopback, with everything they write in a temporary directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

STOP_TIMEOUT_S = 10.0


class ServerGroup:
    """Use as a context manager. The processes are children of this one, and end with it."""

    name: ClassVar[str]
    start_timeout_s: ClassVar[float]
    kept_from: ClassVar[tuple[str, ...]]
    """How variables begin that the processes do not get."""

    def __init__(self) -> None:
        self._base: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deadline = 0.0

    @staticmethod
    def available() -> str | None:
        """Why the servers cannot run here, or None if they can."""
        raise NotImplementedError

    def _launch(self) -> None:
        """Start all; return once they answer."""
        raise NotImplementedError

    @property
    def base(self) -> Path:
        """Where everything is written."""
        assert self._base is not None, "not started"
        return self._base

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start all; returns once they answer."""
        if reason := self.available():
            raise RuntimeError(reason)
        self._base = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        try:
            self._begin()
            self._launch()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the processes and remove what they wrote: nothing of it is needed again."""
        self._end()
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None

    def _begin(self) -> None:
        """What is started from now on has so long to answer."""
        self._deadline = time.monotonic() + self.start_timeout_s

    def _end(self) -> None:
        """Kill the processes, with those that they have started."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        while self._processes:
            self._processes.pop().wait(STOP_TIMEOUT_S)

    def _spawn(self, name: str, *command: str) -> None:
        """Start a process that goes on; what it says goes to a file of that name."""
        with (self.base / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                # Killed tests leave no servers behind.
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=self.base,
                env=self._environment(),
            )  # fmt: skip
        self._processes.append(process)

    def _run(self, *command: str) -> None:
        """Run a command to its end."""
        left = max(1.0, self._deadline - time.monotonic())
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=left,
                check=False, cwd=self.base, env=self._environment(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command[0]} did not end within {left:.0f} s: {self._said()}") from None
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-1000:]} {self._said()}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(self.kept_from)}
        return kept | {"TMPDIR": str(self.base)}  # else it is taken for a daemon that was left

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        while not condition():
            ended = [process for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > self._deadline:
                raise RuntimeError(f"{what} did not start; ended: {[p.args for p in ended]}; {self._said()}")
            time.sleep(0.05)

    def _said(self) -> str:
        """The ends of what the processes wrote, for an error message."""
        said = {path.name: path.read_text(errors="replace").strip()[-500:] for path in self.base.glob("*.out")}
        return " ".join(f"{name}: {text}" for name, text in said.items() if text)


def missing(*programs: str) -> list[str]:
    """Return the programs that are not installed, of those and of what `ServerGroup` needs itself."""
    return [program for program in (*programs, "setpriv") if shutil.which(program) is None]


def answers(url: str) -> bool:
    """Whether a server of HTTP answers, be it with an error."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
