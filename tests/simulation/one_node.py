"""One node whose cache, journal, staging files and under-store fail, and which is killed at any named step: a run a seed.

The record is that of storms (`tests.storm.record`): what a call acknowledged is there after the next restart, and what
failed is as it was or as it would have become. In the end, when nothing fails any more, the bucket has what was read.
"""

from __future__ import annotations

import copy
import errno
import functools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from luxfuse import steps
from luxfuse.errors import LuxError, StoreUnavailable
from luxfuse.index.names import ROOT_INODE
from tests.crash.lives import patiently, tree_of
from tests.simulation import no_threads
from tests.storm.record import Absent, Beginning, Record
from tests.support.failing_directory import FailingDirectory
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, pages, snapshot

SIZES = (0, 1, 100, 300, 5000, 9000, 15_000, 40_000, pages(1) + 17)
ALLOWED = {errno.EIO, errno.ENOSPC, errno.ETIMEDOUT}
LOST = ("put", "put_file", "copy", "delete")
EXPECTED_LOGS = (
    "journal cannot be written", "was being written when the last run ended", "is gone; fetching it again",
    "cannot be brought to the under-store", "cannot be removed from the under-store", "cache directory", "fake",
    "finishing the", "No space left", "not uploaded", "the under-store cannot be reached", "written by somebody else",
    "is neither in the under-store nor safe on disk",
)  # fmt: skip

Step = Callable[[], Coroutine[Any, Any, None]]


class Failed(StoreUnavailable):
    """A request failed; as another try would, so that nothing depends on how fast this machine is."""

    retryable = False


class FailingStore(FakeStore):
    """Its requests fail for good, if they do."""

    def _request(self, kind: str) -> None:
        try:
            super()._request(kind)
        except StoreUnavailable as exc:
            raise Failed(str(exc)) from None

    def _answer(self, kind: str) -> None:
        try:
            super()._answer(kind)
        except StoreUnavailable as exc:
            raise Failed(str(exc)) from None


@dataclass(frozen=True)
class Shape:
    """How long runs are."""

    names: tuple[str, ...] = tuple("abcdef")
    lives: tuple[int, ...] = (1, 2, 2, 3)
    named_steps: int = 40
    """The kill comes at one of so many, or at the end of the life."""
    steps: tuple[int, int] = (3, 16)
    """At least, and fewer than."""
    looks: bool = True
    """Whether each life begins with a look at everything; else only the last one does, which then takes one step."""


LONG = Shape()
SHORT = Shape(names=tuple("abcd"), lives=(2,), named_steps=16, steps=(2, 8), looks=False)


