"""Names of renames that the last run began and the store has not made yet: calls about them, or about what is below, wait.

Here the rename is made already; the store has what they stand for now under the old key, now under the new one. So nothing
can be said or asked of them until it is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import trio

from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.index.names import ROOT_INODE, Names

HURRY_S = 1.0
"""A rename that has failed is tried again for a program that asks for its names, but no more often."""
Place = tuple[int, bytes]
"""(parent inode, name)."""


class Unfinished(StoreUnavailable):
    """A name waits for a rename that is not finished; ``errno`` is that of the reason."""

    retryable = False


class Wait:
    """For one rename: what it failed with, and when there is news of it."""

    def __init__(self) -> None:
        self.error: LuxError | OSError | None = None
        self.failed_s = -math.inf
        self.changed = trio.Event()


class UnfinishedNames:
    """The names of one mount that wait. False if there are none."""

    def __init__(self, names: Names, patience_s: float) -> None:
        """``patience_s``: for how long a call waits for a rename that has not failed."""
        self._names = names
        self._patience_s = patience_s
        self.on_wanted: Callable[[], None] = lambda: None
        """Has what failed tried again now, as a program asks for its name."""
        self._waits: dict[Place, Wait] = {}

    def __bool__(self) -> bool:
        return bool(self._waits)

    @property
    def count(self) -> int:
        """Number of renames."""
        return len(set(self._waits.values()))

    @property
    def failing(self) -> int:
        """Number of those that the store let nobody finish when it was tried last."""
        return sum(wait.error is not None for wait in set(self._waits.values()))

    @property
    def error(self) -> str | None:
        """Why one of them is not finished yet, if that is known."""
        return next((str(wait.error) for wait in self._waits.values() if wait.error is not None), None)

    def begin(self, places: Iterable[Place]) -> Wait:
        """A rename of these names has to be finished."""
        wait = Wait()
        self._waits.update(dict.fromkeys(places, wait))
        return wait

    def failed(self, wait: Wait, error: LuxError | OSError) -> None:
        """It could not be finished now: calls fail at once with this, until it is."""
        wait.error, changed, wait.changed = error, wait.changed, trio.Event()
        wait.failed_s = trio.current_time()
        changed.set()

    def end(self, wait: Wait) -> None:
        """It is finished."""
        self._waits = {place: each for place, each in self._waits.items() if each is not wait}
        wait.changed.set()

    def covers(self, parent: int, name: bytes) -> bool:
        """Whether a name waits, or a directory that it is in."""
        return bool(self._waits) and self._of(parent, name) is not None

    async def over(self, parent: int, name: bytes) -> None:
        """Wait until a name can be spoken of. Raises `Unfinished` where that waits for the store for too long."""
        give_up_at = trio.current_time() + self._patience_s
        while (wait := self._of(parent, name)) is not None:
            if wait.error is None or self._is_tried_again(wait):
                with trio.move_on_at(give_up_at):
                    await wait.changed.wait()
                    continue
            cause = wait.error or StoreUnavailable("the under-store has not made it yet")
            error = Unfinished(f"{name!r} waits for a rename that was interrupted: {cause}")
            error.errno = cause.errno or error.errno
            raise error

    def _is_tried_again(self, wait: Wait) -> bool:
        """Have a rename tried again that failed a while ago: its next try by itself may be a minute away."""
        if trio.current_time() < wait.failed_s + HURRY_S:
            return False
        self.on_wanted()
        return True

    def _of(self, parent: int, name: bytes) -> Wait | None:
        while True:
            if (wait := self._waits.get((parent, name))) is not None or parent == ROOT_INODE:
                return wait
            place = self._names.locate(parent)
            if place is None:
                return None
            parent, name = place
