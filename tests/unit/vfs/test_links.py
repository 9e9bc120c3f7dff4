"""Hard links: refused, or copies that are independent from then on."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import AttributeChanges, Stat
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, Mount, mounted, pages, random_bytes

MODES = pytest.mark.parametrize("mode", ["cache-through", "through", "async-through", "must-cache"])
UNCHANGED: dict[str, Any] = dict.fromkeys(("mode", "uid", "gid", "size", "atime_ns", "mtime_ns"))


async def link(m: Mount, old: str, new: str) -> Stat:
    above, _, name = new.rpartition("/")
    parent = await m.inode(above) if above else ROOT_INODE
    return await m.fs.link(await m.inode(old), parent, name.encode(), CALLER)


async def write(m: Mount, name: str, data: bytes) -> None:
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode(), 0o640)
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.close(m.fs, handle)


@MODES
async def test_a_copy_is_another_file_with_the_same_attributes(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    driver.place("d/old", b"from the store", {"mode": "0100600", "uid": "7", "mtime": "1000000000"})
    async with mounted(tmp_path, driver, write_mode=mode, hardlinks="copy") as m:
        await write(m, "new", b"from here")
        changes = AttributeChanges(**{**UNCHANGED, "mode": 0o4711, "uid": 5, "mtime_ns": 2 * 10**18 // 10**9 * 10**9})
        await m.fs.setattr(await m.inode("new"), changes, None, CALLER)
        await m.fs.xattrs.set(await m.inode("new"), b"user.colour", b"blue")
        for old, new, data in (("d/old", "d/copy", b"from the store"), ("new", "d/new", b"from here")):
            made = await link(m, old, new)
            before = await m.fs.getattr(await m.inode(old))
            after = await m.fs.lookup(await m.inode("d"), new.encode()[2:])
            assert after.inode == made.inode != before.inode
            assert after.nlink == 1
            assert (after.mode, after.uid, after.gid, after.size) == (before.mode, before.uid, before.gid, before.size)
            assert after.mtime_ns == before.mtime_ns
            assert await m.read_all(new) == data
        assert await m.fs.xattrs.get(await m.inode("d/new"), b"user.colour") == b"blue"
        handle = await m.kernel.open(m.fs, await m.inode("d/new"), os.O_RDWR)
        await m.kernel.write(m.fs, handle, 0, b"FROM")
        await m.kernel.close(m.fs, handle)
        assert (await m.read_all("new"), await m.read_all("d/new")) == (b"from here", b"FROM here")
        await m.drain()
        stored = {key: value[0] for key, value in driver.objects.items() if not key.endswith("/")}
        here = {"new": b"from here", "d/new": b"FROM here", "d/copy": b"from the store"}
        assert stored == {"d/old": b"from the store", **({} if mode == "must-cache" else here)}
        if mode in ("cache-through", "async-through"):  # what the store has does not come here for that
            assert driver.objects["d/copy"][3]["uid"] == "7"
            assert sum(driver.reads.values()) <= 2


@MODES
async def test_a_file_that_is_being_written(tmp_path: Path, mode: str) -> None:
    """What has been written until then is in the copy, also of a large file that is here in part."""
    driver, data = FakeStore(), random_bytes(pages(5), 1)
    driver.place("large", data)
    async with mounted(tmp_path, driver, write_mode=mode, whole_file_bytes=pages(1), hardlinks="copy") as m:
        handle = await m.kernel.open(m.fs, await m.inode("large"), os.O_RDWR)
        await m.kernel.write(m.fs, handle, pages(2), b"changed")
        await link(m, "large", "copy")
        await m.kernel.write(m.fs, handle, 0, b"later")
        expected = data[: pages(2)] + b"changed" + data[pages(2) + 7 :]
        assert await m.read_all("copy") == expected
        await m.kernel.close(m.fs, handle)
        assert await m.read_all("large") == b"later" + expected[5:]
        await m.drain()
        if mode != "must-cache":
            assert (driver.objects["copy"][0], driver.objects["large"][0]) == (expected, b"later" + expected[5:])
        assert len(m.dirty) == (2 if mode == "must-cache" else 0)


@MODES
async def test_what_has_a_name_stays(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    driver.place("a", b"one")
    driver.place("b", b"two")
    async with mounted(tmp_path, driver, write_mode=mode, hardlinks="copy") as m:
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
        await write(m, "new", b"three")
        for old in ("a", "new"):
            for name in ("b", "d", old):
                with pytest.raises(LuxError) as caught:
                    await link(m, old, name)
                assert caught.value.errno == 17
        with pytest.raises(LuxError) as caught:
            await link(m, "d", "e")
        assert caught.value.errno == 1
        assert await m.read_all("b") == b"two"
        await m.fs.unlink(ROOT_INODE, b"b")
        await link(m, "a", "b")  # at once, while the delete may be under way
        assert await m.read_all("b") == b"one"
        await m.drain()
        assert await m.read_all("b") == b"one"
        assert mode == "must-cache" or driver.objects["b"][0] == b"one"  # else the delete may have been made


@MODES
async def test_other_kinds(tmp_path: Path, mode: str) -> None:
    async with mounted(tmp_path, FakeStore(), write_mode=mode, hardlinks="copy") as m:
        await m.fs.symlink(ROOT_INODE, b"s", b"target", CALLER)
        await m.fs.mknod(ROOT_INODE, b"p", stat.S_IFIFO | 0o640, 0, CALLER)
        await m.fs.mknod(ROOT_INODE, b"c", stat.S_IFCHR | 0o600, os.makedev(1, 3), CALLER)
        assert await m.fs.readlink((await link(m, "s", "s2")).inode) == b"target"
        assert (await link(m, "p", "p2")).mode == stat.S_IFIFO | 0o640
        made = await link(m, "c", "c2")
        assert (made.mode, made.rdev) == (stat.S_IFCHR | 0o600, os.makedev(1, 3))


@AWAY
@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_a_store_that_fails(tmp_path: Path, mode: str) -> None:
    """No name is left of a link that failed; what is not in the store yet does not need it."""
    driver = FakeStore()
    driver.place("a", b"one")
    async with mounted(tmp_path, driver, write_mode=mode, hardlinks="copy") as m:
        assert await m.read_all("a") == b"one"
        driver.fail_next(100, kind="copy")
        with m.impatient(), pytest.raises(LuxError) as caught:
            await link(m, "a", "b")
        assert caught.value.errno == 5
        assert "b" not in driver.objects
        driver._failures.clear()
        assert (await link(m, "a", "b")).size == 3


async def test_refused_by_default_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = FakeStore()
    driver.place("a", b"one")
    caplog.set_level(logging.INFO)
    async with mounted(tmp_path, driver) as m:
        for _ in range(3):
            with pytest.raises(LuxError) as caught:
                await link(m, "a", "b")
            assert caught.value.errno == 1
        assert sum("hardlinks" in record.getMessage() for record in caplog.records) == 1
        assert list(driver.objects) == ["a"]
