"""The keeper's lines in the log."""

from __future__ import annotations

import os
import time


class Log:
    """The file that stdout and stderr of the keeper and its daemons go to; "" leaves them as they are."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self) -> None:
        """Let stdout and stderr be the file that has the name now."""
        if not self._path:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # they stay what they are
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)

    def say(self, what: str) -> None:
        """Add a line, in the log's form."""
        self.open()
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            os.write(2, f'timestamp={when} level=warning logger=luxfuse.keeper event="{what}"\n'.encode(errors="replace"))
        except OSError:
            pass  # a full disk is no reason to end
