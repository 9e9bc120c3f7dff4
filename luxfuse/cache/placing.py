"""Where objects may be put, and which may go: the questions of a cache directory about its objects."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from luxfuse.index.object_records import ObjectRecord
from luxfuse.types import TIERS, Tier


class Placing(NamedTuple):
    """Where an object may be put: nowhere unless ``keep``, and not above ``highest``."""

    keep: bool = True
    highest: Tier | None = None

    def admits(self, tier: Tier) -> bool:
        """Whether a tier is not too high for it."""
        return self.highest is None or TIERS.index(tier) >= TIERS.index(self.highest)


ANYWHERE = Placing()


class Rules(Protocol):
    """The wishes for objects, by their keys."""

    def placing(self, key: str) -> Placing:
        """Return where an object may be put."""

    def is_pinned(self, key: str) -> bool:
        """Whether an object is never to be evicted."""


class Copies(Protocol):
    """The copies that other nodes hold. Both must be quick."""

    def held_elsewhere(self, oid: bytes) -> bool:
        """Whether another node holds an object as well, so that it goes before its like."""

    def counted_on(self, oid: bytes) -> bool:
        """Whether an object is to go last, because no more nodes hold it than should."""


class OneNode:
    """`Copies` of a mount that is in no cluster."""

    def held_elsewhere(self, _oid: bytes) -> bool:
        """No other node holds anything."""
        return False

    def counted_on(self, _oid: bytes) -> bool:
        """Nobody counts on a copy here."""
        return False


class Holder(Protocol):
    """The objects of a mount, as the directories that have their files know them."""

    def record_of(self, oid: bytes) -> ObjectRecord | None:
        """Return the record of an object, in memory or in the index."""

    def note_touched(self) -> None:
        """Bring the order of last uses up to date, before something is chosen by it."""

    def expected(self) -> set[bytes]:
        """Return the objects that are about to be opened: `let_go` would refuse them."""

    def let_go(self, oid: bytes) -> bool:
        """Let go of an object unless it is in use; returns whether it is free now."""

    def removal_ended(self, oid: bytes, removed: bool) -> None:
        """Take note that a file was removed, or could not be."""
