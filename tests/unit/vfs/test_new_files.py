"""What a file that was just made says of itself: its staging file may have been prepared long before."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from luxfuse.index.names import ROOT_INODE
from luxfuse.types import WriteMode
from luxfuse.vfs.attributes import Stat
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted

AN_HOUR = 3600 * 10**9


def is_now(found: Stat) -> bool:
    times = (found.atime_ns, found.mtime_ns, found.ctime_ns)
    return all(abs(each - time.time_ns()) < 10**9 for each in times)


def age_spares(m: Mount) -> None:
    m.staging.refill()
    for path, _ in m.staging._spares:
        then = time.time_ns() - AN_HOUR
        os.utime(path, ns=(then, then))


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])
@pytest.mark.parametrize("mode", list(WriteMode))
async def test_times_of_a_file_that_was_just_made(tmp_path: Path, mode: WriteMode, passthrough: bool) -> None:
    driver = FakeStore()
    driver.place("there", b"content")
    driver.place("empty", b"")
    async with mounted(tmp_path, driver, write_mode=mode, passthrough=passthrough, clean_end=False) as m:
        age_spares(m)
        created, inode = await m.kernel.create(m.fs, ROOT_INODE, b"new")
        assert is_now(await m.fs.getattr(inode))
        await m.kernel.close(m.fs, created)
        assert is_now(await m.fs.getattr(inode))
        node = await m.fs.mknod(ROOT_INODE, b"node", stat.S_IFREG | 0o644, 0, CALLER)
        assert is_now(node)
        for name in ("there", "empty"):
            truncated = await m.kernel.open(m.fs, await m.inode(name), os.O_WRONLY | os.O_TRUNC)
            found = await m.fs.getattr(await m.inode(name))
            assert abs(found.mtime_ns - time.time_ns()) < 10**9
            assert found.ctime_ns >= found.mtime_ns
            assert found.atime_ns < found.mtime_ns, "nobody has read it"
            await m.kernel.close(m.fs, truncated)
