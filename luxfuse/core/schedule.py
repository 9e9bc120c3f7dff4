"""The files that a program is about to open, in the order that it has told: which to bring next, which to keep.

Each name has a *place*: 0, 1, 2, ... It is *taken* when there is room in the window, and then *ahead* until it is opened or
the reader has passed its place. What was passed and not opened is *behind*: readers side by side open their files in about
the order that was told, not in just that. What is ahead and what is behind have about as many bytes each as the window.

Either the program tells its *position*, how many names it has handed to its readers: then opens of what is far ahead of
that are those of other programs, and what it has handed out is opened soon, so it is brought all the same. (A job hands out
hundreds of names at once as it begins.) Nothing more is taken while what is behind fills its part, or files would go before
their readers got to them. But if it fills up with files that readers skip, they soon open none but such as were not
brought: then the older half is given up.

Or it does not: then the reader has passed what is before all of the last few files that were opened, and of what is behind
the oldest is given up first. One open says little, as other programs may read the same files in an order of their own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from itertools import islice

MOST_NAMES = 8192
"""Names that are told and not taken yet."""
MOST_AHEAD = 4096
"""Files ahead at most, and behind; and so many places behind the reader a file is opened yet."""
REFILL = 0.125
"""So large a part of the window has to be free before more is taken: small files are fetched many at a time."""
FIRST_BYTES = 128 << 10
"""What a file is taken to have before any is known."""
SOON = 128
"""So many names may have been handed out since the position was told."""
UNFORESEEN, MISSED = 1024, 16
"""So many opens of files that were not kept are remembered; after so many in a row, while what is behind is full, room is
made there."""
LATELY, LATELY_LEAST, LATELY_PART = 64, 4, 8
"""The last few: one in so many of those ahead, within limits."""


class Schedule:
    """One schedule. Sizes are in bytes; ``key`` identifies the content of a file, and may come more than once."""

    def __init__(self, window_bytes: int, window_files: int = MOST_AHEAD) -> None:
        self.window_bytes, self.window_files = window_bytes, window_files
        """How much may be ahead, and as many bytes behind. So few files only where the program tells its position: else
        those that its readers skip would fill all places for good. May be changed; what is ahead already stays."""
        self._names: deque[str] = deque()
        self.told = self.position = 0
        """Names so far, and the first place that the reader has not passed."""
        self._handed = False
        """Whether the program tells its position."""
        self._taken = 0
        self._known = self._known_bytes = 0
        self._ahead: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        """Key and size by place; of what was skipped no key."""
        self._kept_ahead = 0
        """How many of these have a key."""
        self._behind: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._places: dict[bytes, deque[int]] = {}
        """Of each key that is ahead or behind, the places, lowest first."""
        self._lately: deque[int] = deque(maxlen=LATELY)
        """The places that were opened last."""
        self._unforeseen: OrderedDict[bytes, None] = OrderedDict()
        """Keys that were opened lately and not kept then: their names may not have been taken yet."""
        self._missed = 0
        """Of these, since a file that was kept was opened, or something taken."""
        self.ahead_bytes = self._behind_bytes = 0

    @property
    def room(self) -> int:
        """How many more names it takes now."""
        return MOST_NAMES - len(self._names)

    def is_full_for(self, place: int) -> bool:
        """Whether a name that was taken has to wait: names are taken before their sizes are known."""
        if place >= self.position:
            full = self.ahead_bytes >= self.window_bytes or self._kept_ahead >= self._most_ahead
            return full and bool(self._ahead)
        return self._is_awaited(place) and self._is_full_behind

    @property
    def _is_full_behind(self) -> bool:
        return self._behind_bytes >= self.window_bytes or len(self._behind) >= MOST_AHEAD

    @property
    def _most_ahead(self) -> int:
        return self.window_files if self._handed else MOST_AHEAD

    def _is_awaited(self, place: int) -> bool:
        """Whether a place that the reader has passed was handed out, so lately that it may be opened yet."""
        return self._handed and place >= self.position - MOST_AHEAD

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
        if self._handed and self._is_full_behind:
            return []
        if self._taken < self.position:
            self._pop(self.position - MOST_AHEAD - self._taken)  # they have been opened by now
            fitting = min(MOST_AHEAD - len(self._behind), (self.window_bytes - self._behind_bytes) // self._mean_bytes)
            return self._pop(min(most, self.position - self._taken, max(1, fitting)))
        free_bytes = self.window_bytes - self.ahead_bytes
        most_ahead = self._most_ahead
        free, places = most_ahead - self._kept_ahead, MOST_AHEAD - len(self._ahead)
        full = free_bytes < REFILL * self.window_bytes or free < REFILL * most_ahead or places < REFILL * MOST_AHEAD
        if self._ahead and full:
            return []
        return self._pop(min(most, free, places, max(1, free_bytes // self._mean_bytes)))

    @property
    def _mean_bytes(self) -> int:
        return max(1, self._known_bytes // self._known if self._known else FIRST_BYTES)

    def _pop(self, count: int) -> list[tuple[int, str]]:
        taken = [(self._taken + number, self._names.popleft()) for number in range(min(count, len(self._names)))]
        self._taken += len(taken)
        self._missed = 0
        return taken

    def bring(self, place: int, key: bytes, size_bytes: int) -> bool:
        """Keep a file that was taken, of which ``size_bytes`` are brought; False if the reader has left it behind.

        Files are brought, or skipped, in the order of their places.
        """
        self._known += 1
        self._known_bytes += size_bytes
        if place >= self.position:
            self._ahead[place] = key, size_bytes
            self._kept_ahead += 1
            self.ahead_bytes += size_bytes
        elif self._is_awaited(place) and key not in self._unforeseen:
            self._behind[place] = key, size_bytes
            self._behind_bytes += size_bytes
        else:
            return False
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
        if not places:
            return self._miss(key)
        if self._handed and places[0] >= self.position + SOON:
            return False
        self._missed = 0
        place = places.popleft()
        is_ahead = place in self._ahead
        self._forget(place, key)
        if self._handed:
            return True
        if is_ahead:
            self._lately.append(place)
        few = min(LATELY, max(LATELY_LEAST, len(self._ahead) // LATELY_PART))
        if len(self._lately) >= few:
            self._pass(min(islice(reversed(self._lately), few)))
        return True

    def _miss(self, key: bytes) -> bool:
        """Note that a file was opened that is not kept; returns whether that made room."""
        self._unforeseen[key] = None
        if len(self._unforeseen) > UNFORESEEN:
            self._unforeseen.popitem(last=False)
        if not (self._handed and self._is_full_behind):
            return False
        self._missed += 1
        if self._missed < MISSED:
            return False
        while self._behind_bytes > self.window_bytes // 2 or len(self._behind) > MOST_AHEAD // 2:
            self.drop(next(iter(self._behind)))
        most = self.window_bytes // 2 // self._mean_bytes
        self._pop(self.position - self._taken - most)  # the oldest are behind the readers
        return True

    def _forget(self, place: int, key: bytes) -> None:
        if place in self._ahead:
            self.ahead_bytes -= self._ahead.pop(place)[1]
            self._kept_ahead -= 1
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
        if not self._handed:
            self._pop(self.position - self._taken)
        while self._ahead and (place := next(iter(self._ahead))) < self.position:
            passed = self._ahead.pop(place)
            if passed[0]:
                self._behind[place] = passed
                self._kept_ahead -= 1
                self.ahead_bytes -= passed[1]
                self._behind_bytes += passed[1]
        self._give_up()

    def _give_up(self) -> None:
        """Give up what is behind for too long."""
        while self._behind:
            oldest = next(iter(self._behind))
            over = self._behind_bytes > self.window_bytes or len(self._behind) > MOST_AHEAD
            if self._is_awaited(oldest) or not (self._handed or over):
                return
            self.drop(oldest)

    def end(self) -> None:
        """Nothing more is told or brought: what was handed out, and not opened yet, is kept."""
        self._names.clear()
        for place in list(self._ahead):
            self.drop(place)
        self._ahead.clear()

    @property
    def kept(self) -> Collection[bytes]:
        """What must not be evicted."""
        return self._places.keys()

    def keeps(self, key: bytes) -> bool:
        """Whether a file must not be evicted: it was brought, and not opened since."""
        return key in self._places
