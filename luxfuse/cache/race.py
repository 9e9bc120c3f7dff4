"""The first try at pages that a peer may have: by the peer, by the under-store, or by both; the first answer counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.disk import Stored
from luxfuse.errors import StoreError
from luxfuse.types import Description, ObjectInfo

T = TypeVar("T")
Done = Callable[[T | None, StoreError | None], None]


class Fetched(NamedTuple):
    """The bytes that an attempt at a flight brought, and how storing them went."""

    data: memoryview
    stored: Stored
    by_peer: bool = False
    info: ObjectInfo | None = None
    """The description that came with them from the under-store, asked at ``asked_s``; None: that is not known."""
    asked_s: float = 0.0


Keep = Callable[[memoryview, tuple[int, ...], Description | None], Fetched]
"""Stores the pages of a peer, with the checksums, which were compared, and the description; in a worker thread."""


class PeerSource(Protocol):
    """Other nodes, which may have a page that is missing here."""

    @property
    def taking_part(self) -> bool:
        """Whether there are any to ask now: the volume takes part in the cluster."""

    def ask(self, obj: CachedObject, flight: Flight, keep: Keep, done: Done[Fetched], too_slow: Callable[[], None]) -> bool:
        """Ask another node for a flight's pages, if there is one to ask; else False, and nothing is called.

        ``done`` is called once, in the event loop. ``too_slow`` may be called before, once: ask elsewhere too.
        """


class Race(Generic[T]):
    """Runners that do the same; ``done`` hears of the first that succeeds, or of the last failure."""

    def __init__(self, done: Done[T]) -> None:
        self._done = done
        self._running = 0
        self.over = False

    def enter(self) -> Done[T]:
        """Let one more run; it calls what this returns, once, in the event loop."""
        self._running += 1
        return self._finish

    def _finish(self, result: T | None, error: StoreError | None) -> None:
        self._running -= 1
        if not self.over and (error is None or not self._running):
            self.over = True
            self._done(result, error)
