"""What is cached, where, and how it goes."""

from __future__ import annotations

from pathlib import Path

from luxfuse.orders import inventory
from luxfuse.orders.inventory import FreeProgress
from luxfuse.types import PAGE_BYTES
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes


def tree() -> FakeStore:
    store = FakeStore()
    for n in range(6):
        store.place(f"a/{n}", random_bytes(1000, n))
    store.place("a/b/deep", random_bytes(1000, 10))
    store.place("ab", random_bytes(1000, 11))
    store.place("big", random_bytes(pages(5.5), 12))
    return store


async def free(mount: Mount, *paths: str) -> FreeProgress:
    async for step in mount.inventory.free(paths):
        last = step
    assert last.done
    return last


async def load(mount: Mount, *paths: str) -> None:
    await mount.loads.start(paths).ended.wait()


async def test_what_is_below_a_path_goes_and_nothing_else(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store) as mount:
        await load(mount, "")
        used = mount.disk_bytes()
        step = await free(mount, "a")
        assert (step.freed_files, step.freed_bytes, sum(step.kept.values())) == (7, 7 * 4096, 0)
        assert mount.disk_bytes() == used - 7 * 4096
        assert mount.hierarchy.home.ledger.used_bytes == mount.objects.used_bytes == mount.disk_bytes()
        gets = store.counts["get"]
        assert await mount.read_all("ab") == store.objects["ab"][0]
        assert store.counts["get"] == gets
        assert await mount.read_all("a/3") == store.objects["a/3"][0]
        assert store.counts["get"] > gets


async def test_what_is_freed_is_not_counted_as_evicted(tmp_path: Path) -> None:
    async with mounted(tmp_path, tree()) as mount:
        await load(mount, "")
        assert (await free(mount, "")).freed_bytes
        assert (mount.space.evictions, mount.space.evicted_bytes) == (0, 0)


async def test_patterns_and_paths_that_lead_nowhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(inventory, "SCAN_OBJECTS", 2)
    async with mounted(tmp_path, tree()) as mount:
        await load(mount, "")
        step = await free(mount, "a/[0-3]", "gone", "ab/x", "a/5", "a/5")
        assert step.freed_files == 5
        assert step.failures == [
            "gone: there is no such file or directory", "ab/x: there is no such file or directory",
        ]  # fmt: skip
        assert (await free(mount, "a/5")).failures == []  # it is there, though not in the cache
        assert (await free(mount, "")).freed_files == 4


async def test_what_is_open_or_dirty_or_being_loaded_stays(tmp_path: Path) -> None:
    store = tree()
    async with mounted(tmp_path, store, write_mode="async-through") as mount:
        await load(mount, "")
        handle = await mount.open("a/1")
        made, _ = await mount.kernel.create(mount.fs, 1, b"mine")
        await mount.kernel.write(mount.fs, made, 0, b"content")
        step = await free(mount, "")
        assert step.freed_files == 8
        assert step.kept == {inventory.OPEN: 1, inventory.DIRTY: 1}
        assert sorted(step.lines) == [f"a/1: {inventory.OPEN}", f"mine: {inventory.DIRTY}"]
        assert await mount.kernel.read_all(mount.fs, handle) == store.objects["a/1"][0]
        await mount.kernel.release(mount.fs, handle)
        await mount.kernel.release(mount.fs, made)
        await mount.drain()
        assert (await free(mount, "")).freed_files == 2
        assert mount.disk_bytes() == 0


async def test_a_file_tells_which_pages_are_where(tmp_path: Path) -> None:
    async with mounted(tmp_path, tree(), passthrough=False, whole_file_bytes=0, readahead_bytes=0) as mount:
        handle = await mount.open("big")
        for page in (0, 1, 4):
            await mount.kernel.read(mount.fs, handle, page * PAGE_BYTES, 100)
        (found,) = await mount.inventory.locate(["big"])
        (place,) = found["places"]
        assert (place["pages"], found["missing_pages"], place["tier"]) == ("0-1,4", "2-3,5", "ssd")
        assert place["bytes"] == 3 * PAGE_BYTES
        assert Path(place["file"]) == mount.file_of("big")
        await mount.kernel.release(mount.fs, handle)
        await load(mount, "big")
        (found,) = await mount.inventory.locate(["big"])
        assert (found["places"][0]["pages"], found["missing_pages"]) == ("0-5", "")


async def test_a_directory_is_summed_up(tmp_path: Path) -> None:
    async with mounted(tmp_path, tree(), write_mode="async-through") as mount:
        await load(mount, "a", "ab")
        made, _ = await mount.kernel.create(mount.fs, await mount.inode("a"), b"mine")
        await mount.kernel.write(mount.fs, made, 0, b"content")
        root, below, missing, written = await mount.inventory.locate(["", "a", "x", "a/mine"])
        assert (root["whole_files"], below["whole_files"], below["partial_files"], below["dirty_files"]) == (8, 7, 0, 1)
        (tier,) = below["tiers"]
        assert (tier["files"], tier["bytes"]) == (7, 7 * 4096)
        assert missing["error"] == "there is no such file or directory"
        assert (written["state"], written["size"]) == ("dirty", 7)
        assert Path(written["places"][0]["file"]).read_bytes() == b"content"
        await mount.kernel.release(mount.fs, made)
