"""The cache directories of a volume: claimed for as long as it lives, and where its index and journal are by them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.errors import MountError
from luxfuse.index import journal_copy
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.slots import Slots


@asynccontextmanager
async def claimed(settings: Settings, slots: Slots) -> AsyncIterator[list[tuple[CacheSetting, CacheDirectory]]]:
    """Claim the cache directories, the home directory first; a successor those of its predecessor. Raises `LuxError`."""
    found: list[tuple[CacheSetting, CacheDirectory]] = []
    try:
        for setting in settings.cache_dirs:
            path = Path(setting.path)
            slot = slots.of(str(path))
            found.append((setting, await trio.to_thread.run_sync(CacheDirectory, path, settings.source_id, slot)))
        found.sort(key=lambda cache: (cache[1].name != slots.home, *_homeliness(settings, *cache)))
        if slots.known and found[0][1].name != slots.home:
            raise MountError(
                f"cache directory {slots.home} was home, and is in the settings no more; unmount, and mount again"
            )
        yield found
    except BaseException:
        for _, directory in found:
            directory.set_aside()
        raise
    slots.drop()
    for _, directory in found:
        directory.close()


def _homeliness(settings: Settings, setting: CacheSetting, directory: CacheDirectory) -> tuple[bool, bool]:
    """A staged file stays where it was; else memory is no place for it."""
    journals = (place_of(settings, "journal", directory), directory.path / journal_copy.FILE_NAME)
    return not any(path.exists() for path in journals), setting.tier == "mem"


def place_of(settings: Settings, kind: str, directory: CacheDirectory) -> Path:
    """Return where the index or journal of a cache directory is kept."""
    name = hashlib.sha256(os.fsencode(directory.path)).hexdigest()[:16]
    return Path(settings.state_dir, kind, name)
