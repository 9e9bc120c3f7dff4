"""Settings as a user wrote them, and where: variables, TOML files, pairs of names and values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from luxfuse.core.settings import BY_NAME, SECRET_OPTIONS, SETTINGS, names
from luxfuse.core.values import nearest
from luxfuse.errors import ConfigError

_OTHER_VARIABLES = frozenset(f"LUXFUSE_{name}" for name in ("STATE_DIR", "VENV", "SEED", "TEST_SEED", "DIE_AT", "DIE_ONCE"))
"""Of all commands, of the install script, and of tests."""
_OF_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$")
"""The variables that Kubernetes sets in every pod for a service whose name begins with luxfuse."""


_FILE_MAX_BYTES = 1 << 20


class Given(NamedTuple):
    """A user's text for one setting; ``where``: the place, as an error names it."""

    value: Any
    where: str


def read_file(path: str) -> dict[str, Any]:
    """Return the settings of a TOML file, checked for unknown names."""
    import tomllib  # every command starts faster without it

    if not path.strip():
        raise ConfigError("--config: is empty; write --config FILE, or leave it out")
    try:
        with Path(path).open("rb") as f:
            content = f.read(_FILE_MAX_BYTES + 1)
        if len(content) > _FILE_MAX_BYTES:
            raise ConfigError(f"--config {path}: is larger than {_FILE_MAX_BYTES >> 20} MiB; is it the right file?")
        values = tomllib.loads(content.decode())
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"--config {path}, line {line}: is not UTF-8, which TOML needs; save it as UTF-8") from None
    except (OSError, ValueError) as exc:  # a path with a NUL is a ValueError, and so is what is no TOML
        why = f"{reason}; give a TOML file" if (reason := getattr(exc, "strerror", None)) else _no_toml(exc)
        raise ConfigError(f"--config {path}: {why}") from None
    except RecursionError:
        raise ConfigError(f"--config {path}: is nested too deeply") from None
    known = names("file")
    for name in values:
        if name == "state_dir":
            raise ConfigError(f"--config {path}: state_dir is read by every command; set LUXFUSE_STATE_DIR instead")
        if name not in known:
            place = place_in_file(path, name, "")
            raise ConfigError(f"{place}: unknown setting {name!r}{nearest(name, known)}")
    return values


def _no_toml(exc: Exception) -> str:
    return f'is not TOML: {exc}; write NAME = "TEXT", NAME = NUMBER or NAME = true'


def place_in_file(path: str, name: str, text: str) -> str:
    """Return ``--config FILE, line N``: where a setting stands; ``text`` may say which of several rules it is."""
    rule = re.match(r"\[\[path\]\] number (\d+)", text)
    wanted = re.compile(r"\s*\[\[\s*path\s*\]\]" if rule else rf"\s*(\[\s*)?[\"']?{re.escape(name)}\b")
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    found = [number for number, line in enumerate(lines, 1) if wanted.match(line)]
    nth = int(rule[1]) - 1 if rule else 0
    return f"--config {path}, line {found[nth]}" if nth < len(found) else f"--config {path}"


def from_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the LUXFUSE_* settings of the environment; empty ones are left alone. Raises ConfigError for unknown ones.

    Where a setting can hold several things, each stands on a line of its own.
    """
    found: dict[str, Any] = {}
    variables = {setting.variable: setting for setting in SETTINGS if "variable" in setting.places}
    for variable, text in environ.items():
        if not text or not variable.startswith("LUXFUSE_"):
            continue
        setting = variables.get(variable)
        if setting is None:
            if variable in _OTHER_VARIABLES or _OF_KUBERNETES.search(variable):
                continue
            if variable.removeprefix("LUXFUSE_").lower() in BY_NAME:
                raise ConfigError(f"{variable}: can only stand in the TOML file given with --config")
            raise ConfigError(f"{variable}: there is no such setting{nearest(variable, variables)}")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if setting.kind.shape == "pairs":
            found[setting.name] = parse_pairs(lines, variable)
        else:
            found[setting.name] = lines if setting.kind.shape == "many" and len(lines) > 1 else text
    return found


def parse_pairs(texts: list[str], where: str) -> dict[str, str]:
    """Return ``key=value`` texts as a dictionary. Raises ConfigError, which does not repeat a value: it may be secret."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigError(f"{where}: write it as key=value")
        if name in SECRET_OPTIONS and where.startswith("-"):
            raise ConfigError(f"{where} {name}: everybody can read a command line; use --sse-customer-key-file FILE")
        if pairs.get(name, value) != value:
            raise ConfigError(f"{where}: {name} is given twice; leave one out")
        pairs[name] = value
    return pairs
