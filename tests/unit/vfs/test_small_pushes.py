"""Symlinks that somebody else writes at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until

KEY = "link.rclonelink"
TARGET, THEIRS = b"target", b"theirs"


async def link(m: Mount) -> None:
    await m.fs.symlink(ROOT_INODE, b"link", TARGET, CALLER)


@pytest.mark.expected_logs("was written by somebody else meanwhile; their version is kept")
async def test_what_somebody_else_has_written_is_kept(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries()
        await link(m)
        driver.place(KEY, THEIRS)
        await m.drain()
        assert driver.objects[KEY][0] == TARGET
        assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [THEIRS]


@pytest.mark.expected_logs("was written by somebody else meanwhile; our version is kept")
async def test_or_stays_where_ours_is_to_give_way(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", on_conflict="fail") as m:
        await m.entries()
        await link(m)
        driver.place(KEY, THEIRS)
        await m.drain()
        await until(lambda: not len(m.dirty))
        assert driver.objects[KEY][0] == THEIRS
        m.clock.advance(100)
        assert await m.fs.readlink((await m.fs.lookup(ROOT_INODE, b"link")).inode) == THEIRS
        assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [TARGET]


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_one_whose_answer_was_lost_is_ours(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        await m.entries()
        driver.lose_answer_next("put")
        await link(m)
        await m.drain()
        assert m.writing.pusher.conflicts == 0
        assert m.recovered.count() == 0
        assert driver.objects[KEY][0] == TARGET
