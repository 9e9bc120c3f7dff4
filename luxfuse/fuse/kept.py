"""The handles of copied opens and of directories, kept for a successor, with the request that each answered."""

from __future__ import annotations

import msgspec

from luxfuse.core.listed_spans import Position
from luxfuse.estate.facts import Facts
from luxfuse.fuse.inheritance import DIRECTORY, HANDLE, DirectoryFact, HandleFact, decode_directory

_encode = msgspec.msgpack.Encoder().encode


class KeptHandles:
    """The handles of one mount. Numbers are the kernel's, without marks. ``facts`` None: nobody comes after us."""

    def __init__(self, facts: Facts | None) -> None:
        self._facts = facts

    @property
    def wanted(self) -> bool:
        """Whether there may be a successor."""
        return self._facts is not None

    def opened(self, number: int, unique: int, inode: int, *, writing: bool) -> None:
        """A copied open is about to be answered."""
        if self._facts is not None:
            self._facts.put(HANDLE + number.to_bytes(8, "big"), _encode(HandleFact(unique, inode, writing)))

    def closed(self, number: int) -> None:
        """It is over."""
        if self._facts is not None:
            self._facts.drop(HANDLE + number.to_bytes(8, "big"))

    def opened_directory(self, number: int, unique: int, inode: int) -> None:
        """A directory is about to be answered."""
        if self._facts is not None:
            self._facts.put(DIRECTORY + number.to_bytes(8, "big"), _encode(DirectoryFact(unique, inode)))

    def read_directory(self, number: int, positions: dict[int, Position]) -> None:
        """Entries are about to be given; ``number`` was opened by this daemon or one before."""
        if self._facts is not None:
            key = DIRECTORY + number.to_bytes(8, "big")
            known = self._facts.get(key)
            if known is not None:
                fact = decode_directory(known)
                self._facts.put(key, _encode(DirectoryFact(fact.unique, fact.inode, positions)))

    def closed_directory(self, number: int) -> None:
        """It is closed."""
        if self._facts is not None:
            self._facts.drop(DIRECTORY + number.to_bytes(8, "big"))

    def directories(self) -> dict[int, int]:
        """Return inodes of open directories by number."""
        if self._facts is None:
            return {}
        found = self._facts.items(DIRECTORY)
        return {int.from_bytes(key, "big"): decode_directory(value).inode for key, value in found}
