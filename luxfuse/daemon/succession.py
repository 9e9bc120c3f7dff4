"""A daemon's place between the one before it and the one after it: the device and the estate that the keeper holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.daemon import formats
from luxfuse.estate.memory import Estate, State
from luxfuse.estate.trail import INDEX, JOURNAL, Stream, stream_of
from luxfuse.estate.words import Word
from luxfuse.fuse import inheritance
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.inheritance import Inheritance
from luxfuse.keeper import saying
from luxfuse.vfs.will import Will
from luxfuse.volume.opened import VolumeEstate

SETTINGS = b"s"
"""The key of the fact that has the settings, where they were changed since the mount was made."""


class _Changed(msgspec.Struct, frozen=True):
    settings: Settings
    leaving: tuple[CacheSetting, ...] = ()


@dataclass(frozen=True, slots=True)
class Succession:
    """``device``: the open FUSE device; ``inheritance``: None for the first daemon of a mount.

    ``keeper_pid``: the process that began this one, and begins the next one.
    """

    device: int
    estate: Estate
    inheritance: Inheritance | None
    keeper_pid: int

    def keep_settings(self, settings: Settings, leaving: Sequence[CacheSetting]) -> None:
        """These are the settings now; of cache directories that are ``leaving`` files may still be open."""
        self.estate.facts.put(SETTINGS, msgspec.json.encode(_Changed(settings, tuple(leaving))))

    def settings(self, given: Settings) -> tuple[Settings, Settings | None]:
        """Return the settings to begin with, and those to go over to once the mount is served, if these are others."""
        found = self.estate.facts.get(SETTINGS)
        if found is None:
            return given, None
        changed = msgspec.json.decode(found, type=_Changed)
        if not changed.leaving:
            return changed.settings, None
        directories = (*changed.settings.cache_dirs, *changed.leaving)
        return msgspec.structs.replace(changed.settings, cache_dirs=directories), changed.settings

    @property
    def kept(self) -> bool:
        """Whether the keeper lives."""
        return saying.is_heard()

    @property
    def inherited(self) -> bool:
        """Whether there was a daemon before this one."""
        return self.inheritance is not None

    def of_volume(self, number: int) -> VolumeEstate:
        """Return what a volume leaves and finds."""
        estate = self.estate
        return VolumeEstate(
            Stream(estate.trail, stream_of(number, INDEX), estate.identity),
            Stream(estate.trail, stream_of(number, JOURNAL), estate.identity),
            Will(estate.facts, number),
            self.inheritance.of_volume(estate, number) if self.inheritance is not None else None,
        )


def take_over(device: int, estate_fd: int) -> Succession:
    """Begin with what the keeper holds. Raises `MountError`, OSError."""
    estate, keeper_pid = Estate(estate_fd), os.getppid()
    formats.say(estate)
    if estate.inherited:
        return Succession(device, estate, inheritance.take(estate, device), keeper_pid)
    inheritance.begin(estate)
    return Succession(device, estate, None, keeper_pid)


def was_served(estate_fd: int) -> bool:
    """Whether a daemon has served the mount, and this one is its successor."""
    return int.from_bytes(os.pread(estate_fd, 8, 8 * Word.STATE), sys.byteorder) == State.SERVING


def was_taken_away(device: int, estate_fd: int) -> bool:
    """Whether a mount that a daemon has served is gone: its successor has nothing to do."""
    return was_served(estate_fd) and mounts.is_gone(device)
