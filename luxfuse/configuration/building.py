"""Makes `Settings` of what a user wrote, by the table in `core.settings`.

Precedence: flags, then ``-o``, then LUXFUSE_* variables, then the TOML file, then defaults. Raises `ConfigError` with one
line that names the setting and the place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from luxfuse.config import Settings
from luxfuse.configuration.roots import cache_root, state_root
from luxfuse.configuration.sources import Given, from_environment, place_in_file, read_file
from luxfuse.core.addresses import SEED_FILE, is_loopback, parse_address
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.settings import BY_NAME, OF_OBJECTS, SETTINGS
from luxfuse.core.units import NO, YES, shown
from luxfuse.core.values import check_text, nearest
from luxfuse.errors import ConfigError


def build(
    flags: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
    file: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge what the user wrote (None means: not given) and validate it. ``options``: those of ``-o``. Raises ConfigError.

    The mountpoint is made absolute without looking at it, since a mount may hang; symbolic links are the caller's.
    """
    given = _given(flags, from_environment(environ), options or {})
    return _build(given, environ, file, working_directory())


def working_directory() -> str:
    """Return the directory that relative paths are in; empty if there is none that the daemon can be told of."""
    try:
        return check_text(str(Path.cwd()))
    except (OSError, ValueError):
        return ""


def _given(flags: Mapping[str, Any], variables: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Given]:
    """Return what counts of flags, variables and ``-o``, with the places."""
    given = {name: Given(value, BY_NAME[name].variable) for name, value in variables.items()}
    given |= {name: Given(value, f"-o {BY_NAME[name].option}") for name, value in options.items()}
    return given | {name: Given(value, _of_flag(name)) for name, value in flags.items() if value is not None}


def _of_flag(name: str) -> str:
    setting = BY_NAME.get(name)
    return name if setting is None or "flag" not in setting.places else setting.flag


def _build(given: Mapping[str, Given], environ: Mapping[str, str], file: str | None, directory: str) -> Settings:
    """Return the settings; relative paths are in ``directory``."""
    in_file = {name: Given(value, "") for name, value in (read_file(file) if file is not None else {}).items()}
    merged = {**in_file, **given}
    for needed in ("source", "mountpoint"):
        if needed not in merged or merged[needed].value == "":
            raise ConfigError(f"{needed} is missing; write: luxfuse mount SOURCE MOUNTPOINT")
    values = {
        BY_NAME[name].field_name: _parse(name, written, file, directory)
        for name, written in merged.items() if name not in ("state_dir", "cache_size")
    }  # fmt: skip
    if "cache_dirs" not in values:
        values["cache_dirs"] = (CacheSetting(_path(str(cache_root(environ)), "the home directory", directory)),)
    size = _parse("cache_size", merged["cache_size"], file, directory) if "cache_size" in merged else None
    values["cache_dirs"] = _sized(values["cache_dirs"], size)
    chosen = merged["state_dir"].value if "state_dir" in merged else state_root(environ)
    values["state_dir"] = _path(str(chosen), "LUXFUSE_STATE_DIR", directory)
    values["config_file"] = None if file is None else _path(file, "--config", directory)
    values["directory"] = directory
    values["given"] = {name: written.value for name, written in given.items()}
    return _check(msgspec.convert(values, Settings))


def _parse(name: str, given: Given, file: str | None, directory: str) -> Any:
    """Return what one setting says, paths made absolute. Raises ConfigError with the place."""
    try:
        return _absolute(name, BY_NAME[name].kind.parse(given.value), directory)
    except (ValueError, TypeError, OverflowError) as exc:
        text = str(exc)
    place = place_in_file(file or "", name, text)
    where = given.where or (place if text.startswith("[[path]]") else f"{place}: {name}")
    raise ConfigError(f"{where}: {text}")


def _absolute(name: str, value: Any, directory: str) -> Any:
    """Return a setting's value with absolute paths: the daemon works in another directory. Raises ValueError."""
    if name == "source":
        return value if "://" in value else absolute(value, directory, as_written=True)
    if name == "join":
        return tuple(
            SEED_FILE + absolute(entry.removeprefix(SEED_FILE), directory) if entry.startswith(SEED_FILE) else entry
            for entry in value
        )
    if name == "cache_dir":
        made = tuple(msgspec.structs.replace(each, path=absolute(each.path, directory)) for each in value)
        paths = [each.path for each in made]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"{twice} is given twice; leave one out")
        return made
    if name == "storage_options":
        return {option: _option_file(option, text, directory) for option, text in value.items()}
    return absolute(value, directory) if BY_NAME[name].kind.path else value


def _option_file(option: str, text: str, directory: str) -> str:
    """Return the value of a storage option, with its absolute path if it names a file."""
    named = option == "web_identity_token_file" or (option == "verify" and text.strip().lower() not in YES + NO)
    return absolute(text, directory) if named and not text.startswith("~") else text


def absolute(path: str, directory: str, *, as_written: bool = False) -> str:
    """Return an absolute path, without looking at it; ``as_written``: such a one stays as it is. Raises ValueError."""
    if path.startswith("/"):
        return check_text(path if as_written else str(Path(path)))
    if not directory:
        raise ValueError(f"{shown(path)}: the working directory is gone, or not UTF-8; give an absolute path")
    return check_text(str(Path(directory, path)))


