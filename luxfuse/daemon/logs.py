"""Logging of the daemon: one line an event, to the log file (bounded) or, in the foreground, to stderr."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

import structlog

from luxfuse.config import Settings

FILE_BYTES = 10 << 20
FILES_KEPT = 3
FILE_NAME = "daemon.log"


def configure(settings: Settings, state: Path) -> None:
    """Send the log where ``settings`` say: its log_file, stderr in the foreground, or the mount's state directory."""
    handler: logging.Handler
    if settings.foreground and settings.log_file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        path = settings.log_file or str(state / FILE_NAME)
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT)
    steps: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "logger", "event"]),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("hypercorn", "botocore", "aiobotocore", "s3fs", "urllib3", "asyncio", "pyfuse3", "fsspec", "azure"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
