"""Where mounts of this user keep their state and their cache, if nothing else is said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from luxfuse.errors import ConfigError


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where mounts keep their sockets, logs and indexes: /var/lib/luxfuse for root, XDG_STATE_HOME otherwise."""
    if chosen := environ.get("LUXFUSE_STATE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/luxfuse")
    return Path(environ.get("XDG_STATE_HOME") or _home("LUXFUSE_STATE_DIR") / ".local/state") / "luxfuse"


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The default cache directory: /var/cache/luxfuse for root, XDG_CACHE_HOME otherwise."""
    if os.geteuid() == 0:
        return Path("/var/cache/luxfuse")
    return Path(environ.get("XDG_CACHE_HOME") or _home("--cache-dir") / ".cache") / "luxfuse"


def _home(instead: str) -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigError(f"this user has no home directory; set HOME, or give {instead}") from None
