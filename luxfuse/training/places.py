"""Which mount paths are in, and what they are called there: cheap for millions of paths of one mount."""

from __future__ import annotations

import os

from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.registry import MountRecord
from luxfuse.fuse import mountpoint as mounts

_ODD = ("//", "/./", "/../")


class Places:
    """The paths of one mount: that of the first path asked for. Nothing here touches a mount."""

    def __init__(self) -> None:
        self.record: MountRecord | None = None
        self._spelled = ""
        """The mountpoint as the paths have it, which may go through symbolic links; with a slash at the end."""

    def find(self, path: str | os.PathLike[str]) -> MountRecord | None:
        """Return the mount that a path is in, as it is now; None if it is in none. Raises MountError, ConfigError."""
        self.record = registry.find(state_root(), os.fspath(path))
        self._spelled = ""
        return self.record

    def inside(self, path: str | os.PathLike[str]) -> str:
        """Return a path relative to the mount; "" if it is not in it, or can be no name there."""
        text = os.fspath(path)
        if self._spelled and text.startswith(self._spelled) and not any(odd in text for odd in _ODD):
            inside = text[len(self._spelled) :].rstrip("/")
        else:
            inside = self._resolved(text)
        return inside if _can_be(inside) else ""

    def _resolved(self, text: str) -> str:
        if self.record is None:
            return ""
        where = mounts.resolve(text)
        if not mounts.is_inside(where, self.record.mountpoint):
            return ""
        inside = os.path.relpath(where, self.record.mountpoint)
        if text.endswith(f"/{inside}"):
            self._spelled = text[: -len(inside)]
        return inside


def _can_be(inside: str) -> bool:
    """Whether a path can be told: as UTF-8, with no part that no name is."""
    if not inside or "\0" in inside or any(part in ("", ".", "..") for part in inside.split("/")):
        return False
    try:
        inside.encode()
    except UnicodeEncodeError:
        return False
    return True
