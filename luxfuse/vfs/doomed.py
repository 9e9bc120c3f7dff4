"""Names of which the store still has objects that are to be removed."""

from __future__ import annotations

from luxfuse.core import names as naming
from luxfuse.index.journal import Journal


class Doomed:
    """The deletes of the journal, by the names that their objects stand for."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def any(self) -> bool:
        """Whether anything is to be removed."""
        return bool(self._journal.deletes)

    def has(self, key: str) -> bool:
        """Whether a file, a directory or a symlink is still to be removed. ``key``: that of a file of the name."""
        if key + "/" in self._journal.deletes_below:  # else the store would still show a directory that is gone
            return True
        return any(each in self._journal.deletes for each in (key, key + "/", key + naming.SYMLINK_SUFFIX))
