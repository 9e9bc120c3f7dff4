"""Names that were removed and moved here, noted in the journal until the index has it on disk: a restart makes them again.

The index commits a moment later than the journal, and after a power cut it may lack its last commits. What the store has,
or is to get, can be told without it. But a name that the store never had, and that is gone here, is not missed by anybody:
where the store does not answer, it would be listed again.

Each change has a number, and the index notes the number of the last one together with it. So a restart makes exactly those
again that the index lacks, in their order. What never came to the index's disk need not be told to be gone.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from luxfuse.index.noted_names import NotedNames
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import U64, Table

MADE = b"names"
"""The key in META of the number of the last change that the index has."""
FORGOTTEN_AT_ONCE = 4
"""With each change that is noted so many older ones are dropped at most: more than are noted, and no long step."""


class ChangedNames(Protocol):
    """The names of the index, by their keys in NAMES."""

    def make_again(self, key: bytes, new_key: bytes) -> None:
        """Remove a name, or move it to ``new_key`` if that is not b""; it may not be there."""


class NameChanges:
    """Those of one mount."""

    def __init__(self, store: IndexStore, noted: NotedNames) -> None:
        self._store = store
        self._noted = noted
        made = store.get(Table.META, MADE)
        self._made = U64.unpack(made)[0] if made else 0
        self._last = max(self._made, *noted.changes, 0)
        self._again = 0
        """The number of the change that is made again just now."""
        self._targets = {new_key: number for number, (_, new_key) in noted.changes.items() if new_key}
        """Where names were moved to by changes that are noted; with the last one of each."""
        self._steps: deque[tuple[int, int]] = deque()
        """Numbers of changes, and how many commits the index must have made until it has them, and all before, on disk."""
        self._on_disk = 0
        """The last change that it has there."""

    def make_again(self, names: ChangedNames) -> None:
        """Make the changes of the last run that the index lacks. Before anything else changes it."""
        for number, (key, new_key) in list(self._noted.changes.items()):
            if number > self._made:
                self._again = number
                names.make_again(key, new_key)
        self._again = 0
        if self._last > self._made:  # of some the name was not there: nor are these to be made of a later one
            self._made = self._last
            self._store.put(Table.META, MADE, U64.pack(self._last))
        self._await_commit()

    def number(self, key: bytes) -> int:
        """Return the number of a change that is about to be made of a name, 0 if it need not be noted."""
        if self._again:
            return self._again
        return self._last + 1 if key in self._targets or self._store.may_have(Table.NAMES, key) else 0

    def note(self, number: int, key: bytes, new_key: bytes) -> None:
        """A change was made, in the same step as `number` was called."""
        if number <= self._last:
            return  # it is noted, and made again
        self._last = number
        self._noted.put(number, key, new_key)
        if new_key:
            self._targets[new_key] = number
        self._await_commit()
        self._forget()

    def _await_commit(self) -> None:
        commits = self._store.commits_to_come
        if self._steps and self._steps[-1][1] == commits:
            self._steps.pop()
        self._steps.append((self._last, commits))

    def _forget(self) -> None:
        """Drop what the index has on disk: with a change that is noted, so that it costs no commit of its own."""
        while self._steps and self._steps[0][1] <= self._store.commits:
            self._on_disk = self._steps.popleft()[0]
        for _ in range(FORGOTTEN_AT_ONCE):
            number, (_, new_key) = next(iter(self._noted.changes.items()))
            if number > self._on_disk:
                return
            self._noted.drop(number)
            if self._targets.get(new_key) == number:
                del self._targets[new_key]
