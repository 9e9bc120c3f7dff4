"""The files that a program is about to open, in the order that it has told: which to bring next, which to keep.

Each name has a *place*: 0, 1, 2, ... It is *taken* when there is room in the window, and then *ahead* until it is opened or
the reader has passed its place. What was passed and not opened is *behind*: readers side by side open their files in about
the order that was told, not in just that. What is ahead and what is behind have as many bytes each as the window, at most;
of what is behind, the oldest is given up first.

Either the program tells its *position*, how many names it has handed to its readers: then opens of what is far ahead of
that are those of other programs. Or it does not: then the reader has passed what is before all of the last few files that
were opened. One open says little, as other programs may read the same files in an order of their own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from itertools import islice

MOST_NAMES = 8192
"""Names that are told and not taken yet."""
MOST_AHEAD = 4096
"""Files ahead at most, and behind. The kernel takes 16,384 backings of a mount."""
REFILL = 0.125
"""So large a part of the window has to be free before more is taken: small files are fetched many at a time."""
FIRST_BYTES = 128 << 10
"""What a file is taken to have before any is known."""
SOON = 128
"""So many names may have been handed out since the position was told."""
LATELY, LATELY_LEAST, LATELY_PART = 64, 4, 8
"""The last few: one in so many of those ahead, within limits."""


class Schedule:
    """One schedule. Sizes are in bytes; ``key`` identifies the content of a file, and may come more than once."""

    def __init__(self, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        """May be changed; what is ahead already stays."""
        self._names: deque[str] = deque()
        self.told = self.position = 0
        """Names so far, and the first place that the reader has not passed."""
        self._handed = False
        """Whether the program tells its position."""
        self._taken = 0
        self._known = self._known_bytes = 0
        self._ahead: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._behind: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._places: dict[bytes, deque[int]] = {}
        """Of each key that is ahead or behind, the places, lowest first."""
        self._lately: deque[int] = deque(maxlen=LATELY)
        """The places that were opened last."""
        self.ahead_bytes = self._behind_bytes = 0

    @property
    def room(self) -> int:
        """How many more names it takes now."""
        return MOST_NAMES - len(self._names)

    @property
    def is_full(self) -> bool:
        """Whether the window takes no more: names were taken for more than that, before their sizes were known."""
        return self.ahead_bytes >= self.window_bytes and bool(self._ahead)

    @property
    def ahead_files(self) -> int:
        """Files ahead of the reader."""
        return len(self._ahead)

    def tell(self, names: Sequence[str]) -> None:
        """Add the names that come next. Raises ValueError if those are more than there is `room` for."""
        if len(names) > self.room:
            raise ValueError(f"{len(names)} names are more than the {self.room} that there is room for")
        self._names.extend(names)
        self.told += len(names)

    def take(self, most: int) -> list[tuple[int, str]]:
        """Return names that are to be brought now, ``most`` at most, with their places; none while the window is full."""
        free_bytes = self.window_bytes - self.ahead_bytes
        free = MOST_AHEAD - len(self._ahead)
        if self._ahead and (free_bytes < REFILL * self.window_bytes or free < REFILL * MOST_AHEAD):
            return []
        mean_bytes = self._known_bytes // self._known if self._known else FIRST_BYTES
        count = min(most, free, len(self._names), max(1, free_bytes // max(1, mean_bytes)))
        taken = [(self._taken + number, self._names.popleft()) for number in range(count)]
        self._taken += count
        return taken

    def bring(self, place: int, key: bytes, size_bytes: int) -> bool:
        """Keep a file that was taken, of which ``size_bytes`` are brought; False if the reader has passed its place.

        Files are brought, or skipped, in the order of their places.
        """
        self._known += 1
        self._known_bytes += size_bytes
        if place < self.position:
            return False
        self._ahead[place] = key, size_bytes
        self.ahead_bytes += size_bytes
        self._places.setdefault(key, deque()).append(place)
        return True

    def skip(self, place: int) -> None:
        """Nothing is brought for a name that was taken; it counts as a file ahead, so that the reader sets the pace."""
        if place >= self.position:
            self._ahead[place] = b"", 0

    def drop(self, place: int) -> None:
        """Keep a file no longer: it could not be brought."""
        found = self._ahead.get(place) or self._behind.get(place)
        if found is not None and found[0]:
            self._places[found[0]].remove(place)
            self._forget(place, found[0])

    def opened(self, key: bytes) -> bool:
        """Note that a file was opened, now or lately; returns whether it was kept for that."""
        places = self._places.get(key)
        if not places or (self._handed and places[0] >= self.position + SOON):
            return False
        place = places.popleft()
        if place in self._ahead and not self._handed:
            self._lately.append(place)
        self._forget(place, key)
        few = min(LATELY, max(LATELY_LEAST, len(self._ahead) // LATELY_PART))
        if len(self._lately) >= few:
            self._pass(min(islice(reversed(self._lately), few)))
        return True

    def _forget(self, place: int, key: bytes) -> None:
        if place in self._ahead:
            self.ahead_bytes -= self._ahead.pop(place)[1]
        else:
            self._behind_bytes -= self._behind.pop(place)[1]
        if not self._places[key]:
            del self._places[key]

    def reach(self, position: int) -> None:
        """The program has handed out what is before ``position``, and maybe `SOON` names more."""
        self._handed = True
        self._pass(position)

    def _pass(self, position: int) -> None:
        self.position = max(self.position, min(position, self.told))
        while self._names and self._taken < self.position:
            self._names.popleft()
            self._taken += 1
        while self._ahead and (place := next(iter(self._ahead))) < self.position:
            passed = self._ahead.pop(place)
            if passed[0]:
                self._behind[place] = passed
                self.ahead_bytes -= passed[1]
                self._behind_bytes += passed[1]
        while self._behind_bytes > self.window_bytes or len(self._behind) > MOST_AHEAD:
            self.drop(next(iter(self._behind)))

    @property
    def kept(self) -> Collection[bytes]:
        """What must not be evicted."""
        return self._places.keys()

    def keeps(self, key: bytes) -> bool:
        """Whether a file must not be evicted: it was brought, and not opened since."""
        return key in self._places
