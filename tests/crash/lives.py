"""Lives of a daemon that is killed at named steps, beside a plain model of what must be there afterwards.

A kill is a copy of what is on disk and in the store at that instant (`harness.snapshot`); the life that it was taken of
goes on, and takes nothing back.
"""

from __future__ import annotations

import os
import stat as modes
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from luxfuse import steps
from luxfuse.errors import StoreError
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind, ObjectInfo
from luxfuse.vfs.attributes import AttributeChanges, parse_attributes
from luxfuse.vfs.errors import Stale
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, snapshot

File = tuple[bytes, int]
"""Content and permissions."""
Tree = dict[str, File | str | int | None]
"""By path: a file, the target of a symlink, None for a directory, or the mode of a FIFO, socket or device."""

DEFAULT_MODE = 0o644
LINK = ".rclonelink"
WHITEOUT = 4


class Late(FakeStore):
    """The first request of ``kind`` that changes something has its effect when ``gate`` opens; then ``made`` is set."""

    kind = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate, self.waits, self.made = threading.Event(), threading.Event(), threading.Event()
        self._late: int | None = None

    def _request(self, kind: str) -> None:
        super()._request(kind)
        if kind == self.kind:
            self.kind, self._late = "", threading.get_ident()
            self.waits.set()
            self.gate.wait(120)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        try:
            return super().delete(keys)
        finally:
            self._end()

    def copy(self, *arguments: Any, **named: Any) -> ObjectInfo:
        try:
            return super().copy(*arguments, **named)
        finally:
            self._end()

    def _end(self) -> None:
        if self._late == threading.get_ident():
            self._late = None
            self.made.set()


@contextmanager
def hasty(m: Mount, timeout_s: float) -> Iterator[None]:
    """Give requests up so soon for the block; unlike `Mount.impatient`, the store counts no sooner as away for that."""
    patience_s, m.store._timeout_s = m.store.timeout_s, timeout_s
    try:
        yield
    finally:
        m.store._timeout_s = patience_s


def placed(tree: Tree) -> FakeStore:
    """A store that holds a tree, as another program may have put it there."""
    driver = FakeStore()
    for path, what in tree.items():
        assert not isinstance(what, int), "a bucket holds no FIFO"
        if what is None:
            driver.place(path + "/", b"", {"mode": str(0o40755)})
        elif isinstance(what, str):
            driver.place(path + LINK, what.encode())
        else:
            driver.place(path, what[0], {"mode": str(0o100000 | what[1])})
    return driver


def tree_of(driver: FakeStore) -> Tree:
    """What a bucket holds."""
    tree: Tree = {}
    for key, (data, _, _, metadata) in driver.objects.items():
        parts = key.split("/")
        for count in range(1, len(parts)):
            tree["/".join(parts[:count])] = None
        if key.endswith(LINK):
            tree[key[: -len(LINK)]] = data.decode()
        elif not key.endswith("/"):
            assert key not in tree, f"{key} is a file and a directory"
            known = parse_attributes(metadata)
            tree[key] = data, known.mode if known and known.mode is not None else DEFAULT_MODE
    return tree


def in_bucket(tree: Tree) -> Tree:
    """The part of a tree that a bucket holds: not what is of this machine only."""
    return {path: what for path, what in tree.items() if not isinstance(what, int)}


async def seen(m: Mount) -> Tree:
    """What the mounted tree shows."""
    tree: Tree = {}

    async def look(directory: int, prefix: str) -> None:
        handle, _ = await m.fs.directories.open(directory)
        found = list(m.fs.directories.read(handle, 0))[2:]
        m.fs.directories.close(handle)
        for raw, _, _ in found:
            path = prefix + raw.decode()
            stat = await m.fs.getattr((await m.fs.lookup(directory, raw)).inode)
            kind = stat.mode & 0o170000
            if kind == 0o040000:
                tree[path] = None
                await look(stat.inode, path + "/")
            elif kind == 0o120000:
                tree[path] = (await m.fs.readlink(stat.inode)).decode()
            elif kind != 0o100000:
                tree[path] = stat.mode
            else:
                data = await patiently(m, path)
                assert len(data) == stat.size, f"{path} has {len(data)} bytes and says {stat.size}"
                tree[path] = data, stat.mode & 0o7777

    await look(ROOT_INODE, "")
    return tree


