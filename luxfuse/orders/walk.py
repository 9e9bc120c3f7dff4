"""Finds the files at and below paths of the mount, by listings rather than by asking for each name.

A path may hold patterns (``*``, ``?``, ``[...]``, ``**``; see `core.paths`); it is taken as it is written if there is such
a name. Symlinks are not followed. Entries are handed on in parts that remember where they are, not what is in them:
so however large a tree is, memory is not. The entries come from the index, where a listing has just put them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import trio

from luxfuse.core.paths import has_pattern, name_matcher
from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs.errors import NoSuchName
from luxfuse.vfs.namespace import Namespace

PART_ENTRIES = 256
LISTINGS_AHEAD = 8
LIST_FROM_PATHS = 3
"""The directory of so many of the paths is listed rather than each of them asked for."""

Matcher = Callable[[bytes], bool]
Entries = list[tuple[bytes, Entry]]


@dataclass(frozen=True, slots=True)
class Part:
    """Up to `PART_ENTRIES` entries of a directory after ``after``, those that ``matches``; or those of ``names``."""

    directory: int
    prefix: str
    after: bytes = b""
    matches: Matcher | None = None
    names: tuple[bytes, ...] = ()

    def files(self, namespace: Namespace) -> Entries:
        """Return the files among them, as they are known now."""
        if self.names:
            known = [(name, namespace.peek(self.directory, name)) for name in self.names]
            return _files([(name, entry) for name, entry in known if entry is not None])
        entries = namespace.after(self.directory, self.after, PART_ENTRIES, keep=True)
        return [(n, e) for n, e in _files(entries) if self.matches is None or self.matches(n)]


Found = tuple[Part, Entries]
"""A part, and the files in it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory: its inode number, and its path with a slash at the end ("" for the root)."""

    inode: int
    prefix: str


class Walk:
    """One walk. ``fail(path, why)`` is told of each path that leads nowhere, and each directory that cannot be listed."""

    def __init__(self, namespace: Namespace, nursery: trio.Nursery, fail: Callable[[str, str], None]) -> None:
        """Listings ahead run in ``nursery``."""
        self._namespace = namespace
        self._nursery = nursery
        self._fail = fail
        self._listing_ahead: dict[int, trio.Event] = {}

    async def parts(self, paths: Sequence[str]) -> AsyncGenerator[Found, None]:
        """Yield where the files are at and below ``paths`` (relative to the mount; "": all of it), path by path."""
        parents = Counter(os.path.dirname(path) for path in paths if not has_pattern(path))  # noqa: PTH120 (no Path)
        listed: set[str] = set()
        for path in paths:
            parent = os.path.dirname(path)  # noqa: PTH120
            if path and parents[parent] >= LIST_FROM_PATHS and parent not in listed:
                listed.add(parent)
                await self._list_first(parent)
            async with aclosing(self._parts_of(path)) as parts:
                async for part in parts:
                    yield part

    async def _list_first(self, path: str) -> None:
        try:
            _, entry = await self._find(path)
            if entry.kind is Kind.DIRECTORY:
                await self._namespace.relisting.listed(entry.inode)
        except LuxError:
            return  # the look-up of each path tells why

    async def _parts_of(self, path: str) -> AsyncGenerator[Found, None]:
        try:
            place, entry = await self._find(path)
        except NoSuchName as exc:
            if not has_pattern(path):
                self._fail(path, str(exc) if not path else "there is no such file or directory")
                return
        except LuxError as exc:
            self._fail(path, str(exc))
            return
        else:
            if entry.kind is Kind.DIRECTORY:
                async with aclosing(self._below([_Place(entry.inode, f"{path}/" if path else "")])) as below:
                    async for part in below:
                        yield part
            elif entry.kind is Kind.FILE:
                name = os.fsencode(os.path.basename(path))  # noqa: PTH119
                yield Part(place.inode, place.prefix, names=(name,)), [(name, entry)]
            else:
                self._fail(path, "is no regular file; give the one that it stands for")
            return
        found = False
        async with aclosing(self._matching(_Place(ROOT_INODE, ""), path.split("/"))) as matching:
            async for part in matching:
                found = True
                yield part
        if not found:
            self._fail(path, "nothing matches this pattern")

    async def _find(self, path: str) -> tuple[_Place, Entry]:
        """Return the directory of a path, and its entry. Raises `NoSuchName`, `StoreError`."""
        place, entry, prefix = _Place(ROOT_INODE, ""), self._namespace.root, ""
        for part in path.split("/") if path else ():
            if entry.kind is not Kind.DIRECTORY:
                raise NoSuchName(f"{prefix[:-1]!r} is no directory")
            place = _Place(entry.inode, prefix)
            entry = await self._namespace.lookup(entry.inode, os.fsencode(part))
            prefix += f"{part}/"
        return place, entry

    async def _below(self, waiting: list[_Place]) -> AsyncGenerator[Found, None]:
        """Yield the parts of the directories ``waiting`` (last first) and of all below them."""
        while waiting:
            place = waiting.pop()
            if not await self._listed(place):
                continue
            below: list[_Place] = []
            for part, entries in self._scan(place):
                below += _directories(place, entries)
                self._list_ahead(below)
                if files := _files(entries):
                    yield part, files
            waiting += reversed(below)
            self._list_ahead(reversed(waiting[-LISTINGS_AHEAD:]))

    def _scan(self, place: _Place, matches: Matcher | None = None) -> Iterable[tuple[Part, Entries]]:
        """Yield the parts of a listed directory, with what is in them."""
        after = b""
        while True:
            entries = self._namespace.after(place.inode, after, PART_ENTRIES)
            chosen = [(n, e) for n, e in entries if matches(n)] if matches is not None else entries
            if chosen:
                yield Part(place.inode, place.prefix, after, matches), chosen
            if len(entries) < PART_ENTRIES:
                return
            after = entries[-1][0]

    async def _matching(self, place: _Place, patterns: list[str]) -> AsyncGenerator[Found, None]:
        """Yield the parts of what the patterns match, one name each, and of all that is below that."""
        first, *rest = patterns
        if not await self._listed(place):
            return
        if first == "**":
            async with aclosing(self._matching(place, rest) if rest else self._below([place])) as below:
                async for found in below:
                    yield found
            if not rest:
                return
        matches = None if first == "**" else name_matcher(first)
        for part, entries in self._scan(place, matches):
            if not rest and (files := _files(entries)):
                yield part, files
            for inner in _directories(place, entries):
                deeper = patterns if first == "**" else rest
                async with aclosing(self._matching(inner, deeper) if deeper else self._below([inner])) as below:
                    async for found in below:
                        yield found

    async def _listed(self, place: _Place) -> bool:
        """Make sure that the directory's listing is fresh; False if it cannot be."""
        if (ahead := self._listing_ahead.get(place.inode)) is not None:
            await ahead.wait()
        try:
            await self._namespace.relisting.listed(place.inode)
        except NoSuchName:
            return False  # it went meanwhile
        except LuxError as exc:
            self._fail(place.prefix.rstrip("/"), f"cannot be listed: {exc}")
            return False
        return True

    def _list_ahead(self, places: Iterable[_Place]) -> None:
        for place in places:
            if len(self._listing_ahead) >= LISTINGS_AHEAD:
                return
            if place.inode not in self._listing_ahead and not self._namespace.relisting.is_listed(place.inode):
                self._listing_ahead[place.inode] = trio.Event()
                self._nursery.start_soon(self._list_quietly, place.inode)

    async def _list_quietly(self, inode: int) -> None:
        try:
            await self._namespace.relisting.listed(inode)
        except LuxError:
            return  # the caller that comes for it meets it again
        finally:
            self._listing_ahead.pop(inode).set()


def _files(entries: Entries) -> Entries:
    return [(name, entry) for name, entry in entries if entry.kind is Kind.FILE]


def _directories(place: _Place, entries: Entries) -> list[_Place]:
    return [
        _Place(entry.inode, f"{place.prefix}{os.fsdecode(name)}/")
        for name, entry in entries
        if entry.kind is Kind.DIRECTORY
    ]
