"""Doubts: another node has changed something, and earlier answers about it are not believed any more.

Only the times of the doubts are kept. An answer that was asked for later is not doubted; one that was on its way when a
notice came is.
"""

from __future__ import annotations

from collections import OrderedDict

REMEMBERED = 20_000
"""Doubts of each sort. When there are more, the oldest decides for all that were forgotten: nothing older is believed."""
AHEAD_S = 1.0
"""An answer of so long after now is believed to be of now (`core.freshness`)."""


class Times:
    """When something was last doubted, by inode number."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, float] = OrderedDict()
        self._forgotten_s = 0.0

    def note(self, inode: int, now_s: float) -> None:
        """Doubt answers from before ``now_s``."""
        self._times.pop(inode, None)
        self._times[inode] = now_s
        if len(self._times) > REMEMBERED:
            self._forgotten_s = max(self._forgotten_s, self._times.popitem(last=False)[1])

    def since(self, inode: int, now_s: float) -> float:
        """Return the time before which nothing is believed."""
        if not self._times:
            return 0.0
        since_s = self._times.get(inode, self._forgotten_s)
        if since_s <= now_s + AHEAD_S:
            return since_s
        self._set_back(now_s)
        return now_s + AHEAD_S

    def _set_back(self, now_s: float) -> None:
        """The clock was set back: answers from now on would be doubted until it is as late again."""
        for inode, noted_s in self._times.items():
            self._times[inode] = min(noted_s, now_s + AHEAD_S)
        self._forgotten_s = min(self._forgotten_s, now_s + AHEAD_S)

    @property
    def any(self) -> bool:
        """Whether there is any doubt."""
        return bool(self._times)


class Doubts:
    """Doubts about entries, about the listings of directories, and about all entries of a directory."""

    def __init__(self) -> None:
        self.entries = Times()
        self.listings = Times()
        self.below = Times()

    @property
    def any_entry(self) -> bool:
        """Whether any entry is doubted."""
        return self.entries.any or self.below.any
