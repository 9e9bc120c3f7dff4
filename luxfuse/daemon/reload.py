"""Takes up a changed configuration file while mounted: on SIGHUP, and for ``luxfuse reload``.

The file is read as at mount time, under the flags and variables of that time. It is taken whole or not at all: what it
says is checked first, and a change that cannot be made under a mount refuses it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from luxfuse.config import Settings
from luxfuse.configuration import building
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.names import path_of
from luxfuse.core.settings import SETTINGS
from luxfuse.daemon.running import Running
from luxfuse.errors import ConfigError, LuxError
from luxfuse.fuse.places import check_places
from luxfuse.understore.renewing import with_secrets

if TYPE_CHECKING:
    from luxfuse.cluster.node import Cluster

log = logging.getLogger(__name__)

LIVE = frozenset(setting.field_name for setting in SETTINGS if setting.live)
"""Settings that can change while mounted."""


class Reloader:
    """Changes the settings of a running daemon."""

    def __init__(self, running: Running, cluster: Cluster | None = None) -> None:
        self._running = running
        self._cluster = cluster
        self._parts = running.parts
        self._turn = trio.Lock()
        self._leaving: dict[str, CacheSetting] = {}
        """Cache directories that were taken out of the settings, which may not be empty yet, by path."""

    async def reload(self) -> list[str]:
        """Read the file again and do as it says; returns what changed. Raises `ConfigError`, with nothing changed."""
        async with self._turn:
            settings = self._running.settings
            if self._cluster is not None:
                await self._cluster.check_keys()  # they are taken up when all else could be
            if settings.config_file is None and (self._cluster is not None or self._has_credentials()):
                return await self._new_keys() + await self._renew(None)
            names = await self._reload(settings)
            keys = await self._new_keys()
            return keys + names + (await self._renew(None) if "storage_options" not in names else [])

    async def _new_keys(self) -> list[str]:
        return ["cluster_key_file"] if self._cluster is not None and await self._cluster.reread() else []

    def _has_credentials(self) -> bool:
        return any(store.renewable for store in self._running.stores())

    async def _renew(self, options: dict[str, str] | None) -> list[str]:
        """Read credentials again, from files and, for the mount's own store, ``options``; returns what changed."""
        changed = False
        for store in self._running.stores():  # the mount's own first: if it is refused, the others stay as they are, too
            try:
                changed |= bool(await store.renew(options if store is self._parts.store else None))
            except LuxError as exc:
                if options is not None and store is self._parts.store:
                    raise ConfigError(f"storage_options: {exc}") from None
                log.warning("credentials stay as they are: %s", exc)
        return ["credentials"] if changed else []

    async def _reload(self, old: Settings) -> list[str]:
        new = await trio.to_thread.run_sync(building.read_again, old)
        names = await self._go_over(old, new)
        log.info("read %s again; changed: %s", new.config_file, ", ".join(names) or "nothing")
        return names

    async def go_over(self, new: Settings) -> None:
        """Go over to settings that a daemon before this one had gone over to."""
        async with self._turn:
            try:
                await self._go_over(self._running.settings, new)
            except LuxError as exc:
                log.warning("the settings are not all as they were: %s", exc)

    async def _go_over(self, old: Settings, new: Settings) -> list[str]:
        """Change the settings; returns the names of those that changed. Raises `ConfigError`, with nothing changed."""
        changed = [name for name in Settings.__struct_fields__ if getattr(new, name) != getattr(old, name)]
        secrets = with_secrets(old.storage_options, new.storage_options) == new.storage_options
        if fixed := [
            building.written_name(name)
            for name in changed
            if name not in LIVE and not (name == "storage_options" and secrets)
        ]:
            raise ConfigError(
                f"--config {new.config_file}: {', '.join(fixed)} cannot change while mounted; unmount and mount again"
            )
        _check_tiers(old, new)
        await trio.to_thread.run_sync(_check_places, new)
        async with self._parts.directories.changed_to(new.cache_dirs):
            if "storage_options" in changed:
                await self._renew(new.driver_options)
        await self._apply(new, set(changed))
        self._running.settings = new
        self._leaving |= {each.path: each for each in old.cache_dirs}
        leaving = [each for path, each in self._leaving.items() if path not in {kept.path for kept in new.cache_dirs}]
        if self._running.succession is not None:
            self._running.succession.keep_settings(new, leaving)
        return [building.written_name(name) for name in changed]

    async def _apply(self, new: Settings, changed: set[str]) -> None:
        p = self._parts
        if changed & {"path_rules", "write_mode"}:
            p.policies.replace(new.path_rules, new.path_default)
            p.store.follow_rules(p.policies, path_of)
            await p.retention.apply_quotas()
            await p.retention.restand([lambda _path: True])
        p.namespace.belief.set_ttls(metadata_s=new.metadata_ttl_s, negative_s=new.negative_ttl_s)
        p.volumes.main.negative_ttl_s = new.negative_ttl_s
        p.writing.room.timeout_s = new.room_timeout_s
        p.writeback.pusher.fail_on_conflict = new.on_conflict == "fail"
        p.fs.links.hardlinks = new.hardlinks
        p.store.set_bandwidth(get_bytes_s=new.bandwidth_limit_bytes_s, put_bytes_s=new.upload_bandwidth_limit_bytes_s)
        for space in p.hierarchy:
            setting = next((d for d in new.cache_dirs if d.path == space.directory.name), None)
            if setting is None:
                continue  # it is drained
            ratio = new.free_space_ratio if setting.free_space_ratio is None else setting.free_space_ratio
            await space.resize(setting.size_bytes, setting.size_ratio, ratio, setting.high_watermark, setting.low_watermark)
        logging.getLogger().setLevel(new.log_level.upper())


def _check_places(new: Settings) -> None:
    try:
        check_places(new)
    except LuxError as exc:
        raise ConfigError(f"--config {new.config_file}: {exc}") from None


def _check_tiers(old: Settings, new: Settings) -> None:
    """Cache directories can come, go and change their sizes, but not their tiers."""
    before = {directory.path: directory.tier for directory in old.cache_dirs}
    for directory in new.cache_dirs:
        if before.get(directory.path, directory.tier) != directory.tier:
            raise ConfigError(
                f"--config {new.config_file}: cache_dir {directory.path}: its tier cannot change while mounted; unmount "
                "and mount again"
            )
