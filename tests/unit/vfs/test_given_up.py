"""Calls whose caller is interrupted at any moment: what they began for others goes on, and nothing of theirs is left."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, MIB, Mount, Options, mounted, pages, random_bytes, until

FILES = 12
KEYS = [f"d{number % 3}/f{number}" for number in range(FILES)]
MODES = pytest.mark.parametrize("mode", ["cache-through", "async-through"])


def placed() -> FakeStore:
    driver = FakeStore()
    for number, key in enumerate(KEYS):
        driver.place(key, random_bytes(pages(1 + number % 3) + number, number))
    return driver


def options(mode: str, **changes: object) -> Options:
    return Options(write_mode=mode, metadata_ttl_s=1.0, negative_ttl_s=0.0, capacity_bytes=24 * MIB, **changes)  # type: ignore[arg-type]


@MODES
async def test_the_push_that_a_close_waited_for_goes_on(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, options(mode)) as m:
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"new")
        await m.kernel.write(m.fs, handle, 0, b"content")
        driver.hold("put")
        with trio.move_on_after(0.1 if mode == "cache-through" else 60) as scope:
            await m.kernel.flush(m.fs, handle)
        assert scope.cancelled_caught == (mode == "cache-through")
        await m.kernel.release(m.fs, handle)
        assert len(m.dirty) == 1
        driver.release()
        await until(lambda: len(m.dirty) == 0)
        assert driver.objects["new"][0] == b"content"
        assert driver.counts["put"] == 1
        assert await m.read_all("new") == b"content"


@AWAY
async def test_a_push_that_fails_when_nobody_waits_any_more_is_tried_again(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, options("cache-through")) as m:
        handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"new")
        await m.kernel.write(m.fs, handle, 0, b"content")
        with m.impatient():
            driver.hold("put")
            with trio.move_on_after(0.05):
                await m.kernel.flush(m.fs, handle)
            await m.kernel.release(m.fs, handle)
            await until(lambda: m.writeback.pace.failures > 0)
        driver.release()
        await m.drain()
        assert driver.objects["new"][0] == b"content"


class Callers:
    """Callers of one mount, each of which gives up after a random time."""

    def __init__(self, m: Mount, seed: int) -> None:
        self.m = m
        self.random = random.Random(seed)
        self.wanted = {key: m.driver.objects[key][0] for key in KEYS}
        self.given_up = 0
        self.serial = 0

    async def give_up(self, call: Callable[[], Awaitable[object]]) -> object:
        """Make a call, and return its answer if it came in time."""
        answer: object = None
        with trio.move_on_after(self.random.choice((0, 0.0005, 0.002, 0.005, 0.02, 1))) as scope:
            try:
                answer = await call()
            except LuxError as exc:
                if exc.errno != errno.ESTALE:
                    raise
        self.given_up += scope.cancelled_caught
        return answer

    async def read(self) -> None:
        """Open a file, read it and close it."""
        path = self.random.choice(KEYS)
        handle = await self.give_up(lambda: self.m.open(path))
        if isinstance(handle, int):
            data = await self.give_up(lambda: self.m.kernel.read_all(self.m.fs, handle))
            assert data in (None, self.wanted[path])
            await self.m.kernel.release(self.m.fs, handle)

    async def look(self) -> None:
        """List a directory, and look a name up that does not exist."""
        await self.give_up(lambda: self.m.entries(f"d{self.random.randrange(3)}"))
        await self.give_up(self.missing)

    async def missing(self) -> None:
        """Look for a name that does not exist."""
        try:
            await self.m.fs.lookup(ROOT_INODE, b"missing")
        except LuxError as exc:
            if exc.errno != errno.ENOENT:
                raise

    async def make(self) -> None:
        """Make a file, write to it and close it."""
        self.serial += 1
        name = f"new{self.serial}"
        made = await self.give_up(lambda: self.m.kernel.create(self.m.fs, ROOT_INODE, name.encode()))
        if not isinstance(made, tuple):
            return
        self.wanted[name] = b""
        data = random_bytes(self.random.choice((10, 40_000, pages(1) + 5)), self.serial)
        await self.m.kernel.write(self.m.fs, made[0], 0, data)
        self.wanted[name] = data
        await self.give_up(lambda: self.m.kernel.flush(self.m.fs, made[0]))
        await self.m.kernel.release(self.m.fs, made[0])

    async def change(self) -> None:
        """Open a file that was made here for writing, and replace its content."""
        names = [name for name in self.wanted if name.startswith("new")]
        if not names:
            return
        name = self.random.choice(names)
        flags = os.O_RDWR | self.random.choice((0, os.O_TRUNC))
        before = self.wanted.pop(name)
        handle = await self.give_up(lambda: self._open(name, flags))
        if isinstance(handle, int):
            await self.m.kernel.write(self.m.fs, handle, 0, b"changed")
            before = b"changed" if flags & os.O_TRUNC else b"changed" + before[7:]
            await self.give_up(lambda: self.m.kernel.fsync(self.m.fs, handle))
            await self.give_up(lambda: self.m.kernel.flush(self.m.fs, handle))
            await self.m.kernel.release(self.m.fs, handle)
        self.wanted[name] = before

    async def _open(self, name: str, flags: int) -> int:
        return await self.m.kernel.open(self.m.fs, await self.m.inode(name), flags)

    async def run(self, rounds: int) -> None:
        """Make random calls, one after the other."""
        for _ in range(rounds):
            await self.random.choice((self.read, self.read, self.look, self.make, self.change))()
            self.m.clock.advance(self.random.random())


@MODES
@pytest.mark.parametrize("seed", [1, 2])
async def test_callers_that_give_up_at_any_moment_leave_nothing_behind(tmp_path: Path, mode: str, seed: int) -> None:
    driver = placed()
    driver.delay_s = 0.001
    async with mounted(tmp_path, driver, options(mode)) as m:
        callers = Callers(m, seed)
        await callers.run(100)
        assert callers.given_up > 10
        await m.drain()
        await until(lambda: len(m.dirty) == 0)
        for path, data in callers.wanted.items():
            assert await m.read_all(path) == data, path
        await until(lambda: m.store.counters.statistics().in_flight == 0)
        await until(lambda: not m.cache.contents._live)
        assert m.fs.close_idle()
        assert not m.fs._tree._turns
        assert not m.namespace._questions._questions
