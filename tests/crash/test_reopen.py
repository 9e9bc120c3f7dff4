"""The daemon is killed at any point, and the next one serves right bytes from what lies on disk.

Two ways: the state is copied at every commit and at steps of storing a page, as a kill at that instant would leave it;
and a process of its own ends by `os._exit` at a named step. Either way the next run must serve exactly the store's
bytes, account for every file, and leave no file that it does not know.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from luxfuse.cache import disk
from luxfuse.cache.sweep import sweep
from luxfuse.index.store import IndexStore
from luxfuse.tiers.directory import CacheDirectory
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until

KEYS = [f"d{number % 2}/k{number}" for number in range(8)]
OPTIONS = {"capacity_bytes": pages(9), "whole_file_bytes": pages(2), "memory_bytes": pages(4)}


def filled_store() -> FakeStore:
    driver = FakeStore()
    for number, key in enumerate(KEYS):
        driver.place(key, random_bytes(pages(number % 4) + 1000 * number + 1, number))
    return driver


async def work(mount: Mount, seed: int, rounds: int = 14) -> None:
    """Look up, read in part and whole, with evictions, and now and then a commit."""
    rng = random.Random(seed)
    for _ in range(rounds):
        key = rng.choice(sorted(KEYS))
        data = mount.driver.objects[key][0]
        if rng.random() < 0.5:
            assert await mount.read_all(key) == data
        else:
            obj = mount.cache.acquire(key, mount.driver.objects[key][1], len(data))
            offset = rng.randrange(len(data))
            assert bytes(await mount.cache.read(obj, offset, 70_000)) == data[offset : offset + 70_000]
            mount.cache.release(obj)
        if rng.random() < 0.4:
            await mount.index.flush()
        if rng.random() < 0.3:
            mount.clock.advance(61)


async def check_survivor(path: Path, driver: FakeStore) -> None:
    """Everything that a run after the crash must do right."""
    async with mounted(path, driver, **OPTIONS) as m:
        await sweep(m.cache.contents, m.space)
        assert all(m.objects.known(oid) for oid in m.directory.stored()), "an unknown file stays"
        for key in sorted(driver.objects):
            assert await m.read_all(key) == driver.objects[key][0]
        for directory in ("d0", "d1"):
            assert set(await m.entries(directory)) == {
                key[3:].encode() for key in driver.objects if key.startswith(directory)
            }
        await until(lambda: m.cache.budget.idle and not m.hierarchy.removing)
        assert m.space.ledger.used_bytes == m.objects.used_bytes <= OPTIONS["capacity_bytes"]
        assert m.disk_bytes() <= OPTIONS["capacity_bytes"] + len(KEYS) * 4096


class Snapshots:
    """Copies of the state at chosen instants. The index's lock file is left out, as it says nothing about data."""

    def __init__(self, state: Path, target: Path, rng: random.Random, share: float) -> None:
        self.state = state
        self.target = target
        self.rng = rng
        self.share = share
        self.count = 0

    def take(self, where: str) -> None:
        if self.rng.random() > self.share or self.count >= 12:
            return
        self.count += 1
        target = self.target / f"{self.count:03}-{where}"
        # First the index, then the files: a real kill is one instant, this order is harder on us.
        shutil.copytree(self.state / "index", target / "index", ignore=shutil.ignore_patterns("lock.mdb"))
        for _ in range(5):
            try:
                shutil.copytree(self.state / "cache", target / "cache")
                return
            except shutil.Error:  # a file was evicted while it was copied
                shutil.rmtree(target / "cache", ignore_errors=True)

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.target.iterdir()))


