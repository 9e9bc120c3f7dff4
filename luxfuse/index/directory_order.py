"""The objects of one cache directory, in the order in which eviction takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luxfuse.core.eviction import SEGMENTS, Cached
from luxfuse.index.objects import Objects


@dataclass(frozen=True, slots=True)
class DirectoryOrder:
    """The objects of one directory as an eviction policy sees them; implements `core.eviction.Order`."""

    objects: Objects
    directory: int

    @property
    def count(self) -> int:
        """How many objects there are."""
        count = 0
        for segment in SEGMENTS:  # not by `sum`: it is asked for each object that comes
            count += self.objects.totals(self.directory, segment)[1]
        return count

    def bytes_in(self, segment: int) -> int:
        """Return the allocated bytes of a segment."""
        return self.objects.totals(self.directory, segment)[0] if segment in SEGMENTS else 0

    def ascending(self, segment: int) -> Iterator[Cached]:
        """Give a segment's objects from the lowest rank on."""
        return self.objects.ordered(self.directory, segment) if segment in SEGMENTS else iter(())
