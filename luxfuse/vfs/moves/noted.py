"""What was under the new key when a move was begun: noted with it, so that a restart replaces that and nothing newer."""

from __future__ import annotations

import msgspec

from luxfuse.index.journal import OperationRecord
from luxfuse.types import ABSENT, ObjectInfo

OVER = "over"
"""Argument of a move of one object: `Over`, encoded. Moves of earlier versions of luxfuse lack it."""
REPLACED_OVER = "replaced-over"
"""The same of the object of another key that the move replaces."""
UNLESS = "unless"
"""What earlier versions of luxfuse noted instead, of moves of files that were open: the version alone."""
NEWER = "newer"
"""Argument of a move of a file that was open for writing: newer contents of it that may be under the new key."""
Sent = tuple[tuple[int, int], ...]
"""Contents, by mtime in ns and size."""


class Over(msgspec.Struct, array_like=True, frozen=True):
    """What a move may replace: an object of ``version`` ("": there was none), or one of the contents ``sent``.

    Those are mtime in ns and size of uploads without an answer, which may have arrived over that version, or may yet.
    ``version`` None: any object, as it was not known what there was.
    """

    version: str | None = ABSENT
    sent: Sent = ()

    def noted(self, argument: str = OVER) -> dict[str, str]:
        """Return it as an argument."""
        return {argument: msgspec.json.encode(self).decode()}

    def covers(self, info: ObjectInfo, mtime_ns: int | None) -> bool:
        """Whether it tells of an object; ``mtime_ns``: what that says of itself."""
        return self.version in (None, info.version) or (mtime_ns, info.size) in self.sent


NOTHING = Over()
ANYTHING = Over(None)


def over_of(operation: OperationRecord, argument: str = OVER) -> Over:
    """Return what a move of one object may replace."""
    noted, unless = operation.arguments.get(argument), operation.arguments.get(UNLESS)
    if noted is None:
        return ANYTHING if unless is None else Over(unless)
    return msgspec.json.decode(noted, type=Over)


def newer(sent: Sent) -> dict[str, str]:
    """Return the argument for contents, by mtime in ns and size."""
    return {NEWER: msgspec.json.encode(sent).decode()}


def newer_of(operation: OperationRecord) -> Sent:
    """Return the contents that `newer` has noted."""
    noted = operation.arguments.get(NEWER)
    return () if noted is None else msgspec.json.decode(noted, type=Sent)
