"""How object keys become names in directories.

Rules, in this order, for the entries of one directory:

1. A component that is empty, ``.``, ``..``, longer than 255 bytes, no valid Unicode or holds a NUL cannot
   be a name: skipped.
2. A key ``NAME.rclonelink`` is the symlink NAME (rclone's convention).
3. Where two entries would have one name, a directory wins over a file, and a file over a symlink: the loser is skipped.

Skipped keys are counted, and the first of each mount is logged; the objects stay reachable by other tools.

The other way round, a name that is made must have a key that the store can hold (`too_long`, `not_taken`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from luxfuse.types import Kind

NAME_MAX_BYTES = 255
SYMLINK_SUFFIX = ".rclonelink"
KEY_MOST = 1024
"""The longest key of S3 and Google in bytes, of Azure in characters."""
PATH_MOST_BYTES = 4095 - 32
"""The longest path on a file system, less what a temporary name beside the file may need."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How long a key may be in a store: ``most``, in which ``prefix``, the part before the mount's keys, counts.

    ``characters``: the store counts UTF-16 characters, else bytes of UTF-8. ``refused``: characters that no key may have.
    """

    most: int = KEY_MOST
    prefix: str = ""
    characters: bool = False
    refused: str = ""

    def length(self, key: str) -> int:
        """Return the length of a key as the store counts it."""
        whole = self.prefix + key
        return len(whole.encode("utf-16-le")) // 2 if self.characters else len(whole.encode())


def too_long(key: str, limits: KeyLimits) -> str | None:
    """Say what of a key is too long for a store, None if nothing is.

    No part may be longer than a file name, on any store: some servers keep objects in files, and none says so before
    it refuses one. (The part of a symlink's object is longer than its name.)
    """
    if key.isascii() and len(key) <= min(NAME_MAX_BYTES, limits.most - 4 * len(limits.prefix)):
        return None  # as nearly all are: not even all of it is too long
    for part in key.removesuffix("/").split("/"):
        if (size := len(part.encode())) > NAME_MAX_BYTES:
            return f"a part of the key would have {size} bytes, {NAME_MAX_BYTES} are the most"
    return too_long_below(key, limits)


def not_taken(key: str, limits: KeyLimits) -> str | None:
    """Say which character of a key the store does not take, None if it takes all."""
    if not limits.refused:
        return None
    found = next((character for character in key if character in limits.refused), None)
    return None if found is None else f"the under-store takes no names with {found!r} in them"


def too_long_below(key: str, limits: KeyLimits) -> str | None:
    """Whether a key is too long that changes with its directory: the parts of it below that are as they were."""
    if (length := limits.length(key)) > limits.most:
        return f"the key would have {length} {'characters' if limits.characters else 'bytes'}, {limits.most} are the most"
    return None


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


def directories_of(key: str) -> list[str]:
    """Return the key prefixes of the directories that an object lies in, from the top on."""
    return list(accumulate(f"{part}/" for part in key.rstrip("/").split("/")[:-1]))


def path_of(key: str) -> str:
    """Return the path of the entry that a key is of."""
    return key.rstrip("/").removesuffix(SYMLINK_SUFFIX)
