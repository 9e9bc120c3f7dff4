"""Room for the bytes of flights: in a cache directory, and within the quota of their path."""

from __future__ import annotations

from collections.abc import Sequence

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.quotas import Quotas
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes


class Reservations:
    """Reserves room before anything is fetched."""

    def __init__(self, hierarchy: Hierarchy, quotas: Quotas) -> None:
        self._hierarchy = hierarchy
        self._quotas = quotas

    def try_reserve(self, obj: CachedObject, flight: Flight) -> tuple[bool, Space | None]:
        """Reserve room at once; see `Hierarchy.try_reserve`."""
        quota = self._quotas.of(obj.record.key)
        if quota is not None and not quota.reserve(allocated_bytes(flight.length)):
            return False, None
        if obj.space is None:
            placing = self._hierarchy.placing(obj.record.key)
            decided, space = self._hierarchy.try_reserve(obj.size, flight.length, placing)
            if space is not None:
                self._put_in(obj, space)
        else:
            reserved = obj.space.try_reserve(flight.length)
            decided, space = reserved is not None, obj.space if reserved else None
        flight.quota = quota
        if space is None:
            flight.settle_quota()
        return decided, space

    def try_reserve_all(self, objs: Sequence[CachedObject], flights: Sequence[Flight]) -> list[Space | None] | None:
        """Reserve room for many objects at once, each as by `try_reserve`; None, and no room, if it is not decided."""
        if (only := self._only_space(objs)) is not None:
            if not only.ledger.reserve(sum(allocated_bytes(flight.length) for flight in flights)):
                return None
            for obj in objs:
                self._put_in(obj, only)
            return [only] * len(objs)
        spaces: list[Space | None] = []
        for obj, flight in zip(objs, flights, strict=True):
            decided, space = self.try_reserve(obj, flight)
            if not decided:
                for other, reserved in zip(flights, spaces, strict=False):
                    if reserved is not None:
                        settle(other, reserved, 0)
                return None
            spaces.append(space)
        return spaces

    def _only_space(self, objs: Sequence[CachedObject]) -> Space | None:
        """Return the directory that all of these go to, where there is no other one and no quota."""
        spaces = self._hierarchy.spaces
        if len(spaces) != 1 or self._quotas.any or spaces[0].shut:
            return None
        placing = self._hierarchy.placing
        return spaces[0] if all(obj.space is None and placing(obj.record.key).keep for obj in objs) else None

    async def reserve(self, obj: CachedObject, flight: Flight) -> Space | None:
        """Reserve room, in the directory that has the object's file or will get it; None: do without."""
        quota = self._quotas.of(obj.record.key)
        if quota is not None:
            if not await self._quotas.make_room(quota, flight.length) or not quota.reserve(allocated_bytes(flight.length)):
                return None
            flight.quota = quota
        space = None
        try:
            space = await self._reserve_in_directory(obj, flight.length)
        finally:
            if space is None:
                flight.settle_quota()
        return space

    async def _reserve_in_directory(self, obj: CachedObject, wanted_bytes: int) -> Space | None:
        while True:
            wanted = obj.space
            placing = self._hierarchy.placing(obj.record.key)
            space = await self._hierarchy.reserve(wanted_bytes, placing) if wanted is None else wanted
            if space is None or (wanted is not None and not await space.reserve(wanted_bytes)):
                return None
            if obj.space is None:
                self._put_in(obj, space)
            if obj.space is space:
                return space
            space.settle(wanted_bytes, 0)  # another flight's pages went elsewhere meanwhile, or the file moved

    @staticmethod
    def _put_in(obj: CachedObject, space: Space) -> None:
        """A directory is to get the object's file."""
        obj.put_in(space)
        space.directory.expect(obj.oid)


def settle(flight: Flight, space: Space, stored_bytes: int) -> None:
    """End the reservations of a flight, of which so many bytes are new on disk."""
    space.settle(flight.length, stored_bytes)
    flight.settle_quota()
