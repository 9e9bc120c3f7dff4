"""Whether a server is asked to compare versions when it writes."""

from __future__ import annotations

import logging
import time

from luxfuse.core.vain import Pause
from luxfuse.types import ABSENT

log = logging.getLogger(__name__)


class Conditions:
    """What is known of the conditional writes of one server. Thread-safe."""

    def __init__(self) -> None:
        self._known = True
        self._pause = Pause()
        self._refused = ""
        self._warned = False

    @property
    def are_made(self) -> bool:
        """Whether the next writes are conditional."""
        return self._known and not self._pause.is_on(time.monotonic())

    def end(self) -> None:
        """The server says that it has none."""
        self._known = False
        self._warn()

    def pause(self, method: str) -> None:
        """The server refuses what is as expected: it compares nothing of use, or something in between has an old answer.

        In the latter case others are overwritten unseen, so it is tried again after a while.
        """
        if self._pause.note(time.monotonic()):
            self._refused = method
            self._warn()

    def met(self, method: str, expect: str | None) -> None:
        """A conditional write was made: if it is of the kind that was refused, the next pause is a short one again.

        Servers that compare no versions look all the same whether there is an object.
        """
        if expect not in (None, ABSENT) and method == self._refused:
            self._pause.end()

    def _warn(self) -> None:
        level = logging.INFO if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "the store knows no conditional writes: changes made elsewhere meanwhile are not noticed")
