"""What a close has acknowledged is not replaced, after a crash, by an older content that the journal had promised.

The journal's note that the older one is not wanted any more need not be on the disk when the close returns: with
`cache-through` the store has the newer content, and a commit of the journal is not waited for as a rule.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.errors import LuxError, StoreRejected
from luxfuse.index.names import ROOT_INODE
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, random_bytes, snapshot, until

LATER = pytest.mark.expected_logs("cannot be brought to the under-store")
OLD, NEW = random_bytes(5000, 1), random_bytes(100, 2)
OLD_LARGE = random_bytes(40_000, 3)
Between = Callable[[Mount], Awaitable[None]]


async def write(m: Mount, data: bytes) -> None:
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"c", 0o644, flags)
    try:
        await m.kernel.write(m.fs, handle, 0, data)
        await m.kernel.flush(m.fs, handle)
    finally:
        await m.kernel.release(m.fs, handle)


async def nothing(_m: Mount) -> None:
    """The file is written to again before the store has the older content."""


async def retried(m: Mount) -> None:
    """The store gets the older content, and the file is not dirty any more."""
    await m.drain()
    await until(lambda: not m.dirty)


async def removed(m: Mount) -> None:
    await m.fs.unlink(ROOT_INODE, b"c")


async def renamed(m: Mount) -> None:
    await m.fs.rename(ROOT_INODE, b"c", ROOT_INODE, b"d", 0)


async def replaced(m: Mount) -> None:
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"t", 0o644)
    await m.kernel.write(m.fs, handle, 0, b"of another")
    await m.kernel.close(m.fs, handle)
    await m.fs.rename(ROOT_INODE, b"t", ROOT_INODE, b"c", 0)


async def found_after_a_kill(m: Mount, tmp_path: Path, mode: str) -> bytes:
    left = snapshot(m, tmp_path / "after")
    options = Options(write_mode=mode, beginning_s=BEGINNING_S + 1000)  # type: ignore[arg-type]
    async with mounted(tmp_path / "after", left, options) as again:
        shown = await again.read_all("c")
        await again.drain()
        assert await again.read_all("c") == shown == left.objects["c"][0]
        assert again.recovered.count() == 0
    return shown


@LATER
@pytest.mark.parametrize("between", [nothing, retried, removed, renamed, replaced], ids=lambda function: function.__name__)
async def test_after_a_close_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: Between) -> None:
    driver = FakeStore()
    async with mounted(tmp_path / "life", driver, clean_end=False) as m:
        driver.fail_next(1000, lambda: StoreRejected("no"), "put")
        with pytest.raises(LuxError):
            await write(m, OLD)
        driver._failures.clear()
        while m.journal.uncommitted:
            await trio.sleep(0.01)
        monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
        await trio.sleep(0.05)
        await between(m)
        await write(m, NEW)
        assert await found_after_a_kill(m, tmp_path, "cache-through") == NEW


@pytest.mark.parametrize("old", [OLD, OLD_LARGE], ids=["inline", "staged"])
async def test_after_an_upload_before_the_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes) -> None:
    """The store has the newer content already when its program closes the file: the close has nothing to bring."""
    driver = FakeStore()
    async with mounted(tmp_path / "life", driver, write_mode="async-through", clean_end=False) as m:
        driver.hold("put")
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"c", 0o644)
        await m.kernel.write(m.fs, handle, 0, old)
        await m.kernel.fsync(m.fs, handle)
        while m.journal.uncommitted:
            await trio.sleep(0.01)
        monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
        await trio.sleep(0.05)
        (dirty,) = m.dirty
        await dirty.content.truncate(0)
        await m.kernel.write(m.fs, handle, 0, NEW)
        driver.release()
        await m.drain()
        await m.kernel.close(m.fs, handle)
        assert await found_after_a_kill(m, tmp_path, "async-through") == NEW
