"""Validated, frozen settings. Precedence: flags, then LUXFUSE_* variables, then the TOML file, then defaults.

`Settings` is what the daemon gets (as JSON on a pipe, so that no secret shows in ``ps``); `build` makes one from what
a user wrote and raises `ConfigError` with one line that names the setting.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from luxfuse.core.addresses import DEFAULT_PORT, SEED_FILE, is_wildcard, parse_address, parse_seeds
from luxfuse.core.paths import check_pattern
from luxfuse.core.prices import Prices
from luxfuse.core.rules import PathPolicy, PathRule
from luxfuse.core.units import parse_duration, parse_size, parse_switch
from luxfuse.errors import ConfigError
from luxfuse.types import ReadMode, Tier, WriteMode

OnConflict = Literal["overwrite", "fail"]
Driver = Literal["auto", "obstore", "fsspec"]
EvictionPolicy = Literal["tinylfu", "lru", "lrfu"]

MIB = 1 << 20
LEAST_BANDWIDTH_BYTES_S = 64 << 10
MOST_REPLICAS = 7
RACK_BYTES = 64
# What "never" becomes: ten years, since JSON and the kernel's time-outs know no infinity.
_FOREVER_S = 10 * 365 * 86400.0


class CacheDirectory(msgspec.Struct, frozen=True):
    """One cache directory. Bounded by ``size_bytes``, or by ``size_ratio`` of its file system, and by what is left free.

    When it is filled beyond ``high_watermark``, the coldest is moved away until ``low_watermark``, both parts of its size.
    """

    path: str
    size_bytes: int | None = None
    tier: Tier = "ssd"
    size_ratio: float | None = None
    free_space_ratio: float | None = None
    high_watermark: float = 0.99
    low_watermark: float = 0.98


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a daemon needs to know. Sizes in bytes, times in seconds.

    ``path_rules``: what holds for parts of the mount, see `core.rules`. ``room_timeout_s``: how long a writer
    waits for room in the cache directory before it gets ENOSPC. With a ``cluster_key_file`` the mount is a node of a
    cluster; ``advertise`` None: others reach it under the address of its network interface, at the port of ``listen``.
    """

    source: str
    mountpoint: str
    cache_dirs: tuple[CacheDirectory, ...]
    state_dir: str
    free_space_ratio: float = 0.1
    memory_limit_bytes: int = 256 * MIB
    read_only: bool = False
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int = 0o022
    read_mode: ReadMode = "cache"
    eviction_policy: EvictionPolicy = "tinylfu"
    write_mode: WriteMode = WriteMode.CACHE_THROUGH
    path_rules: tuple[PathRule, ...] = ()
    on_conflict: OnConflict = "overwrite"
    metadata_ttl_s: float = 60.0
    negative_ttl_s: float = 5.0
    whole_file_threshold_bytes: int = 16 * MIB
    endpoint_url: str | None = None
    storage_options: dict[str, str] = {}
    driver: Driver = "auto"
    request_timeout_s: float = 30.0
    max_requests: int = 64
    max_uploads: int = 16
    room_timeout_s: float = 30.0
    readahead_bytes: int = 64 * MIB
    prices: Prices | None = None
    bandwidth_limit_bytes_s: int | None = None
    upload_bandwidth_limit_bytes_s: int | None = None
    cluster_key_file: str | None = None
    listen: str = f"0.0.0.0:{DEFAULT_PORT}"
    advertise: str | None = None
    join: tuple[str, ...] = ()
    cooperative: bool = True
    peer_tls: bool = True
    rack: str = ""
    durable_replicas: int = 0
    passthrough: bool = True
    foreground: bool = False
    log_file: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    config_file: str | None = None
    """The file that some of these come from."""
    given: dict[str, Any] = {}
    """What flags and variables said, as it was written: it wins over the file when that is read again."""

    @property
    def mount_id(self) -> str:
        """Names the mount's state directory; depends on the mountpoint alone."""
        return hashlib.sha256(os.fsencode(self.mountpoint)).hexdigest()[:16]

    @property
    def source_id(self) -> str:
        """Names the cached content; depends on where the objects come from alone."""
        identity = f"{self.source}\0{self.endpoint_url or ''}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def path_default(self) -> PathPolicy:
        """What holds for paths that no rule says anything about."""
        return PathPolicy(self.write_mode, self.read_mode)


