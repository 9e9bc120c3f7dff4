"""Room for the bytes of flights: in a cache directory, and within the quota of their path."""

from __future__ import annotations

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
