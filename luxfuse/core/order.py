"""Which files of a directory will be opened next.

Two orders can be foreseen: that of the listing (by name) and that of numbered names (img9 before img10). In each there may
be several *streams*, as readers side by side are not at the same place. Of a stream, the few names that would come next are
remembered; an open that is among them is a hit. After `CONFIRMING_HITS` hits with no other open between them, or
`SURE_HITS` if most opens were hits and nearly all names that were passed over are open by others, the stream is
believed, and the caller may fetch ahead as many files as its `budget` says, which doubles with every hit; some opens that
belong to no stream end it. In random order hits are rare, so nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from itertools import takewhile

CONFIRMING_HITS = 3
SURE_HITS = 6
CANDIDATES = 8
"""Names ahead that count as a hit before a stream is believed: readers side by side take turns.
In random order over n names, three hits in a row happen once in (n/8)^3 opens."""
STREAMS = 8
LOOKED_BACK, MOSTLY = 16, 10
"""Of so many opens, so many have to be hits for readers side by side to be believed: in a small directory many are so by
chance."""

PASSED_OVER, PASSED_PART = 16, 0.75
"""Of so many names that a stream has passed over last, so large a part has to be open by others."""

FIRST_FILES = 4
MAX_FILES = 64
MISSES_ALLOWED = 2
MOST_MISSES = 8
"""Opens out of order that a believed stream survives: at first, and after as many hits more."""

_NUMBER = re.compile(rb"^(.*?)(\d+)(\D*)$", re.DOTALL)

Successors = Callable[[bytes, int], Sequence[bytes]]
"""(name, count) -> up to count names after it, in an order"""


def numbered_successors(name: bytes, count: int, exists: Callable[[bytes], bool]) -> list[bytes]:
    """Return the names that follow by number and exist: ``a9.x`` -> ``a10.x``; keeps zero padding (``a09`` -> ``a10``)."""
    match = _NUMBER.match(name)
    if match is None or len(match[2]) > 18:
        return []
    head, digits, tail = match.groups()
    found = []
    for number in range(int(digits) + 1, int(digits) + 1 + count):
        text = str(number).encode()
        candidate = head + (text.rjust(len(digits), b"0") if digits.startswith(b"0") else text) + tail
        if not exists(candidate):
            break
        found.append(candidate)
    return found


class _Stream:
    """Opens that follow each other in an order, which ``successors`` gives."""

    __slots__ = ("_passed_over", "believed", "budget", "expected", "hits", "in_a_row", "misses_left")

    def __init__(self, name: bytes, successors: Successors) -> None:
        self.expected = dict.fromkeys(successors(name, CANDIDATES))
        """The names that may come next: of a believed stream also those that were passed over."""
        self._passed_over: list[bytes] = []
        self.hits = self.in_a_row = self.budget = 0
        self.believed = False
        """Whether files may be fetched ahead."""
        self.misses_left = MISSES_ALLOWED

    def hit(
        self, name: bytes, successors: Successors, opened: Container[bytes], *, in_a_row: bool, mostly: bool
    ) -> list[bytes]:
        """Note an open of an expected name; return the names to fetch that were not returned before.

        ``opened``: names that were opened lately. ``in_a_row``: the last open was of this stream, too. ``mostly``: most
        were of some stream.
        """
        self.hits += 1
        self.in_a_row = self.in_a_row + 1 if in_a_row else 0
        if not (self.believed or self.in_a_row >= CONFIRMING_HITS or (self._is_shared(name, opened) and mostly)):
            self.expected = dict.fromkeys(successors(name, CANDIDATES))
            return []
        if not self.believed:
            self.believed = True
            self.expected.clear()
        else:
            self.misses_left = min(MOST_MISSES, self.misses_left + 1)
        self.budget = min(MAX_FILES, max(FIRST_FILES, 2 * self.budget))
        return self._extend(name, successors)

    def _is_shared(self, name: bytes, opened: Container[bytes]) -> bool:
        """Whether other readers open what this one passes over."""
        passed_over = self._passed_over + list(takewhile(lambda one: one != name, self.expected))
        self._passed_over = passed_over[-PASSED_OVER:]
        theirs = sum(one in opened for one in self._passed_over)
        return self.hits >= SURE_HITS and theirs >= PASSED_PART * len(self._passed_over)

    def _extend(self, name: bytes, successors: Successors) -> list[bytes]:
        names = list(self.expected)
        ahead = len(names) - names.index(name) - 1 if name in self.expected else 0
        self.expected.pop(name, None)
        if ahead >= self.budget // 2:
            return []
        new = list(successors(names[-1] if ahead else name, self.budget - ahead))
        self.expected.update(dict.fromkeys(new))
        for passed_over in list(self.expected)[: max(0, len(self.expected) - 2 * MAX_FILES)]:
            del self.expected[passed_over]
        return new


class _Order:
    """The streams in one order."""

    __slots__ = ("_history", "_last", "_streams", "believed")

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        """The one that was met last is at the end."""
        self._last: _Stream | None = None
        self._history = 0
        """The last opens: a bit each, set if it was a hit."""
        self.believed = False
        """Whether the last open belonged to a believed stream."""

    @property
    def remembered(self) -> int:
        """How many names are remembered."""
        return sum(len(stream.expected) for stream in self._streams)

    def step(self, name: bytes, successors: Successors, opened: Container[bytes]) -> list[bytes]:
        """Record an open; return the names to fetch that were not returned before. ``opened``: those opened lately."""
        self._history = self._history << 1 & (1 << LOOKED_BACK) - 1
        met = [stream for stream in self._streams if name in stream.expected]
        if not met:
            self._missed(name, successors)
            return []
        stream = max(met, key=lambda one: (one.believed, one.hits))
        # Those that have come to the same place are one from now on.
        self._streams = [one for one in self._streams if one not in met] + [stream]
        self._history |= 1
        mostly = self._history.bit_count() >= MOSTLY
        plan = stream.hit(name, successors, opened, in_a_row=self._last is stream, mostly=mostly)
        self._last, self.believed = stream, stream.believed
        return plan

    def _missed(self, name: bytes, successors: Successors) -> None:
        for stream in self._streams:
            stream.misses_left -= stream.believed
        self._last = _Stream(name, successors)
        self._streams = [one for one in self._streams if one.misses_left >= 0][-(STREAMS - 1) :]
        self._streams.append(self._last)
        self.believed = False


class Predictor:
    """The opens of one directory. Names are bytes, as in the listing."""

    __slots__ = ("_listing", "_numbered", "_opened", "_planned")

    def __init__(self) -> None:
        self._listing = _Order()
        self._numbered = _Order()
        self._planned: dict[bytes, None] = {}
        self._opened: dict[bytes, None] = {}
        """Names that were opened lately: a reader behind the others needs nothing fetched for it."""

    def opened(self, name: bytes, listing: Successors, numbered: Successors) -> list[bytes]:
        """Record that ``name`` is opened and return the names to fetch ahead, nearest first; often none."""
        plan: list[bytes] = []
        # Successors cost something, so a believed order is asked alone.
        orders = ((self._listing, listing), (self._numbered, numbered))
        for order, successors in sorted(orders, key=lambda o: not o[0].believed):
            plan += order.step(name, successors, self._opened)
            if order.believed:
                break
        self._planned.pop(name, None)
        if name in self._opened:
            self._opened.clear()  # they are read once more, and may not be there any longer
        self._opened[name] = None
        new = [n for n in dict.fromkeys(plan) if n not in self._planned and n not in self._opened]
        self._planned.update(dict.fromkeys(new))
        for remembered in (self._planned, self._opened):
            while len(remembered) > 4 * MAX_FILES:
                del remembered[next(iter(remembered))]
        return new
