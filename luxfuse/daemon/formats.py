"""The formats of what a daemon leaves to the next one: which this luxfuse writes, and which it can go on with.

Each is also checked where it is read. Here they are compared before that, while the daemon before still serves: what cannot
be taken over is then refused with nothing lost.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass

from luxfuse import __version__
from luxfuse.estate import memory
from luxfuse.estate.words import Word
from luxfuse.index import journal_file, store
from luxfuse.tiers import directory

_WORDS = struct.Struct(f"={max(Word) + 1}q")


@dataclass(frozen=True, slots=True)
class Format:
    """One of them. ``also_read``: older ones, which are made into the one that is written when they are opened."""

    word: Word
    what: str
    written: int
    also_read: Collection[int] = ()


FORMATS = (
    Format(Word.FORMAT, "memory", memory.FORMAT),
    Format(Word.INDEX_FORMAT, "index", store.FORMAT_VERSION),
    Format(Word.JOURNAL_FORMAT, "journal", journal_file.FORMAT_VERSION, (journal_file.LOGLESS_VERSION,)),
    Format(Word.DIRECTORY_FORMAT, "cache directory", directory.FORMAT_VERSION),
)


def say(estate: memory.Estate) -> None:
    """Say what this daemon writes, for the one that is to go on."""
    for each in FORMATS[1:]:
        estate.say(each.word, each.written)


def refusal(estate_fd: int) -> str | None:
    """Return why this luxfuse cannot go on with what the daemon that runs has, in one line; None if it can."""
    words = _WORDS.unpack(os.pread(estate_fd, _WORDS.size, 0))
    if words[Word.MAGIC] != memory.MAGIC:
        return f"luxfuse {__version__} does not know the memory of the daemon that runs"
    for each in FORMATS:
        found, known = words[each.word], sorted({each.written, *each.also_read})
        if found and found not in known:
            return (
                f"the {each.what} of the daemon that runs has format {found}, luxfuse {__version__} knows "
                f"{' and '.join(map(str, known))}; unmount with the luxfuse that runs, then mount with the other one"
            )
    return None