@pytest.mark.expected_logs("damaged page", "is gone; fetching it again")
@pytest.mark.parametrize("seed", range(3))
async def test_any_state_at_a_commit_or_a_write_is_good_enough(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = filled_store()
    snapshots = Snapshots(tmp_path / "state", tmp_path / "copies", random.Random(seed), 0.25)
    (tmp_path / "copies").mkdir()
    real_commit, real_write, real_remove = IndexStore._commit, disk.write_all, CacheDirectory.remove

    def commit(self: IndexStore, changes: dict, function: object) -> object:
        result = real_commit(self, changes, function)
        snapshots.take("after-commit")
        return result

    def write(fd: int, data: memoryview, offset: int) -> None:
        half = len(data) // 2
        real_write(fd, data[:half], offset)
        snapshots.take("half-written")
        real_write(fd, data[half:], offset + half)
        snapshots.take("written")

    def remove(self: CacheDirectory, oid: bytes) -> None:
        snapshots.take("before-remove")
        real_remove(self, oid)
        snapshots.take("removed")

    with monkeypatch.context() as patch:
        patch.setattr(IndexStore, "_commit", commit)
        patch.setattr(disk, "write_all", write)
        patch.setattr(CacheDirectory, "remove", remove)
        async with mounted(tmp_path / "state", driver, **OPTIONS) as m:
            await work(m, seed)
    assert snapshots.count >= 6
    for copy in snapshots:
        await check_survivor(copy, driver)


@pytest.mark.expected_logs("damaged page", "is gone; fetching it again")
@pytest.mark.parametrize("seed", range(3))
async def test_files_that_lost_what_was_not_yet_on_the_platter(tmp_path: Path, seed: int) -> None:
    """After a power cut the index may be newer than the data: files shorter, zeroed in part, or missing."""
    rng = random.Random(seed)
    driver = filled_store()
    async with mounted(tmp_path, driver, clean_end=False, **OPTIONS) as m:
        await work(m, seed)
        await m.index.flush()
        files = sorted(path for path in m.directory.path.glob("objects/*/*") if path.is_file())
    assert files
    for path in files:
        size = path.stat().st_size
        damage = rng.randrange(4)
        if damage == 0:
            os.truncate(path, rng.randrange(size))
        elif damage == 1:
            with path.open("r+b") as f:
                f.seek(rng.randrange(size))
                f.write(bytes(min(5000, size)))
                f.truncate(size)
        elif damage == 2:
            path.unlink()
    await check_survivor(tmp_path, driver)


@pytest.mark.expected_logs("damaged page", "is gone; fetching it again")
async def test_a_lost_index_is_a_cold_cache_and_no_leftovers(tmp_path: Path) -> None:
    driver = filled_store()
    async with mounted(tmp_path, driver, **OPTIONS) as m:
        await work(m, 1)
    shutil.rmtree(tmp_path / "index")
    async with mounted(tmp_path, driver, **OPTIONS) as m:
        assert not m.objects.count
        assert list(m.directory.stored()) == []
    await check_survivor(tmp_path, driver)


async def test_objects_replaced_while_the_daemon_was_dead(tmp_path: Path) -> None:
    driver = filled_store()
    async with mounted(tmp_path, driver, clean_end=False, **OPTIONS) as m:
        await work(m, 2)
        await m.index.flush()
    for key in KEYS[:4]:
        driver.place(key, random_bytes(50_000, 7))
    async with mounted(tmp_path, driver, **OPTIONS) as m:
        m.clock.advance(1000)
        for key in sorted(driver.objects):
            assert await m.read_all(key) == driver.objects[key][0]


STEPS = ["begin", "store", "stored", "recorded", "commit", "evict", "end"]


def killed_process(path: Path, step: str) -> None:
    """Work, and end at the named step; runs in a process of its own."""
    countdown = {"store": 5, "stored": 5, "recorded": 5, "commit": 6, "evict": 2}.get(step, 1)

    def die() -> None:
        nonlocal countdown
        countdown -= 1
        if countdown <= 0:
            os._exit(9)

    def dying(function, *, before: bool):
        def wrapper(*args, **options):
            if before:
                die()
            result = function(*args, **options)
            if not before:
                die()
            return result

        return wrapper

    from luxfuse.index import lifecycle
    from luxfuse.index.objects import Objects

    if step == "store":
        disk.write_all = dying(disk.write_all, before=True)
    elif step == "stored":
        disk.store_run = dying(disk.store_run, before=False)
    elif step == "recorded":
        Objects.save = dying(Objects.save, before=False)  # type: ignore[method-assign]
    elif step == "commit":
        IndexStore._commit = dying(IndexStore._commit, before=False)  # type: ignore[method-assign]
    elif step == "evict":
        CacheDirectory.remove = dying(CacheDirectory.remove, before=True)  # type: ignore[method-assign]
    elif step == "begin":
        Objects.clear = dying(Objects.clear, before=True)  # type: ignore[method-assign]
    else:
        lifecycle.end = dying(lifecycle.end, before=True)  # type: ignore[assignment]

    async def main() -> None:
        async with mounted(path, filled_store(), **OPTIONS) as m:
            await work(m, 3, 40)

    trio.run(main)


@pytest.mark.expected_logs("damaged page", "is gone; fetching it again")
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_a_step_and_again_at_it(tmp_path: Path, step: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.crash.test_reopen import killed_process; "
        "killed_process(Path(sys.argv[1]), sys.argv[2])"
    )
    root = Path(__file__).parents[2]
    for _ in range(2):
        done = await trio.to_thread.run_sync(
            lambda: subprocess.run(
                [sys.executable, "-c", code, str(tmp_path), step], cwd=root, check=False, timeout=120, capture_output=True
            )
        )
        assert done.returncode in (9, 0), done.stderr.decode()
        if step != "begin":
            assert done.returncode == 9
    await check_survivor(tmp_path, filled_store())
