"""Whether a server is asked to compare versions when it writes."""

from __future__ import annotations

import logging
import time

from luxfuse.core.vain import Pause

log = logging.getLogger(__name__)


class Conditions:
    """What is known of the conditional writes of one server. Thread-safe."""

    def __init__(self) -> None:
        self._known = True
        self._pause = Pause()
        self._warned = False

    @property
    def are_made(self) -> bool:
        """Whether the next writes are conditional."""
        return self._known and not self._pause.is_on(time.monotonic())

    def end(self) -> None:
        """The server says that it has none."""
        self._known = False
        self._warn()

    def pause(self) -> None:
        """The server refuses what is as expected: it compares nothing of use, or something in between has an old answer.

        In the latter case others are overwritten unseen, so it is tried again after a while.
        """
        self._pause.note(time.monotonic())
        self._warn()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the store knows no conditional writes: changes made elsewhere meanwhile are not noticed")
