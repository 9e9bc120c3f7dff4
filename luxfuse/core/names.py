"""How object keys become names in directories.

Rules, in this order, for the entries of one directory:

1. A component that is empty, ``.``, ``..``, longer than 255 bytes, no valid Unicode or holds a NUL cannot
   be a name: skipped.
2. A key ``NAME.rclonelink`` is the symlink NAME (rclone's convention).
3. Where two entries would have one name, a directory wins over a file, and a file over a symlink: the loser is skipped.

Skipped keys are counted, and the first of each mount is logged; the objects stay reachable by other tools.
"""

from __future__ import annotations

from luxfuse.types import Kind

NAME_MAX_BYTES = 255
SYMLINK_SUFFIX = ".rclonelink"


def name_of(component: str) -> bytes | None:
    """Return the file name for one component of a key, or None where it cannot be one."""
    if component in ("", ".", "..") or "\0" in component or "/" in component:
        return None
    try:
        name = component.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return name if len(name) <= NAME_MAX_BYTES else None


def component_of(name: bytes) -> str | None:
    """Return the key component for a file name, or None where no key can have it (it is not UTF-8)."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None


def classify(component: str) -> tuple[bytes, Kind] | None:
    """Return (name, kind) for an object's last component, or None where it cannot be a name."""
    if component.endswith(SYMLINK_SUFFIX) and len(component) > len(SYMLINK_SUFFIX):
        name = name_of(component[: -len(SYMLINK_SUFFIX)])
        return None if name is None else (name, Kind.SYMLINK)
    name = name_of(component)
    return None if name is None else (name, Kind.FILE)


_RANK = {Kind.DIRECTORY: 2, Kind.FILE: 1, Kind.SYMLINK: 0}


def wins(new: Kind, old: Kind) -> bool:
    """Whether an entry of kind ``new`` takes the name from one of kind ``old``."""
    return _RANK[new] > _RANK[old]
