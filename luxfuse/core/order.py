"""Which files of a directory will be opened next.

Two orders can be foreseen: that of the listing (by name) and that of numbered names (img9 before img10). For each,
the few names that would come next are remembered; an open that is among them is a hit. After `CONFIRMING_HITS` hits
in a row the order is believed, and the caller may fetch ahead as many files as `budget` says; it doubles with every
hit and falls back to nothing after two misses. In random order hits in a row are rare, so nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

CONFIRMING_HITS = 3
CANDIDATES = 8
"""Names ahead that count as a hit before the order is believed: several readers side by side open in about this order.
In random order over n names, three hits in a row happen once in (n/8)^3 opens."""

FIRST_FILES = 4
MAX_FILES = 64
MISSES_ALLOWED = 2
"""Opens out of order that a believed order survives: a stray reader, or two side by side."""

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


class _Order:
    """One hypothesis: the names come in the order that ``successors`` gives."""

    __slots__ = ("budget", "expected", "hits", "misses")

    def __init__(self) -> None:
        self.expected: dict[bytes, None] = {}
        self.hits = 0
        self.misses = 0
        self.budget = 0

    @property
    def believed(self) -> bool:
        """Whether files may be fetched ahead."""
        return self.hits >= CONFIRMING_HITS

    def step(self, name: bytes, successors: Successors) -> list[bytes]:
        """Record an open; return the names to fetch that were not returned before."""
        if name not in self.expected:
            self.misses += 1
            if self.hits < CONFIRMING_HITS or self.misses > MISSES_ALLOWED:
                self.hits = self.misses = self.budget = 0
                self.expected = dict.fromkeys(successors(name, CANDIDATES))
            return []
        self.hits += 1
        self.misses = 0
        if self.hits < CONFIRMING_HITS:
            self.expected = dict.fromkeys(successors(name, CANDIDATES))
            return []
        first = self.budget == 0
        self.budget = min(MAX_FILES, max(FIRST_FILES, 2 * self.budget))
        if first:
            self.expected.clear()
        return self._extend(name, successors)

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


class Predictor:
    """The opens of one directory. Names are bytes, as in the listing."""

    __slots__ = ("_listing", "_numbered", "_planned")

    def __init__(self) -> None:
        self._listing = _Order()
        self._numbered = _Order()
        self._planned: dict[bytes, None] = {}

    def opened(self, name: bytes, listing: Successors, numbered: Successors) -> list[bytes]:
        """Record that ``name`` is opened and return the names to fetch ahead, nearest first; often none."""
        plan: list[bytes] = []
        # Successors cost something, so a believed order is asked alone.
        orders = ((self._listing, listing), (self._numbered, numbered))
        for order, successors in sorted(orders, key=lambda o: not o[0].believed):
            plan += order.step(name, successors)
            if order.believed:
                break
        self._planned.pop(name, None)
        new = [n for n in dict.fromkeys(plan) if n not in self._planned]
        self._planned.update(dict.fromkeys(new))
        while len(self._planned) > 4 * MAX_FILES:
            del self._planned[next(iter(self._planned))]
        return new
