"""Several under-stores in one tree."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luxfuse.errors import LuxError
from luxfuse.fuse.lowlevel import passthrough, pyfuse3
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.shares import VOLUME_SHIFT
from luxfuse.vfs.volumes import Volume
from tests.support.fake_store import FakeStore
from tests.support.several import CONTEXT, Tree, two_volumes

FUSEError = pyfuse3.FUSEError

ROOT_OF_ONE = (1 << VOLUME_SHIFT) | ROOT_INODE
FIELDS = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
MODE_0600: Any = (SimpleNamespace(st_mode=0o600), SimpleNamespace(**{f"update_{name}": name == "mode" for name in FIELDS}))


def store_of(*keys: str) -> FakeStore:
    driver = FakeStore()
    for key in keys:
        driver.place(key, f"{key}!".encode())
    return driver


def code(info: pytest.ExceptionInfo[LuxError] | pytest.ExceptionInfo[FUSEError]) -> int:
    return info.value.errno


async def test_the_attached_root_hides_what_the_outer_store_has_there(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/m/old", "d/z"), store_of("x", "s/y"), "d/m") as (tree, volume, _, _):
        assert await tree.inode("d/m") == ROOT_OF_ONE
        assert await tree.read("d/m/x") == b"x!"
        assert await tree.read("d/m/s/y") == b"s/y!"
        assert await tree.read("d/z") == b"d/z!"
        with pytest.raises(LuxError) as info:
            await tree.inode("d/m/old")
        assert code(info) == errno.ENOENT
        tree.volumes.detach(volume)
        assert await tree.read("d/m/old") == b"d/m/old!"
        with pytest.raises(FUSEError) as info:
            await tree.operations.getattr(ROOT_OF_ONE)
        assert code(info) == errno.ESTALE


async def test_the_kernel_is_told_of_the_name_and_reads_the_listing_anew(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a"), store_of("x"), "d/m") as (tree, volume, _, _):
        directory = await tree.inode("d")
        assert (directory, b"m") in tree.kernel.invalidated
        assert not (await tree.opendir(directory))[1]
        assert (await tree.opendir(directory))[1], "the kernel may keep a listing that did not change"
        tree.kernel.invalidated.clear()
        tree.volumes.detach(volume)
        assert (directory, b"m") in tree.kernel.invalidated
        assert not (await tree.opendir(directory))[1]


@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
@pytest.mark.parametrize("name", ["0", "b", "bb", "z"])
async def test_listings_show_each_name_once_and_in_order(tmp_path: Path, batch: int, name: str) -> None:
    async with two_volumes(tmp_path, store_of("d/a", "d/b", "d/c"), store_of("x"), f"d/{name}") as (tree, *_):
        listed = await tree.listing("d", batch)
        names = [each for each, _ in listed]
        assert names == [b".", b"..", *sorted({b"a", b"b", b"c", name.encode()})]
        assert dict(listed)[name.encode()] == ROOT_OF_ONE
        for each, inode in listed[2:]:
            assert await tree.inode(f"d/{each.decode()}") == inode


async def test_a_listing_goes_on_after_its_attach_point_was_detached(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a", "d/c"), store_of("x"), "d/b") as (tree, volume, _, _):
        handle, _ = await tree.opendir(await tree.inode("d"))
        entries = tree.volumes.readdir(handle, 0)
        cookie = next(cookie for name, _, cookie in entries if name == b"b")
        tree.volumes.detach(volume)
        assert [name for name, _, _ in tree.volumes.readdir(handle, cookie)] == [b"c"]


async def test_dots_of_an_attached_root_lead_out_of_it(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a"), store_of("s/y"), "d/m") as (tree, *_):
        outer, root, inside = await tree.inode("d"), await tree.inode("d/m"), await tree.inode("d/m/s")
        assert (await tree.volumes.lookup(root, b"..")).inode == outer
        assert (await tree.volumes.lookup(root, b".")).inode == root
        assert (await tree.volumes.lookup(inside, b"..")).inode == root
        assert dict(await tree.listing("d/m"))[b".."] == outer
        assert dict(await tree.listing("d/m/s"))[b".."] == root


async def test_a_rename_across_volumes_is_exdev_and_inside_one_works(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a"), store_of("x"), "m") as (tree, _, _, inner):
        root, attached = await tree.inode(""), await tree.inode("m")
        for move in ((attached, b"x", root, b"x"), (root, b"d", attached, b"d")):
            with pytest.raises(FUSEError) as info:
                await tree.operations.rename(*move, 0, CONTEXT)
            assert code(info) == errno.EXDEV
        for inode, parent in ((await tree.inode("m/x"), root), (await tree.inode("d/a"), attached)):
            with pytest.raises(FUSEError) as info:
                await tree.operations.link(inode, parent, b"l", CONTEXT)
            assert code(info) == errno.EXDEV
        await tree.operations.rename(attached, b"x", attached, b"y", 0, CONTEXT)
        assert await tree.read("m/y") == b"x!"
        assert set(inner.driver.objects) == {"y"}


async def test_what_carries_an_attach_point_stays_in_place(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/e/m/old", "d/f/a"), store_of("x"), "d/e/m") as (tree, *_):
        ops, d, e = tree.operations, await tree.inode("d"), await tree.inode("d/e")
        calls = [
            ops.unlink(e, b"m", CONTEXT), ops.rmdir(e, b"m", CONTEXT), ops.rmdir(d, b"e", CONTEXT),
            ops.mkdir(e, b"m", 0o755, CONTEXT), ops.create(e, b"m", 0o644, os.O_RDWR, CONTEXT),
            ops.symlink(e, b"m", b"t", CONTEXT), ops.mknod(e, b"m", 0o100644, 0, CONTEXT),
            ops.rename(e, b"m", e, b"n", 0, CONTEXT), ops.rename(d, b"e", d, b"g", 0, CONTEXT),
            ops.rename(d, b"f", d, b"e", 0, CONTEXT), ops.rename(d, b"f", e, b"m", 0, CONTEXT),
            ops.link(await tree.inode("d/f/a"), e, b"m", CONTEXT),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(FUSEError) as info:
                await call
            assert code(info) == errno.EBUSY
        await ops.rename(d, b"f", d, b"g", 0, CONTEXT)


async def test_volumes_nest_and_each_goes_on_without_the_others(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("s/y"), "m") as (tree, one, _, _):
        async with tree.volume(2, store_of("deep")) as (two, _):
            await tree.volumes.attach(two, "m/s/n")
            assert await tree.read("m/s/n/deep") == b"deep!"
            assert tree.volumes.split("m/s/n/deep") == (two, "deep")
            assert tree.volumes.split("m/s/n") == (two, "")
            assert tree.volumes.split("m/s") == (one, "s")
            assert tree.volumes.split("") == (tree.volumes.main, "")
            assert dict(await tree.listing("m/s/n"))[b".."] == await tree.inode("m/s")
            for path in ("m/s/n", "m/s", "m"):
                with pytest.raises(LuxError) as info:
                    await tree.volumes.attach(Volume(3), path)
                assert code(info) == errno.EBUSY
            tree.volumes.detach(two)
        assert await tree.read("m/s/y") == b"s/y!"


async def test_an_attach_point_needs_a_directory(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a", "d/b"), store_of("x"), "m") as (tree, *_):
        for path, expected in (("none/n", errno.ENOENT), ("a/n", errno.ENOTDIR), ("m/none/n", errno.ENOENT)):
            with pytest.raises(LuxError) as info:
                await tree.volumes.attach(Volume(2), path)
            assert code(info) == expected
        await tree.operations.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0, CONTEXT)


async def test_a_volume_that_cannot_be_served_is_eio_and_still_listed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    async with tree.volume(0, store_of("d/m/old", "d/n")):
        volume = Volume(1)
        await tree.volumes.attach(volume, "d/m")
        for path in ("d/m", "d/m/old"):
            with pytest.raises(LuxError) as info:
                await tree.inode(path)
            assert code(info) == errno.EIO
        assert [name for name, _ in await tree.listing("d")] == [b".", b"..", b"m", b"n"]
        async with tree.volume(2, store_of("x")) as (other, _):
            assert other.fs is not None
            volume.serve(other.fs, negative_ttl_s=1.0, read_only=False)
            assert await tree.inode("d/m/x")
    tree.close()


async def test_a_read_only_volume_refuses_changes_and_the_others_do_not(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x"), "m", read_only=True) as (tree, *_):
        ops, root, x = tree.operations, await tree.inode("m"), await tree.inode("m/x")
        calls = [
            ops.mkdir(root, b"d", 0o755, CONTEXT), ops.unlink(root, b"x", CONTEXT), ops.open(x, os.O_RDWR, CONTEXT),
            ops.setattr(x, *MODE_0600, None, CONTEXT), ops.setxattr(x, b"user.a", b"1", CONTEXT),
            ops.rename(root, b"x", root, b"y", 0, CONTEXT), ops.create(root, b"f", 0o644, os.O_RDWR, CONTEXT),
            ops.mknod(root, b"f", 0o100644, 0, CONTEXT), ops.symlink(root, b"l", b"t", CONTEXT),
            ops.link(x, root, b"l", CONTEXT), ops.rmdir(root, b"d", CONTEXT), ops.removexattr(x, b"user.a", CONTEXT),
            ops.open(x, os.O_TRUNC | passthrough.FLAG_KILL_SUIDGID, CONTEXT),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(FUSEError) as info:
                await call
            assert code(info) == errno.EROFS
        assert await tree.read("m/x") == b"x!"
        await tree.write("b", b"new")


async def test_handles_of_volumes_do_not_meet(tmp_path: Path) -> None:
    outer, inner = store_of("a"), store_of("a")
    outer.place("big", b"o" * (20 << 20))
    inner.place("big", b"i" * (20 << 20))  # copied: too large to be fetched at once
    async with two_volumes(tmp_path, outer, inner, "m") as (tree, volume, _, _):
        handles = {path: await tree.kernel.open(tree.fs, await tree.inode(path)) for path in ("big", "m/big", "a", "m/a")}
        assert len(set(handles.values())) == 4
        assert not tree.kernel.is_passthrough(handles["m/big"])
        assert tree.kernel.is_passthrough(handles["m/a"])
        expected = {"big": b"oooo", "m/big": b"iiii", "a": b"a!", "m/a": b"a!"}
        for path, handle in handles.items():
            assert await tree.kernel.read(tree.fs, handle, 0, 4) == expected[path]
        assert volume.in_use
        for handle in handles.values():
            await tree.kernel.release(tree.fs, handle)
        assert not volume.in_use


async def test_writes_go_to_the_store_of_their_volume(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x"), "m") as (tree, _, below, above):
        await tree.write("m/new", b"inner")
        await tree.write("new", b"outer")
        assert above.driver.objects["new"][0] == b"inner"
        assert below.driver.objects["new"][0] == b"outer"
        assert tree.volumes.negative_ttl_s(ROOT_OF_ONE, b"x") == 6.0
        assert tree.volumes.negative_ttl_s(ROOT_INODE, b"x") == 5.0


async def test_the_kernel_is_given_the_numbers_of_the_volume(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x"), "m") as (tree, volume, _, above):
        above.fs.links.hardlinks = "copy"
        ops, root, x = tree.operations, await tree.inode("m"), await tree.inode("m/x")
        made = [
            await ops.mkdir(root, b"d", 0o755, CONTEXT), await ops.mknod(root, b"n", 0o100644, 0, CONTEXT),
            await ops.symlink(root, b"s", b"t", CONTEXT), await ops.link(x, root, b"l", CONTEXT),
            await ops.setattr(x, *MODE_0600, None, CONTEXT), await ops.getattr(x, CONTEXT),
        ]  # fmt: skip
        expected = [await tree.inode(f"m/{name}") for name in ("d", "n", "s", "l", "x", "x")]
        assert [entry.st_ino for entry in made] == expected
        assert all(inode >> VOLUME_SHIFT == volume.number for inode in expected)
        assert await ops.readlink(expected[2], CONTEXT) == b"t"
        await ops.setxattr(x, b"user.a", b"1", CONTEXT)
        assert await ops.listxattr(x, CONTEXT) == [b"user.a"]
        assert await ops.getxattr(x, b"user.a", CONTEXT) == b"1"
        await ops.removexattr(x, b"user.a", CONTEXT)
        assert await ops.listxattr(x, CONTEXT) == []
        await ops.fsyncdir(await ops.opendir(root, CONTEXT), False)
        await ops.rmdir(root, b"d", CONTEXT)


async def test_what_the_kernel_says_reaches_the_volume_that_it_is_about(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x", "y"), "m") as (tree, _, below, above):
        await tree.read("m/x")
        await tree.read("a")
        heard: list[tuple[str, int]] = []
        below.files._kernel.on_drained(lambda inode: heard.append(("outer", inode)))
        above.files._kernel.on_drained(lambda inode: heard.append(("inner", inode)))
        x = await tree.inode("m/x")
        handle = await tree.kernel.open(tree.fs, x)
        assert above.files._kernel.take_touched() == [x & 0xFFFF]
        assert below.files._kernel.take_touched() == [await tree.inode("a")]
        above.files._kernel.retire(x & 0xFFFF, only_idle=False)
        await tree.kernel.release(tree.fs, handle)
        assert heard == [("inner", x & 0xFFFF)]
        tree.kernel.invalidated.clear()
        await above.fs.refresh("y")
        assert tree.kernel.invalidated == [(ROOT_OF_ONE, b"y")]


async def test_an_open_outlives_its_volume(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x"), "m", clean_end=False) as (tree, volume, _, above):
        reading = await tree.kernel.open(tree.fs, await tree.inode("m/x"))
        writing = await tree.create("m/new")
        tree.volumes.detach(volume)
        assert await tree.kernel.read(tree.fs, reading, 0, 9) == b"x!"
        with pytest.raises(FUSEError) as info:
            await tree.kernel.flush(tree.fs, writing)
        assert code(info) == errno.ESTALE
        assert not above.files.backings.retire_all_idle()
        for handle in (reading, writing):
            await tree.kernel.release(tree.fs, handle)
        assert above.files.backings.retire_all_idle()


async def test_an_attach_point_stays_when_its_directory_comes_back_as_another_inode(tmp_path: Path) -> None:
    outer = store_of("d/a")
    async with two_volumes(tmp_path, outer, store_of("x"), "d/m") as (tree, volume, below, _):
        first = await tree.inode("d")
        outer.remove("d/a")
        below.clock.advance(100)
        with pytest.raises(LuxError) as info:
            await tree.inode("d/m")
        assert code(info) == errno.ENOENT
        assert not tree.volumes.is_shown(volume)
        outer.place("d/b", b"")
        below.clock.advance(100)
        assert await tree.inode("d") != first
        assert await tree.read("d/m/x") == b"x!"
        assert tree.volumes.is_shown(volume)
