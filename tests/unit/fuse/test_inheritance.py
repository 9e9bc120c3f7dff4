"""What a daemon that was killed had counted and not answered is taken back once, also where its successor is killed."""

from __future__ import annotations

import mmap
import struct
from typing import Any

import pytest

from luxfuse.estate.memory import OPENS_AT
from luxfuse.fuse import inheritance

SLOTS_AT = OPENS_AT + 64 * 64
OPENS = 1 << 32
ABOUT, COUNTED = 1, 2


class Killed(Exception):
    """A kill between two writes."""


class Word:
    """As `struct.Struct`, but for a kill after some writes."""

    def __init__(self, writes: int) -> None:
        self._left = writes
        self.size = 8

    def unpack_from(self, memory: mmap.mmap, at: int) -> Any:
        return struct.unpack_from("=Q", memory, at)

    def pack_into(self, memory: mmap.mmap, at: int, value: int) -> None:
        if not self._left:
            raise Killed
        self._left -= 1
        struct.pack_into("=Q", memory, at, value)


@pytest.mark.parametrize("writes", range(12))
@pytest.mark.parametrize("state", [ABOUT, COUNTED])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_a_kill_while_it_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, writes: int, state: int, counted: bool, first: int
) -> None:
    """Two lanes have counted an open of the same inode, of which another one is open; one of them was not answered."""
    memory = mmap.mmap(-1, 1 << 20)
    there = 3 * OPENS if counted or state == COUNTED else 2 * OPENS
    struct.pack_into("=QQQQq24x", memory, OPENS_AT + first * 64, 70, 5, 2 * OPENS, state, OPENS)
    struct.pack_into("=QQQQq24x", memory, OPENS_AT + (1 - first) * 64, 71, 5, OPENS, COUNTED, OPENS)
    struct.pack_into("=QQQq", memory, SLOTS_AT + 5 * 32, 9, there, 1, 1)
    unanswered = frozenset({70, 71})
    monkeypatch.setattr(inheritance, "_WORD", Word(writes))
    for _ in range(12):
        try:
            inheritance._take_back(memory, SLOTS_AT, unanswered)
        except Killed:
            monkeypatch.setattr(inheritance, "_WORD", Word(writes + 1))
            writes += 1
    assert struct.unpack_from("=QQQq", memory, SLOTS_AT + 5 * 32) == (9, OPENS, 1, 1)
