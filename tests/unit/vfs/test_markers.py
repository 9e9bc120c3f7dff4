"""An object that stands for a directory and has content is somebody's data: nothing that is done to directories ends it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.types import ObjectInfo
from luxfuse.vfs.attributes import AttributeChanges
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, mounted

DATA = b"somebody's data"
MODES = pytest.mark.parametrize("mode", ["cache-through", "async-through"])


def content(driver: FakeStore) -> dict[str, bytes]:
    return {key: data for key, (data, *_) in driver.objects.items()}


async def settled(m: Mount) -> None:
    with trio.fail_after(60):
        while len(m.dirty) or m.journal.deletes:
            m.writeback.hurry()
            await trio.sleep(0.005)
    m.clock.advance(100)


@MODES
async def test_rmdir(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    driver.place("d/", DATA)
    driver.place("empty/", b"")
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        with pytest.raises(LuxError, match="itself has 15 bytes") as caught:
            await m.fs.rmdir(1, b"d")
        assert caught.value.errno == errno.ENOTEMPTY
        await m.fs.rmdir(1, b"empty")
        await settled(m)
        assert await m.entries() == {b"d": await m.inode("d")}
    assert content(driver) == {"d/": DATA}


@AWAY
@pytest.mark.parametrize("killed", [False, True])
async def test_rmdir_while_nobody_can_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: list[str], killed: bool
) -> None:
    if not killed:
        expected_logs.append("it is not removed with its directory")
    driver = FakeStore()
    driver.place("d/", b"")
    head, down = driver.head, True

    def broken(key: str) -> ObjectInfo:
        if down:
            raise StoreUnavailable("down")
        return head(key)

    async with mounted(tmp_path, driver, write_mode="async-through", clean_end=not killed) as m:
        await m.entries("d")
        monkeypatch.setattr(driver, "head", broken)
        with m.impatient():
            await m.fs.rmdir(1, b"d")
        driver.place("d/", DATA)
        if not killed:
            down = False
            await settled(m)
            assert b"d" in await m.entries()
    if killed:
        down = False
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            await settled(m)
            assert b"d" in await m.entries()
    assert content(driver) == {"d/": DATA}


@MODES
async def test_attributes_and_the_last_entry(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    driver.place("d/", DATA, {"owner": "somebody"})
    driver.place("d/a", b"a")
    driver.place("e/b", b"b")
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        await m.fs.unlink(await m.inode("d"), b"a")
        await m.fs.unlink(await m.inode("e"), b"b")
        await settled(m)
        assert content(driver) == {"d/": DATA, "e/": b""}
        for path in ("d", "e"):
            await m.fs.setattr(await m.inode(path), AttributeChanges(mode=0o700), None, CALLER)
        await settled(m)
        assert content(driver) == {"d/": DATA, "e/": b""}
        assert driver.objects["d/"][3]["owner"] == "somebody"
        assert {driver.objects[key][3]["mode"] for key in ("d/", "e/")} == {"040700"}


@MODES
async def test_mkdir_over_one_that_was_not_known(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        await m.entries()
        driver.place("d/", DATA)
        await m.fs.mkdir(1, b"d", 0o700, CALLER)
        await settled(m)
        puts = driver.counts["put"]
        await m.fs.mkdir(1, b"new", 0o700, CALLER)
        await settled(m)
        assert driver.counts["put"] == puts + 1
    assert content(driver) == {"d/": DATA, "new/": b""}
    assert driver.objects["d/"][3]["mode"] == "040700"


@MODES
async def test_rename(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    driver.place("d/", DATA)
    driver.place("e/", b"")
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        with pytest.raises(LuxError, match="itself has 15 bytes"):
            await m.fs.rename(1, b"e", 1, b"d", 0)
        await m.fs.rename(1, b"d", 1, b"f", 0)
        await settled(m)
        assert content(driver) == {"f/": DATA, "e/": b""}
        await m.fs.setattr(await m.inode("f"), AttributeChanges(mode=0o700), None, CALLER)
        await settled(m)
    assert content(driver) == {"f/": DATA, "e/": b""}


@AWAY
@pytest.mark.parametrize("marked", [False, True])
async def test_a_marker_that_nobody_could_look_at_keeps_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    """The last entry of a directory leaves in an outage: it gets a marker, or keeps the one that it turns out to have."""
    driver = FakeStore()
    driver.place("d/x", b"x")
    if marked:
        driver.place("d/", b"", {"mode": "040700", "uid": "7"})
    head, down = driver.head, True

    def broken(key: str) -> ObjectInfo:
        if down:
            raise StoreUnavailable("down")
        return head(key)

    async with mounted(tmp_path, driver, write_mode="async-through", attributes="listing") as m:
        await m.entries()
        monkeypatch.setattr(driver, "head", broken)
        await m.entries("d")
        with m.impatient():
            await m.fs.unlink(await m.inode("d"), b"x")
            assert await m.entries("d") == {}
        down = False
        await settled(m)
        assert await m.entries("d") == {}
    assert driver.objects["d/"][3] == ({"mode": "040700", "uid": "7"} if marked else {})
    assert list(driver.objects) == ["d/"]
