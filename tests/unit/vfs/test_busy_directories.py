"""A directory is renamed though files in it are pushed or removed all the while."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.moves.operations import EXCHANGE
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted

MOST = 60
"""Changes that each worker makes at most: a rename that waits for an end of them is made after all of these."""
WORKERS = 3
Work = Callable[[Mount, int, int, int], Awaitable[None]]
"""Takes the inode of the directory, and the numbers of the worker and of its change."""


async def push(m: Mount, d: int, worker: int, _number: int) -> None:
    handle = await m.kernel.open(m.fs, (await m.fs.lookup(d, str(worker).encode())).inode, os.O_WRONLY)
    await m.kernel.write(m.fs, handle, 0, os.urandom(100))
    await m.kernel.close(m.fs, handle)


async def remove(m: Mount, d: int, worker: int, number: int) -> None:
    await m.fs.unlink(d, f"{worker}-{number}".encode())


@pytest.mark.parametrize("flags", [0, EXCHANGE])
@pytest.mark.parametrize(("mode", "work"), [("cache-through", push), ("cache-through", remove), ("async-through", remove)])
async def test_a_directory_in_use_is_renamed(tmp_path: Path, mode: str, work: Work, flags: int) -> None:
    driver = FakeStore()
    if flags == EXCHANGE:
        driver.place("e/other", b"")
    for worker in range(WORKERS):
        driver.place(f"d/{worker}", b"")
        for number in range(MOST):
            driver.place(f"d/{worker}-{number}", b"")
    made = 0
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        await m.entries("d")
        d = await m.inode("d")
        renamed, began = trio.Event(), trio.Event()

        async def works(worker: int) -> None:
            nonlocal made
            for number in itertools.count():
                if renamed.is_set() or number == MOST:
                    return
                await work(m, d, worker, number)
                made += 1
                began.set()

        async with trio.open_nursery() as nursery:
            driver.delay_s = 0.01
            for worker in range(WORKERS):
                nursery.start_soon(works, worker)
            await began.wait()
            await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", flags)
            renamed.set()
        driver.delay_s = 0.0
        assert made < WORKERS * MOST
        await m.drain()
    assert [key for key in driver.objects if not key.startswith("e/")] == (["d/other"] if flags else [])
