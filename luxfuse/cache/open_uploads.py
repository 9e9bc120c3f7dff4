"""Multipart uploads that are open: the parts that have arrived are not sent again after a failure or restart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import trio

from luxfuse.core.parts import MOST_PARTS, Part
from luxfuse.index.journal import Journal
from luxfuse.index.records import PartRecord, UploadRecord
from luxfuse.types import PAGE_BYTES

NOTED_AFTER_S = 5.0
"""Parts are noted together: a fast upload costs the journal nothing. After a kill those of the last seconds go again."""


@dataclass(slots=True)
class OpenUpload:
    """A multipart upload: its parts by number, with tags, and the checksums of the pages in them as they were sent.

    ``metadata`` is that of its beginning, ``part_bytes`` the size of all its parts, 0 if they were planned. Of one that
    began while the file was still being written, the first ``begun`` parts have arrived or are on their way.
    """

    key: str
    upload: str
    metadata: Mapping[str, str]
    part_bytes: int = 0
    tags: dict[int, str] = field(default_factory=dict)
    parts: dict[int, tuple[Part, str]] = field(default_factory=dict)
    """The parts that arrived; beside a copied part the version that it was copied from."""
    checksums: dict[int, int] = field(default_factory=dict)
    begun: int = 0
    stopping: trio.Event = field(default_factory=trio.Event)
    """Set when nothing more is to go up early."""
    running: trio.Event = field(default_factory=trio.Event)
    """Set when nothing goes up early any more."""
    unnoted: set[int] = field(default_factory=set)
    """Parts that the journal does not know."""
    noted_s: float = 0.0

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to go up early."""
        return self.stopping.is_set()

    def fits(self, size: int) -> bool:
        """Whether a file of ``size`` bytes can be made of such parts."""
        return not self.part_bytes or size <= self.part_bytes * MOST_PARTS

    def arrived(self, part: Part, tag: str, source_version: str) -> None:
        """Take note of a part that the store has."""
        self.tags[part.number] = tag
        self.parts[part.number] = part, source_version
        if not part.copied:
            self.unnoted.add(part.number)

    def has(self, part: Part, source_version: str) -> bool:
        """Whether a part has arrived, be its bytes still the same or not."""
        return self.parts.get(part.number) == (part, source_version)

    def is_same(self, part: Part, sums: Mapping[int, int]) -> bool:
        """Whether the bytes of a part that has arrived are those with the checksums ``sums``."""
        return part.copied or all(self.checksums.get(page) == sums.get(page) for page in pages_of_part(part))

    def note(self, journal: Journal) -> None:
        """Note the parts that have arrived in the journal, to be committed soon."""
        for number in sorted(self.unnoted):
            part = self.parts[number][0]
            sums = tuple(self.checksums[page] for page in pages_of_part(part))
            journal.uploads.arrived(
                self.key, self.upload, PartRecord(number, part.start, part.end, self.tags[number], sums)
            )
        self.unnoted.clear()
        self.noted_s = trio.current_time()

    def note_now_and_then(self, journal: Journal) -> None:
        """Note the parts that have arrived, unless that was done a moment ago."""
        if self.unnoted and trio.current_time() - self.noted_s >= NOTED_AFTER_S:
            self.note(journal)


def pages_of_part(part: Part) -> range:
    """Return the pages of the file that a part has."""
    return range(part.start // PAGE_BYTES, -(-part.end // PAGE_BYTES))


def resumed(key: str, upload: str, record: UploadRecord) -> OpenUpload:
    """Return an upload of the last run, as the journal knows it."""
    found = OpenUpload(key, upload, record.metadata, noted_s=trio.current_time())
    found.running.set()
    for each in record.parts.values():
        part = Part(each.number, each.start, each.end, False)
        found.checksums |= dict(zip(pages_of_part(part), each.checksums, strict=True))
        found.arrived(part, each.tag, "")
    found.unnoted.clear()
    return found


def best(uploads: Iterable[tuple[str, str]], key: str, journal: Journal) -> OpenUpload | None:
    """Return that of the uploads of a key of which most has arrived; None if nothing has, as far as the journal knows."""
    found = [
        (len(record.parts), upload) for k, upload in uploads if k == key and (record := journal.uploads.parts_of(k, upload))
    ]
    if not found or not max(found)[0]:
        return None
    upload = max(found)[1]
    record = journal.uploads.parts_of(key, upload)
    assert record is not None
    return resumed(key, upload, record)
