from __future__ import annotations

import bisect
import random

import pytest

from luxfuse.core.order import MAX_FILES, Predictor, numbered_successors


class Directory:
    """A directory's names, with one predictor that watches it."""

    def __init__(self, names: list[bytes]) -> None:
        self.names = sorted(names)
        self.present = set(names)
        self.predictor = Predictor()
        self.planned: list[bytes] = []
        self.opened_names: set[bytes] = set()

    def listing(self, after: bytes, count: int) -> list[bytes]:
        at = bisect.bisect_right(self.names, after)
        return self.names[at : at + count]

    def numbered(self, after: bytes, count: int) -> list[bytes]:
        return numbered_successors(after, count, self.present.__contains__)

    def open(self, name: bytes) -> list[bytes]:
        self.opened_names.add(name)
        new = self.predictor.opened(name, self.listing, self.numbered)
        assert len(new) == len(set(new)) <= 2 * MAX_FILES
        self.planned += new
        return new


def names_of(count: int, pattern: str = "img{:05}.jpg") -> list[bytes]:
    return [pattern.format(number).encode() for number in range(count)]


def foreseen(directory: Directory, order: list[bytes]) -> int:
    """Open in ``order``; returns how many names had been planned before they were opened."""
    found = 0
    for name in order:
        found += name in directory.planned
        directory.open(name)
    return found


@pytest.mark.parametrize("pattern", ["img{:05}.jpg", "img{}.jpg", "{:x}-part"])
def test_listing_order_is_foreseen(pattern: str) -> None:
    directory = Directory(names_of(500, pattern))
    assert foreseen(directory, directory.names) >= 490
    if pattern == "img{:05}.jpg":
        assert len(directory.planned) == len(set(directory.planned)), "a name was planned twice in one pass"


@pytest.mark.parametrize("pattern", ["img{}.jpg", "{}", "shard-{}-of-500"])
def test_numeric_order_is_foreseen(pattern: str) -> None:
    order = names_of(500, pattern)
    directory = Directory(order)
    found = foreseen(directory, order)
    assert found >= (490 if pattern != "shard-{}-of-500" else 400)
    assert len(directory.planned) <= 1.6 * len(set(directory.planned))


def test_padding_of_numbers_is_kept() -> None:
    exists = {b"a010.x", b"a9.x", b"a10.x", b"a99", b"a100", b"a099", b"a0100"}
    assert numbered_successors(b"a009.x", 5, exists.__contains__) == [b"a010.x"]
    assert numbered_successors(b"a9.x", 5, exists.__contains__) == [b"a10.x"]
    assert numbered_successors(b"a99", 1, exists.__contains__) == [b"a100"]
    assert numbered_successors(b"a099", 1, exists.__contains__) == [b"a100"]
    assert numbered_successors(b"a099", 1, {b"a0100"}.__contains__) == []


@pytest.mark.parametrize("name", [b"", b"abc", b"a" + b"9" * 19, b"\xff\n", b"."])
def test_names_without_a_usable_number_have_no_successors(name: bytes) -> None:
    assert numbered_successors(name, 3, lambda _: True) == []


def test_successors_end_at_the_first_gap() -> None:
    assert numbered_successors(b"1", 10, {b"2", b"3", b"5"}.__contains__) == [b"2", b"3"]


def test_eight_interleaved_readers_of_one_listing_are_foreseen() -> None:
    """As the workers of a data loader do: reader i opens names i, i + 8, ...; who is next varies."""
    rng = random.Random(3)
    directory = Directory(names_of(2000))
    waiting = [directory.names[reader::8] for reader in range(8)]
    found = 0
    while any(waiting):
        order = [reader for reader in waiting if reader]
        rng.shuffle(order)
        for reader in order:
            name = reader.pop(0)
            found += name in directory.planned
            directory.open(name)
    assert found >= 1900
    assert len(directory.planned) - len(set(directory.planned)) <= 10, "names are planned again and again"


@pytest.mark.parametrize("stagger", [0, 20])
def test_eight_readers_that_drift_apart_are_foreseen(stagger: int) -> None:
    """They begin one after the other, and any of them may be next: so they are at different places."""
    rng = random.Random(stagger)
    directory = Directory(names_of(1600))
    waiting = [directory.names[reader::8] for reader in range(8)]
    planned: set[bytes] = set()
    found = opens = 0
    while any(waiting):
        opens += 1
        begun = [reader for reader in waiting[: opens // (stagger + 1) + 1] if reader]
        name = rng.choice(begun or [reader for reader in waiting if reader]).pop(0)
        found += name in planned
        planned.update(directory.open(name))
    assert found >= (1200 if not stagger else 400)  # a chain of hits that any step back ends foresees 20
    assert len(directory.planned) <= 1.5 * len(set(directory.planned)), "names are planned again and again"


@pytest.mark.parametrize("count", [50, 100, 200, 1000])
def test_a_random_order_in_a_smaller_directory_wastes_little(count: int) -> None:
    planned = 0
    for seed in range(10):
        order = names_of(count)
        directory = Directory(order)
        random.Random(seed).shuffle(order)
        for name in order:
            directory.open(name)
        planned += len(set(directory.planned))
    assert planned <= 10 * (count // 4 if count < 150 else 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", ["img{:05}.jpg", "img{}.jpg"])
def test_a_random_order_wastes_almost_nothing(seed: int, pattern: str) -> None:
    order = names_of(10_000, pattern)
    directory = Directory(order)
    random.Random(seed).shuffle(order)
    foreseen(directory, order)
    assert len(directory.planned) <= 20


def test_a_stray_open_does_not_end_a_believed_order() -> None:
    directory = Directory([*names_of(300), b"README"])
    for name in directory.names[1:20]:
        directory.open(name)
    directory.open(b"README")
    before = len(directory.planned)
    for name in directory.names[20:150]:
        directory.open(name)
    assert len(directory.planned) > before + 100


def test_a_second_pass_is_planned_again() -> None:
    directory = Directory(names_of(200))
    for name in directory.names:
        directory.open(name)
    first = len(directory.planned)
    for name in directory.names:
        directory.open(name)
    assert len(directory.planned) >= 2 * first - 5


def test_memory_stays_bounded() -> None:
    directory = Directory(names_of(20_000))
    for name in directory.names[::2]:  # every second one is passed over
        directory.open(name)
    assert directory.predictor._listing.remembered <= 3 * MAX_FILES


def test_the_last_name_has_no_successor() -> None:
    directory = Directory(names_of(5))
    for name in directory.names:
        directory.open(name)
    assert set(directory.planned) <= set(directory.names)
