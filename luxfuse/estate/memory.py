"""The estate of a daemon: memory that outlives it, in which its successor finds what no disk has.

It lies in a file without a name (memfd) that the keeper holds open. The daemon writes while it serves; when it was killed,
the next one reads. It is not for power cuts: what must outlive the machine is in the journal.

Layout, in bytes, of `FORMAT`: a header of words (`Word`), 8 bytes each, in the order of the machine; from `OPENS_AT` on the
opens of registered inodes, which the C extension counts (`fuse/lane/estate.c`, `opens`); from `FACTS_AT` on the two halves
of `facts`; from `TRAIL_AT` on `trail`. The file is sparse: memory is taken for what was written, and given back.

A kill can come between any two instructions. So what a word stands for is complete before the word is stored, and a word
is stored by one instruction.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import time
from enum import IntEnum

from luxfuse.errors import MountError
from luxfuse.estate.facts import Facts
from luxfuse.estate.trail import Trail
from luxfuse.estate.words import Word, Words

FORMAT = 1
"""Another one only where older ones could not go on with it: an upgrade that fails goes back to the luxfuse of before."""
MAGIC = 0x4C55584553544154
OPENS_AT = 4096
SLOTS = 1 << 17
"""Inodes that are registered at once at most, of all volumes; as in lane.h."""
FACTS_AT = 8 << 20
FACTS_HALF_BYTES = 64 << 20
TRAIL_AT = FACTS_AT + 2 * FACTS_HALF_BYTES
TRAIL_BYTES = 128 << 20
SIZE_BYTES = TRAIL_AT + TRAIL_BYTES
_OTHER = "the daemon before this one was of a luxfuse with another format; unmount and mount again"
_FALLOC_PUNCH_HOLE, _FALLOC_KEEP_SIZE = 2, 1


class State(IntEnum):
    """What has become of the mount."""

    NEW = 0
    SERVING = 1
    ENDED = 2


class Estate:
    """The estate in the file ``fd``, which the caller keeps open. Raises `MountError` for one of another version."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        size = os.fstat(fd).st_size
        if size == 0:
            os.ftruncate(fd, SIZE_BYTES)
        elif size != SIZE_BYTES:
            raise MountError(_OTHER)
        self.memory = mmap.mmap(fd, SIZE_BYTES)
        self._words = words = Words(self.memory)
        if words[Word.MAGIC] == 0:
            words[Word.IDENTITY] = secrets.randbits(63) | 1
            words[Word.FORMAT] = FORMAT
            words[Word.MAGIC] = MAGIC
        elif words[Word.MAGIC] != MAGIC or words[Word.FORMAT] != FORMAT:
            raise MountError(_OTHER)
        self.inherited = words[Word.STATE] == State.SERVING
        """Whether an earlier daemon served the mount, and this one is its successor."""
        if self.inherited and not words[Word.HANDED_OVER]:
            words[Word.RESTARTS] += 1
        words[Word.HANDED_OVER] = 0
        self.restarts = words[Word.RESTARTS]
        """How many daemons have died."""
        self.identity = words[Word.IDENTITY]
        self.facts = Facts(self.memory, words, FACTS_AT, FACTS_HALF_BYTES, self._give_back)
        self.trail = Trail(self.memory, words, TRAIL_AT, TRAIL_BYTES, self._give_back)

    @property
    def exact(self) -> bool:
        """Whether nothing was left out for want of room."""
        return not self._words[Word.FACTS_LOST] and not self._words[Word.TRAIL_LOST]

    @property
    def serves(self) -> bool:
        """Whether a daemon has served the mount, which is not gone: if this one dies, a successor goes on."""
        return bool(self._words[Word.STATE] == State.SERVING)

    def serve(self) -> None:
        """Programs use the mount from now on: if this daemon dies, a successor goes on."""
        self._words[Word.SERVING_SINCE] = time.monotonic_ns() // 1_000_000
        self._words[Word.STATE] = State.SERVING

    def say(self, word: Word, value: int) -> None:
        """Say something of this daemon, in a word of the header."""
        self._words[word] = value

    def hand_over(self) -> None:
        """This daemon is about to leave for another one, and does not die."""
        self._words[Word.HANDED_OVER] = 1

    def end(self) -> None:
        """The mount is gone, and nobody is to go on."""
        self._words[Word.STATE] = State.ENDED

    def _give_back(self, start: int, end: int) -> None:
        """Give the memory of a range back, whose content nobody needs; whole pages only."""
        start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.fallocate(
                self.fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(end - start)
            )
