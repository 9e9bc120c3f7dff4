"""Finds out whether this luxfuse could go on where another daemon serves, without touching what that one uses.

All that a daemon loads is loaded, and its store's driver opened, so that what does not work here is known before the other
daemon is let go.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import msgspec

from luxfuse import PACKAGE, __version__
from luxfuse.config import Settings
from luxfuse.daemon import formats
from luxfuse.errors import ConfigError, LuxError
from luxfuse.understore.factory import open_driver


def refusal(settings: bytes, estate_fd: int, package: str = "") -> str | None:
    """Return why not, in one line. ``settings``: as JSON, those that are not at their defaults.

    ``package``: the directory of the luxfuse that is meant, if it was said.
    """
    if package not in ("", PACKAGE):
        return (
            f"the environment of the mount (PYTHONPATH?) leads to luxfuse {__version__} in {PACKAGE}, not to that in "
            f"{package}; unmount, and mount with that one"
        )
    importlib.import_module("luxfuse.daemon.main")
    try:
        return formats.refusal(estate_fd) or _refusal_of(msgspec.json.decode(settings, type=dict[str, Any]))
    except LuxError as exc:
        return str(exc)


def _refusal_of(found: dict[str, Any]) -> str | None:
    unknown = sorted(set(found) - set(Settings.__struct_fields__))
    if unknown:
        return f"the mount has settings that this luxfuse does not know: {', '.join(unknown)}"
    try:
        s = msgspec.convert(found, type=Settings)
    except msgspec.ValidationError as exc:
        return f"the mount has a setting that this luxfuse does not understand: {exc}"
    if s.cluster_key_file is not None:
        importlib.import_module("luxfuse.cluster.node")
    try:
        open_driver(s.source, endpoint_url=s.endpoint_url, storage_options=s.driver_options, driver=s.driver)
    except ConfigError:
        raise
    except LuxError:
        return None  # it is away, or refuses us: a daemon that runs goes on with that, too
    return None


def report(estate_fd: int, package: str = "") -> int:
    """Try with settings from stdin; the answer is JSON on stdout. Returns the exit code."""
    why = refusal(sys.stdin.buffer.read(), estate_fd, package)
    os.write(1, msgspec.json.encode({"error": why}))
    return 0