_RATES = {
    "bandwidth_limit": "bandwidth_limit_bytes_s",
    "upload_bandwidth_limit": "upload_bandwidth_limit_bytes_s",
}
"""Bytes a second; in rules too."""
_SIZES = {
    "memory_limit": "memory_limit_bytes",
    "whole_file_threshold": "whole_file_threshold_bytes",
    "readahead": "readahead_bytes",
    **_RATES,
}
_DURATIONS = {
    "metadata_ttl": "metadata_ttl_s",
    "negative_ttl": "negative_ttl_s",
    "request_timeout": "request_timeout_s",
    "room_timeout": "room_timeout_s",
}
_PLAIN = {
    *("source", "mountpoint", "foreground", "read_only", "allow_other", "uid", "gid", "umask", "passthrough"),
    *("read_mode", "eviction_policy", "write_mode", "on_conflict", "free_space_ratio", "max_requests", "max_uploads"),
    *("endpoint_url", "driver", "storage_options", "log_file", "log_level"),
    *("listen", "advertise", "rack", "durable_replicas"),
}
_SWITCHES = {"cooperative", "peer_tls"}
_SPECIAL = {"cache_dir", "cache_size", "state_dir", "path", "prices", "cluster_key_file", "join"}
NAMES = frozenset(_PLAIN | set(_SIZES) | set(_DURATIONS) | _SWITCHES | _SPECIAL)
"""Every setting a user can write, in TOML spelling; flags use dashes, variables LUXFUSE_ and capitals."""
ATTACHABLE = frozenset({
    *("endpoint_url", "driver", "storage_options", "read_only", "read_mode", "write_mode", "on_conflict", "cache_size"),
    *("metadata_ttl", "negative_ttl", "whole_file_threshold", "request_timeout", "max_requests", "max_uploads"),
})  # fmt: skip
"""Those that an attached under-store can have of its own."""
FILE_ONLY = frozenset({"storage_options", "path", "prices"})
"""Tables, which only a TOML file can hold."""


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where mounts keep their sockets, logs and indexes: /var/lib/luxfuse for root, XDG_STATE_HOME otherwise."""
    if chosen := environ.get("LUXFUSE_STATE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/luxfuse")
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "luxfuse"


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The default cache directory: /var/cache/luxfuse for root, XDG_CACHE_HOME otherwise."""
    if os.geteuid() == 0:
        return Path("/var/cache/luxfuse")
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luxfuse"


def parse_cache_dir(text: str, where: str = "--cache-dir") -> CacheDirectory:
    """Read ``DIR[,size=50GiB][,tier=ssd]`` and the other options of a cache directory."""
    path, *options = text.split(",")
    values: dict[str, Any] = {"path": str(Path(path).absolute())}
    if not path:
        raise ConfigError(f"{where}: the directory is empty; write DIR,size=50GiB")
    for option in options:
        name, _, value = option.partition("=")
        if name == "size" and value.strip().endswith("%"):
            values["size_ratio"] = _ratio(value, f"{where}: size")
        elif name == "size":
            values["size_bytes"] = _convert(parse_size, value, where)
        elif name == "tier" and value in ("mem", "ssd", "hdd"):
            values["tier"] = value
        elif name in ("free_space_ratio", "high_watermark", "low_watermark"):
            values[name] = _ratio(value, f"{where}: {name}")
        else:
            raise ConfigError(
                f"{where}: {option!r} is not understood; write DIR,size=50GiB,tier=mem|ssd|hdd, and free_space_ratio, "
                "high_watermark and low_watermark between 0 and 1 or in percent"
            )
    directory = msgspec.convert(values, CacheDirectory)
    if directory.low_watermark > directory.high_watermark:
        raise ConfigError(f"{where} {path}: low_watermark is above high_watermark; give a lower one")
    return directory


