"""Names that do not exist, as far as is known: asked for one by one, or not in the listing of their directory."""

from __future__ import annotations

from collections import OrderedDict

from luxfuse.index.names import Names
from luxfuse.vfs.belief import Belief
from luxfuse.vfs.relisting import Relisting

NEGATIVES_KEPT = 20_000
LIST_AHEAD_ENTRIES = 10_000


class Missing:
    """The names of one mount that are known not to exist."""

    def __init__(self, *, names: Names, belief: Belief, relisting: Relisting) -> None:
        self._names = names
        self._belief = belief
        self._relisting = relisting
        self._negatives: OrderedDict[tuple[int, bytes], float] = OrderedDict()

    def note(self, parent: int, name: bytes, asked_s: float) -> None:
        """A name that was asked for does not exist."""
        self._negatives[parent, name] = asked_s
        if len(self._negatives) > NEGATIVES_KEPT:
            self._negatives.popitem(last=False)

    def forget(self, parent: int, name: bytes) -> None:
        """A name may exist now."""
        self._negatives.pop((parent, name), None)

    def forget_in(self, directory: int) -> list[bytes]:
        """All names of a directory may exist now; returns those that were known not to."""
        gone = [key for key in self._negatives if key[0] == directory]
        for key in gone:
            del self._negatives[key]
        return [name for _, name in gone]

    def is_doubtful(self, parent: int, name: bytes) -> bool:
        """Whether another node changed the directory since the name was last heard to be missing from it."""
        doubted_s, listing = self._belief.listing_doubted_s(parent), self._names.listings.of(parent)
        if not doubted_s or self._names.is_held(parent, name):
            return False
        return max(self._negatives.get((parent, name), 0.0), listing.fetched_s if listing is not None else 0.0) < doubted_s

    def listed_s(self, directory: int) -> tuple[float, float]:
        """Return when a directory was listed, and for how long it is known by that which names are missing from it."""
        listing = self._names.listings.of(directory)
        return (0.0, 0.0) if listing is None else (listing.fetched_s, self._belief.listed_s(directory, listing.fetched_s))

    def knows(self, parent: int, name: bytes) -> bool:
        """Whether a name is known not to exist. Lists the directory ahead if that is about to be too old to tell."""
        since = self._negatives.get((parent, name), -1e18)
        negative_ttl_s = self._belief.negative_ttl_s
        listing = self._names.listings.of(parent)
        if listing is not None:
            since = max(since, listing.fetched_s)
            if listing.entries <= LIST_AHEAD_ENTRIES and not self._belief.holds(listing.fetched_s, negative_ttl_s / 2):
                self._relisting.list_ahead(parent)
        return self._belief.lists(parent, since, negative_ttl_s)
