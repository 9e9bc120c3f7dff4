"""The keeper's lines in the log."""

from __future__ import annotations

import os
import time

LOG_FORMAT = "KEEPER_LOG_FORMAT"
"""The variable that says whether lines are JSON: ``json``."""
WARNING = "<4>"
"""In front of a line for systemd's journal."""


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
        try:
            os.write(2, f"{line_of(what)}\n".encode(errors="replace"))
        except OSError:
            pass  # a full disk is no reason to end


def line_of(what: str) -> str:
    """Return a line in the form of the daemon's log (`luxfuse.daemon.logs`), but for fractions of a second."""
    zone = time.strftime("%z")
    when = f"{time.strftime('%Y-%m-%dT%H:%M:%S')}{zone[:3]}:{zone[3:]}"
    status = os.fstat(2)
    mark = WARNING if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" else ""
    if os.environ.get(LOG_FORMAT) != "json":
        return f'{mark}timestamp={when} level=warning logger=luxfuse.keeper event="{what}"'
    event = what.replace("\\", "\\\\").replace('"', '\\"')  # the module json would take memory for ever
    return f'{mark}{{"timestamp": "{when}", "level": "warning", "logger": "luxfuse.keeper", "event": "{event}"}}'
