"""How long answers of the store about names are believed.

An entry holds for ``metadata_ttl``, that a name does not exist for ``negative_ttl``, unless another node says that it has
changed, or a run that was killed may have changed it. Changes made here hold until the store has them.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable

from luxfuse.core import freshness
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.understore.retrying import Store
from luxfuse.vfs.doubts import Doubts
from luxfuse.vfs.errors import Stale
from luxfuse.vfs.places import Places

VOUCHED_KEPT = 1_000
STALE_TTL_S = 1.0
"""For how long the kernel may believe what could not be checked because the store is unreachable."""


class Belief:
    """Which entries and listings of one mount are fresh. Times are wall-clock seconds."""

    def __init__(
        self,
        *,
        store: Store,
        names: Names,
        places: Places,
        metadata_ttl_s: float,
        negative_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._names = names
        self._places = places
        self.ttl_s = metadata_ttl_s
        self.negative_ttl_s = negative_ttl_s
        self._clock = clock
        self._held: set[int] = set()
        self._vouched: OrderedDict[int, float] = OrderedDict()
        self.doubts = Doubts()
        self.stale_served = 0
        """How often an old entry or listing was served, as the store could not be asked or the index took no changes."""

    def hold(self, inode: int) -> None:
        """An inode is changed here: its entry counts, not the store, until `let_go`."""
        self._held.add(inode)

    def let_go(self, inode: int) -> None:
        """An inode is not held any more; its name may be, by another."""
        self._held.discard(inode)

    def is_held(self, inode: int) -> bool:
        """Whether an inode is changed here."""
        return inode in self._held

    @property
    def any_held(self) -> bool:
        """Whether any inode is."""
        return bool(self._held)

    @property
    def terms(self) -> tuple[float, float, float]:
        """The time, for how many seconds an answer is believed, and the time before which none is."""
        return self._clock(), self.ttl_s, self._names.believe_from_s

    def set_ttls(self, *, metadata_s: float, negative_s: float) -> None:
        """Believe names and attributes, and that names are missing, for so long from now on."""
        self._names.told.revoke_all()
        self.ttl_s, self.negative_ttl_s = metadata_s, negative_s

    def remaining_s(self, entry: Entry) -> float:
        """Return for how long the entry holds; a moment while the store is unreachable."""
        left = self.fresh_s(entry)
        return left if left > 0 or self.is_ours(entry.inode) or self._store.reachable else STALE_TTL_S

    def fresh_s(self, entry: Entry) -> float:
        """Return for how long the entry need not be asked for, whether the store can be asked or not."""
        if entry.inode == ROOT_INODE or entry.inode in self._held:
            return self.ttl_s
        if entry.checked_s < self._names.believe_from_s or self.is_doubted(entry):
            return 0.0
        return freshness.remaining_s(entry.checked_s, self._clock(), self.ttl_s)

    def is_fresh(self, entry: Entry) -> bool:
        """Whether the entry need not be asked for."""
        if entry.inode == ROOT_INODE or entry.inode in self._held:
            return True
        if self.is_vouched(entry.inode):
            return True
        return self.holds(entry.checked_s, self.ttl_s) and not self.is_doubted(entry)

    def left_s(self, since_s: float) -> float:
        """Return for how long an answer of a time still holds, if it is not doubted."""
        if since_s < self._names.believe_from_s:
            return 0.0
        return freshness.remaining_s(since_s, self._clock(), self.ttl_s)

    def is_doubted(self, entry: Entry) -> bool:
        """Whether another node has changed it since it was checked."""
        now_s = self._clock()
        if entry.checked_s < self.doubts.entries.since(entry.inode, now_s):
            return True
        if not self.doubts.below.any or (place := self._names.locate(entry.inode)) is None:
            return False
        return entry.checked_s < self.doubts.below.since(place[0], now_s)

    def lists(self, directory: int, fetched_s: float, ttl_s: float) -> bool:
        """Whether a listing of a directory still holds."""
        return fetched_s >= self.doubts.listings.since(directory, self._clock()) and self.holds(fetched_s, ttl_s)

    def listed_s(self, directory: int, fetched_s: float) -> float:
        """Return for how long a listing of a directory says which names are missing."""
        if not self.lists(directory, fetched_s, self.negative_ttl_s):
            return 0.0
        return freshness.remaining_s(fetched_s, self._clock(), self.negative_ttl_s)

    def listing_doubted_s(self, directory: int) -> float:
        """Return the time before which no listing of a directory is believed."""
        return self.doubts.listings.since(directory, self._clock())

    def holds(self, since_s: float, ttl_s: float) -> bool:
        """Whether an answer of a time still holds."""
        return since_s >= self._names.believe_from_s and freshness.is_fresh(since_s, self._clock(), ttl_s)

    def is_ours(self, inode: int) -> bool:
        """Whether the entry of an inode is ours to say: it is changed here, or the root."""
        return inode == ROOT_INODE or inode in self._held

    def vouch(self, inode: int, seconds: float) -> None:
        """Ask for an inode no more for so long, whatever the time to live: the store has just given its content."""
        self._vouched[inode] = self._clock() + seconds
        self._vouched.move_to_end(inode)
        if len(self._vouched) > VOUCHED_KEPT:
            self._vouched.popitem(last=False)

    def is_vouched(self, inode: int) -> bool:
        """Whether the store has just given the content of an inode, for an open that is about to come."""
        return self._clock() <= self._vouched.get(inode, -math.inf)

    def expire(self, inode: int) -> None:
        """Make the next lookup of the inode's name ask the store."""
        try:
            parent, name, entry = self._places.locate(inode)
        except Stale:
            return
        entry.checked_s = 0.0
        with contextlib.suppress(OSError):  # the index is full: then it holds for its TTL
            self._names.put(parent, name, entry)
