"""The open multipart uploads that the journal knows, and the parts of theirs that have arrived.

UPLOADS ``digest of key and upload`` -> (key, upload); PARTS ``that digest``, ``number (2 bytes)`` -> `PartRecord`, and for
number 0 the metadata that the upload was begun with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

from luxfuse.index.journal_file import Table
from luxfuse.index.records import Decode, PartRecord, UploadRecord, encode, key_of

_NUMBER = struct.Struct(">H")


class NotedUploads:
    """The mirror of both tables."""

    def __init__(self, note: Callable[[Table, bytes, bytes | None], None]) -> None:
        """``note`` queues a record for the next commit, None to remove it."""
        self._note = note
        self.open: set[tuple[str, str]] = set()
        """Keys and uploads."""
        self._parts: dict[bytes, UploadRecord] = {}
        """By digest of key and upload: those of which the metadata are known."""

    def load(self, uploads: Iterable[tuple[bytes, bytes]], parts: Iterable[tuple[bytes, bytes]]) -> None:
        """Take what is recorded."""
        self.open = {Decode.upload(value) for _, value in uploads}
        for key, value in parts:  # number 0 comes first
            if number := _NUMBER.unpack(key[-2:])[0]:
                self._parts[key[:-2]].parts[number] = Decode.part(value)
            else:
                self._parts[key[:-2]] = UploadRecord(Decode.metadata(value), {})

    def begun(self, key: str, upload: str, metadata: Mapping[str, str]) -> None:
        """Note an upload that was begun, and with what."""
        digest = key_of(key, upload)
        self.open.add((key, upload))
        self._parts[digest] = UploadRecord(dict(metadata), {})
        self._note(Table.UPLOADS, digest, encode((key, upload)))
        self._note(Table.PARTS, digest + _NUMBER.pack(0), encode(dict(metadata)))

    def arrived(self, key: str, upload: str, part: PartRecord) -> None:
        """Note a part that the store has."""
        digest = key_of(key, upload)
        record = self._parts.get(digest)
        if record is not None:
            record.parts[part.number] = part
            self._note(Table.PARTS, digest + _NUMBER.pack(part.number), encode(part))

    def parts_of(self, key: str, upload: str) -> UploadRecord | None:
        """Return the record of an open upload; None if it is only known that it is open."""
        return self._parts.get(key_of(key, upload))

    def over(self, key: str, upload: str) -> None:
        """The upload was completed or given up; it need not be known."""
        if (key, upload) in self.open:
            digest = key_of(key, upload)
            self.open.remove((key, upload))
            self._note(Table.UPLOADS, digest, None)
            record = self._parts.pop(digest, None)
            for number in (0, *record.parts) if record is not None else ():
                self._note(Table.PARTS, digest + _NUMBER.pack(number), None)
