"""What we wrote ourselves is never taken for somebody else's, though the answer got lost; nor the other way round."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import AttributeChanges
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, mounted, until

MODES = pytest.mark.parametrize("mode", ["cache-through", "async-through"])


async def chmod(m: Mount, path: str, mode: int) -> int:
    """Change a mode as the kernel does: an answer of ESTALE is followed by one more look-up."""
    for attempt in range(2):
        m.clock.advance(0.001)
        try:
            return (await m.fs.setattr(await m.inode(path), AttributeChanges(mode=mode), None, CALLER)).mode & 0o7777
        except LuxError as exc:
            if exc.errno != 116 or attempt:
                raise
    raise AssertionError


async def settled(m: Mount) -> None:
    m.writeback.hurry()
    with trio.fail_after(60):
        while len(m.dirty):
            m.writeback.hurry()
            await trio.sleep(0.005)
    m.clock.advance(0.001)


@MODES
async def test_a_copy_whose_answer_got_lost(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    driver.place("a", b"content", {"owner": "somebody"})
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        inode = await m.inode("a")
        handle = await m.open("a")
        driver.lose_answer_next("copy", 2)
        assert await chmod(m, "a", 0o600) == 0o600
        await settled(m)
        assert await m.inode("a") == inode
        assert await m.kernel.read_all(m.fs, handle) == b"content"
        await m.kernel.release(m.fs, handle)
        assert await m.read_all("a") == b"content"
        assert driver.reads["a", (0, 7)] == 1
        metadata = driver.objects["a"][3]
        assert (metadata["mode"], metadata["owner"]) == ("0100600", "somebody")
        assert m.writeback.pace.failures == 0


@AWAY
@pytest.mark.expected_logs("cannot be brought to the under-store yet")
async def test_a_copy_that_failed_and_other_attributes_after_it(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("a", b"content")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        assert await m.read_all("a") == b"content"
        driver.lose_answer_next("copy")
        driver.fail_next(100, kind="head")
        with m.impatient():
            await chmod(m, "a", 0o600)
            await until(lambda: m.writeback.pace.failures > 0)
        await chmod(m, "a", 0o640)
        driver._failures.clear()
        await settled(m)
        assert driver.objects["a"][3]["mode"] == "0100640"
        assert (await m.fs.getattr(await m.inode("a"))).mode & 0o777 == 0o640
        assert await m.read_all("a") == b"content"
        assert driver.reads["a", (0, 7)] == 1


@MODES
@pytest.mark.parametrize("new", [b"longer content", b"CONTENT", None])
async def test_attributes_of_what_was_replaced(tmp_path: Path, mode: str, new: bytes | None) -> None:
    driver = FakeStore()
    driver.place("a", b"content")
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        assert await m.read_all("a") == b"content"
        inode = await m.inode("a")
        if new is None:
            driver.remove("a")
        else:
            driver.place("a", new, {"mtime": "1600000000.5"})
        if new is None:
            if mode == "cache-through":
                with pytest.raises(LuxError, match="does not exist"):
                    await chmod(m, "a", 0o600)
            else:
                await chmod(m, "a", 0o600)
            await settled(m)
            with pytest.raises(LuxError, match="does not exist"):
                await m.inode("a")
            assert driver.objects == {}
            return
        await chmod(m, "a", 0o600)
        await settled(m)
        assert await m.read_all("a") == new
        assert await m.inode("a") != inode
        stat = await m.fs.getattr(await m.inode("a"))
        assert (stat.size, stat.mtime_ns) == (len(new), 1_600_000_000_500_000_000)
        if mode == "cache-through":
            assert stat.mode & 0o777 == 0o600


@AWAY
@pytest.mark.expected_logs("cannot be brought to the under-store yet")
async def test_content_whose_answer_got_lost_and_that_changed_since(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        handle, _ = await m.kernel.create(m.fs, 1, b"a", 0o644)
        await m.kernel.write(m.fs, handle, 0, b"first")
        driver.fail_next(100, kind="head")
        driver.lose_answer_next("put")
        with m.impatient():
            await m.kernel.flush(m.fs, handle)
            m.writeback.hurry()
            await until(lambda: m.writeback.pace.failures > 0)
        assert driver.objects["a"][0] == b"first"
        await m.kernel.write(m.fs, handle, 0, b"second")
        driver._failures.clear()
        await m.kernel.flush(m.fs, handle)
        await m.kernel.release(m.fs, handle)
        await settled(m)
        assert driver.objects["a"][0] == b"second"
        assert m.writing.pusher.conflicts == 0


@pytest.mark.parametrize("reading", [False, True])
async def test_what_the_store_has_is_closed_though_the_cache_cannot_keep_it(tmp_path: Path, reading: bool) -> None:
    """The cache disk is full, or sick: that is no error of a file that is in the store."""

    def full(_number: int, _oid: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="cache-through") as m:
        m.staging.publish = full  # type: ignore[method-assign, assignment]
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a")
        await m.kernel.write(m.fs, handle, 0, b"content")
        reader = await m.kernel.open(m.fs, await m.inode("a"), os.O_RDONLY) if reading else None
        await m.kernel.close(m.fs, handle)
        assert driver.objects["a"][0] == b"content"
        if reader is not None:
            await m.kernel.close(m.fs, reader)
        assert await m.read_all("a") == b"content"
        await until(lambda: not len(m.dirty))
        assert await m.read_all("a") == b"content"
