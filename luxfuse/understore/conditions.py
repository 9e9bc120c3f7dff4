"""Whether a server is asked to compare versions when it writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from luxfuse.core.vain import Pause
from luxfuse.errors import VersionChanged
from luxfuse.types import ABSENT

T = TypeVar("T")

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

    def write(self, method: str, expect: str | None, write: Callable[[str | None], T], holds: Callable[[str], bool]) -> T:
        """Call ``write`` with the version that is expected; without at a server that refuses any. Raises what it raises.

        ``holds``: whether the object is of that version. Swift's S3 layer asks the condition, at the end of an upload, of
        objects of its own, which never are as expected; Ceph 16 compares no versions when it puts. That the object is, and
        the second try is refused all the same, tells such a server from a change by others that came and went.
        """
        for _ in range(2):
            try:
                return write(expect)
            except VersionChanged as exc:
                refused = exc.code == "PreconditionFailed" and self.are_made
                if expect is None or not refused or not holds(expect):
                    raise
        self.pause(method)
        return write(None)

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
