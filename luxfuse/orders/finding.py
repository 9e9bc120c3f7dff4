"""Looks the names that a program has told up, a batch at a time: by calls where they are known, as nearly all are.

The names of a directory of which several are not known are looked up in its listing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence

import trio

from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.errors import NoSuchName
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

LIST_FROM = 3
"""Of so many names of a directory that are not known, its listing is waited for rather than each asked for."""
LISTING_PATIENCE_S = 1.0
"""For so long; it goes on meanwhile, and the names are asked for one by one."""
BREATHE_EVERY = 64
"""Names, then others have their turn: one that is not in memory takes up to 0.1 ms."""

Found = tuple[int, bytes, Entry]
"""Directory, name, entry."""
_Wanted = list[tuple[int, bytes]]
"""Place and name."""


class Finder:
    """Finds the entries of names in one under-store."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def find(self, taken: Sequence[tuple[int, str]]) -> dict[int, Found]:
        """Return, by their places, the entries of paths; those that are not there, or empty, are left out."""
        found: dict[int, Found] = {}
        by_directory: dict[str, _Wanted] = {}
        for place, path in taken:
            if path:
                parent, _, name = path.rpartition("/")
                by_directory.setdefault(parent, []).append((place, os.fsencode(name)))
        looked_at = 0
        async with trio.open_nursery() as nursery:
            for path, names in by_directory.items():
                directory = self._known_directory(path)
                left = names if directory is None else self._look_in(directory, names, found)
                if left:
                    nursery.start_soon(self._ask, path, left, found)
                looked_at += len(names)
                if looked_at >= BREATHE_EVERY:
                    looked_at = 0
                    await trio.lowlevel.checkpoint()
        return found

    def _known_directory(self, path: str) -> int | None:
        inode = ROOT_INODE
        try:
            for part in path.split("/") if path else ():
                entry = self._namespace.known(inode, os.fsencode(part))
                if entry is None:
                    return None
                inode = entry.inode
        except NoSuchName:
            return None
        return inode

    def _look_in(self, directory: int, names: Iterable[tuple[int, bytes]], found: dict[int, Found]) -> _Wanted:
        """Find what is known; returns the names that have to be asked for."""
        unknown = []
        for place, name in names:
            try:
                entry = self._namespace.known(directory, name)
            except NoSuchName:
                continue
            if entry is None:
                unknown.append((place, name))
            else:
                found[place] = directory, name, entry
        return unknown

    async def _ask(self, path: str, names: _Wanted, found: dict[int, Found]) -> None:
        """Look names of one directory up that the store may have to be asked for."""
        try:
            directory = await self._directory(path)
            if len(self._look_in(directory, names, {})) >= LIST_FROM and not self._namespace.lister.is_listing(directory):
                with trio.move_on_after(LISTING_PATIENCE_S):
                    await self._namespace.relisting.listed(directory)
        except LuxError as exc:
            log.debug("%r: cannot be looked into: %s", path, exc)
            return
        async with trio.open_nursery() as nursery:
            for place, name in self._look_in(directory, names, found):
                nursery.start_soon(self._look_up, directory, place, name, found)

    async def _directory(self, path: str) -> int:
        inode = ROOT_INODE
        for part in path.split("/") if path else ():
            inode = (await self._namespace.lookup(inode, os.fsencode(part))).inode
        return inode

    async def _look_up(self, directory: int, place: int, name: bytes, found: dict[int, Found]) -> None:
        try:
            found[place] = directory, name, await self._namespace.lookup(directory, name)
        except LuxError as exc:
            log.debug("%r: cannot be looked up: %s", name, exc)
