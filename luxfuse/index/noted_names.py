"""Changes of names that the journal knows until the index has them; see `name_changes`.

META ``name``, ``number (8 bytes)`` -> (key in NAMES, key that it was moved to; b"": it was removed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from luxfuse.index.journal_file import Table
from luxfuse.index.records import encode
from luxfuse.index.uncommitted import U64

_PREFIX = b"name"
_KEY_BYTES = len(_PREFIX) + U64.size
_decode = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


class NotedNames:
    """The mirror of them."""

    def __init__(self, note: Callable[[Table, bytes, bytes | None], None]) -> None:
        """``note`` queues a record for the next commit, None to remove it."""
        self._note = note
        self.changes: dict[int, tuple[bytes, bytes]] = {}
        """By number, in their order."""

    def load(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Take what is recorded in META."""
        for key, value in records:
            if key.startswith(_PREFIX) and len(key) == _KEY_BYTES:
                self.changes[U64.unpack(key[len(_PREFIX) :])[0]] = _decode(value)

    def put(self, number: int, key: bytes, new_key: bytes) -> None:
        """Note a change; ``number`` is higher than all before."""
        self.changes[number] = key, new_key
        self._note(Table.META, _PREFIX + U64.pack(number), encode((key, new_key)))

    def drop(self, number: int) -> None:
        """The index has it."""
        del self.changes[number]
        self._note(Table.META, _PREFIX + U64.pack(number), None)
