"""A daemon takes any slot that is free, and a successor just those that its predecessor had."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse import lasting
from luxfuse.config import Settings
from luxfuse.configuration.building import build
from luxfuse.errors import MountError
from luxfuse.estate.memory import Estate
from luxfuse.index import journal_copy
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.slots import Slots
from luxfuse.volume.claiming import claimed


@pytest.fixture
def estate() -> Iterator[Estate]:
    fd = os.memfd_create("estate")
    yield Estate(fd)
    os.close(fd)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    lasting.give_back_the_rest()


def test_a_successor_finds_what_was_kept(estate: Estate) -> None:
    slots = Slots(estate.facts, 3)
    assert (slots.known, slots.home, slots.of("/fast"), slots.begin_anew()) == (False, None, None, 0)
    slots.add("/no", "s")
    slots.remove("/no")
    assert not Slots(estate.facts, 3).known, "it is not open yet"
    slots.keep("/slow", {"/slow": "s.1", "/fast": "s"})
    slots.add("/more", "s.2")
    slots.remove("/fast")
    next_one = Slots(estate.facts, 3)
    assert (next_one.known, next_one.home) == (True, "/slow")
    assert [next_one.of(path) for path in ("/slow", "/fast", "/more")] == ["s.1", None, "s.2"]
    assert [next_one.begin_anew(), Slots(estate.facts, 3).begin_anew()] == [1, 2]
    next_one = Slots(estate.facts, 3)
    next_one.keep("/slow", {"/slow": "s.1"})
    assert Slots(estate.facts, 3).begin_anew() == 3, "no number comes again"
    assert not Slots(estate.facts, 4).known
    next_one.drop()
    assert not Slots(estate.facts, 3).known


def test_without_a_successor_nothing_is_kept() -> None:
    slots = Slots()
    slots.keep("/slow", {"/slow": "s"})
    slots.drop()
    assert (slots.known, slots.begin_anew()) == (False, 0)


def test_one_that_was_set_aside_comes_before_one_that_is_free(tmp_path: Path) -> None:
    one, two = CacheDirectory(tmp_path, "s"), CacheDirectory(tmp_path, "s")
    two.set_aside()
    one.close()
    again = CacheDirectory(tmp_path, "s")
    assert again.slot == two.slot == "s.1"
    again.close()


def test_a_successor_takes_its_slot_or_none(tmp_path: Path) -> None:
    for _ in range(2):
        mine = CacheDirectory(tmp_path, "s", "s.1")
        assert mine.slot == "s.1"
        mine.close()
    other = CacheDirectory(tmp_path, "s", "s.1")
    with pytest.raises(MountError, match=r"s\.1: another mount has taken it"):
        CacheDirectory(tmp_path, "s", "s.1")
    other.close()


def test_a_lock_that_was_given_back_before_it_is_inherited_is_another_ones(tmp_path: Path) -> None:
    """The keeper was dead as that happened, and systemd had the descriptor."""
    path = tmp_path / "lock"
    for other_takes_it in (False, True):
        fd, other = os.open(path, os.O_RDWR | os.O_CREAT), os.open(path, os.O_RDWR)
        lasting.inherit([f"{fd}={path}"])
        if other_takes_it:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = lasting.lock(path)
        assert taken == (None if other_takes_it else fd)
        if taken is not None:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lasting.unlock(path, taken)
        os.close(other)


async def test_home_stays_home(tmp_path: Path, estate: Estate) -> None:
    """Though a directory that comes first in the settings by now was home in an earlier run."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    flags = {"source": "s3://bucket", "mountpoint": "/mnt", "state_dir": str(tmp_path / "state")}
    settings = build({**flags, "cache_dir": [one, two]}, environ={})
    CacheDirectory(Path(one), settings.source_id).close()
    (Path(one, settings.source_id) / journal_copy.FILE_NAME).touch()
    async with claimed(settings, Slots()) as caches:
        assert [directory.name for _, directory in caches] == [one, two]
    slots = Slots(estate.facts)
    slots.keep(two, {two: settings.source_id})
    for _ in range(2):
        assert await homes_of_one_that_fails(settings, Slots(estate.facts)) == [two, one]
    assert Slots(estate.facts).home == two, "the next one goes on with it"
    lasting.give_back_the_rest()
    with pytest.raises(MountError, match="was home"):
        async with claimed(build({**flags, "cache_dir": [one]}, environ={}), Slots(estate.facts)):
            pass
    async with claimed(settings, Slots(estate.facts)):
        pass
    assert not Slots(estate.facts).known, "the volume has ended"


async def homes_of_one_that_fails(settings: Settings, slots: Slots) -> list[str]:
    found = []
    with contextlib.suppress(ZeroDivisionError):
        async with claimed(settings, slots) as caches:
            found = [directory.name for _, directory in caches]
            raise ZeroDivisionError
    return found
