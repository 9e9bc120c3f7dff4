"""Descriptions of objects that come with other answers, above all with their bytes: what is taken note of, and told on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from luxfuse.core import names as naming
from luxfuse.index.entries import Attributes, Described, Entry, Found
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Description, Kind, ObjectInfo
from luxfuse.vfs.attributes import marker_attributes, parse_attributes, to_metadata
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

CONFIRMED_EVERY_S = 1.0
"""Of the answers that only confirm an entry, one in so long is recorded."""


class News(NamedTuple):
    """The word of the store on a name, and when it was asked for."""

    parent: int
    name: bytes
    info: ObjectInfo
    asked_s: float


class Hearing:
    """Takes note of descriptions for one mount. Many at once are one change of the index."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        kernel: Kernel,
        evidence: AttributeEvidence,
        clock: Callable[[], float],
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._kernel = kernel
        self._evidence = evidence
        self._clock = clock

    def heard(self, told: Iterable[tuple[ObjectInfo, float]]) -> None:
        """Take note of what came with the bytes of objects, each with the time when it was asked for."""
        directories: dict[str, int | None] = {}
        news = []
        for info, asked_s in told:
            place = self._find(info.key, directories)
            if place is None:
                continue
            parent, name, entry = place
            if entry.attributes is None or not 0 <= asked_s - entry.checked_s < CONFIRMED_EVERY_S:
                news.append(News(parent, name, info, asked_s))
        if news:
            self.learn(news)

    def told(self, key: str, version: str) -> Description | None:
        """Return the known description of a version of an object, for another node; None if that should ask itself."""
        place = self._find(key, {})
        if place is None or not self._names.keeps_attributes:
            return None
        entry = place[2]
        changed_s = int(entry.described_s)
        if entry.version != version or entry.attributes is None or self._namespace.belief.is_ours(entry.inode):
            return None
        if changed_s != entry.described_s or changed_s <= 0 or not self._namespace.belief.is_fresh(entry):
            return None
        metadata = to_metadata(entry.kind, entry.attributes)
        return ObjectInfo(key, entry.size, version, changed_s * 10**9, metadata), self._clock() - entry.checked_s

    def _find(self, key: str, directories: dict[str, int | None]) -> tuple[int, bytes, Entry] | None:
        """Return (directory, name, entry) of an object that has a name here. ``directories``: those found so far."""
        last = key.rpartition("/")[2]
        above = key[: len(key) - len(last)]
        directory = directories[above] if above in directories else self._directory(above, directories)
        classified = naming.classify(last)
        found = self._names.get(directory, classified[0]) if classified is not None and directory is not None else None
        if directory is None or classified is None or found is None or found.kind is not classified[1]:
            return None
        return directory, classified[0], found

    def _directory(self, prefix: str, directories: dict[str, int | None]) -> int | None:
        """Return the inode of the directory that has a prefix of keys here, and note it."""
        directory: int | None = ROOT_INODE
        for part in prefix.split("/")[:-1]:
            entry = self._names.get(directory, part.encode()) if directory is not None else None
            directory = entry.inode if entry is not None and entry.kind is Kind.DIRECTORY else None
        directories[prefix] = directory
        return directory

    def learn(self, news: Sequence[News]) -> list[Attributes | None]:
        """Record descriptions of objects; returns the attributes by each, None if its name stands for another one now."""
        told: list[tuple[int, Described, Attributes | None]] = []
        for number, each in enumerate(news):
            attributes = parse_attributes(each.info.metadata)
            known = self._names.get(each.parent, each.name)
            if attributes is None or known is None or self._namespace.belief.is_ours(known.inode):
                continue
            if known.kind is Kind.DIRECTORY:
                attributes = marker_attributes(known.attributes, attributes)
            found = Found(each.name, known.kind, each.info.size, each.info.version, each.info.mtime_ns)
            told.append((number, Described(each.parent, found, each.asked_s, attributes), known.attributes))
        try:
            entries = self._names.describe([one for _, one, _ in told], self._clock())
        except OSError as exc:  # the index takes no changes now: it is asked for again
            log.info("what the store says of %d objects cannot be recorded: %s", len(told), exc)
            return [None] * len(news)
        learned: list[Attributes | None] = [None] * len(news)
        for (number, one, before), entry in zip(told, entries, strict=True):
            if entry is None:
                continue
            learned[number] = entry.attributes
            if before is None:
                self._evidence.note(one.directory, one.attributes)
            elif before != one.attributes:
                self._kernel.invalidate_inode(entry.inode)
        return learned
