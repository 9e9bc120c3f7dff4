"""Uploads wait while files are being made, but not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from luxfuse.index.names import ROOT_INODE
from luxfuse.types import WriteMode
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until
from tests.support.virtual_time import virtual_time


@pytest.fixture
def mock_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    return virtual_time(monkeypatch)


async def make(m: Mount, name: str) -> None:
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode())
    await m.kernel.write(m.fs, handle, 0, b"content")
    await m.kernel.close(m.fs, handle)


async def test_uploads_wait_while_files_are_made(tmp_path: Path, mock_clock: MockClock) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=WriteMode.ASYNC_THROUGH) as m:
        began_s, number = trio.current_time(), 0
        while trio.current_time() < began_s + 2.5:
            await make(m, f"f{number}")
            number += 1
            await trio.sleep(0.4)
        assert driver.objects == {}
        while trio.current_time() < began_s + 7:
            await make(m, f"f{number}")
            number += 1
            await trio.sleep(0.4)
        assert "f0" in driver.objects
        assert len(driver.objects) < number
        quiet_s = trio.current_time()
        await until(lambda: len(driver.objects) == number, pause_s=0.1)
        assert trio.current_time() - quiet_s < 4


async def test_who_waits_for_the_store_does_not_wait_for_quiet(tmp_path: Path, mock_clock: MockClock) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=WriteMode.ASYNC_THROUGH) as m:
        await make(m, "a")
        began_s = trio.current_time()
        m.writeback.hurry()
        await make(m, "b")
        await until(lambda: "a" in driver.objects)
        assert trio.current_time() - began_s < 1
