"""Names that were changed here and that the store does not show so yet.

Answers of the store about such a name, to a listing or to a look-up, are ignored if they were asked for before the store
took the change over. The directories above it stay, too: the store has them again once it has the change.

The event loop holds and settles; the writer thread looks names up while it merges a listing. Each of its questions is a
single operation on a dictionary, and a name is never missing from both while it goes from one to the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from luxfuse.index.uncommitted import U64

REMEMBERED_S = 900.0
"""For how long a settled name is remembered: longer than an answer of the store can be on its way."""
REMEMBERED = 100_000
"""Settled names remembered at most. Beyond it the oldest go: an old answer can then show a removed name for one TTL."""
_ROOT = U64.pack(1)


class HeldNames:
    """NAMES keys that are held, and those that were settled lately, in the order of the times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: set[bytes] = set()
        self._settled: OrderedDict[bytes, float] = OrderedDict()
        self._within: dict[bytes, int] = {}
        """How many names are held in a directory, by inode."""

    def hold(self, key: bytes) -> None:
        """Ignore the store's words on a name from now on."""
        if key not in self._held:
            self._held.add(key)
            self._settled.pop(key, None)
            self._within[key[:8]] = self._within.get(key[:8], 0) + 1

    def settle(self, key: bytes, place: Callable[[bytes], bytes | None]) -> None:
        """The store has the change: believe answers to later questions. No effect if the name is not held.

        ``place``: returns the NAMES key of a directory by its inode.
        """
        if key not in self._held:
            return
        now_s = self._clock()
        above: bytes | None = key
        while above is not None:
            self._settled[above] = now_s
            self._settled.move_to_end(above)
            above = None if above[:8] == _ROOT else place(above[:8])
        self._held.remove(key)
        self._within[key[:8]] -= 1
        if not self._within[key[:8]]:
            del self._within[key[:8]]
        self._forget_old(now_s)

    def holds(self, key: bytes) -> bool:
        """Whether a name is held, and not settled."""
        return key in self._held

    def ignores(self, key: bytes, asked_s: float) -> bool:
        """Whether the answer to a question of ``asked_s`` says nothing new of the name."""
        if key in self._held:
            return True
        until = self._settled.get(key)
        return until is not None and asked_s <= until <= self._clock()  # else the clock was set back since

    def directories(self, place: Callable[[bytes], bytes | None]) -> set[bytes]:
        """Return the inodes of all directories that have held names somewhere below. ``place``: as for `settle`."""
        found: set[bytes] = set()
        for lowest in list(self._within):
            inode = lowest
            while inode not in found and inode != _ROOT:
                found.add(inode)
                key = place(inode)
                if key is None:
                    break
                inode = key[:8]
        return found

    def _forget_old(self, now_s: float) -> None:
        settled = self._settled
        while settled and (len(settled) > REMEMBERED or not 0 <= now_s - next(iter(settled.values())) <= REMEMBERED_S):
            settled.popitem(last=False)

    def __len__(self) -> int:
        return len(self._held) + len(self._settled)
