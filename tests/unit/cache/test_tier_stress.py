"""Three tiers under everything at once, in an order that a seed decides: content, counts and limits are always right."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.cache import budget, mover
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.sweep import sweep
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.errors import Stale
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, Options, mounted, pages, random_bytes, until
from tests.support.tiers import consistent

READ, WRITTEN = 14, 4
"""Objects that are only read, and objects that are written to, too."""
OPERATIONS = 30
CHUNK_BYTES = 300_000


@pytest.fixture(autouse=True)
def _at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "BYTES_PER_S", 1 << 60)
    monkeypatch.setattr(mover, "SLICE_PAGES", 1)
    monkeypatch.setattr(budget, "LONGEST_YIELD_S", 0.005)
    monkeypatch.setattr(budget, "YIELD_S", 0.001)
    monkeypatch.setattr("luxfuse.orders.check.SECOND_LOOK_S", 0.01)
    monkeypatch.setattr("luxfuse.cache.sweep.PAUSE_S", 0.001)
    monkeypatch.setattr("luxfuse.cache.space.STUCK_S", 0.01)
    monkeypatch.setattr("luxfuse.cache.directories.POLL_S", 0.005)
    monkeypatch.setattr("luxfuse.cache.trim._coldest", any_page)


def any_page(obj: CachedObject, _wanted_bytes: int) -> list[int]:
    """Take pages out of what is in use, too."""
    return [page for page in range(obj.pages.total) if obj.pages.has(page)][-1:]


class Limits(trio.abc.Instrument):
    """Looks at every ledger after every step of every task."""

    def __init__(self, m: Mount) -> None:
        self.m = m
        self.steps = 0
        self.over: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        for s in self.m.hierarchy:
            taken = s.ledger.used_bytes + s.ledger.reserved_bytes
            assert s.capacity_bytes is not None
            if taken > s.capacity_bytes + pages(1) or min(s.ledger.used_bytes, s.ledger.reserved_bytes) < 0:
                self.over.append(f"{s.tier}: {s.ledger.used_bytes} used, {s.ledger.reserved_bytes} reserved")


def blocks(m: Mount) -> dict[str, int]:
    """What each directory takes on disk now, with what is on its way in and out; at one instant for those who rename."""
    found = {}
    for s in m.hierarchy:
        total = 0
        for parent, _, names in os.walk(s.directory.path):  # which does not mind that directories go
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(f"{parent}/{name}").st_blocks * 512 if parent != str(s.directory.path) else 0
        found[s.tier] = total
    return found


async def watch_disk(m: Mount) -> None:
    while True:
        for name, taken in blocks(m).items():
            capacity = next(s.capacity_bytes for s in m.hierarchy if s.tier == name)
            assert capacity is not None
            assert taken <= capacity + pages(1), f"{name} takes {taken} of {capacity}"
        await trio.sleep(0.005)


class Everybody:
    """Programs, and what the daemon does besides, on one mount."""

    def __init__(self, m: Mount, seed: int) -> None:
        self.m = m
        self.rng = random.Random(seed)
        self.now = {key: data for key, (data, *_) in m.driver.objects.items()}
        self.locks = {key: trio.Lock() for key in self.now if key.startswith("w")}
        self.done = trio.Event()
        self.did: dict[str, int] = {}
        self.checked_files = 0

    async def repeat(self, name: str, act: Callable[[], Awaitable[object]]) -> None:
        for _ in range(OPERATIONS):
            await act()
            self.did[name] = self.did.get(name, 0) + 1
            await trio.sleep(self.rng.random() * 0.002)

    async def until_done(self, act: Callable[[], Awaitable[object]]) -> None:
        while not self.done.is_set():
            await act()
            await trio.sleep(self.rng.random() * 0.004)

    def any_read(self) -> str:
        """Some are hot."""
        number = self.rng.randrange(READ) if self.rng.random() < 0.5 else self.rng.randrange(4)
        return f"k{number:02}"

    async def read_open(self) -> None:
        """As a program does, and with pauses: in passthrough, unless somebody copies the same file."""
        key = self.any_read()
        m, data = self.m, self.now[key]
        handle = await m.open(key)
        try:
            for offset in range(0, len(data), CHUNK_BYTES):
                part = await m.kernel.read(m.fs, handle, offset, CHUNK_BYTES)
                assert part == data[offset : offset + CHUNK_BYTES], f"{key} at {offset}"
                if self.rng.random() < 0.2:
                    await trio.sleep(self.rng.random() * 0.01)
        finally:
            await m.kernel.release(m.fs, handle)

    async def read_object(self) -> None:
        """By the daemon, at random places."""
        key = self.any_read()
        data, version = self.now[key], self.m.driver.objects[key][1]
        obj = self.m.cache.acquire(key, version, len(data))
        try:
            for _ in range(4):
                offset = self.rng.randrange(len(data))
                part = bytes(await self.m.cache.read(obj, offset, CHUNK_BYTES))
                assert part == data[offset : offset + CHUNK_BYTES], f"{key} at {offset}"
        finally:
            self.m.cache.release(obj)

    async def write(self) -> None:
        key = self.rng.choice(sorted(self.locks))
        async with self.locks[key]:
            await self.check(key)
            offset = self.rng.randrange(len(self.now[key]))
            new = self.rng.randbytes(self.rng.randrange(1, 40_000))
            handle = await self.m.kernel.open(self.m.fs, await self.m.inode(key), os.O_RDWR)
            await self.m.kernel.write(self.m.fs, handle, offset, new)
            old = self.now[key]
            self.now[key] = old[:offset] + new + old[offset + len(new) :]
            await self.m.kernel.close(self.m.fs, handle)
            await self.check(key)

    async def check(self, key: str) -> None:
        try:
            found = await self.m.read_all(key)
        except Stale:  # it was brought up just now
            found = await self.m.read_all(key)
        assert found == self.now[key], key

    async def move(self) -> None:
        key = self.rng.choice(sorted(self.now))
        obj = self.m.cache.acquire(key, self.m.driver.objects[key][1], len(self.m.driver.objects[key][0]))
        self.m.cache.release(obj)
        await self.m.mover.move(obj.oid, self.rng.choice(self.m.hierarchy.spaces))

    async def trim(self) -> None:
        key = self.rng.choice(sorted(self.now))
        obj = self.m.cache.acquire(key, self.m.driver.objects[key][1], len(self.m.driver.objects[key][0]))
        self.m.cache.release(obj)
        if obj.space is not None:
            await self.m.space.trimmer.trim(obj.oid, obj.space, self.rng.choice((4096, 300_000)))

    async def drain_and_add(self) -> None:
        for s in list(self.m.hierarchy):
            if s is not self.m.hierarchy.home:
                await self.m.directories.drain(s)
                await trio.sleep(0.01)
                assert s.capacity_bytes is not None
                await self.m.directories.add(CacheSetting(s.directory.name, s.capacity_bytes, s.tier))

    async def look_for_damage(self) -> None:
        """There is none, whatever goes on meanwhile."""
        job = self.m.checks.start(repair=True)
        await job.ended.wait()
        step = job.progress()
        self.checked_files += step.files
        assert (step.lines, step.error) == ((), None)

    async def evict(self) -> None:
        space = self.rng.choice(self.m.hierarchy.spaces)
        if self.rng.random() < 0.3:
            await space.free_ahead(pages(self.rng.choice((0.5, 1, 2))))
        else:
            await sweep(self.m.cache.contents, space)


def stress_store(seed: int) -> FakeStore:
    driver, rng = FakeStore(), random.Random(seed)
    for number in range(READ):
        driver.place(f"k{number:02}", random_bytes(rng.randrange(1, pages(3)), number))
    for number in range(WRITTEN):
        driver.place(f"w{number:02}", random_bytes(rng.randrange(100_000, pages(2)), 100 + number))
    return driver


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
@pytest.mark.parametrize(
    ("passthrough", "draining"), [pytest.param(True, False, marks=pytest.mark.slow), (False, False), (True, True)]
)
async def test_everything_at_once(tmp_path: Path, seed: int, passthrough: bool, draining: bool) -> None:
    o = Options(
        capacity_bytes=pages(10),
        passthrough=passthrough,
        whole_file_bytes=pages(4),
        memory_bytes=pages(6),
        more_caches=(
            CacheSetting("mem", pages(6), "mem", high_watermark=0.9, low_watermark=0.6),
            CacheSetting("hdd", pages(12), "hdd", high_watermark=0.9, low_watermark=0.7),
        ),
        room_timeout_s=200.0,
    )
    with trio.fail_after(400):
        async with mounted(tmp_path, stress_store(seed), o) as m:
            everybody, limits = Everybody(m, seed), Limits(m)
            trio.lowlevel.add_instrument(limits)
            async with trio.open_nursery() as background:
                for act in (everybody.move, everybody.move, everybody.evict, everybody.trim, m.mover.round,
                            everybody.look_for_damage):  # fmt: skip
                    background.start_soon(everybody.until_done, act)
                background.start_soon(watch_disk, m)
                if draining:
                    background.start_soon(everybody.until_done, everybody.drain_and_add)
                async with trio.open_nursery() as programs:
                    for name, act, count in (
                        ("open", everybody.read_open, 4),
                        ("copy", everybody.read_object, 4),
                        ("write", everybody.write, 3),
                    ):
                        for _ in range(count):
                            programs.start_soon(everybody.repeat, name, act)
                everybody.done.set()
                await trio.sleep(0.02)
                background.cancel_scope.cancel()
            await m.drain()
            await until(lambda: not m.dirty and m.cache.budget.idle and not m.hierarchy.removing)
            await m.mover.round()
            trio.lowlevel.remove_instrument(limits)
            assert not limits.over
            assert limits.steps > 1000
            consistent(m)
            assert m.mover.moved_bytes > pages(10)
            assert m.directories._added or not draining
            assert everybody.checked_files > READ
            for key, data in everybody.now.items():
                assert m.driver.objects[key][0] == data
                await everybody.check(key)


async def write_file(m: Mount, number: int, count: int) -> None:
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, f"new{number:02}".encode())
    for part in range(count):
        await m.kernel.write(m.fs, handle, part * 400_000, random_bytes(400_000, number))
    await m.kernel.close(m.fs, handle)


async def read_file(m: Mount, key: str) -> None:
    try:
        assert await m.read_all(key) == m.driver.objects[key][0]
    except LuxError as exc:
        pytest.fail(f"{key}: {exc}")


async def test_capacities_hold_under_16_writers_and_16_readers(tmp_path: Path) -> None:
    driver = FakeStore()
    for number in range(32):
        driver.place(f"k{number:02}", random_bytes(pages(1) + 1000 * number, number))
    o = Options(
        capacity_bytes=pages(20),
        passthrough=False,
        memory_bytes=pages(8),
        write_mode="async-through",
        room_timeout_s=200.0,
        more_caches=(
            CacheSetting("mem", pages(6), "mem", high_watermark=0.9, low_watermark=0.6),
            CacheSetting("hdd", pages(8), "hdd", high_watermark=0.9, low_watermark=0.7),
        ),
    )
    with trio.fail_after(400):
        async with mounted(tmp_path, driver, o) as m:
            limits = Limits(m)
            trio.lowlevel.add_instrument(limits)
            async with trio.open_nursery() as background:
                background.start_soon(watch_disk, m)
                background.start_soon(m.mover.run)
                async with trio.open_nursery() as programs:
                    for number in range(16):
                        programs.start_soon(write_file, m, number, 3)
                        for key in (f"k{number:02}", f"k{number + 16:02}"):
                            programs.start_soon(read_file, m, key)
                background.cancel_scope.cancel()
            await m.drain()
            trio.lowlevel.remove_instrument(limits)
            assert not limits.over
            assert limits.steps > 1000
            for number in range(16):
                data = driver.objects[f"new{number:02}"][0]
                assert data == random_bytes(400_000, number) * 3
            await until(lambda: not m.dirty and m.cache.budget.idle and not m.hierarchy.removing)
            consistent(m)
