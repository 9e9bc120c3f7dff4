"""A cache disk that turns read-only: files are in the store, and their staging files go when the disk lets them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from luxfuse.index.names import ROOT_INODE
from luxfuse.index.records import FileRecord
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, WriteMode
from luxfuse.vfs import writer
from luxfuse.vfs.recovery import restart
from luxfuse.vfs.recovery.contents import JournalContents
from tests.support.disks import read_only
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, random_bytes, until

DATA = random_bytes(100_000, 1)


def turn_read_only(m: Mount) -> Callable[[], None]:
    """Let no staging file change its name, or go; returns what ends that."""
    names = ("publish", "remove", "retire")
    were = [getattr(m.staging, name) for name in names]

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def end() -> None:
        for name, was in zip(names, were, strict=True):
            setattr(m.staging, name, was)

    for name in names:
        setattr(m.staging, name, refuse)
    return end


async def written(m: Mount, name: str) -> int:
    """Open a new file and write it; returns the handle."""
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode(), 0o644)
    await m.kernel.write(m.fs, handle, 0, DATA)
    return handle


def is_clean(m: Mount) -> bool:
    return not len(m.dirty) and not list(m.staging.stored()) and not m.space.staged_bytes


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(writer, "MAPPED_INTERVAL_S", 0.01)


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_a_file_that_is_closed(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        handle = await written(m, "a")
        end = turn_read_only(m)
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert driver.objects["a"][0] == DATA
        assert await m.read_all("a") == DATA
        assert not is_clean(m)
        end()
        await until(lambda: is_clean(m))
        assert await m.read_all("a") == DATA


async def test_a_file_that_a_program_had_mapped(tmp_path: Path) -> None:
    """It ends in the background, where an error would end the mount."""
    driver = FakeStore()
    async with mounted(tmp_path, driver) as m:
        handle = await written(m, "a")
        (dirty,) = m.dirty
        mapped = os.open(m.staging.place_of(dirty.number), os.O_RDWR)
        await m.kernel.close(m.fs, handle)
        await m.drain()
        refused = 0
        end = turn_read_only(m)
        os.close(mapped)
        remove = m.staging.remove

        def count(number: int) -> None:
            nonlocal refused
            refused += 1
            remove(number)

        m.staging.remove = count  # type: ignore[method-assign]
        await until(lambda: refused > 3)
        end()
        await until(lambda: is_clean(m))
        assert await m.read_all("a") == DATA


@pytest.mark.parametrize("mode", ["must-cache", "async-through"])
@pytest.mark.parametrize("opened", [True, False])
async def test_a_file_that_is_removed(tmp_path: Path, mode: str, opened: bool) -> None:
    async with mounted(tmp_path, FakeStore(), write_mode=mode, flusher=False) as m:
        handle = await written(m, "a")
        if not opened:
            await m.kernel.close(m.fs, handle)
        end = turn_read_only(m)
        await m.fs.unlink(ROOT_INODE, b"a")
        if opened:
            await m.kernel.close(m.fs, handle)
        assert not await m.entries()
        end()
        await until(lambda: is_clean(m))


@pytest.mark.expected_logs("cannot be taken up while", "cache directory")
@pytest.mark.parametrize("left", ["missing", "shorter", "retired"])
async def test_a_promise_that_only_a_disk_that_is_written_can_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """As a power cut leaves it: the journal has the content, or the staging file has no name. Nothing else waits for it."""
    monkeypatch.setattr(restart, "REST_PAUSE_S", 0.01)
    driver, data = FakeStore(), DATA if left == "retired" else DATA[:1000]
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        for name in ("a", "b"):
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode(), 0o644)
            await m.kernel.write(m.fs, handle, 0, data)
            await m.kernel.close(m.fs, handle)
        path, base = m.staging.path_of(min(m.dirty, key=lambda d: d.key).number), m.directory.path.parent
        if left == "missing":
            path.unlink()
        elif left == "shorter":
            os.truncate(path, 10)
            os.utime(path, ns=(0, 0))
        else:
            path.rename(f"{path}.gone")
    with read_only(base) as let_be_written:
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            await m.drain()
            assert driver.objects.keys() == {"b"}
            let_be_written()
            await until(lambda: m.writeback.pending or "a" in driver.objects)
            await m.drain()
            assert driver.objects["a"][0] == driver.objects["b"][0] == data


@pytest.mark.expected_logs("cannot be taken up while", "cache directory", "was changed before what the last run had left")
@pytest.mark.parametrize("stored", [True, False])
async def test_what_is_written_anew_before_a_promise_can_be_kept_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """The name is free while the disk is read-only. What was promised is kept, and no daemon ends."""
    monkeypatch.setattr(restart, "REST_PAUSE_S", 1000.0)
    driver = FakeStore()
    if stored:
        driver.place("a", b"stored")
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        await m.entries()
        if stored:
            handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY)
        else:
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a", 0o644)
        await m.kernel.write(m.fs, handle, 0, b"promised")
        await m.kernel.close(m.fs, handle)
        (dirty,) = m.dirty
        m.staging.path_of(dirty.number).unlink()
        base = m.directory.path.parent
    with read_only(base) as let_be_written:
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            let_be_written()
            await m.entries()
            if stored:
                handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
            else:
                handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a", 0o644)
            await m.kernel.write(m.fs, handle, 0, b"anew")
            await m.kernel.close(m.fs, handle)
            await m.recovery._take_up_rest()
            await m.drain()
            assert driver.objects["a"][0] == b"anew"
            assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [b"promised"]


@pytest.mark.parametrize("emptied", [True, False])
def test_what_a_power_cut_has_torn_is_not_taken_for_what_was_promised(tmp_path: Path, emptied: bool) -> None:
    """It cannot be taken away as long as the disk is read-only."""
    directory = CacheDirectory(tmp_path / "cache", "source")
    staging = Staging(directory)
    os.close(staging.create(1))
    stamp = staging.path_of(1).stat().st_mtime_ns + 1
    record = FileRecord(
        key="a", kind=Kind.FILE, mode=WriteMode.ASYNC_THROUGH, inode=2, attributes=None, expect=None, base_key="",
        base_version="", base_size=0, size=10, stamp=stamp, closed=True, content=False, since_s=0.0, emptied=emptied,
    )  # fmt: skip
    journal = SimpleNamespace(rebooted=True, inline=lambda _number: None)
    contents = JournalContents(journal, staging, cache=None)  # type: ignore[arg-type]
    with read_only(directory.path) as let_be_written:
        with pytest.raises(OSError, match="Read-only file system"):
            contents.is_torn(1, record)
        let_be_written()
        assert contents.is_torn(1, record) is emptied
        assert staging.path_of(1).exists() is emptied
    staging.close()
    directory.close()
