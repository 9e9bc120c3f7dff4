"""The cache directories of one mount, in their tiers: where the file of an object goes.

An object version has its file in one directory. New pages go to the highest tier that takes the whole object at once;
where none does, the lowest tier makes room. Cold objects move down, warm ones up, in the background (`mover`).
The *home* directory has the staging files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from luxfuse.cache.placing import Placing
from luxfuse.cache.shared import Shared
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes
from luxfuse.tiers.directory import CacheDirectory


class Hierarchy:
    """All `Space` of a mount, from the highest tier to the lowest; in one tier, in the order of the settings."""

    def __init__(self, shared: Shared) -> None:
        """The contents of the cache need it, and its directories need them: so these come with `begin`."""
        self.shared = shared
        self.home: Space
        self.spaces: list[Space] = []

    def begin(self, spaces: list[Space]) -> None:
        """Use the directories of the settings, home first."""
        self.home = spaces[0]
        self.spaces = by_tier(spaces)

    def __iter__(self) -> Iterator[Space]:
        return iter(self.spaces)

    def add(self, space: Space) -> None:
        """Use one more directory."""
        self.spaces = by_tier([*self.spaces, space])

    def remove(self, space: Space) -> None:
        """Do without a directory from now on."""
        self.spaces = [other for other in self.spaces if other is not space]

    def by_number(self, number: int) -> Space | None:
        """Return a directory by its number; None if it is not in use."""
        for space in self.spaces:
            if space.number == number:
                return space
        return None

    def of(self, directory: CacheDirectory) -> Space:
        """Return the space of a directory that is in use."""
        if directory is self.home.directory:  # as most are
            return self.home
        return next(space for space in self.spaces if space.directory is directory)

    @property
    def removing(self) -> dict[bytes, trio.Event]:
        """Objects whose files are being removed: see `Shared`."""
        return self.shared.removing

    @property
    def moving(self) -> set[bytes]:
        """Objects on their way to another directory: see `Shared`."""
        return self.shared.moving

    def placing(self, key: str) -> Placing:
        """Return where an object may be put."""
        return self.shared.rules.placing(key)

    @property
    def usable(self) -> bool:
        """Whether something can be stored anywhere."""
        return any(not space.shut for space in self.spaces)

    @property
    def largest_bytes(self) -> int | None:
        """Capacity of the largest directory in use; None if one has no bound but the free-space ratio."""
        capacities = [space.capacity_bytes for space in self.spaces if not space.shut]
        return None if None in capacities else max((c for c in capacities if c is not None), default=0)

    @property
    def writable(self) -> bool:
        """Whether anything is ever stored."""
        return any(space.writable for space in self.spaces)

    @property
    def most_bytes(self) -> int | None:
        """The bytes of clean objects that can be held so that no eviction reaches them; None while that is not known."""
        most = [space.most_bytes for space in self.spaces if not space.shut]
        return None if None in most else sum(m for m in most if m is not None)

    def total(self, count: Callable[[Space], int]) -> int:
        """Return the sum of a number over all directories."""
        return sum(count(space) for space in self.spaces)

    def keep_policy_states(self) -> None:
        """Keep the state of the eviction policies in the index."""
        for space in self.spaces:
            space.standings.keep_policy_state()

    def below(self, space: Space) -> list[Space]:
        """Return the directories that can take files of lower tiers than this one's, the nearest first."""
        return [other for other in self.spaces if other.level > space.level and not other.shut]

    def above(self, space: Space) -> list[Space]:
        """Return the directories that can take files of higher tiers than this one's, the highest first."""
        return [other for other in self.spaces if other.level < space.level and not other.shut]

    def _allowed(self, placing: Placing) -> list[Space]:
        """Return the directories that something may be put in now."""
        if not placing.keep:
            return []
        usable = [space for space in self.spaces if not space.shut]
        return [space for space in usable if placing.admits(space.tier)] or usable

    def try_reserve(self, size_bytes: int, wanted_bytes: int, placing: Placing) -> tuple[bool, Space | None]:
        """Reserve room for the first pages, ``wanted_bytes``, of an object; see `Space.settle`.

        Returns whether that is decided, and where they go: None, if decided, means that they are not to be stored.
        """
        usable = by_room(self._allowed(placing))
        if not usable:
            return True, None
        for space in usable:
            fits = space is usable[-1] or not space.ledger.shortage(allocated_bytes(size_bytes))
            if fits and space.try_reserve(wanted_bytes):
                return True, space
        return False, None

    async def reserve(self, wanted_bytes: int, placing: Placing) -> Space | None:
        """Reserve room for the first pages of an object, evicting if need be: in the lowest tier, if that can be."""
        for space in reversed(by_room(self._allowed(placing))):
            if await space.reserve(wanted_bytes):
                return space
        return None


def by_room(spaces: list[Space]) -> list[Space]:
    """Return directories from the highest tier down; in one tier, the emptiest first."""
    return sorted(spaces, key=lambda space: (space.level, space.fullness)) if len(spaces) > 1 else spaces


def by_tier(spaces: list[Space]) -> list[Space]:
    """Return directories from the highest tier down; in one tier, in the order given."""
    return sorted(spaces, key=lambda space: space.level)
