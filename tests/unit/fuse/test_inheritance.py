"""What a daemon that was killed had counted and not answered is taken back once, also where its successor is killed."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from luxfuse.estate.memory import OPENS_AT, Estate
from luxfuse.estate.words import Word as HeaderWord
from luxfuse.fuse import inheritance

SLOTS_AT = OPENS_AT + 64 * 64
USED = 10
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
            inheritance._take_back(memory, USED, unanswered)
        except Killed:
            monkeypatch.setattr(inheritance, "_WORD", Word(writes + 1))
            writes += 1
    assert struct.unpack_from("=QQQq", memory, SLOTS_AT + 5 * 32) == (9, OPENS, 1, 1)


@pytest.fixture
def estate() -> Iterator[Estate]:
    fd = os.memfd_create("estate")
    yield Estate(fd)
    os.close(fd)


def operation(estate: Estate, number: int, *, slot: int, by: int, inode: int, unique: int = 70) -> None:
    """A request was counted, and not answered; ``inode`` 0: its daemon did not say."""
    struct.pack_into("=QQQQqQ16x", estate.memory, OPENS_AT + number * 64, unique, slot, 0, COUNTED, by, inode)


def put_slots(estate: Estate, *slots: tuple[int, int, int]) -> None:
    """Slots with (inode, opens, backing id)."""
    for number, (inode, opens, backing_id) in enumerate(slots):
        struct.pack_into("=QQQq", estate.memory, SLOTS_AT + number * 32, inode, opens * OPENS, 1, backing_id)
    estate.say(HeaderWord.SLOTS_USED, len(slots))


def found(estate: Estate) -> tuple[dict[int, tuple[int, int]], list[int]]:
    """Return (slot, opens) by inode, and the numbers of the slots that are passed over."""
    slots, passed_over = inheritance._slots(estate, frozenset({70, 71}))
    return {inode: (slot.number, slot.opens) for inode, slot in slots.items()}, [slot.number for slot in passed_over]


@pytest.mark.parametrize("drained", [0, 1])
def test_of_two_slots_the_one_with_opens_is_taken_over(estate: Estate, drained: int) -> None:
    """An inode was registered again before the slot was given back that its opens had before."""
    put_slots(estate, *((9, 2 * (number != drained), 5 + number) for number in (0, 1)), (8, 1, 7))
    assert found(estate) == ({9: (1 - drained, 2), 8: (2, 1)}, [drained])


def test_of_two_slots_without_opens_one_is_passed_over(estate: Estate) -> None:
    put_slots(estate, (9, 0, 5), (9, 0, 6))
    assert found(estate) == ({9: (0, 0)}, [1])


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("drained", [0, 1])
def test_the_end_of_an_open_is_taken_back_where_the_inode_has_its_opens(estate: Estate, drained: int, noted: bool) -> None:
    """It was the last one in the slot of before."""
    put_slots(estate, *((9, 2 * (number != drained), 5 + number) for number in (0, 1)))
    operation(estate, 3, slot=drained, by=-OPENS, inode=9 if noted else 0)
    assert found(estate) == ({9: (1 - drained, 3)}, [drained])


def test_the_end_of_the_last_open_is_taken_back_in_its_own_slot(estate: Estate) -> None:
    put_slots(estate, (9, 0, 5), (9, 0, 6))
    operation(estate, 0, slot=1, by=-OPENS, inode=9)
    assert found(estate) == ({9: (1, 1)}, [0])


@pytest.mark.parametrize("now", [0, 8])
def test_a_slot_that_is_another_inodes_by_now_gets_no_open_of_before(estate: Estate, now: int) -> None:
    put_slots(estate, (now, 1 if now else 0, 5), (7, 1, 6))
    operation(estate, 0, slot=0, by=-OPENS, inode=9)
    assert found(estate) == ({number: (slot, 1) for number, slot in ((now, 0), (7, 1)) if number}, [])
    assert struct.unpack_from("=QQ", estate.memory, SLOTS_AT) == (now, OPENS if now else 0)


@pytest.mark.parametrize("writes", range(6))
def test_a_kill_while_it_is_taken_back_elsewhere(monkeypatch: pytest.MonkeyPatch, estate: Estate, writes: int) -> None:
    put_slots(estate, (9, 0, 5), (9, 1, 6))
    operation(estate, 0, slot=0, by=-OPENS, inode=9)
    operation(estate, 1, slot=0, by=-OPENS, inode=9, unique=71)
    monkeypatch.setattr(inheritance, "_WORD", Word(writes))
    for _ in range(8):
        try:
            found(estate)
        except Killed:
            writes += 1
            monkeypatch.setattr(inheritance, "_WORD", Word(writes))
    assert found(estate) == ({9: (1, 3)}, [0])
