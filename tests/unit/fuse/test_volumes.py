"""Several under-stores in one tree."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import AttributeChanges, Caller
from luxfuse.vfs.shares import VOLUME_SHIFT
from luxfuse.vfs.volumes import Volume
from tests.support.fake_store import FakeStore
from tests.support.several import Tree, two_volumes

CALLER = Caller(uid=1000, gid=100, pid=7, umask=0o022)
ROOT_OF_ONE = (1 << VOLUME_SHIFT) | ROOT_INODE


def store_of(*keys: str) -> FakeStore:
    driver = FakeStore()
    for key in keys:
        driver.place(key, f"{key}!".encode())
    return driver


def code(info: pytest.ExceptionInfo[LuxError]) -> int:
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
        tree.fs.detach(volume)
        assert await tree.read("d/m/old") == b"d/m/old!"
        with pytest.raises(LuxError) as info:
            await tree.fs.getattr(ROOT_OF_ONE)
        assert code(info) == errno.ESTALE


async def test_the_kernel_is_told_of_the_name_and_reads_the_listing_anew(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a"), store_of("x"), "d/m") as (tree, volume, _, _):
        directory = await tree.inode("d")
        assert (directory, b"m") in tree.kernel.invalidated
        assert not (await tree.fs.opendir(directory))[1]
        assert (await tree.fs.opendir(directory))[1], "the kernel may keep a listing that did not change"
        tree.kernel.invalidated.clear()
        tree.fs.detach(volume)
        assert (directory, b"m") in tree.kernel.invalidated
        assert not (await tree.fs.opendir(directory))[1]


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
        handle, _ = await tree.fs.opendir(await tree.inode("d"))
        entries = tree.fs.readdir(handle, 0)
        cookie = next(cookie for name, _, cookie in entries if name == b"b")
        tree.fs.detach(volume)
        assert [name for name, _, _ in tree.fs.readdir(handle, cookie)] == [b"c"]


async def test_dots_of_an_attached_root_lead_out_of_it(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a"), store_of("s/y"), "d/m") as (tree, *_):
        outer, root, inside = await tree.inode("d"), await tree.inode("d/m"), await tree.inode("d/m/s")
        assert (await tree.fs.lookup(root, b"..")).inode == outer
        assert (await tree.fs.lookup(root, b".")).inode == root
        assert (await tree.fs.lookup(inside, b"..")).inode == root
        assert dict(await tree.listing("d/m"))[b".."] == outer
        assert dict(await tree.listing("d/m/s"))[b".."] == root


async def test_a_rename_across_volumes_is_exdev_and_inside_one_works(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/a"), store_of("x"), "m") as (tree, _, _, inner):
        root, attached = await tree.inode(""), await tree.inode("m")
        for move in ((attached, b"x", root, b"x"), (root, b"d", attached, b"d")):
            with pytest.raises(LuxError) as info:
                await tree.fs.rename(*move, 0)
            assert code(info) == errno.EXDEV
        await tree.fs.rename(attached, b"x", attached, b"y", 0)
        assert await tree.read("m/y") == b"x!"
        assert set(inner.driver.objects) == {"y"}


async def test_what_carries_an_attach_point_stays_in_place(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("d/e/m/old", "d/f/a"), store_of("x"), "d/e/m") as (tree, *_):
        d, e = await tree.inode("d"), await tree.inode("d/e")
        calls = [
            tree.fs.unlink(e, b"m"), tree.fs.rmdir(e, b"m"), tree.fs.rmdir(d, b"e"),
            tree.fs.mkdir(e, b"m", 0o755, CALLER), tree.fs.create(e, b"m", 0o644, os.O_RDWR, CALLER),
            tree.fs.symlink(e, b"m", b"t", CALLER), tree.fs.mknod(e, b"m", 0o100644, 0, CALLER),
            tree.fs.rename(e, b"m", e, b"n", 0), tree.fs.rename(d, b"e", d, b"g", 0), tree.fs.rename(d, b"f", d, b"e", 0),
            tree.fs.rename(d, b"f", e, b"m", 0),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(LuxError) as info:
                await call
            assert code(info) == errno.EBUSY
        await tree.fs.rename(d, b"f", d, b"g", 0)


async def test_volumes_nest_and_each_goes_on_without_the_others(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("s/y"), "m") as (tree, one, _, _):
        async with tree.volume(2, store_of("deep")) as (two, _):
            await tree.fs.attach(two, "m/s/n")
            assert await tree.read("m/s/n/deep") == b"deep!"
            assert tree.fs.split("m/s/n/deep") == (two, "deep")
            assert tree.fs.split("m/s/n") == (two, "")
            assert tree.fs.split("m/s") == (one, "s")
            assert tree.fs.split("") == (tree.fs.main, "")
            assert dict(await tree.listing("m/s/n"))[b".."] == await tree.inode("m/s")
            for path in ("m/s/n", "m/s", "m"):
                with pytest.raises(LuxError) as info:
                    await tree.fs.attach(Volume(3), path)
                assert code(info) == errno.EBUSY
            tree.fs.detach(two)
        assert await tree.read("m/s/y") == b"s/y!"


async def test_an_attach_point_needs_a_directory(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a", "d/b"), store_of("x"), "m") as (tree, *_):
        for path, expected in (("none/n", errno.ENOENT), ("a/n", errno.ENOTDIR), ("m/none/n", errno.ENOENT)):
            with pytest.raises(LuxError) as info:
                await tree.fs.attach(Volume(2), path)
            assert code(info) == expected
        await tree.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)


async def test_a_volume_that_cannot_be_served_is_eio_and_still_listed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    async with tree.volume(0, store_of("d/m/old", "d/n")):
        volume = Volume(1)
        await tree.fs.attach(volume, "d/m")
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
        root, x = await tree.inode("m"), await tree.inode("m/x")
        calls = [
            tree.fs.mkdir(root, b"d", 0o755, CALLER), tree.fs.unlink(root, b"x"), tree.fs.open(x, os.O_RDWR, CALLER),
            tree.fs.setattr(x, AttributeChanges(mode=0o600), None, CALLER), tree.fs.setxattr(x, b"user.a", b"1"),
            tree.fs.rename(root, b"x", root, b"y", 0), tree.fs.create(root, b"f", 0o644, os.O_RDWR, CALLER),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(LuxError) as info:
                await call
            assert code(info) == errno.EROFS
        assert await tree.read("m/x") == b"x!"
        await tree.write("b", b"new")


async def test_handles_of_volumes_do_not_meet(tmp_path: Path) -> None:
    outer, inner = store_of("a"), store_of("a")
    outer.place("big", b"o" * (20 << 20))
    inner.place("big", b"i" * (20 << 20))  # copied: too large to be fetched at once
    async with two_volumes(tmp_path, outer, inner, "m") as (tree, volume, _, _):
        handles = {path: await tree.kernel.open(tree.fs, await tree.inode(path)) for path in ("big", "m/big", "a", "m/a")}  # type: ignore[arg-type]
        assert len(set(handles.values())) == 4
        assert not tree.kernel.is_passthrough(handles["m/big"])
        assert tree.kernel.is_passthrough(handles["m/a"])
        expected = {"big": b"oooo", "m/big": b"iiii", "a": b"a!", "m/a": b"a!"}
        for path, handle in handles.items():
            assert await tree.kernel.read(tree.fs, handle, 0, 4) == expected[path]  # type: ignore[arg-type]
        assert volume.in_use
        for handle in handles.values():
            await tree.kernel.release(tree.fs, handle)  # type: ignore[arg-type]
        assert not volume.in_use


async def test_writes_go_to_the_store_of_their_volume(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x"), "m") as (tree, _, below, above):
        await tree.write("m/new", b"inner")
        await tree.write("new", b"outer")
        assert above.driver.objects["new"][0] == b"inner"
        assert below.driver.objects["new"][0] == b"outer"
        assert tree.fs.negative_ttl_s(ROOT_OF_ONE, b"x") == 6.0
        assert tree.fs.negative_ttl_s(ROOT_INODE, b"x") == 5.0


async def test_what_the_kernel_says_reaches_the_volume_that_it_is_about(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x", "y"), "m") as (tree, _, below, above):
        await tree.read("m/x")
        await tree.read("a")
        heard: list[tuple[str, int]] = []
        below.files._kernel.on_drained = lambda inode: heard.append(("outer", inode))
        above.files._kernel.on_drained = lambda inode: heard.append(("inner", inode))
        x = await tree.inode("m/x")
        handle = await tree.kernel.open(tree.fs, x)  # type: ignore[arg-type]
        assert above.files._kernel.take_touched() == [x & 0xFFFF]
        assert below.files._kernel.take_touched() == [await tree.inode("a")]
        above.files._kernel.retire(x & 0xFFFF, only_idle=False)
        await tree.kernel.release(tree.fs, handle)  # type: ignore[arg-type]
        assert heard == [("inner", x & 0xFFFF)]
        tree.kernel.invalidated.clear()
        await above.fs.refresh("y")
        assert tree.kernel.invalidated == [(ROOT_OF_ONE, b"y")]


async def test_an_open_outlives_its_volume(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, store_of("a"), store_of("x"), "m", clean_end=False) as (tree, volume, _, above):
        reading = await tree.kernel.open(tree.fs, await tree.inode("m/x"))  # type: ignore[arg-type]
        writing = await tree.create("m/new")
        tree.fs.detach(volume)
        assert await tree.kernel.read(tree.fs, reading, 0, 9) == b"x!"  # type: ignore[arg-type]
        with pytest.raises(LuxError) as info:
            await tree.kernel.flush(tree.fs, writing)  # type: ignore[arg-type]
        assert code(info) == errno.ESTALE
        assert not above.files.retire_all_idle()
        for handle in (reading, writing):
            await tree.kernel.release(tree.fs, handle)  # type: ignore[arg-type]
        assert above.files.retire_all_idle()


async def test_an_attach_point_stays_when_its_directory_comes_back_as_another_inode(tmp_path: Path) -> None:
    outer = store_of("d/a")
    async with two_volumes(tmp_path, outer, store_of("x"), "d/m") as (tree, volume, below, _):
        first = await tree.inode("d")
        outer.remove("d/a")
        below.clock.advance(100)
        with pytest.raises(LuxError) as info:
            await tree.inode("d/m")
        assert code(info) == errno.ENOENT
        assert not tree.fs.is_shown(volume)
        outer.place("d/b", b"")
        below.clock.advance(100)
        assert await tree.inode("d") != first
        assert await tree.read("d/m/x") == b"x!"
        assert tree.fs.is_shown(volume)
