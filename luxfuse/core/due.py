"""Items that are due at some time: the earliest first, each item once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Due(Generic[T]):
    """Items with the time at which each is due, in seconds; items of the same time in the order in which they came."""

    def __init__(self) -> None:
        self._due: dict[T, float] = {}
        self._queue: list[tuple[float, int, T]] = []
        """Heap; an item counts if `_due` says the same."""
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, item: object) -> bool:
        return item in self._due

    def items(self) -> list[tuple[T, float]]:
        """Return all items, with their times."""
        return list(self._due.items())

    def at_s(self, item: T) -> float:
        """Return when an item is due. Raises KeyError."""
        return self._due[item]

    def put(self, item: T, due_s: float) -> None:
        """Let an item be due then, and not when it was before."""
        self._due[item] = due_s
        heapq.heappush(self._queue, (due_s, next(self._serial), item))

    def drop(self, item: T) -> None:
        """An item is not due any more."""
        self._due.pop(item, None)

    def pop(self, until_s: float) -> T | None:
        """Take the item out that is due first, if it is by then."""
        while self._queue:
            due_s, _, item = self._queue[0]
            counts = self._due.get(item) == due_s
            if counts and due_s > until_s:
                return None
            heapq.heappop(self._queue)
            if counts:
                del self._due[item]
                return item
        return None
