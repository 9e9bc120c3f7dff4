"""``luxfuse trace`` as users run it, in a process of its own, and the lines that it has printed so far."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from types import TracebackType

from tests.support.mounted import PATIENCE_S, Mount, wait_for


class Watching:
    """Use as a context manager: it is watching when that is entered, and is ended by Ctrl-C."""

    def __init__(self, mount: Mount, *flags: str) -> None:
        self._mount = mount
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "luxfuse.cli.main", "trace", str(mount.path), *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=mount.environment,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Watching:
        self._thread.start()
        wait_for("it watches", self._something_is_seen)
        return self

    def _something_is_seen(self) -> bool:
        self._mount.error("os.stat", f"{self._mount.path}/is it watched")
        assert self._process.poll() is None, self.lines
        return bool(self.lines)

    def found(self, pattern: str) -> list[re.Match[str]]:
        """The lines that a pattern matches to their end."""
        return [match for line in list(self.lines) if (match := re.search(f"{pattern}$", line))]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first line that a pattern matches to its end, once there is one."""
        first: re.Match[str] = wait_for(f"a line {pattern} in {self.lines}", lambda: self.found(pattern))[0]
        return first

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        if error is None:
            assert code == 0, self.lines
