"""Tells a daemon the names that come next, a few hundred at a time, as far as it has room for them.

The daemon keeps some thousand names, and so do we, between what was told and what was handed out: an epoch of any length
takes no more memory. There is no thread, so that a process may fork: whatever is to be told is told when the next sample is
asked for, every `EVERY` files, in about a millisecond. A daemon that does not answer, or is started again, is asked anew
after `SOON_S`, then less and less often; the job goes on meanwhile.
"""

from __future__ import annotations

import logging
import operator
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from luxfuse.control.client import ControlClient, Steps
from luxfuse.core.units import shown
from luxfuse.errors import LuxError
from luxfuse.training.places import Places

log = logging.getLogger("luxfuse.training")

EVERY = 64
"""Files that are handed out, or some more, between two words to the daemon."""
AT_ONCE = 512
"""Names told at once."""
SOON_S, AGAIN_S = 0.5, 30.0
"""After so long the daemon is asked anew; each time in vain, after twice as long."""
DEADLINE_S = 2.0
"""For each answer: so long a job may stand still for a daemon that hangs."""

Path = str | os.PathLike[str]
S = TypeVar("S")
_MOST_BYTES = (1 << 63) - 1


def window_of(window_bytes: Any) -> int | None:
    """Return ``window_bytes``, if it can be one; None means the usual one. Raises ValueError."""
    if window_bytes is None:
        return None
    try:
        found = operator.index(window_bytes)
    except TypeError:
        found = 0
    if isinstance(window_bytes, bool) or not 0 < found <= _MOST_BYTES:
        raise ValueError(f"window_bytes: {shown(window_bytes)} is no whole number of bytes above 0")
    return found


class Teller(Generic[S]):
    """The samples of one epoch, in order, and what the daemon was told of them."""

    def __init__(
        self,
        samples: Iterator[S],
        paths_of: Callable[[S], Sequence[Path]],
        window_bytes: int | None,
        *,
        handed: bool = True,
    ) -> None:
        """``paths_of``: the files that a sample is read from. ``handed``: the reader gets its samples by `take`.

        Raises ValueError.
        """
        self._samples = samples
        self._paths_of = paths_of
        self._window_bytes = window_of(window_bytes)
        self._handed = handed
        self._ours = os.getpid()
        self._places = Places()
        self._pending: deque[tuple[S, Sequence[Path]]] = deque()
        """Samples that were not handed out yet; of these, the first so many were told."""
        self._told = 0
        self._exhausted = False
        self._daemon: ControlClient | None = None
        self._steps: Steps | None = None
        self._number = self._room = self._position = 0
        self._since = EVERY
        self._again_at_s, self._pause_s = 0.0, SOON_S
        self._complained = False

    @property
    def done(self) -> bool:
        """Whether everything was told."""
        return self._exhausted and not self._pending

    def take(self) -> S:
        """Return the next sample. Raises StopIteration."""
        if self._since >= EVERY:
            self.pump()
        if not self._pending:
            self._pull()
        if not self._pending:
            if self._since:
                self.pump()  # all was handed out: what was not opened yet stays for a moment
            raise StopIteration
        sample, paths = self._pending.popleft()
        self._since += len(paths)
        if self._told:
            self._told -= 1
            self._position += len(paths)
        return sample

    def pump(self) -> None:
        """Tell what there is room for, and how far the reader is."""
        self._since = 0
        if os.getpid() != self._ours:
            return  # a worker that was forked goes on with what it has
        try:
            if not self._begun():
                return
            assert self._daemon is not None
            names = self._next_names()
            if names or self._handed:
                self._room = self._daemon.tell(self._number, names, self._position if self._handed else None)
                self._pause_s = SOON_S
            if self._room >= AT_ONCE and not self._exhausted:
                self._since = EVERY  # there is more to tell, with the next sample
        except LuxError as exc:
            self.complain(str(exc))
            self._give_up()

    def _pull(self) -> bool:
        """Take one more sample; False if there is none. Raises TypeError, and what `paths_of` does."""
        for sample in islice(self._samples, 1):
            paths = self._paths_of(sample)
            for path in paths:
                if not isinstance(path, str | os.PathLike):
                    raise TypeError(f"paths: {shown(path)} is no path")
            self._pending.append((sample, paths))
            return True
        self._exhausted = True
        return False

    def _next_names(self) -> list[str]:
        names: list[str] = []
        most = min(self._room, AT_ONCE)
        while self._told < len(self._pending) or self._pull():
            paths = self._pending[self._told][1]
            if len(names) + len(paths) > most and (names or len(paths) > self._room):
                break
            names += [self._places.inside(path) for path in paths]
            if self._handed:
                self._told += 1
            else:
                self._pending.popleft()
        return names

    def _begun(self) -> bool:
        """Whether there is a daemon that listens; asks for one if that is due."""
        if self._steps is not None:
            return True
        if time.monotonic() < self._again_at_s or not (self._pending or self._pull()):
            return False
        self._pause_s = min(AGAIN_S, 2 * self._pause_s)
        self._again_at_s = time.monotonic() + self._pause_s
        first = next((path for _, paths in self._pending for path in paths), None)
        if first is None:
            return False
        record = self._places.find(first)
        if record is None or not record.alive:
            self.complain(f"{os.fspath(first)}: is in no luxfuse mount" if record is None else record.death)
            return False
        self._daemon = ControlClient(record.socket_path, deadline_s=DEADLINE_S)
        steps = self._daemon.begin_schedule(self._places.inside(first), self._window_bytes)
        begun = next(steps, {})
        self._steps, self._number, self._room = steps, int(begun.get("schedule", 0)), int(begun.get("room", 0))
        self._told = self._position = 0
        return True

    def complain(self, why: str) -> None:
        """Log, once, why nothing is fetched ahead."""
        if not self._complained:
            self._complained = True
            log.warning("files are not fetched ahead: %s", " ".join(why.split()))

    @staticmethod
    def failed() -> None:
        """Log the exception that is being handled, of the code that says what comes next: nothing more is told."""
        log.warning("files are not fetched ahead any more", exc_info=True)

    def _give_up(self) -> None:
        self._told = 0
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def close(self) -> None:
        """End: nothing more is fetched ahead. It is called in the process that began."""
        if os.getpid() == self._ours:
            self._give_up()
