"""The names that a move leaves and takes: which are held, which are settled, and when the old objects are removed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from luxfuse.errors import StoreError
from luxfuse.index.journal import Journal
from luxfuse.vfs.deletes import Deletes
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.making import Making
from luxfuse.vfs.moves.operations import Place
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.tree import Tree

log = logging.getLogger(__name__)


class MovedNames:
    """The old and new names of moves."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        tree: Tree,
        making: Making,
        entries: DirtyEntries,
        deletes: Deletes,
        journal: Journal,
        open_directories: OpenDirectories,
    ) -> None:
        self._namespace = namespace
        self._tree = tree
        self._making = making
        self._entries = entries
        self._deletes = deletes
        self._journal = journal
        self._open = open_directories

    def changed(self, place: Place, new_place: Place) -> None:
        """A name has moved: the directories that it left and came to have changed."""
        for directory in {place[0], new_place[0]}:
            self._tree.touch(directory)
            self._open.forget_positions(directory)

    def leave(self, place: Place, promised: int | None) -> None:
        """A name is gone from where it was; ``promised``: the journal's number of the whiteout that takes its place."""
        self._namespace.hold(None, *place)
        if promised is not None:
            self._journal.drop_file(promised)
            self._making.make_whiteout(place)

    def settle(self, inode: int, place: Place) -> None:
        """The store has the entry under its name, unless that is dirty by now: then the name is held."""
        if self._entries.get(inode) is None:
            self._namespace.settle(inode, *place)
        else:
            self._namespace.hold(inode, *place)

    async def delete_originals(self, versions: Mapping[str, str | None], place: Place, key: str) -> None:
        """The copies are made: remove the originals, later if the store does not do it now.

        ``versions``: of these, by key; None: not known.
        """
        try:
            await self._deletes.now(list(versions))
        except StoreError as exc:
            log.warning("%r was renamed, but its old object cannot be removed yet: %s", key, exc)
            for old, version in versions.items():
                self._deletes.once_more(old, place, version)
            await self._journal.commit_made()
        else:
            now = self._namespace.peek(*place)
            if now is None or self._entries.get(now.inode) is None:  # else a whiteout has the name
                self._namespace.settle(None, *place)
