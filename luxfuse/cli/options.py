"""``-o name=value,...`` as written on the command line and in /etc/fstab."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from luxfuse.cli.errors import UsageError, say
from luxfuse.config import FILE_ONLY, NAMES

# Words for mount(8) and systemd, or what is so anyway: a mount never honours set-user-id files or devices.
_USER = frozenset(("user", "users", "owner", "group"))
_NOISE = _USER | {
    *("defaults", "auto", "noauto", "nouser", "_netdev", "nofail", "exec", "suid", "nosuid", "dev", "nodev"),
    *("atime", "noatime", "relatime", "strictatime", "diratime", "nodiratime", "sync", "async"),
}
_NOT_HERE = FILE_ONLY | {"source", "mountpoint", "foreground", "state_dir"}
OPTION_NAMES = NAMES - _NOT_HERE


def parse_options(texts: Iterable[str], *, fstab: bool = False, sloppy: bool = False) -> dict[str, Any]:
    """Return the settings in the texts of ``-o``; later ones win, but those of ``join`` add up.

    ``fstab``: mount(8) writes ``rw`` whenever ``ro`` is missing, so that it says nothing there, and ``noexec`` for
    ``user``, which is let pass with a warning on stderr.
    ``sloppy``: unknown names are let pass. Raises UsageError.
    """
    settings: dict[str, Any] = {}
    for word in (word for text in texts for word in text.split(",") if word):
        name, separator, value = word.partition("=")
        name = name.replace("-", "_") if not name.startswith("x-") else name
        if name.startswith("x-") or (name in _NOISE and not separator) or (fstab and name in _USER):
            continue
        if word == "rw" and fstab:
            settings.pop("read_only", None)
        elif word in ("ro", "rw"):
            settings["read_only"] = word == "ro"
        elif word == "noexec" and fstab:
            say("-o noexec has no effect: programs in the mount can be run; write exec after user to silence this")
        elif name == "storage_option":
            settings.setdefault("storage_options", {}).update(parse_storage_options([value], "-o storage_option"))
        elif name == "join":
            settings.setdefault("join", []).append(value)
        elif name in OPTION_NAMES:
            settings[name] = value if separator else True
        elif not sloppy:
            raise UsageError(f"-o {word}: unknown option; see luxfuse mount --help")
    return settings


def parse_storage_options(texts: Iterable[str], where: str = "--storage-option") -> dict[str, str]:
    """Return ``key=value`` texts as a dictionary. Raises UsageError, which does not repeat a value."""
    options = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"{where}: write it as key=value")
        options[name] = value
    return options
