"""What a volume finds of one before it, and what a new one of the same number does not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from luxfuse.daemon.succession import Succession
from luxfuse.estate.memory import Estate
from luxfuse.estate.trail import volume_of
from luxfuse.fuse.inheritance import Inheritance


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("estate")
    yield made
    os.close(made)


def succession(fd: int) -> Succession:
    return Succession(-1, Estate(fd), Inheritance(), 1)


def opened(found: Succession, number: int) -> None:
    volume = found.of_volume(number)
    volume.slots.keep("/cache", {"/cache": f"s.{number}"})
    for stream in (volume.index, volume.journal):
        assert stream is not None
        stream.append(b"not committed")


def left(found: Succession, number: int, *, fresh: bool = False) -> tuple[object, ...]:
    volume = found.of_volume(number, fresh=fresh)
    assert volume.index is not None
    assert volume.journal is not None
    records = [payload for stream in (volume.index, volume.journal) for _, payload in stream.left()]
    continued = {volume.index.continued, volume.journal.continued}
    return volume.slots.of("/cache"), records, continued, volume.inherited is not None


def test_a_volume_finds_what_the_one_before_it_left_and_one_that_is_new_finds_nothing(fd: int) -> None:
    first = succession(fd)
    for number in (0, 1, 2):
        opened(first, number)
    second = succession(fd)
    assert left(second, 1) == ("s.1", [b"not committed"] * 2, {True}, True)
    assert left(second, 1, fresh=True) == (None, [], {False}, False)
    again = second.of_volume(1, fresh=True)
    again.slots.keep("/cache", {"/cache": "t"})
    assert again.journal is not None
    again.journal.append(b"of the new one")
    assert left(succession(fd), 1) == ("t", [b"of the new one"], {True}, True), "volume 0 still has what lies before it"
    assert left(succession(fd), 2) == ("s.2", [b"not committed"] * 2, {True}, True)


def test_what_an_older_luxfuse_has_left_is_taken_up(fd: int) -> None:
    """It kept no slots."""
    first = succession(fd)
    opened(first, 1)
    first.of_volume(1).slots.drop()
    assert left(succession(fd), 1) == (None, [b"not committed"] * 2, {False}, True)


def test_what_nobody_goes_on_with_is_not_kept_for_ever(fd: int) -> None:
    first = succession(fd)
    for number in (0, 1, 2):
        opened(first, number)
    second = succession(fd)
    second.forget_other_volumes({2})
    assert {volume_of(stream) for stream in second.estate.trail.streams} == {0, 2}
    assert [second.of_volume(number).slots.known for number in (0, 1, 2)] == [True, False, True]


def test_a_number_is_known_to_be_used_before_it_is_on_record(fd: int) -> None:
    first = succession(fd)
    assert first.last_number == 0
    for number in (7, 255, 1):
        first.keep_last_number(number)
        assert succession(fd).last_number == number
