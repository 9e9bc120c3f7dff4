"""Promises that the journal has withdrawn, which a crash may bring back until that is durable."""

from __future__ import annotations

from luxfuse.index.records import FileRecord
from luxfuse.types import Kind


def _promised_key(record: FileRecord | None) -> str | None:
    """Return the key under which a restart would bring the content of a record to the store, None if it would not."""
    promised = record is not None and record.kind is Kind.FILE and record.closed and record.content
    return record.key if record is not None and promised else None


class Withdrawn:
    """Keys of such promises; as many as there are notes that wait for a commit."""

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        """With the number of commits that were begun before the note."""

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def note(self, before: FileRecord | None, after: FileRecord | None, commits: int) -> None:
        """The record of a file is replaced (None: there is none), after so many commits were begun."""
        key = _promised_key(before)
        if key is not None and key != _promised_key(after):
            self._keys[key] = commits

    def committed(self, commits: int) -> None:
        """The last one of so many commits is durable, and with it all that was noted before it began."""
        if self._keys:
            self._keys = {key: noted for key, noted in self._keys.items() if noted >= commits}
