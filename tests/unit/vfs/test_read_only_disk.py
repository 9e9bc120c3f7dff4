"""A cache disk that turns read-only: files are in the store, and their staging files go when the disk lets them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs import writer
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