def _path(path: str, where: str, directory: str) -> str:
    try:
        return absolute(path, directory)
    except ValueError as exc:
        raise ConfigError(f"{where}: {exc}") from None


def _sized(directories: tuple[CacheSetting, ...], size_bytes: int | None) -> tuple[CacheSetting, ...]:
    if size_bytes is None:
        return directories
    if len(directories) > 1:
        raise ConfigError("cache_size: is for one cache directory; write the size of each: --cache-dir DIR,size=50GiB")
    return (msgspec.structs.replace(directories[0], size_bytes=size_bytes, size_ratio=None),)


def _check(settings: Settings) -> Settings:
    """Check what several settings say together."""
    if settings.allow_other and settings.attributes == "listing":
        raise ConfigError(
            "--attributes listing: cannot be had with --allow-other, as that would let others in where nobody knows the "
            "mode; choose auto or exact"
        )
    if settings.cluster_key_file is None:
        for name, given in (("join", settings.join), ("durable-replicas", settings.durable_replicas)):
            if given:
                raise ConfigError(
                    f"--{name}: is for a node of a cluster; give --cluster-key-file FILE, made by: luxfuse cluster init"
                )
    if settings.otlp is not None and not settings.otlp.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp {shown(settings.otlp)}: is no URL; write http://HOST:PORT")
    if settings.http_token_file is not None and settings.http is None:
        raise ConfigError("--http-token-file: is for the web page; give --http 127.0.0.1:PORT, or leave it out")
    if settings.http is not None and settings.http_token_file is None and not is_loopback(parse_address(settings.http)[0]):
        raise ConfigError(
            f"--http {settings.http}: other machines could look; give --http-token-file FILE, or an address of 127.0.0.1"
        )
    if twice := next((name for name in settings.storage_options if settings.driver_options[name]
                      != settings.storage_options[name]), None):  # fmt: skip
        raise ConfigError(f"storage option {twice}: contradicts the setting {twice}; leave one out")
    return settings


def read_again(settings: Settings) -> Settings:
    """Return what the configuration file says now, under the same flags and variables. Raises ConfigError with the line."""
    path = settings.config_file
    if path is None:
        raise ConfigError(f"{settings.mountpoint} was mounted without --config: there is no file to read again")
    kept = {"mountpoint": settings.mountpoint, "state_dir": settings.state_dir, "foreground": settings.foreground}
    given = {name: Given(value, _of_flag(name)) for name, value in {**settings.given, **kept}.items()}
    new = _build(given, os.environ, path, settings.directory)
    return msgspec.structs.replace(new, given=settings.given)


def written_name(field: str) -> str:
    """Return a field of `Settings` as users write it."""
    return next((setting.name for setting in SETTINGS if setting.field_name == field), field)


def attached(base: Settings, source: str, options: Mapping[str, Any]) -> Settings:
    """Return the settings of an under-store that is attached in the mount of ``base``. Raises ConfigError.

    What ``options``, in TOML spelling, leave open is as for the mount, but where the objects come from: that is never
    taken over, and least of all credentials.
    """
    check_attachable(options)
    given = {name: Given(value, name) for name, value in options.items() if value is not None}
    size = _parse("cache_size", given.pop("cache_size"), None, "") if "cache_size" in given else None
    whole = {**given, "source": Given(source, "source"), "mountpoint": Given(base.mountpoint, "mountpoint")}
    chosen = _build(whole, {}, None, base.directory)
    fields = {BY_NAME[name].field_name for name in given}
    fields |= {"source", "endpoint_url", "storage_options", "driver", "path_rules", *OF_OBJECTS}
    changes = {name: getattr(chosen, name) for name in fields}
    changes["read_only"] = base.read_only or chosen.read_only
    changes["cache_dirs"] = _sized(base.cache_dirs, size)
    return _check(msgspec.structs.replace(base, **changes))


def for_attached(flags: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what flags, ``-o`` and variables say about an under-store that is to be attached. Raises ConfigError."""
    check_attachable(options)
    variables = {name: value for name, value in from_environment().items() if BY_NAME[name].attachable}
    given = _given(flags, variables, options)
    directory = working_directory()
    parsed = {name: _parse(name, written, None, directory) for name, written in given.items()}
    with_paths = {name for name in given if BY_NAME[name].kind.path or name == "storage_options"}
    return {name: parsed[name] if name in with_paths else written.value for name, written in given.items()}


def checked_source(source: str) -> str:
    """Return a source that is to be attached; a local one with its absolute path. Raises ConfigError."""
    return str(_parse("source", Given(source, "SOURCE"), None, working_directory()))


def check_attachable(options: Mapping[str, Any]) -> None:
    """Raise ConfigError unless all are settings that an attached under-store can have of its own."""
    attachable = [setting.name for setting in SETTINGS if setting.attachable]
    if unknown := sorted(set(options) - set(attachable)):
        hint = "" if unknown[0] in BY_NAME else nearest(unknown[0], attachable)
        raise ConfigError(f"{unknown[0]}: no setting of an attached under-store{hint}; see luxfuse attach --help")
