"""Names that are changed while a directory above them is being renamed: they change where that is then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.moves.operations import EXCHANGE
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted

Change = Callable[[Mount, int], Awaitable[object]]
"""Takes the inode of the directory that is renamed."""
BEFORE = {"d/a": b"a", "d/b": b"b", "f": b"f"}


async def into(m: Mount, d: int) -> None:
    await m.fs.rename(ROOT_INODE, b"f", d, b"g", 0)


async def out(m: Mount, d: int) -> None:
    await m.fs.rename(d, b"a", ROOT_INODE, b"x", 0)


async def removed(m: Mount, d: int) -> None:
    await m.fs.unlink(d, b"a")


async def linked(m: Mount, d: int) -> None:
    await m.fs.link(await m.inode("f"), d, b"g", CALLER)


async def exchanged(m: Mount, d: int) -> None:
    await m.fs.rename(d, b"a", d, b"b", EXCHANGE)


AFTER: dict[Change, dict[str, bytes]] = {
    into: {"e/a": b"a", "e/b": b"b", "e/g": b"f"},
    out: {"x": b"a", "e/b": b"b", "f": b"f"},
    removed: {"e/b": b"b", "f": b"f"},
    linked: {"e/a": b"a", "e/b": b"b", "f": b"f", "e/g": b"f"},
    exchanged: {"e/a": b"b", "e/b": b"a", "f": b"f"},
}


async def shown(m: Mount, path: str = "") -> dict[str, bytes]:
    found = {}
    for name in await m.entries(path):
        below = f"{path}/{name.decode()}".lstrip("/")
        found |= await shown(m, below) if below in ("d", "e") else {below: await m.read_all(below)}
    return found


@pytest.mark.parametrize("first", [True, False], ids=["the directory first", "the directory second"])
@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
@pytest.mark.parametrize("change", [pytest.param(change, id=change.__name__) for change in AFTER])
async def test_a_name_is_changed_where_its_directory_is(tmp_path: Path, change: Change, mode: str, first: bool) -> None:
    driver = FakeStore()
    for key, data in BEFORE.items():
        driver.place(key, data)
    async with mounted(tmp_path, driver, write_mode=mode, hardlinks="copy") as m:
        await shown(m)
        d = await m.inode("d")

        async def moved() -> None:
            await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)

        async def changed() -> None:
            await change(m, d)

        driver.hold("copy", "delete")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for each in (moved, changed) if first else (changed, moved):
                    nursery.start_soon(each)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                driver.release()
        await m.drain()
        for _ in range(2):
            assert await shown(m) == AFTER[change]
            m.clock.advance(1000)
        assert {key: data for key, (data, *_) in driver.objects.items() if not key.endswith("/")} == AFTER[change]


async def test_a_file_that_is_going_up_is_renamed_to_where_the_directory_is(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("d/a", b"a")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await shown(m)
        d = await m.inode("d")
        driver.hold("put")
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"f", 0o644)
        await m.kernel.write(m.fs, handle, 0, b"f")
        await m.kernel.close(m.fs, handle)
        (dirty,) = m.dirty
        with trio.fail_after(60):
            while not dirty.lock.locked():
                m.writeback.hurry()
                await trio.sleep(0.01)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.fs.rename, ROOT_INODE, b"f", d, b"g", 0)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)
                driver.release()
        await m.drain()
        m.clock.advance(1000)
        assert await shown(m) == {"e/a": b"a", "e/g": b"f"}
    assert sorted(key for key in driver.objects if not key.endswith("/")) == ["e/a", "e/g"]