def _ratio(text: str, where: str) -> float:
    stripped = text.strip()
    try:
        ratio = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ConfigError(f"{where}: {text!r} is no part of a whole; write it like 0.9 or 90%")
    return ratio


def read_file(path: str) -> dict[str, Any]:
    """Return the settings of a TOML file, checked for unknown names."""
    import tomllib  # every command starts faster without it

    try:
        with Path(path).open("rb") as f:
            values = tomllib.load(f)
    except OSError as exc:
        raise ConfigError(f"--config {path}: {exc.strerror}") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"--config {path}: {exc}") from None
    for name in values:
        if name == "state_dir":
            raise ConfigError(f"--config {path}: state_dir is read by every command; set LUXFUSE_STATE_DIR instead")
        if name not in NAMES:
            raise ConfigError(f"--config {path}: unknown setting {name!r}")
    return values


def from_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the LUXFUSE_* settings of the environment; empty ones and other LUXFUSE_ names are left alone."""
    found = {}
    for name in NAMES - FILE_ONLY - {"state_dir"}:
        if value := environ.get(f"LUXFUSE_{name.upper()}"):
            found[name] = value
    return found


def build(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, file: str | None = None) -> Settings:
    """Merge what the user wrote (None means: not given) and validate it. Raises ConfigError.

    The mountpoint is made absolute without looking at it, since a mount may hang; symbolic links are the caller's.
    """
    given = {**from_environment(environ), **{name: value for name, value in flags.items() if value is not None}}
    merged: dict[str, Any] = {**(read_file(file) if file else {}), **given}
    for needed in ("source", "mountpoint"):
        if not merged.get(needed):
            raise ConfigError(f"{needed} is missing; write: luxfuse mount SOURCE MOUNTPOINT")
    values: dict[str, Any] = {}
    for name, value in merged.items():
        if name in _SIZES:
            values[_SIZES[name]] = _convert(parse_size, value, name)
        elif name in _DURATIONS:
            values[_DURATIONS[name]] = min(_convert(parse_duration, value, name), _FOREVER_S)
        elif name in _SWITCHES:
            values[name] = _convert(parse_switch, value, name)
        elif name in _PLAIN:
            values[name] = value
    if isinstance(values.get("umask"), str):
        values["umask"] = _convert(lambda text: int(text, 8), values["umask"], "umask")
    storage_options = values.get("storage_options") or {}
    if not isinstance(storage_options, Mapping):
        raise ConfigError("storage_options: must be a table of names and values")
    values["storage_options"] = {str(k): str(v) for k, v in storage_options.items()}
    values["path_rules"] = _path_rules(merged.get("path") or [])
    values["prices"] = _prices(merged["prices"]) if "prices" in merged else None
    values["mountpoint"] = str(Path(str(values["mountpoint"])).absolute())
    values["cache_dirs"] = _cache_dirs(merged, environ)
    values["state_dir"] = str(Path(merged.get("state_dir") or state_root(environ)).absolute())
    values["join"] = _seeds(merged.get("join"))
    if key_file := merged.get("cluster_key_file"):
        values["cluster_key_file"] = str(Path(str(key_file)).absolute())
    values["config_file"], values["given"] = str(Path(file).absolute()) if file else None, given
    return _validate(values)


def read_again(settings: Settings) -> Settings:
    """Return what the configuration file says now, under the same flags and variables. Raises ConfigError with the line."""
    path = settings.config_file
    if path is None:
        raise ConfigError(f"{settings.mountpoint} was mounted without --config: there is no file to read again")
    kept = {"mountpoint": settings.mountpoint, "state_dir": settings.state_dir, "foreground": settings.foreground}
    try:
        new = build({**settings.given, **kept}, {}, path)
    except ConfigError as exc:
        raise ConfigError(_with_line(path, str(exc))) from None
    return msgspec.structs.replace(new, given=settings.given)


def _with_line(path: str, text: str) -> str:
    """Add file and line to what is wrong with a setting."""
    if text.startswith("--config"):
        return text
    rule = re.match(r"\[\[path\]\] number (\d+)", text)
    name = re.split(r"[:\s]", text.lstrip("-"), maxsplit=1)[0].replace("-", "_")
    wanted = re.compile(r"\s*\[\[\s*path\s*\]\]" if rule else rf"\s*(\[\s*)?{re.escape(name)}\b")
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    found = [number for number, line in enumerate(lines, 1) if wanted.match(line)]
    nth = int(rule[1]) - 1 if rule else 0
    return f"--config {path}{f', line {found[nth]}' if nth < len(found) else ''}: {text}"


def written_name(field: str) -> str:
    """Return a field of `Settings` as users write it."""
    special = {"path_rules": "path", "cache_dirs": "cache_dir"}
    names = {field_name: name for name, field_name in {**_SIZES, **_DURATIONS}.items()}
    return special.get(field) or names.get(field, field)


def attached(base: Settings, source: str, options: Mapping[str, Any]) -> Settings:
    """Return the settings of an under-store that is attached in the mount of ``base``. Raises ConfigError.

    What ``options``, in TOML spelling, leave open is as for the mount, but where the objects come from: that is never
    taken over, and least of all credentials.
    """
    if unknown := sorted(set(options) - ATTACHABLE):
        raise ConfigError(f"{unknown[0]}: no setting of an attached under-store; see luxfuse attach --help")
    chosen = build({**options, "source": source, "mountpoint": base.mountpoint, "cache_dir": None, "cache_size": None}, {})
    fields = {_SIZES.get(name) or _DURATIONS.get(name) or name for name in options if options[name] is not None}
    fields = (fields - {"cache_size"}) | {"source", "endpoint_url", "storage_options", "driver", "path_rules"}
    changes = {name: getattr(chosen, name) for name in fields}
    changes["read_only"] = base.read_only or chosen.read_only
    changes["cache_dirs"] = _sized(list(base.cache_dirs), options.get("cache_size"))
    return _check(msgspec.structs.replace(base, **changes))


def _cache_dirs(merged: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[CacheDirectory, ...]:
    written = merged.get("cache_dir") or str(cache_root(environ))
    texts = written if isinstance(written, (list, tuple)) else [written]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError("cache_dir: must be text, or a list of texts: DIR,size=50GiB")
    directories = [parse_cache_dir(text) for text in texts]
    paths = [directory.path for directory in directories]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"--cache-dir {twice}: is given twice; leave one out")
    return _sized(directories, merged.get("cache_size"))


def _sized(directories: list[CacheDirectory], size: Any) -> tuple[CacheDirectory, ...]:
    if size is None:
        return tuple(directories)
    if len(directories) > 1:
        raise ConfigError("--cache-size: is for a single --cache-dir; write the size of each: DIR,size=50GiB")
    size_bytes = _convert(parse_size, size, "--cache-size")
    return (msgspec.structs.replace(directories[0], size_bytes=size_bytes, size_ratio=None),)


def _path_rules(tables: Any) -> list[PathRule]:
    if not isinstance(tables, (list, tuple)):
        raise ConfigError("path: write each rule as a table of its own, [[path]], with pattern and what holds there")
    rules = []
    for number, written in enumerate(tables, 1):
        where = f"[[path]] number {number}"
        table = dict(written) if isinstance(written, Mapping) else written
        if isinstance(table, dict) and "ttl" in table:
            table["ttl"] = min(_convert(parse_duration, table["ttl"], f"{where}: ttl"), _FOREVER_S)
        for name in ("max_cached", *_RATES):
            if isinstance(table, dict) and name in table:
                table[name] = _convert(parse_size, table[name], f"{where}: {name}")
        try:
            rule = msgspec.convert(table, PathRule)
            check_pattern(rule.pattern)
        except msgspec.ValidationError as exc:
            raise ConfigError(f"{where}: {exc}; it needs a pattern, and what holds there, such as write_mode") from None
        except ValueError as exc:
            raise ConfigError(f"{where}: pattern {rule.pattern!r}: {exc}") from None
        for name, field in _RATES.items():
            _check_rate(getattr(rule, field), f"{where}: {name}")
        if not rule.says_something:
            raise ConfigError(f"{where}: it says nothing; write what holds there, such as write_mode")
        rules.append(rule)
    return rules


def _prices(table: Any) -> Prices:
    try:
        prices = msgspec.convert(table, Prices)
    except msgspec.ValidationError as exc:
        names = ", ".join(Prices.__struct_fields__)
        raise ConfigError(f"[prices]: {exc}; it may hold {names}") from None
    if not all(0 <= value < math.inf for value in msgspec.structs.astuple(prices) if isinstance(value, float)):
        raise ConfigError("[prices]: a price must be a number from 0 on")
    return prices


def _seeds(written: Any) -> tuple[str, ...]:
    """Return the entries of ``join``, files with their whole path."""
    entries = _convert(parse_seeds, written or (), "--join")
    return tuple(
        SEED_FILE + str(Path(entry.removeprefix(SEED_FILE)).absolute()) if entry.startswith(SEED_FILE) else entry
        for entry in entries
    )


def _convert(function: Any, value: Any, name: str) -> Any:
    try:
        return function(value)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{name}: {exc}") from None


def _validate(values: dict[str, Any]) -> Settings:
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"setting not understood: {exc}") from None
    return _check(settings)


def _check(settings: Settings) -> Settings:
    if not 0 <= settings.free_space_ratio < 1:
        raise ConfigError("--free-space-ratio: must be at least 0 and below 1")
    if settings.memory_limit_bytes < 32 * MIB:
        raise ConfigError("--memory-limit: must be at least 32MiB")
    for directory in settings.cache_dirs:
        if directory.size_bytes is not None and directory.size_bytes < MIB:
            raise ConfigError(f"--cache-dir {directory.path}: its size must be at least 1MiB (one page)")
    if not 1 <= settings.max_requests <= 1024:
        raise ConfigError("max_requests: must be between 1 and 1024")
    if not 1 <= settings.max_uploads <= 256:
        raise ConfigError("max_uploads: must be between 1 and 256")
    for name, field in _RATES.items():
        _check_rate(getattr(settings, field), name)
    if settings.request_timeout_s <= 0:
        raise ConfigError("request_timeout: must be more than 0")
    _check_cluster(settings)
    return settings


def _check_cluster(settings: Settings) -> None:
    _convert(parse_address, settings.listen, "--listen")
    if settings.advertise is not None and is_wildcard(_convert(parse_address, settings.advertise, "--advertise")[0]):
        raise ConfigError(f"--advertise {settings.advertise}: others cannot reach that; write an address of this machine")
    if len(settings.rack.encode()) > RACK_BYTES:
        raise ConfigError(f"--rack: must not be longer than {RACK_BYTES} bytes")
    if not 0 <= settings.durable_replicas <= MOST_REPLICAS:
        raise ConfigError(f"--durable-replicas: must be between 0 and {MOST_REPLICAS}")
    if settings.cluster_key_file is None:
        for name, given in (("join", settings.join), ("durable-replicas", settings.durable_replicas)):
            if given:
                raise ConfigError(
                    f"--{name}: is for a node of a cluster; give --cluster-key-file FILE, made by: luxfuse cluster init"
                )


def _check_rate(bytes_s: int | None, name: str) -> None:
    if bytes_s is not None and bytes_s < LEAST_BANDWIDTH_BYTES_S:
        raise ConfigError(f"{name}: must be at least 64KiB (a second)")