async def patiently(m: Mount, path: str) -> bytes:
    """Read a file; one that is replaced at this moment (its attributes go to the store) is looked up again."""
    give_up_at = trio.current_time() + 60  # the loop hears late of what the store has done, on a busy machine
    while True:
        try:
            return await m.read_all(path)
        except Stale:
            if trio.current_time() > give_up_at:
                raise
            await trio.sleep(0.005)


@dataclass
class User:
    """A program and the model of what it has done. ``states``: those that may be found after a kill now."""

    m: Mount
    now: Tree
    maybe: list[Tree] = field(default_factory=list)
    unclosed: bool = False
    """Whether a file is open that was written to and not closed or synced since."""
    any_of: set[str] = field(default_factory=set)
    """Paths whose content nothing was promised of yet: what was there before, or any part of what was written."""

    @property
    def states(self) -> list[Tree]:
        return [self.now, *self.maybe]

    @contextmanager
    def doing(self, after: Tree, *also: Tree) -> Iterator[None]:
        """Something that may be found done or not done until it returns."""
        self.maybe = [after, *also]
        yield
        self.now, self.maybe = after, []

    async def place(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return (await self.m.inode(above) if above else ROOT_INODE), name.encode()

    async def create(self, path: str, data: bytes) -> None:
        with self.doing(self.now | {path: (data, DEFAULT_MODE)}):
            handle, _ = await self.m.kernel.create(self.m.fs, *(await self.place(path)), DEFAULT_MODE)
            self.unclosed = True
            await self.m.kernel.write(self.m.fs, handle, 0, data)
            await self.m.kernel.flush(self.m.fs, handle)
            self.unclosed = False
        await self.m.kernel.release(self.m.fs, handle)

    async def open(self, path: str, flags: int) -> int:
        return await self.m.kernel.open(self.m.fs, await self.m.inode(path), flags)

    async def rewrite(self, path: str, data: bytes, offset: int = 0, *, truncate: bool = True, dirty: bool = False) -> None:
        """Open, write, close. ``dirty``: the file had changes that the store did not have."""
        old, mode = self.now[path]  # type: ignore[misc]
        new = data if truncate else old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        also = [self.now | {path: (b"", mode)}] if dirty and truncate else []
        with self.doing(self.now | {path: (new, mode)}, *also):
            handle = await self.open(path, os.O_RDWR | (os.O_TRUNC if truncate else 0))
            self.unclosed = True
            await self.m.kernel.write(self.m.fs, handle, offset, data)
            await self.m.kernel.flush(self.m.fs, handle)
            self.unclosed = False
        await self.m.kernel.release(self.m.fs, handle)

    async def truncate(self, path: str, size: int) -> None:
        old, mode = self.now[path]  # type: ignore[misc]
        with self.doing(self.now | {path: (old[:size].ljust(size, b"\0"), mode)}):
            self.unclosed = True
            await self.set(path, size=size)
            self.unclosed = False

    async def set(self, path: str, **changes: int) -> None:
        every = {"mode": None, "uid": None, "gid": None, "size": None, "atime_ns": None, "mtime_ns": None}
        changed = AttributeChanges(**{**every, **changes})
        await self.m.fs.setattr(await self.m.inode(path), changed, None, CALLER)

    async def sync_names(self) -> None:
        """What names were changed is promised by fsync of a directory."""
        await self.m.fs.fsyncdir(ROOT_INODE)

    async def chmod(self, path: str, mode: int) -> None:
        data, _ = self.now[path]  # type: ignore[misc]
        with self.doing(self.now | {path: (data, mode)}):
            await self.set(path, mode=mode)
            await self.sync_names()

    async def mkdir(self, path: str) -> None:
        with self.doing(self.now | {path: None}):
            await self.m.fs.mkdir(*(await self.place(path)), 0o755, CALLER)
            await self.sync_names()

    async def symlink(self, path: str, target: str) -> None:
        with self.doing(self.now | {path: target}):
            await self.m.fs.symlink(*(await self.place(path)), target.encode(), CALLER)
            await self.sync_names()

    async def mknod(self, path: str, mode: int) -> None:
        """Make a FIFO, socket or device; ``mode`` has the type."""
        with self.doing(self.now | {path: mode}):
            await self.m.fs.mknod(*(await self.place(path)), mode, 0, CALLER)
            await self.sync_names()

    async def unlink(self, path: str) -> None:
        with self.doing({p: what for p, what in self.now.items() if p != path}):
            await self.m.fs.unlink(*(await self.place(path)))

    async def rmdir(self, path: str) -> None:
        with self.doing({p: what for p, what in self.now.items() if p != path}):
            await self.m.fs.rmdir(*(await self.place(path)))

    async def link(self, path: str, new: str, *, pending: bool = False) -> None:
        """Make a copy of a name as link(2) does here. ``pending``: of what is not in the store, which is copied here."""
        with self.doing(self.now | {new: self.now[path]}):
            self.unclosed = pending
            await self.m.fs.link(await self.m.inode(path), *(await self.place(new)), CALLER)
            self.unclosed = False
            await self.sync_names()

    async def rename(self, path: str, new: str, flags: int = 0) -> None:
        after = moved(self.now, path, new, exchange=flags == 2)
        if flags & WHITEOUT:
            after[path] = modes.S_IFCHR
        with self.doing(after):
            await self.m.fs.rename(*(await self.place(path)), *(await self.place(new)), flags)


def moved(tree: Tree, path: str, new: str, *, exchange: bool) -> Tree:
    """The tree after a rename."""

    def renamed(name: str) -> str | None:
        if name == path or name.startswith(path + "/"):
            return new + name[len(path) :]
        if name == new or name.startswith(new + "/"):
            return path + name[len(new) :] if exchange else None
        return name

    return {to: what for name, what in tree.items() if (to := renamed(name)) is not None}


@dataclass
class Kill:
    """A state that a kill left behind, and the trees that may be made of it."""

    step: str
    path: Path
    driver: FakeStore
    states: list[Tree]
    unclosed: bool


class Killer:
    """Takes a copy of everything at each step that is reached."""

    def __init__(self, target: Path, wanted: Callable[[str, int], bool] = lambda _step, _time: True) -> None:
        self.target = target
        self.wanted = wanted
        self.times: Counter[str] = Counter()
        self.kills: list[Kill] = []
        self.mount: Mount | None = None
        self.states: Callable[[], tuple[list[Tree], bool]] = lambda: ([], False)
        self.power_cut = False

    def __call__(self, step: str) -> None:
        if self.mount is None or step.startswith("journal."):  # in a thread, while the loop runs on: see test_journal
            return
        self.times[step] += 1
        if not self.wanted(step, self.times[step]):
            return
        target = self.target / f"{len(self.kills):03}-{step}"
        driver = snapshot(self.mount, target, power_cut=self.power_cut)
        states, unclosed = self.states()
        self.kills.append(Kill(f"{step}#{self.times[step]}", target, driver, [dict(s) for s in states], unclosed))

    @contextmanager
    def watching(self, mount: Mount, states: Callable[[], tuple[list[Tree], bool]]) -> Iterator[None]:
        """Take copies of this mount for the block."""
        self.mount, self.states = mount, states
        steps.install(self)
        try:
            yield
        finally:
            steps.install(None)
            self.mount = None


@asynccontextmanager
async def reborn(kill: Kill, options: Options, killer: Killer | None = None) -> AsyncIterator[Mount]:
    """The next life after a kill; ``killer`` takes copies while it recovers."""
    options.beginning_s = BEGINNING_S + 10
    options.on_built = None
    with trio.fail_after(120):
        if killer is None:
            async with mounted(kill.path, kill.driver, options) as m:
                yield m
        else:
            killer.target = kill.path / "again"

            def watch(m: Mount) -> None:
                killer.mount, killer.states = m, lambda: (kill.states, kill.unclosed)
                steps.install(killer)

            options.on_built = watch
            try:
                async with mounted(kill.path, kill.driver, options) as m:
                    yield m
            finally:
                steps.install(None)


async def check(kill: Kill, options: Options, killer: Killer | None = None) -> None:
    """Recover, and compare tree and bucket with the model, before and after everything is in the bucket."""
    async with reborn(kill, options, killer) as m:
        steps.install(None)
        kept = [path.read_bytes() for path in m.recovered.directory.iterdir()] if m.recovered.count() else []
        first = await seen(m)
        assert first in kill.states, explain(f"the tree after {kill.step}", first, kill.states)
        await m.drain()
        bucket = tree_of(m.driver)
        assert bucket == in_bucket(first), explain(f"the bucket after {kill.step}", bucket, [in_bucket(first)])
        again = await seen(m)
        assert again == first, explain(f"the tree after {kill.step} and draining", again, [first])
        if not kill.unclosed:
            # What was opened an instant before may not be in the journal yet; it is kept, to be safe.
            kept_known = [p for p in m.recovered.directory.glob("*") if not p.name.startswith("unknown-")]
            assert not kept_known, f"{kill.step}: {len(kept)} files in the recovered directory, though all were closed"
        await idle(m)
        # Between the store's answer and our record of it one can be left open, but nothing is in it yet.
        assert not any(u.parts for u in m.driver.uploads.values()), f"{kill.step}: an upload is left open"
        assert m.recovered.count() == len(kept), f"{kill.step}: a conflict with ourselves"
        m.clock.advance(1000)
        assert await seen(m) == first, f"{kill.step}: asked again, the store says something else"
        await idle(m)
    assert not list(kill.path.glob("cache/*/staging/*")), f"{kill.step}: a staging file is left"


async def idle(m: Mount) -> None:
    """Wait until nothing is left to be done; what then remains in the journal, but FIFOs and the like, is left over."""

    def left() -> list[object]:
        files = [number for number, record in m.journal.files.items() if record.kind is not Kind.SPECIAL]
        dirty = [d.key for d in m.dirty if d.kind is not Kind.SPECIAL]
        return [*dirty, *files, *m.journal.deletes.items(), *m.journal.operations.items(), *m.journal.uploads.open]

    with trio.move_on_after(120) as patience:
        while left():
            await trio.sleep(0.005)
    assert not patience.cancelled_caught, f"left over: {left()}"
    await m.journal.commit()  # which the staging files of what was removed wait for
    assert not list(m.staging.stored())
    assert m.space.staged_bytes == 0


def explain(what: str, found: Tree, wanted: list[Tree]) -> str:
    """Say what differs from each of the trees."""

    def short(value: object) -> str:
        text = repr(value)
        return text if len(text) < 60 else f"{text[:50]}...({len(text)})"

    lines = [f"{what} is none of {len(wanted)}:"]
    for tree in wanted:
        names = sorted(set(found) | set(tree))
        different = [n for n in names if n not in found or n not in tree or found[n] != tree[n]]
        lines.append(
            "; ".join(
                f"{n}: {short(found[n]) if n in found else 'missing'} not {short(tree[n]) if n in tree else 'absent'}"
                for n in different
            )
        )
    return "\n  ".join(lines)
