"""When directories were listed as a whole, and the serial numbers of listings.

LISTINGS ``inode (8 bytes)`` -> `Listing`; META ``serial`` -> the highest serial number that was given (8 bytes).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from luxfuse.index.entries import Listing, decode_listing, encode
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import U64, Table

LISTINGS_KEPT = 8192


class Listings:
    """The last complete listing of each directory, and the listings that are under way."""

    def __init__(self, store: IndexStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self.serials: dict[int, int] = {}
        """The serial numbers of the listings that are under way, by directory."""
        stored = store.get(Table.META, b"serial")
        self._last_serial = U64.unpack(stored)[0] if stored else 0
        self._decoded: dict[int, Listing | None] = {}
        self.on_forget: Callable[[int], None] = lambda _directory: None
        """Called with a directory of which it is no longer known what is missing, before that is so."""

    def of(self, directory: int) -> Listing | None:
        """Return the last complete listing of a directory, fresh or not."""
        try:
            return self._decoded[directory]
        except KeyError:
            value = self._store.get(Table.LISTINGS, U64.pack(directory))
            if len(self._decoded) >= LISTINGS_KEPT:
                self._decoded.clear()
            try:
                listing = self._decoded[directory] = None if value is None else decode_listing(value)
            except msgspec.DecodeError as exc:
                raise self._store.doubt(exc) from exc
            return listing

    def serial(self, directory: int) -> int:
        """Return the serial number of the last complete listing of a directory, 0 if there is none."""
        listing = self.of(directory)
        return listing.serial if listing else 0

    def forget(self, directory: int) -> None:
        """Make the next use of the directory list it again."""
        self.on_forget(directory)
        listing = self.of(directory)
        if listing is not None:
            self._put(directory, Listing(listing.serial, 0.0, listing.entries))

    def note_empty(self, directory: int) -> None:
        """Record a complete listing, as of now, of a directory that was just made here: there is nothing in it."""
        serial = self._new_serial(directory)
        self._put(directory, Listing(serial, self._clock(), 0))

    def begin(self, directory: int) -> int:
        """Return the serial number of a listing that begins now; `end` must follow, whatever happens."""
        serial = self.serials[directory] = self._new_serial(directory)
        return serial

    def end(self, directory: int) -> None:
        """The listing is over, complete or not."""
        self.serials.pop(directory, None)

    def forget_decoded(self) -> None:
        """The writer thread has changed listings: read them anew."""
        self._decoded.clear()

    def _put(self, directory: int, listing: Listing) -> None:
        self._store.put(Table.LISTINGS, U64.pack(directory), encode(listing))
        self._decoded[directory] = listing

    def _new_serial(self, directory: int) -> int:
        """No number comes twice: entries of a listing that failed half-way must not pass for ones of the next."""
        serial = max(self.serial(directory), self._last_serial) + 1
        self._store.put(Table.META, b"serial", U64.pack(serial))
        self._last_serial = serial
        return serial
