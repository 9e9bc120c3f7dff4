"""When directories are listed again: when they are shown, ahead of that, and instead of many single look-ups."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from luxfuse.core import freshness
from luxfuse.errors import LuxError, StoreError, StoreUnavailable
from luxfuse.index.names import Names
from luxfuse.understore.presence import LOOKED_S
from luxfuse.understore.retrying import Store
from luxfuse.vfs.belief import Belief
from luxfuse.vfs.errors import Moved, NoSuchName, NotRecorded, leaves_what_is_known
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.places import Places
from luxfuse.vfs.streams import Stream

log = logging.getLogger(__name__)

ASKED_KEPT = 10_000

Fetch = Callable[[int, str, int, float], Awaitable[Stream | int | None]]
"""As `Lister.fetch` and `Lister.begin`."""


class Relisting:
    """Keeps the listings of directories fresh."""

    def __init__(
        self,
        *,
        store: Store,
        names: Names,
        places: Places,
        belief: Belief,
        lister: Lister,
        nursery: trio.Nursery,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._names = names
        self._places = places
        self._belief = belief
        self._lister = lister
        self._moving = lister.moving
        self._nursery = nursery
        self._clock = clock
        self._asked: Counter[int] = Counter()
        """How many names were asked for one by one since a directory was listed, by inode."""

    def is_listed(self, directory: int) -> bool:
        """Whether the directory's listing is fresh."""
        listing = self._names.listings.of(directory)
        return listing is not None and self._belief.lists(directory, listing.fetched_s, self._belief.ttl_s)

    async def listed(self, directory: int) -> int:
        """Make sure that the directory's listing is fresh; returns its serial.

        An older one will do while no new one can be had. Raises `NoSuchName`, `StoreError`, `NotRecorded`.
        """
        serial = await self._listed(directory, self._lister.fetch)
        assert not isinstance(serial, Stream)
        return serial

    async def begun(self, directory: int) -> int | Stream:
        """As `listed`, but returns a listing that is under way as soon as there is anything to be read of it."""
        return await self._listed(directory, self._lister.begin)

    async def _fetched(
        self, fetch: Fetch, directory: int, prefix: str, moves: int, since_s: float, *, older: bool
    ) -> Stream | int | None:
        """Wait for a listing; where there is an ``older`` one, no longer than until the store is in doubt."""
        while older:
            with trio.move_on_after(LOOKED_S):
                return await fetch(directory, prefix, moves, since_s)  # one that is under way is joined
            if not self._store.reachable:
                raise StoreUnavailable("the store has not answered a listing yet")
        return await fetch(directory, prefix, moves, since_s)

    async def _listed(self, directory: int, fetch: Fetch) -> int | Stream:
        listing = self._names.listings.of(directory)
        if listing is not None and self._belief.lists(directory, listing.fetched_s, self._belief.ttl_s):
            return listing.serial
        self._asked.pop(directory, None)
        if listing is not None and not self._store.reachable:
            self._belief.stale_served += 1
            return listing.serial
        moves = await self._moving.under_one_name(directory)
        prefix, held = self._places.prefix(directory), self._belief.is_held(directory)  # its marker may arrive meanwhile
        try:
            since_s = max(self._clock() - self._belief.ttl_s, self._belief.listing_doubted_s(directory))
            serial = await self._fetched(fetch, directory, prefix, moves, since_s, older=listing is not None)
        except Moved:
            return await self._listed(directory, fetch)
        except (StoreError, NotRecorded) as exc:
            if listing is None or not leaves_what_is_known(exc):
                raise
            self._belief.stale_served += 1
            return listing.serial
        if serial is None and (held or self._belief.is_held(directory) or self._names.after(directory, b"", 1)):
            return self._names.listings.serial(directory)  # the store will have it
        if serial is None:
            self._belief.expire(directory)
            raise NoSuchName(f"directory {prefix!r} is gone")
        return serial

    async def complete(self, directory: int, stream: Stream) -> None:
        """Have everything of a directory be read in spite of the error that ended a listing. Raises that if it cannot be.

        The listing is made again where the directory has moved, and an older one will do where no new one can be had.
        """
        error = stream.error
        if isinstance(error, Moved):
            await self.listed(directory)
        elif error is not None:
            if self._names.listings.of(directory) is None or not leaves_what_is_known(error):
                raise error
            self._belief.stale_served += 1
        if stream.error is not None:  # else another reader has done it meanwhile
            stream.complete()

    def list_ahead(self, directory: int) -> None:
        """Files are being made in a directory: list it before its listing is too old to say which names are free."""
        if not self._lister.is_listing(directory) and self._store.reachable:
            self._nursery.start_soon(self._list_quietly, directory, True)

    def list_instead(self, parent: int) -> None:
        """After a few names asked for one by one, list the whole directory in the background."""
        listing = self._names.listings.of(parent)
        if listing is not None and self._belief.lists(parent, listing.fetched_s, self._belief.ttl_s):
            return
        self._asked[parent] += 1
        if self._asked[parent] >= freshness.RELIST_AFTER_LOOKUPS and not self._lister.is_listing(parent):
            self._nursery.start_soon(self._list_quietly, parent)
        if len(self._asked) > ASKED_KEPT:
            self._asked.clear()

    async def _list_quietly(self, directory: int, again: bool = False) -> None:
        try:
            if again:
                moves = await self._moving.under_one_name(directory)
                prefix, asked_s = self._places.prefix(directory), self._clock() - self._belief.negative_ttl_s / 2
                await self._lister.fetch(directory, prefix, moves, asked_s)
            else:
                await self.listed(directory)
        except LuxError as exc:
            log.info("listing ahead of directory %d failed: %s", directory, exc)
