"""The directory of recovered files."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from luxfuse.cache import recovered as module
from luxfuse.cache.recovered import Recovered
from luxfuse.errors import StoreRejected
from luxfuse.understore.retrying import Store
from tests.support.fake_store import FakeStore

DATA = bytes(range(200))


def test_files_whose_names_begin_with_a_dot_are_counted(tmp_path: Path) -> None:
    recovered = Recovered(tmp_path / "recovered")
    kept = [recovered.keep_bytes(b"content", key) for key in (".profile", "d/.profile", "plain")]
    assert recovered.count() == 3
    assert all(path.read_bytes() == b"content" for path in kept)


def store_of(driver: FakeStore) -> Store:
    return Store(driver, request_timeout_s=30, max_requests=4, rng=random.Random(0))


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPY_BYTES", 64)


async def test_an_object_is_on_the_disk_before_it_is_said_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pieces: None
) -> None:
    """It may be the only copy: its source is removed next."""
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    driver, recovered = FakeStore(), Recovered(tmp_path / "state" / "recovered")
    info = driver.place("a", DATA)
    kept = await recovered.save_object(store_of(driver), info)
    assert kept.read_bytes() == DATA
    names = [name for name, _ in synced]
    part = str(kept.with_name(f".{kept.name}.part"))
    assert names == [str(tmp_path / "state"), part, str(kept.parent)]
    assert synced[1] == (part, len(DATA))


@pytest.mark.parametrize("where", ["read", "fsync", "sync_directory"])
async def test_an_object_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pieces: None, where: str
) -> None:
    driver, recovered = FakeStore(), Recovered(tmp_path)

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    info = driver.place("a", DATA)
    if where == "read":
        driver.fail_next(error=lambda: StoreRejected("no"), kind="get")
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(module, "sync_directory", fail)
    with pytest.raises((StoreRejected, OSError)):
        await recovered.save_object(store_of(driver), info)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_daemon_had_begun_to_save_goes_and_what_another_one_saves_stays(tmp_path: Path) -> None:
    for name in (".a.1.part", ".b.1.part", "c.1"):
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / ".b.1.part").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        Recovered(tmp_path).remove_unfinished()
    assert {path.name for path in tmp_path.iterdir()} == {".b.1.part", "c.1"}
    Recovered(tmp_path / "none").remove_unfinished()
