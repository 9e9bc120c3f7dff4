"""Which objects of a lower tier move up.

An object that is used again and again deserves a faster place than one that rests there. It has proven so when its last
`USES` uses all came after the last use of what would have to give way. Two uses would not do: in an epoch of training in
random order everything is used once, so many an object is used twice, late in one epoch and early in the next, between
two uses of another; but hardly any is three times.
"""

from __future__ import annotations

from collections import OrderedDict

USES = 3
TRACKED = 32_768
"""Objects of lower tiers whose last uses are remembered: about 10 MB."""


class Uses:
    """The last uses of objects that are not in the highest tier, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._uses: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def add(self, oid: bytes, now_us: int) -> None:
        """Note a use, in microseconds of any clock."""
        self._uses[oid] = (*self._uses.pop(oid, ())[1 - USES :], now_us)
        if len(self._uses) > TRACKED:
            self._uses.popitem(last=False)

    def forget(self, oid: bytes) -> None:
        """The object has moved up, or is gone."""
        self._uses.pop(oid, None)

    def deserves_free_room(self, oid: bytes) -> bool:
        """Whether the object should move up where there is room: it was used more than once."""
        return len(self._uses.get(oid, ())) > 1

    def deserves_place_of(self, oid: bytes, others_last_use_us: int) -> bool:
        """Whether the object should move up although another one, last used then, has to give way."""
        uses = self._uses.get(oid, ())
        return len(uses) == USES and uses[0] > others_last_use_us
