"""One under-store that is open, before its parts are built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.estate.trail import Stream
from luxfuse.index.journal import Journal
from luxfuse.index.store import IndexStore
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.slots import Slots
from luxfuse.tiers.staging import Staging
from luxfuse.understore.retrying import Store
from luxfuse.vfs.will import Inherited, Will
from luxfuse.volume.neighbours import Neighbours


@dataclass(frozen=True, slots=True)
class ClaimedDirectory:
    """A cache directory in use, as the user wrote it, and its number in the index."""

    setting: CacheSetting
    directory: CacheDirectory
    number: int


class Local:
    """The state on this machine: the cache directories with their staging files, the index, the journal."""

    def __init__(
        self, directories: Sequence[ClaimedDirectory], index: IndexStore, journal: Journal, epoch: int, *, clean: bool
    ) -> None:
        """``directories``: the home directory first. ``clean``: the last run ended cleanly, with everything committed."""
        self.directories = directories
        self.directory = directories[0].directory
        self.index = index
        self.journal = journal
        self.epoch = epoch
        self.clean = clean
        self.staging = Staging(self.directory, [claimed.directory for claimed in directories[1:]])


@dataclass(frozen=True, slots=True)
class VolumeEstate:
    """A volume's part of the estate: what it leaves to a successor, and finds of a predecessor (None: there was none)."""

    index: Stream | None = None
    journal: Stream | None = None
    slots: Slots = field(default_factory=Slots)
    will: Will = field(default_factory=lambda: Will(None, 0))
    inherited: Inherited | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """One under-store: settings, driver, this machine's side, other nodes. Tasks of its parts run in ``nursery``."""

    settings: Settings
    store: Store
    local: Local
    nursery: trio.Nursery
    neighbours: Neighbours = field(default_factory=Neighbours)
    estate: VolumeEstate = field(default_factory=VolumeEstate)
