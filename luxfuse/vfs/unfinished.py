"""Names that wait: calls about them, or about what is below, do so too, and fail if that takes long.

They are those of renames that the last run began and the store has not made yet. Here the rename is made already; the store
has what they stand for now under the old key, now under the new one. And those of files of which what was promised cannot
be taken up yet: what is known of them is older, and what is written anew would be lost by it, or it by that. So nothing can
be said or asked of them until it is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import trio

from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.index.journal import FileRecord
from luxfuse.index.names import ROOT_INODE, Names

HURRY_S = 1.0
"""What has failed is tried again for a program that asks for its names, but no more often."""
Place = tuple[int, bytes]
"""(parent inode, name)."""


class Unfinished(StoreUnavailable):
    """A name waits; ``errno`` is that of the reason."""

    retryable = False


class Wait:
    """For one rename, or else one ``promise``: what it failed with, and when there is news of it."""

    def __init__(self, places: list[Place], promise: FileRecord | None) -> None:
        self.places = places
        self.promise = promise
        self.error: LuxError | OSError | None = None
        self.failed_s = -math.inf
        self.changed = trio.Event()


class UnfinishedNames:
    """The names of one mount that wait. False if there are none."""

    def __init__(self, names: Names, patience_s: float) -> None:
        """``patience_s``: for how long a call waits for what has not failed."""
        self._names = names
        self._patience_s = patience_s
        self.on_wanted: list[Callable[[], None]] = []
        """Have what failed tried again now, as a program asks for its name."""
        self._begun: dict[Wait, None] = {}
        self._waits: dict[Place, list[Wait]] = {}

    def __bool__(self) -> bool:
        return bool(self._waits)

    @property
    def renames(self) -> list[Wait]:
        """Those for renames."""
        return [wait for wait in self._begun if wait.promise is None]

    @property
    def promises(self) -> dict[Wait, FileRecord]:
        """Those for what was promised, which cannot be taken up yet."""
        return {wait: wait.promise for wait in self._begun if wait.promise is not None}

    def has_promise(self, parent: int, name: bytes) -> bool:
        """Whether what was promised of a name cannot be taken up yet."""
        return any(wait.promise is not None for wait in self._waits.get((parent, name), ()))

    def begin(self, places: Iterable[Place], promise: FileRecord | None = None) -> Wait:
        """A rename of these names has to be finished, or what was promised of one has to be taken up."""
        wait = Wait(list(places), promise)
        self._begun[wait] = None
        for place in wait.places:
            self._waits.setdefault(place, []).append(wait)
        return wait

    def failed(self, wait: Wait, error: LuxError | OSError) -> None:
        """It could not be finished now: calls fail at once with this, until it is."""
        wait.error, changed, wait.changed = error, wait.changed, trio.Event()
        wait.failed_s = trio.current_time()
        changed.set()

    def end(self, wait: Wait) -> None:
        """It is finished."""
        del self._begun[wait]
        for place in wait.places:
            self._waits[place].remove(wait)
            if not self._waits[place]:
                del self._waits[place]
        wait.changed.set()

    def covers(self, parent: int, name: bytes) -> bool:
        """Whether a name waits, or a directory that it is in."""
        return bool(self._waits) and self._of(parent, name) is not None

    async def over(self, parent: int, name: bytes) -> None:
        """Wait until a name can be spoken of. Raises `Unfinished` where that takes too long."""
        give_up_at = trio.current_time() + self._patience_s
        while (wait := self._of(parent, name)) is not None:
            if wait.error is None or self._is_tried_again(wait):
                with trio.move_on_at(give_up_at):
                    await wait.changed.wait()
                    continue
            cause = wait.error or StoreUnavailable("the under-store has not made it yet")
            what = "a rename that was interrupted" if wait.promise is None else "what was promised of it to be taken up"
            error = Unfinished(f"{name!r} waits for {what}: {cause}")
            error.errno = cause.errno or error.errno
            raise error

    def _is_tried_again(self, wait: Wait) -> bool:
        """Have tried again what failed a while ago: its next try by itself may be a minute away."""
        if trio.current_time() < wait.failed_s + HURRY_S:
            return False
        for try_now in self.on_wanted:
            try_now()
        return True

    def _of(self, parent: int, name: bytes) -> Wait | None:
        while True:
            if (waits := self._waits.get((parent, name))) is not None:
                return waits[0]
            if parent == ROOT_INODE:
                return None
            place = self._names.locate(parent)
            if place is None:
                return None
            parent, name = place


def error_of(waits: Iterable[Wait]) -> str | None:
    """Return why one of them is not over yet, if that is known."""
    return next((str(wait.error) for wait in waits if wait.error is not None), None)
