"""Keys that are being moved: nothing at or below them is pushed or removed meanwhile. So with those whose names wait."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

from luxfuse.core.names import directories_of
from luxfuse.errors import StoreUnavailable
from luxfuse.understore.retrying import Store
from luxfuse.vfs.pace import Pace

Keys = TypeVar("Keys", bound=tuple[str, ...])


class Freeze:
    """One move, or one file whose name waits: changes of its keys wait."""

    def __init__(self) -> None:
        self.stuck = ""
        """What the end depends on that may take long, such as the store's answer: then the wait has a deadline."""
        self.changed = trio.Event()

    def stick(self, why: str) -> None:
        """Give changes that wait a deadline from now on; ``why``: what their key is part of."""
        self.stuck, changed, self.changed = why, self.changed, trio.Event()
        changed.set()


class FrozenKeys:
    """The keys of one mount that are being moved, or whose names wait."""

    def __init__(self, store: Store, pace: Pace) -> None:
        """``pace`` is told when something thaws."""
        self._store = store
        self._pace = pace
        self._freezes: dict[str, list[Freeze]] = {}
        self._gates: dict[str, trio.Event] = {}

    @contextlib.contextmanager
    def freeze(self, *keys: str) -> Iterator[Freeze]:
        """Let nothing be pushed or removed at these keys of files, and below these prefixes, for the block."""
        frozen = Freeze()
        for key in keys:
            self._freezes.setdefault(key, []).append(frozen)
        try:
            yield frozen
        finally:
            for key in keys:
                self._freezes[key].remove(frozen)
                if not self._freezes[key]:
                    del self._freezes[key]
            frozen.changed.set()
            self._pace.wake()

    @contextlib.contextmanager
    def let_none_begin(self, *keys: str) -> Iterator[None]:
        """Let no push and no change of a name begin at or below these prefixes for the block; those under way go on.

        The move of a directory waits for these: for ever, where new ones begin all the while.
        """
        ended = trio.Event()
        self._gates.update(dict.fromkeys(keys, ended))
        try:
            yield
        finally:
            self._gates = {key: each for key, each in self._gates.items() if each is not ended}
            ended.set()

    async def may_begin(self, key: str) -> None:
        """Wait until a push of a key, or a change of its name, may begin."""
        while (ended := next((each for moved, each in self._gates.items() if meet(key, moved)), None)) is not None:
            await ended.wait()

    async def thawed(self, key: str, *, alone: bool = False) -> None:
        """Wait until nothing that a key lies in, or that lies below it, is being moved.

        ``alone``: only the one object is changed, the marker of a directory, say: what is stuck below is not waited for.
        Raises `StoreUnavailable` if that waits for the store.
        """
        while (frozen := self._of(key, alone=alone)) is not None:
            with trio.move_on_after(self._store.timeout_s if frozen.stuck else math.inf) as scope:
                await frozen.changed.wait()
            if scope.cancelled_caught:
                raise StoreUnavailable(f"{key!r} is part of {frozen.stuck}")

    async def settled(
        self, keys: Callable[[], Keys], ready: Callable[..., Awaitable[None]] | None = None, *, first: bool = False
    ) -> Keys:
        """Return the keys of names once nothing about them is being moved; that holds until the next wait.

        ``keys`` says them, and others when a directory above has moved; ``ready`` takes them, and waits for what else must
        not be on its way. ``first``: it does not wait for what `let_none_begin` lets wait. Raises what both raise, and as
        `thawed`.
        """
        while True:
            found = keys()
            for key in found:
                if not first:
                    await self.may_begin(key)
                await self.thawed(key)
            if ready is not None:
                await ready(*found)
            if keys() == found and not any(map(self.covers, found)):
                return found

    def covers(self, key: str) -> bool:
        """Whether something that a key lies in, or that lies below it, is being moved."""
        return self._of(key) is not None

    def _of(self, key: str, *, alone: bool = False) -> Freeze | None:
        if not self._freezes:
            return None
        for above in (key, *directories_of(key)):
            if above in self._freezes:
                return self._freezes[above][0]
        if not key.endswith("/"):
            return None
        below = (frozen for moved, each in self._freezes.items() if moved.startswith(key) for frozen in each)
        return next((frozen for frozen in below if not (alone and frozen.stuck)), None)


def meet(key: str, other: str) -> bool:
    """Whether one of two keys, of files or prefixes of directories, is the other one, or lies below it."""
    if key == other:
        return True
    return (other.endswith("/") and key.startswith(other)) or (key.endswith("/") and other.startswith(key))