class Disk:
    """Where a life has its staging files and its journal: fails at the rates that are set."""

    def __init__(self, m: Mount, rng: random.Random) -> None:
        self._rng = rng
        self.staging_rate = self.journal_rate = 0.0
        self.code = errno.EIO
        for name in ("take", "create", "adopt", "publish", "sync"):
            setattr(m.staging, name, self._failing(getattr(m.staging, name), lambda: self.staging_rate))
        commit = self._failing(m.journal._file.commit, lambda: self.journal_rate)
        m.journal._file.commit = commit  # type: ignore[method-assign, assignment]
        # What was there as the life began has been on the platter.
        m.durable.synced.update(file.stat().st_ino for file in (m.path / "cache").glob("*/staging/*"))

    def _failing(self, function: Callable[..., Any], rate: Callable[[], float]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._rng.random() < rate():
                raise OSError(self.code, os.strerror(self.code))
            return function(*arguments)

        return call


class Program:
    """A program on a node, with its record; ``faults``: whether things fail."""

    def __init__(self, seed: int, shape: Shape = LONG) -> None:
        self.shape = shape
        self.rng = random.Random(seed)
        self.record = Record()
        self.touched: set[str] = set()
        """Names that the step is about."""
        self.unsettled: set[str] = set()
        """Names of calls that failed as an answer was lost: what came of them is seen when the store is asked again."""
        self.lost = 0
        """Answers that had been lost when the step began."""
        self.driver: FakeStore = FailingStore()
        self.failed = 0
        self.cut = False
        """Whether the power was cut in the life before: what was not promised yet may be gone from the platter."""
        self.log: list[str] = []
        self.m: Mount
        self.disk: Disk

    def begin(self, m: Mount) -> None:
        """A daemon begins."""
        self.m, self.disk = m, Disk(m, self.rng)

    def choose(self) -> str:
        return self.rng.choice(self.shape.names)

    def draw(self) -> Step:
        """Choose what to do."""
        return self.rng.choice(
            (self.write, self.write, self.append, self.remove, self.rename, self.read, self.read, self.list)
        )

    async def step(self, step: Step) -> None:
        """Do one thing; what fails as it may is in the record already."""
        self.log.append(step.__name__)
        self.touched, self.lost = set(), self.driver.answers_lost
        try:
            await step()
        except (LuxError, OSError) as exc:
            self.log.append(f"failed: {exc}")
            self.unsettled |= self.in_doubt()
            if exc.errno not in ALLOWED:
                raise AssertionError(f"{step.__name__}: {exc!r}") from exc
            self.failed += 1

    def in_doubt(self) -> set[str]:
        """Names of the step, if an answer was lost in it."""
        return self.touched if self.driver.answers_lost != self.lost else set()

    async def write(self) -> None:
        name, data = self.choose(), self.rng.randbytes(self.rng.choice(SIZES))
        self.record.may_be(name, Beginning(data))
        self.touched = {name}
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
        self.log.append(f"{name}: {len(data)}")
        handle, _ = await self.m.kernel.create(self.m.fs, ROOT_INODE, name.encode(), 0o644, flags)
        await self.fill(handle, 0, data)
        self.record.wrote(name, data)

    async def append(self) -> None:
        name = self.choose()
        base, data = self.record.content(name), self.rng.randbytes(3000)
        if base is None:
            return
        self.log.append(name)
        self.touched = {name}
        self.record.may_be(name, Beginning(base + data, least=len(base)))
        handle = await self.m.kernel.open(self.m.fs, await self.m.inode(name), os.O_WRONLY)
        await self.fill(handle, len(base), data)
        self.record.wrote(name, base + data)

    async def fill(self, handle: int, offset: int, data: bytes) -> None:
        """Write and close."""
        try:
            if data:
                await self.m.kernel.write(self.m.fs, handle, offset, data)
            await self.m.kernel.flush(self.m.fs, handle)
        finally:
            await self.m.kernel.release(self.m.fs, handle)

    async def remove(self) -> None:
        name = self.choose()
        if self.record.content(name) is None:
            return
        self.log.append(name)
        self.touched = {name}
        self.record.may_be(name, Absent())
        await self.m.fs.unlink(ROOT_INODE, name.encode())
        await self.m.fs.fsyncdir(ROOT_INODE)
        self.record.removed(name)

    async def rename(self) -> None:
        old, new = self.choose(), self.choose()
        if old == new or self.record.content(old) is None:
            return
        self.log.append(f"{old} to {new}")
        self.touched = {old, new}
        after = copy.deepcopy(self.record)
        after.renamed(old, new)
        self.record.may_have_been_renamed(old, new)
        await self.m.fs.rename(ROOT_INODE, old.encode(), ROOT_INODE, new.encode(), 0)
        await self.m.fs.fsyncdir(ROOT_INODE)
        self.record = after

    async def load(self, name: str) -> bytes | None:
        try:
            return await patiently(self.m, name)
        except LuxError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

    async def read(self) -> None:
        name = self.choose()
        found = await self.load(name)
        assert self.record.judge(name, found) is None, self.record.judge(name, found)

    async def list(self) -> None:
        names = [name.decode() for name in await self.m.entries()]
        assert self.record.judge_listing(names) is None, self.record.judge_listing(names)

    async def look(self) -> None:
        """Look at everything; what was not known is as it is found."""
        await self.list()
        for name in self.shape.names:
            found = await self.load(name)
            assert self.record.judge(name, found) is None, self.record.judge(name, found)
            if name in self.unsettled:
                continue
            self.record.removed(name)
            if found is not None:
                self.record.wrote(name, found)

    def break_things(self) -> None:
        """Draw what fails from now on."""
        rate = self.rng.choice((0, 0, 0.3, 0.9, 1))
        self.driver.flaky(rate, self.rng.randrange(1 << 30))
        if rate == 1:
            self.m.store.presence.found_away(None)
        else:
            self.m.store.presence.answered()
        lost = self.rng.choice(LOST) if self.rng.random() < 0.3 else None
        if lost is not None:
            self.driver.lose_answer_next(lost)
        directory = self.m.directory
        assert isinstance(directory, FailingDirectory)
        directory.fail_writing = self.rng.choice((0, 0, 0, errno.ENOSPC, errno.EIO))
        directory.fail_reading = self.rng.choice((0, 0, 0, 0, errno.EIO))
        directory.dead = self.rng.random() < 0.1
        disk = self.disk
        disk.code = self.rng.choice((errno.EIO, errno.ENOSPC))
        disk.staging_rate, disk.journal_rate = self.rng.choice((0, 0, 0, 0.3, 1)), self.rng.choice((0, 0, 0, 0, 0.5, 1))
        self.log.append(
            f"store fails {rate}, loses the answer to {lost}, cache {directory.fail_writing}/{directory.fail_reading}"
            f"/{directory.dead}, staging {disk.staging_rate}, journal {disk.journal_rate}: {disk.code}"
        )

    def mend(self) -> None:
        """Let nothing fail any more."""
        self.driver.flaky(0, 0)
        self.m.store.presence.answered()
        assert isinstance(self.m.directory, FailingDirectory)
        self.m.directory.fail_writing, self.m.directory.fail_reading, self.m.directory.dead = 0, 0, False
        self.disk.staging_rate = self.disk.journal_rate = 0.0


async def live(program: Program, path: Path, options: Options, *, last: bool) -> Path:
    """One life of a daemon, and the directory that the kill in its midst leaves; the last life ends well."""
    rng, reached, after = program.rng, 0, path.with_name(path.name + "+")
    kill_at, power_cut = rng.randrange(1, program.shape.named_steps), rng.random() < 0.2
    killed: list[tuple[FakeStore, Record, set[str]]] = []

    def kill() -> None:
        driver = snapshot(program.m, after, power_cut=power_cut)
        killed.append((driver, copy.deepcopy(program.record), program.unsettled | program.in_doubt()))

    def at_step(step: str) -> None:
        nonlocal reached
        if step.startswith("journal.") or killed:
            return
        reached += 1
        if reached == kill_at:
            kill()

    async with mounted(path, program.driver, options, clean_end=last) as m:
        program.begin(m)
        assert program.cut or not m.outcome.lost, "what was promised is in no cache directory any more"
        if program.shape.looks or last:
            await program.look()
        if not last:
            steps.install(at_step)
        try:
            for _ in range(rng.randrange(*program.shape.steps) if program.shape.looks or not last else 1):
                if rng.random() < 0.2:
                    program.break_things()
                m.clock.advance(rng.choice((0.001, 1, 61)))
                await program.step(program.draw())
                if killed:
                    break
            if not killed and not last:
                kill()
        finally:
            steps.install(None)
        program.mend()
        if last:
            await m.drain()
            m.clock.advance(100)  # what an answer told that was lost shows when the store is asked again
            program.unsettled = set()
            await program.look()
            wanted = {name: program.record.content(name) for name in program.record.known()}
            found = {key: what[0] for key, what in tree_of(program.driver).items() if isinstance(what, tuple)}
            assert found == wanted, f"in the bucket: {sorted(found)}, wanted: {sorted(wanted)}"
    if not last:
        program.driver, program.record, program.unsettled = killed[0]
        program.cut = power_cut
        program.log.append("power cut" if power_cut else "killed")
    return after


async def play(base: Path, seed: int, shape: Shape, *, losing: bool = False) -> int:
    """Run one; returns how many calls failed. ``losing``: each kill loses journal and staging files, too."""
    program = Program(seed, shape)
    rng = program.rng
    options = Options(
        capacity_bytes=pages(24), whole_file_bytes=pages(2), room_timeout_s=0.05,
        write_mode=rng.choice(("cache-through", "async-through")), passthrough=rng.random() < 0.5,
        directory=FailingDirectory,
    )  # fmt: skip
    path, lives = base / "life", rng.choice(shape.lives)
    program.log.append(f"{options.write_mode}, passthrough {options.passthrough}")
    for number in range(lives):
        options.beginning_s = BEGINNING_S + 1000 * number
        try:
            path = await live(program, path, options, last=number == lives - 1)
        except BaseException:
            print("; ".join(program.log))
            raise
        if losing:
            shutil.rmtree(path, ignore_errors=True)
    return program.failed


def new_base() -> Path:
    return Path(tempfile.mkdtemp(prefix="one-node-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def play_one(seed: int, shape: Shape = LONG, *, threads: bool = False, losing: bool = False) -> int:
    """Play a seed in a directory of its own; returns how many calls failed."""
    base = new_base()
    print(f"LUXFUSE_SEED={seed}")
    playing = functools.partial(play, base, seed, shape, losing=losing)
    try:
        return trio.run(playing) if threads else no_threads.run(seed, playing)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def play_all(tried: range, shape: Shape) -> None:
    """Play many seeds, one after the other."""
    began_s = time.process_time()
    failed = sum(play_one(seed, shape) for seed in tried)
    print(f"{len(tried)} seeds in {time.process_time() - began_s:.1f} s of processor time, {failed} calls that failed")
