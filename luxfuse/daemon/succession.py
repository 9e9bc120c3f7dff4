"""A daemon's place between the one before it and the one after it: the device and the estate that the keeper holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass

import msgspec

from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.daemon import formats
from luxfuse.estate.memory import Estate, State
from luxfuse.estate.trail import INDEX, JOURNAL, Stream, stream_of, volume_of
from luxfuse.estate.words import Word
from luxfuse.fuse import inheritance
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.inheritance import Inheritance
from luxfuse.keeper import saying
from luxfuse.tiers.slots import Slots
from luxfuse.vfs.will import Will
from luxfuse.volume.opened import VolumeEstate

SETTINGS = b"s"
"""The key of the fact that has the settings, where they were changed since the mount was made."""
LAST_NUMBER = b"a"
"""The key of the fact that has the number of the volume that was attached last."""


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

    def of_volume(self, number: int, *, fresh: bool = False) -> VolumeEstate:
        """Return what a volume leaves and finds; ``fresh``: none had its number, or what that left is of no use."""
        estate = self.estate
        if fresh:
            self.forget_volume(number)
        slots = Slots(estate.facts, number)
        if fresh:
            slots.since = estate.trail.end
        index, journal = (
            Stream(estate.trail, stream_of(number, kind), estate.identity, continued=slots.known, since=slots.since)
            for kind in (INDEX, JOURNAL)
        )
        inherited = None if fresh or self.inheritance is None else self.inheritance.of_volume(estate, number)
        return VolumeEstate(index, journal, slots, Will(estate.facts, number), inherited)

    def rest(self, number: int) -> None:
        """A volume has ended, and may be opened again: nobody commits what it has in the trail meanwhile."""
        for kind in (INDEX, JOURNAL):
            self.estate.trail.rest(stream_of(number, kind))

    def forget_volume(self, number: int) -> None:
        """A volume is gone, and nobody goes on with it."""
        Slots(self.estate.facts, number).drop()
        for kind in (INDEX, JOURNAL):
            self.estate.trail.forget(stream_of(number, kind))

    def forget_other_volumes(self, numbers: Set[int]) -> None:
        """A predecessor had no others: what of them is in the trail would be kept for ever."""
        for number in {volume_of(stream) for stream in self.estate.trail.streams} - {0, *numbers}:
            self.forget_volume(number)

    @property
    def last_number(self) -> int:
        """The number of the volume that was attached last, though it may be on record nowhere; 0: there was none."""
        return int.from_bytes(self.estate.facts.get(LAST_NUMBER) or b"", "big")

    def keep_last_number(self, number: int) -> None:
        """A volume is about to be attached: the kernel may remember numbers of its inodes from then on."""
        self.estate.facts.put(LAST_NUMBER, number.to_bytes(1, "big"))


def take_over(device: int, estate_fd: int) -> Succession:
    """Begin with what the keeper holds. Raises `MountError`, OSError."""
    estate, keeper_pid = Estate(estate_fd), os.getppid()
    formats.say(estate)
    for stream in estate.trail.streams:  # an earlier volume of the same number may have left some, too
        estate.trail.begin_from(stream, Slots(estate.facts, volume_of(stream)).since)
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
