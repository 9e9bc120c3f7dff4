"""Whose turn it is to fetch ahead: streams of one store share what may be under way, one request each in turn."""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from luxfuse.core.flow import Flow
from luxfuse.core.readahead import Sequence

K = TypeVar("K")


class Turn(NamedTuple, Generic[K]):
    """Fetch these bytes for a stream."""

    key: K
    bytes: range


class Streams(Generic[K]):
    """The streams that have something to be fetched, by a key each; bounded by the files that are open."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._sequences: dict[K, Sequence] = {}
        self._waiting: deque[K] = deque()

    def wants(self, key: K, sequence: Sequence) -> None:
        """A stream has moved on."""
        if key not in self._sequences:
            self._sequences[key] = sequence
            self._waiting.append(key)

    def drop(self, key: K) -> None:
        """A stream has ended."""
        if self._sequences.pop(key, None) is not None:
            self._waiting.remove(key)

    def next(self) -> Turn[K] | None:
        """Return what is to be fetched now, if there is room for it: ask again once it was begun."""
        while self._waiting and self.flow.has_room:
            key = self._waiting.popleft()
            wanted = self._sequences[key].take(self.flow.run_bytes)
            if wanted:
                self._waiting.append(key)
                return Turn(key, wanted)
            del self._sequences[key]  # until it moves on
        if self.flow.has_room:
            self.flow.wants_less()
        return None
