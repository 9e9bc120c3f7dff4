"""A daemon's place between the one before it and the one after it: the device and the estate that the keeper holds."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from luxfuse.daemon import formats
from luxfuse.estate.memory import Estate, State
from luxfuse.estate.trail import INDEX, JOURNAL, Stream, stream_of
from luxfuse.estate.words import Word
from luxfuse.fuse import inheritance
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.inheritance import Inheritance
from luxfuse.vfs.will import Will
from luxfuse.volume.opened import VolumeEstate


@dataclass(frozen=True, slots=True)
class Succession:
    """``device``: the open FUSE device; ``inheritance``: None for the first daemon of a mount.

    ``keeper_pid``: the process that began this one, and begins the next one.
    """

    device: int
    estate: Estate
    inheritance: Inheritance | None
    keeper_pid: int

    @property
    def kept(self) -> bool:
        """Whether the keeper lives."""
        return os.getppid() == self.keeper_pid

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
