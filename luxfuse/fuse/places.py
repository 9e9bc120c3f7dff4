"""Whether a mount's directories and files lie where they can: not on a luxfuse mount, nor under or over the mountpoint."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from luxfuse.config import Settings
from luxfuse.core.addresses import SEED_FILE
from luxfuse.errors import ConfigError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.mountpoint import is_inside


def check_places(settings: Settings) -> None:
    """Raise `ConfigError`, one line, for a place that would hang the mount or be hidden by it. Touches no FUSE mount."""
    mounted = mounts.read_mounts()
    where = mounts.resolve(settings.mountpoint, mounted)
    found = [(name, path, mounts.resolve(path, mounted)) for name, path in _local(settings)]
    for name, path, real in found:
        if is_inside(real, where):
            raise ConfigError(f"{name} {path}: would be hidden by the mount on {settings.mountpoint}; choose another place")
        if (mount := mounts.mount_around(real, mounted)) is not None and mount.fstype == mounts.FSTYPE:
            raise ConfigError(f"{name} {path}: lies on the luxfuse mount {mount.mountpoint}; choose a local disk")
    caches = [(path, real) for name, path, real in found if name == "cache_dir"]
    for path, real in caches:
        if is_inside(where, real):
            raise ConfigError(f"mountpoint {settings.mountpoint}: lies in the cache directory {path}; choose another place")
    for (path, real), (other, other_real) in itertools.permutations(caches, 2):
        if real == other_real:
            raise ConfigError(f"cache_dir {path}: is the same directory as {other}; leave one out")
        if is_inside(real, other_real):
            raise ConfigError(f"cache_dir {path}: lies in the cache directory {other}; choose another place")
    if (source := _local_source(settings.source)) is not None:
        _check_source(source, mounts.resolve(source, mounted), [("mountpoint", settings.mountpoint, where), *found])


def _check_source(source: str, real: str, places: Sequence[tuple[str, str, str]]) -> None:
    """A tree that shows itself has no end, and a cache that caches itself grows for ever."""
    _, mountpoint, where = places[0]
    if is_inside(real, where):
        raise ConfigError(f"source {source}: lies in the mountpoint {mountpoint}, which would hide it; choose another one")
    for name, path, place in places:
        if name in ("mountpoint", "cache_dir", "state_dir") and is_inside(place, real):
            raise ConfigError(f"{name} {path}: lies in the source {source}, so it would be shown in itself; choose another")


def _local_source(source: str) -> str | None:
    """Return the directory that is mounted, if it is a local one."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return source
    return rest if scheme in ("file", "local") else None


def _local(settings: Settings) -> list[tuple[str, str]]:
    """Return the paths on this machine, by setting."""
    found = [("cache_dir", directory.path) for directory in settings.cache_dirs]
    found.append(("state_dir", settings.state_dir))
    for name, path in (
        ("log_file", settings.log_file), ("--config", settings.config_file),
        ("cluster_key_file", settings.cluster_key_file), ("http_token_file", settings.http_token_file),
    ):  # fmt: skip
        if path is not None:
            found.append((name, path))
    seeds = (entry for entry in settings.join if entry.startswith(SEED_FILE))
    return found + [("join", entry.removeprefix(SEED_FILE)) for entry in seeds]
