"""The facts: values by key that outlive the daemon, until they are dropped.

They are a log, ``length of key (2 bytes), length of value (4), key, value``, of which the last record of a key counts; a
value of length `_DROPPED` takes the key away. When most of it counts no more it is written anew into the other half of
the memory, and that half counts from then on: one word is stored for that.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator

from luxfuse.estate.words import Word, Words

_HEADER = struct.Struct("=HI")
_DROPPED = 0xFFFF_FFFF
_ENDS = int(Word.FACTS_END)
LEAST_BYTES = 1 << 20
"""A shorter log is not written anew."""
WASTE = 4
"""It is when it is so many times as long as what counts."""


class Facts:
    """The facts of one estate. From the event loop's thread only."""

    def __init__(
        self, memory: mmap.mmap, words: Words, at: int, half_bytes: int, give_back: Callable[[int, int], None]
    ) -> None:
        """``at``: where the first half lies in ``memory``, the second follows. ``give_back``: of the memory of a range."""
        self._memory = memory
        self._words = words
        self._plain = words.plain
        self._at = at
        self._half_bytes = half_bytes
        self._give_back = give_back
        self._values: dict[bytes, bytes] = {}
        self._half = words[Word.FACTS_HALF]
        self._end = words[Word.FACTS_END + self._half]
        self._counting_bytes = 0
        self._read()

    def _read(self) -> None:
        position = start = self._at + self._half * self._half_bytes
        while position < start + self._end:
            key_bytes, value_bytes = _HEADER.unpack_from(self._memory, position)
            position += _HEADER.size
            key = bytes(self._memory[position : position + key_bytes])
            position += key_bytes
            if value_bytes == _DROPPED:
                self._values.pop(key, None)
            else:
                self._values[key] = bytes(self._memory[position : position + value_bytes])
                position += value_bytes
        self._counting_bytes = sum(_HEADER.size + len(k) + len(v) for k, v in self._values.items())

    def get(self, key: bytes) -> bytes | None:
        """Return a value, None if there is none."""
        return self._values.get(key)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key without the prefix, value) of the keys that begin with ``prefix``; they may be changed meanwhile."""
        for key, value in list(self._values.items()):
            if key.startswith(prefix):
                yield key[len(prefix) :], value

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value."""
        before = self._values.get(key)
        if before == value:
            return
        self._values[key] = value
        record = _HEADER.pack(len(key), len(value)) + key + value
        self._counting_bytes += len(record)
        if before is not None:
            self._counting_bytes -= _HEADER.size + len(key) + len(before)
        self._append(record)

    def drop(self, key: bytes) -> None:
        """Take a value away; it need not exist."""
        before = self._values.pop(key, None)
        if before is not None:
            self._counting_bytes -= _HEADER.size + len(key) + len(before)
            self._append(_HEADER.pack(len(key), _DROPPED) + key)

    def _append(self, record: bytes) -> None:
        end = self._end + len(record)
        if end > self._half_bytes or end > max(LEAST_BYTES, WASTE * self._counting_bytes):
            self._write_anew()
            return
        start = self._at + self._half * self._half_bytes + self._end
        self._memory[start : start + len(record)] = record
        self._plain[_ENDS + self._half] = self._end = end

    def _write_anew(self) -> None:
        """Write what counts into the other half."""
        log = b"".join(_HEADER.pack(len(k), len(v)) + k + v for k, v in self._values.items())
        if len(log) > self._half_bytes:
            self._words[Word.FACTS_LOST] = 1
            return
        old, new = self._half, 1 - self._half
        start = self._at + new * self._half_bytes
        self._memory[start : start + len(log)] = log
        self._words[Word.FACTS_END + new] = self._end = len(log)
        self._words[Word.FACTS_HALF] = self._half = new
        self._give_back(self._at + old * self._half_bytes, self._at + (old + 1) * self._half_bytes)
