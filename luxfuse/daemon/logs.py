"""Logging of the daemon: one line an event, to the log file (bounded) or, in the foreground, to stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import logging.handlers
import os
import sys
from collections import deque
from datetime import datetime
from pathlib import Path

from luxfuse.config import Settings
from luxfuse.core.printing import printable

FILE_BYTES = 10 << 20
FILES_KEPT = 3
_SEVERITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
RECENT_KEPT = 50
RECENT_CHARACTERS = 500
FILE_NAME = "daemon.log"


class Lines(logging.Formatter):
    """Makes one line of a record, with its traceback.

    As text, ``timestamp=... level=... logger=... event="..."``, or as JSON, an object with these names. The time is that of
    the machine's clock and zone, with its distance from UTC. ``journal``: the line is for systemd's journal, which has a
    time of its own, and takes the severity from a number in front.
    """

    def __init__(self, *, as_json: bool = False, journal: bool = False) -> None:
        super().__init__()
        self._as_json = as_json
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        fields = {"timestamp": when, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._journal:
            del fields["timestamp"]
        if (
            self._as_json
        ):  # names may be no UTF-8, and half a character, as JSON could escape it, is refused by many readers
            text = json.dumps({name: each.encode(errors="backslashreplace").decode() for name, each in fields.items()})
        else:
            text = " ".join(f"{name}={_value(each)}" for name, each in fields.items())
        return f"<{_severity(record.levelno)}>{text}" if self._journal else text


def _severity(level: int) -> int:
    """Return the number that syslog and the journal have for a level."""
    return next((number for least, number in _SEVERITIES if level >= least), 7)


def is_journal(fd: int) -> bool:
    """Whether what is written to a descriptor goes to systemd's journal, which says so in JOURNAL_STREAM."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _value(text: str) -> str:
    """Return ``text`` as logfmt has it: in quotes where it would not be one word. Nothing in it steers a terminal."""
    quoted = any(mark in text for mark in ' ="')
    if quoted:
        text = text.replace("\\", "\\\\")
    text = printable(text.replace('"', '\\"'))
    return f'"{text}"' if quoted else text


def _is_awaited(record: logging.LogRecord) -> bool:
    """Whether a record of pyfuse3 says more than that a request was given up before its answer, at an unmount, say."""
    return not record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}")


class LogFile(logging.handlers.RotatingFileHandler):
    """The log file. What libraries write to stderr by themselves goes there too, where the daemon was started so."""

    def __init__(self, path: str) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8", errors="backslashreplace")

    def reopen(self) -> None:
        """Go on in the file that has the name now: somebody has moved the old one away. Raises OSError, with it kept."""
        self.acquire()
        try:
            fresh, old = self._open(), self.stream
            for fd in (1, 2):
                with contextlib.suppress(OSError):  # it is closed
                    if old is not None and os.path.samestat(os.fstat(fd), os.fstat(old.fileno())):
                        os.dup2(fresh.fileno(), fd)
            self.stream = fresh
            if old is not None:
                old.close()
        finally:
            self.release()


def reopen() -> None:
    """Open the log file anew, where there is one. Raises OSError, with the log going on where it was."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()


class Recent(logging.Handler):
    """Keeps the last warnings and errors, shortened, for the web page."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: deque[dict[str, object]] = deque(maxlen=RECENT_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append({
            "time": record.created, "level": record.levelname.lower(), "logger": record.name,
            "event": printable(record.getMessage()[:RECENT_CHARACTERS]),
        })  # fmt: skip


def recent() -> list[dict[str, object]]:
    """Return the last warnings and errors, the newest first: ``time`` (wall clock), ``level``, ``logger``, ``event``."""
    kept = [each for each in logging.getLogger().handlers if isinstance(each, Recent)]
    return [record for each in kept for record in reversed(each.records)]


NOISY = ("botocore", "aiobotocore", "s3fs", "urllib3", "asyncio", "pyfuse3", "fsspec", "azure", "httpx", "httpcore",
         "paramiko")  # fmt: skip
"""Libraries that tell of each request or connection, with its whole URL: that of WebDAV may hold a password."""


def configure(settings: Settings, state: Path) -> None:
    """Send the log where ``settings`` say: its log_file, stderr in the foreground, or the mount's state directory."""
    handler: logging.Handler
    journal = False
    if settings.foreground and settings.log_file is None:
        handler = logging.StreamHandler(sys.stderr)
        journal = is_journal(sys.stderr.fileno())
    else:
        path = settings.log_file or str(state / FILE_NAME)
        handler = LogFile(path)
    handler.setFormatter(Lines(as_json=settings.log_format == "json", journal=journal))
    root = logging.getLogger()
    root.handlers = [handler, Recent()]
    root.setLevel(settings.log_level.upper())
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("pyfuse3").addFilter(_is_awaited)
