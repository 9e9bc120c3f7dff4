"""Which mounts the paths of a command line are in."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from luxfuse.cli.errors import CommandFailed
from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.registry import MountRecord
from luxfuse.core.units import shown
from luxfuse.fuse import mountpoint as mounts

SUCCESSOR_PATIENCE_S = 30.0
"""For how long commands wait for a daemon that goes on where one died."""


def mount_at(path: str) -> MountRecord:
    """Return the mount at ``path``. Raises `CommandFailed` if that is no mountpoint, or its daemon is dead."""
    return _alive(_known_at(path), path)


def mount_or_source(target: str, *, below: bool = False) -> MountRecord | None:
    """Return the mount at the path ``target``, alive or not; None if that is a source, by its ``://``.

    ``below``: the path may be one in a mount. Raises `CommandFailed` for any other path: what is not mounted, though it
    ought to be, is not to be taken for a store.
    """
    if "://" in target:
        return None
    record = registry.find(state_root(), target) if below else _known_at(target)
    if record is None:
        there = f"file://{mounts.resolve(target)}"
        raise CommandFailed(f"{_not_mounted(target)}; for a local directory as a source write {there}")
    return record


def _known_at(path: str) -> MountRecord | None:
    record = registry.find(state_root(), path)
    if record is not None and mounts.resolve(path) != record.mountpoint:
        raise CommandFailed(f"{path} is not a mountpoint; the mount that it is in is {record.mountpoint}")
    return record


def _not_mounted(path: str) -> str:
    return f"{path} is not in a luxfuse mount; see: luxfuse list"


def mount_around(path: str) -> MountRecord:
    """Return the mount at or around ``path``. Raises `CommandFailed` if there is none, or its daemon is dead."""
    return _alive(registry.find(state_root(), path), path)


def await_successor(record: MountRecord) -> MountRecord | None:
    """If a daemon has just died, and another one goes on, return the record of that, or what there is if none comes."""
    give_up_at = time.monotonic() + SUCCESSOR_PATIENCE_S
    found: MountRecord | None = record
    while found is not None and found.is_restarting and time.monotonic() < give_up_at:
        time.sleep(0.1)
        found = registry.at(state_root(), record.mountpoint)
    return found


def _alive(record: MountRecord | None, path: str) -> MountRecord:
    record = await_successor(record) if record is not None else None
    if record is None:
        raise CommandFailed(_not_mounted(path))
    if not record.alive:
        then = "" if record.is_restarting else f", then run: luxfuse unmount {record.mountpoint}"
        raise CommandFailed(f"{record.mountpoint}: {record.death}; see {record.log_path}{then}")
    return record


def by_mount(paths: Iterable[str]) -> list[tuple[MountRecord, list[str]]]:
    """Return the paths relative to their mounts, by mount; "" is the mountpoint itself. Raises `CommandFailed`."""
    known = sorted(registry.list_mounts(state_root()), key=lambda record: len(record.mountpoint), reverse=True)
    mounted = list(mounts.read_mounts())
    found: dict[str, tuple[MountRecord, list[str]]] = {}
    for path in paths:
        where = mounts.resolve(_utf8(path), mounted)
        record = _alive(next((r for r in known if mounts.is_inside(where, r.mountpoint)), None), path)
        inside = str(Path(where).relative_to(record.mountpoint))
        found.setdefault(record.mountpoint, (record, []))[1].append("" if inside == "." else inside)
    return list(found.values())


def _utf8(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CommandFailed(f"{shown(path)} is not UTF-8, as all names in a mount are; there is no such file") from None
    return path


def failed(record: MountRecord, exc: Exception) -> CommandFailed:
    """Return what to raise when a daemon does not do what it was asked for."""
    return CommandFailed(f"{record.mountpoint}: {exc}; see {record.log_path}")
