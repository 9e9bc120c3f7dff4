"""Writes that were given up, and that their threads may carry out yet: what they would undo waits for them.

A DELETE that was not answered in time would else remove what is written under its key afterwards, and a copy replace it,
or bring it back. Two writes that name the version that they replace need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from luxfuse.core.names import directories_of

LOOK_S = 0.05


class Write:
    """A write of some ``keys``.

    ``conditional``: the store itself makes it only over the version that it names. ``deep``: what is below a directory goes
    with it, and cannot be without it. ``target``: the key that it copies to.
    """

    __slots__ = ("_above", "conditional", "deep", "given_up", "keys", "running", "target")

    def __init__(self, keys: Collection[str], *, conditional: bool, deep: bool = False, target: str | None = None) -> None:
        self.keys = frozenset(keys)
        self.conditional = conditional
        self.deep = deep
        self.target = target
        self._above: frozenset[str] | None = None
        self.given_up = self.running = False

    @property
    def above(self) -> frozenset[str]:
        """The keys of the directories that it is in."""
        if self._above is None:
            self._above = frozenset(prefix for key in self.keys for prefix in directories_of(key))
        return self._above

    def meets(self, other: Write) -> bool:
        """Whether the other one would spoil this one, were it made later."""
        if self.conditional and other.conditional:
            return False
        if self.deep and not (self.above.isdisjoint(other.keys) and other.above.isdisjoint(self.keys)):
            return True
        return not self.keys.isdisjoint(other.keys)


class LateWrites:
    """Those of one store."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._running())

    def end(self, write: Write) -> None:
        """Nobody waits for a write any more."""
        write.given_up = True
        if write.running:
            self._writes.append(write)

    def any_at(self, *keys: str) -> bool:
        """Whether one of these keys, or one above or below it, is still being written."""
        return self.met_by(Write(keys, conditional=False, deep=True))

    def copies_to(self, key: str) -> bool:
        """Whether what is under a key may yet be replaced by a copy."""
        return any(late.target == key for late in self._running())

    def met_by(self, write: Write) -> bool:
        """Whether a write must not be made yet."""
        return any(write.meets(late) for late in self._running())

    async def outlive(self, write: Write) -> None:
        """Wait until a write can be made; cancelled, it must not be."""
        while self.met_by(write):  # noqa: ASYNC110 (it is threads that end)
            await trio.sleep(LOOK_S)

    def _running(self) -> list[Write]:
        if self._writes:
            self._writes = [write for write in self._writes if write.running]
        return self._writes
