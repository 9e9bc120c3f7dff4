"""What closes wait for in `cache-through`: the store, and not each other; and that the operator is told if it is much."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from luxfuse.core import waits
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until

FILES = 8


async def write(m: Mount, name: str) -> None:
    handle, _ = await m.kernel.create(m.fs, 1, name.encode(), 0o644)
    await m.kernel.write(m.fs, handle, 0, name.encode())
    await m.kernel.flush(m.fs, handle)
    await m.kernel.release(m.fs, handle)


async def test_closes_of_different_files_overlap(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver) as m:
        await m.entries()
        driver.hold("put")
        async with trio.open_nursery() as nursery:
            for number in range(FILES):
                nursery.start_soon(write, m, f"f{number}")
            await until(lambda: driver.counts["put"] == FILES)  # all are on their way, none has an answer
            driver.release()
    assert len(driver.objects) == FILES


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_many_closes_that_wait_are_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    monkeypatch.setattr(waits, "MANY", 3)
    monkeypatch.setattr(waits, "LONG_S", 0.03)
    caplog.set_level("INFO", "luxfuse")
    driver = FakeStore(delay_s=0.02)
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        for number in range(6):
            await write(m, f"f{number}")
        told = [record for record in caplog.records if "async-through" in record.getMessage()]
        assert len(told) == (mode == "cache-through")
        assert (m.writing.promises.small_closes.hint is not None) == (mode == "cache-through")
