"""Descriptors of staging files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from luxfuse.cache import descriptors
from luxfuse.cache.descriptors import Descriptors
from luxfuse.cache.staged import StagedBytes
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import PAGE_BYTES
from luxfuse.workers import Threads
from tests.support.disks import read_only
from tests.support.fake_store import FakeStore
from tests.support.harness import mounted


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Descriptors:
    """Four descriptors, for all that is staged."""
    few = Descriptors(4)
    monkeypatch.setattr(descriptors, "of_this_process", lambda: few)
    return few


def staged(path: Path, data: bytes) -> StagedBytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data, 0)
    return StagedBytes(fd, path, cache=None, threads=Threads(4))  # type: ignore[arg-type]


async def test_those_used_last_stay_open(tmp_path: Path, four: Descriptors) -> None:
    files = [staged(tmp_path / str(number), b"%d" % number) for number in range(10)]
    assert [file._fd >= 0 for file in files] == [False] * 6 + [True] * 4
    assert await files[0].read(0, 10) == b"0"
    assert [file._fd >= 0 for file in files] == [True] + [False] * 6 + [True] * 3
    for number, file in enumerate(files):
        await file.write(1, b"more")
        assert (file.size, file.stat().st_size) == (5, 5)  # type: ignore[union-attr]
        assert await file.read(0, 10) == b"%dmore" % number
    assert len(four) == 4
    for file in files:
        file.close()
    assert len(four) == 0
    assert files[0].stat() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        _ = files[0].fd


async def test_one_in_use_stays_open(tmp_path: Path, four: Descriptors) -> None:
    first = staged(tmp_path / "first", b"content")
    with first.in_use():
        fd = first.fd
        for number in range(10):
            staged(tmp_path / str(number), b"")
        assert os.pread(fd, 10, 0) == b"content"
        assert first.fd == fd


async def test_one_that_only_reads_does_so_again(tmp_path: Path, four: Descriptors) -> None:
    """A descriptor that can write would pass for somebody who writes."""
    file = staged(tmp_path / "file", b"content")
    file.seal()
    file.park()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(file.fd, b"x")
    file.park()
    file.unseal()
    assert os.pwrite(file.fd, b"C", 0) == 1


async def test_a_number_that_a_thread_reads_by_stays_that_of_the_file(tmp_path: Path) -> None:
    """An upload reads by it after a wait: another file's bytes would go to the store."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = StagedBytes(os.open(path, os.O_RDONLY), path, cache=None, threads=Threads(4))  # type: ignore[arg-type]
    with file.in_use():
        number = file.fd
        file.unseal()
        others = [os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT) for _ in range(20)]
        assert os.pread(number, 10, 0) == b"content"
        assert not os.get_inheritable(number)
        await file.write(0, b"C")
        assert os.pread(number, 10, 0) == path.read_bytes() == b"Content"
    for fd in (*others, file.fd):
        os.close(fd)


@pytest.mark.parametrize("parked", [True, False])
async def test_what_was_opened_on_a_read_only_disk_is_written_to_once_it_is_not(tmp_path: Path, parked: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    path = disk / "file"
    path.write_bytes(b"content")
    base = SimpleNamespace(release=lambda _base: None)
    with read_only(disk) as let_be_written:
        file = StagedBytes(
            os.open(path, os.O_RDONLY), path, cache=base, threads=Threads(4), base=object(), base_bytes=3 * PAGE_BYTES  # type: ignore[arg-type]
        )  # fmt: skip
        file._read_base = AsyncMock(return_value=bytes(PAGE_BYTES))  # type: ignore[method-assign]
        changes = [partial(file.write, PAGE_BYTES, b"new"), partial(file.truncate, 2 * PAGE_BYTES), file.complete_all]
        for change in changes:
            if parked:
                assert file.park()
            with pytest.raises(OSError, match="Read-only file system"):
                await change()
            assert file.base_bytes == 3 * PAGE_BYTES
        assert os.pread(file.fd, 10, 0) == b"content"
        let_be_written()
        for change in changes:
            await change()
        file.close()
        assert file.complete
        assert path.stat().st_size == 2 * PAGE_BYTES
        assert path.read_bytes()[PAGE_BYTES:][:3] == b"new"


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])
async def test_many_files_of_a_mount(tmp_path: Path, passthrough: bool, four: Descriptors) -> None:
    """Written, promised, removed, renamed, brought up, and recovered, by turns, with four descriptors."""
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", passthrough=passthrough, clean_end=False) as m:
        driver.hold("put")
        handles = [(await m.kernel.create(m.fs, ROOT_INODE, b"%d" % number))[0] for number in range(20)]
        for number, handle in enumerate(handles):
            await m.kernel.write(m.fs, handle, 0, b"%d" % number * 20_000)
        await m.fs.unlink(ROOT_INODE, b"3")
        assert await m.kernel.read(m.fs, handles[3], 0, 5) == b"33333"
        for handle in handles:
            await m.kernel.close(m.fs, handle)
        await m.fs.rename(ROOT_INODE, b"4", ROOT_INODE, b"5", 0)
        assert await m.read_all("5") == b"4" * 20_000
        assert len(four) <= 4
        driver.release()
    async with mounted(tmp_path, driver, write_mode="async-through", passthrough=passthrough) as m:
        assert len(four) <= 4
        await m.drain()
    assert {key: data for key, (data, *_) in driver.objects.items()} == {
        f"{number}": (b"4" if number == 5 else b"%d" % number) * 20_000 for number in range(20) if number not in (3, 4)
    }
