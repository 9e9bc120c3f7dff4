"""Which subdirectory of each cache directory a volume has, and which of them is home: a fact for its successor.

Several daemons may use one source and one cache directory, each in a *slot* of its own (`CacheDirectory`). The kernel goes
by the numbers that the index of a mount gave, and the trail changes that index and that journal: so a successor takes just
the slots that its predecessor had, and goes on nowhere else. From the event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from luxfuse import lasting
from luxfuse.errors import MountError
from luxfuse.estate.facts import Facts

MOST_SLOTS = 100
SLOTS = b"v"
"""What the keys of these facts begin with; a volume's number follows."""


class SlotsFact(msgspec.Struct, array_like=True, frozen=True):
    """``home``: the home directory; ``slots``: by cache directory. ``anew``: how often the mount's index has begun anew.

    ``since``: where in the trail the volume began.
    """

    home: str
    slots: dict[str, str]
    since: int = 0
    anew: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SlotsFact).decode


class Slots:
    """The slots of one volume; without a successor (``facts`` None) none are kept."""

    def __init__(self, facts: Facts | None = None, volume: int = 0) -> None:
        self._facts = facts
        self._key = SLOTS + bytes((volume,))
        found = None if facts is None else facts.get(self._key)
        self._fact = None if found is None else _decode(found)
        self.since = self._fact.since if self._fact is not None else 0
        """Where in the trail the volume began."""

    @property
    def known(self) -> bool:
        """Whether a daemon of this mount has opened the volume before."""
        return self._fact is not None

    @property
    def home(self) -> str | None:
        """The cache directory that is home, if that is known."""
        return self._fact.home if self._fact is not None else None

    def of(self, cache_dir: str) -> str | None:
        """Return the slot in a cache directory, None if there was none."""
        return self._fact.slots.get(cache_dir) if self._fact is not None else None

    def begin_anew(self) -> int:
        """The index begins anew under a mount that is in use; returns how often it has done so, if the mount is known."""
        if self._fact is None:
            return 0
        self._put(msgspec.structs.replace(self._fact, anew=self._fact.anew + 1))
        return self._fact.anew

    def keep(self, home: str, slots: Mapping[str, str]) -> None:
        """The volume is open, and has these."""
        self._put(SlotsFact(home, dict(slots), self.since, self._fact.anew if self._fact is not None else 0))

    def add(self, cache_dir: str, slot: str) -> None:
        """It has one more."""
        if self._fact is not None:
            self._put(msgspec.structs.replace(self._fact, slots=self._fact.slots | {cache_dir: slot}))

    def remove(self, cache_dir: str) -> None:
        """It is about to give one back."""
        if self._fact is not None:
            left = {path: slot for path, slot in self._fact.slots.items() if path != cache_dir}
            self._put(msgspec.structs.replace(self._fact, slots=left))

    def drop(self) -> None:
        """It is about to give all back, and nobody goes on."""
        self._fact = None
        if self._facts is not None:
            self._facts.drop(self._key)

    def _put(self, fact: SlotsFact) -> None:
        if self._facts is not None:
            self._fact = fact
            self._facts.put(self._key, _encode(fact))


def slots_of(base: Path, source_id: str) -> list[str]:
    """Return the slots to try: those that were set aside, or left by a predecessor, come first."""
    home = str(base / source_id)  # the others are beside it; making a path for each takes a millisecond
    numbers = ("", *(f".{number}" for number in range(1, MOST_SLOTS)))
    return [source_id + number for number in sorted(numbers, key=lambda each: not lasting.is_left(f"{home}{each}/lock"))]


def taken(path: Path) -> MountError:
    """Return the error that says that a slot has gone to another daemon."""
    return MountError(
        f"cache directory {path}: another mount has taken it, so what programs have open here cannot be gone on with; "
        "unmount both, and mount again"
    )
