"""Writes that were given up, and that their threads may carry out yet: what they would undo waits for them.

A DELETE that was not answered in time would else remove what is written under its key afterwards, and a copy replace it,
or bring it back. Two writes that name the version that they replace need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

LOOK_S = 0.05


class Write:
    """A write of some ``keys``. ``conditional``: it is only made over the version that it names."""

    __slots__ = ("conditional", "given_up", "keys", "running")

    def __init__(self, keys: Collection[str], *, conditional: bool) -> None:
        self.keys = frozenset(keys)
        self.conditional = conditional
        self.given_up = self.running = False

    def meets(self, other: Write) -> bool:
        """Whether the other one would spoil this one, were it made later."""
        return not ((self.conditional and other.conditional) or self.keys.isdisjoint(other.keys))


class LateWrites:
    """Those of one store."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    def end(self, write: Write) -> None:
        """Nobody waits for a write any more."""
        write.given_up = True
        if write.running:
            self._writes.append(write)

    def any_at(self, *keys: str) -> bool:
        """Whether one of these keys, or one below those of directories, is still being written."""
        return any(
            key in write.keys or (key.endswith("/") and any(each.startswith(key) for each in write.keys))
            for write in self._running()
            for key in keys
        )

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
