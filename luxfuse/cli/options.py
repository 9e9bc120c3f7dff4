"""``-o name=value,...`` as written on the command line and in /etc/fstab."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from luxfuse.cli.errors import UsageError, say
from luxfuse.configuration.sources import parse_pairs
from luxfuse.core.settings import BY_NAME, SETTINGS, Setting
from luxfuse.core.units import shown
from luxfuse.core.values import nearest

# Words for mount(8) and systemd, or what is so anyway: a mount never honours set-user-id files or devices.
_USER = frozenset(("user", "users", "owner", "group"))
_NOISE = _USER | {
    *("defaults", "auto", "noauto", "nouser", "_netdev", "nofail", "exec", "suid", "nosuid", "dev", "nodev"),
    *("atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime", "diratime", "nodiratime"),
    *("lazytime", "nolazytime", "sync", "async", "silent", "loud"),
}
_SETTINGS = {setting.option: setting for setting in SETTINGS if "option" in setting.places}
_WORD = re.compile(r'(?:[^,"]|"[^"]*"?)+')


def parse_options(texts: Iterable[str], *, fstab: bool = False, sloppy: bool = False) -> dict[str, Any]:
    """Return the settings in the texts of ``-o``; later ones win, but those that may be repeated add up.

    A value with commas stands in double quotes, as mount(8) has it: ``cache_dir="/c,size=1GiB"``.
    ``fstab``: mount(8) writes ``rw`` whenever ``ro`` is missing, so that it says nothing there, and ``noexec`` for
    ``user``, which is let pass with a warning on stderr.
    ``sloppy``: unknown names are let pass. Raises UsageError, and ConfigError for a pair that is none.
    """
    settings: dict[str, Any] = {}
    for word in (word for text in texts for word in _WORD.findall(text)):
        name, separator, value = word.partition("=")
        comment = name.startswith(("x-", "X-")) or name == "comment"
        name = name.replace("-", "_")
        if comment or (name in _NOISE and not separator) or (fstab and name in _USER):
            continue
        if word == "rw" and fstab:
            settings.pop("read_only", None)
        elif word in ("ro", "rw"):
            settings["read_only"] = word == "ro"
        elif word == "noexec" and fstab:
            say("-o noexec has no effect: programs in the mount can be run; write exec after user to silence this")
        elif name in _SETTINGS:
            _add(settings, _SETTINGS[name], value if separator else None)
        elif not sloppy:
            what = "cannot be given here" if name in BY_NAME else "unknown option"
            hint = nearest(name, _SETTINGS) or "; see luxfuse mount --help"
            raise UsageError(f"-o {shown(name)[1:-1]}: {what}{hint}")  # the rest may be secret
    for name, given in settings.items():
        if BY_NAME[name].kind.shape == "pairs":
            settings[name] = parse_pairs(given, f"-o {BY_NAME[name].option}")
    return settings


def _add(settings: dict[str, Any], setting: Setting, value: str | None) -> None:
    if value is None and setting.kind.shape != "switch":
        raise UsageError(f"-o {setting.option}: a value is missing; write {setting.option}={setting.kind.metavar}")
    if value is not None and len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if setting.kind.shape in ("many", "pairs"):
        settings.setdefault(setting.name, []).append(value)
    else:
        settings[setting.name] = True if value is None else value
