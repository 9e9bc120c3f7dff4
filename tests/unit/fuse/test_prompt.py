"""Requests that are answered in one step of the event loop, and those that are left to the handlers."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from luxfuse.estate.memory import Estate
from luxfuse.fuse import prompt as prompt_module
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.once import ANSWERED_KEPT, BEGUN, Begun
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.prompt import Prompt
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import WriteMode
from luxfuse.vfs.kernel import NoKernel
from luxfuse.vfs.volumes import Volumes
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted

CREATE = os.O_WRONLY | os.O_CREAT
LARGE = 1 << 20


class Answers:
    """What the extension is told to answer, by the number of the request; each is answered once."""

    def __init__(self) -> None:
        self.given: dict[int, tuple[object, ...]] = {}

    def _give(self, kind: str, unique: int, *rest: int) -> None:
        assert unique not in self.given, "answered twice"
        self.given[unique] = (kind, *rest)

    def as_module(self) -> SimpleNamespace:
        names = ("entry", "attr", "created", "done")
        replies = {f"reply_{name}": lambda u, *rest, name=name: self._give(name, u, *rest) for name in names}
        return SimpleNamespace(**replies, MARK_FAST=passthrough.MARK_FAST, answering=lambda _unique: None)


class Place:
    """A mount, its prompt answers, and what was answered."""

    def __init__(self, m: Mount, prompt: Prompt, answers: Answers, volumes: Volumes, operations: Operations) -> None:
        self.m, self.prompt, self.given, self.operations = m, prompt, answers.given, operations
        self.volume = volumes.main

    def create(self, unique: int, name: bytes, flags: int = CREATE) -> bool:
        return self.prompt.create(unique, ROOT_INODE, name, 0o100640, flags, 5, 6, 7, 0o022)

    def handle_of(self, unique: int) -> int:
        handle = self.given[unique][-1]
        assert isinstance(handle, int)
        return handle

    def write(self, handle: int, data: bytes) -> None:
        """As the kernel does it, in passthrough."""
        os.pwrite(self.m.kernel.table[handle & ((1 << 48) - 1)].writers[0], data, 0)

    def release(self, unique: int, handle: int) -> bool:
        os.close(self.m.kernel.table[handle & ((1 << 48) - 1)].writers.pop())
        return self.prompt.release(unique, handle)


@pytest.fixture
def mode() -> WriteMode:
    return WriteMode.ASYNC_THROUGH


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: WriteMode) -> AsyncIterator[Place]:
    driver, answers = FakeStore(), Answers()
    driver.place("there", b"content")
    monkeypatch.setattr(prompt_module, "passthrough", answers.as_module())
    async with mounted(tmp_path, driver, write_mode=mode, clean_end=False) as m:
        volumes = Volumes(NoKernel())
        volumes.main.serve(m.fs, negative_ttl_s=5.0, read_only=False)
        operations = Operations(volumes, read_only=False)
        await m.inode("there")
        opened, _ = await m.fs.directories.open(ROOT_INODE)
        m.fs.directories.close(opened)
        yield Place(m, Prompt(operations, volumes), answers, volumes, operations)


async def until(at: Place, unique: int) -> tuple[object, ...]:
    with trio.fail_after(60):
        while unique not in at.given:
            await trio.sleep(0.01)
    return at.given[unique]


async def test_a_small_file_is_made_written_and_closed(at: Place) -> None:
    assert at.prompt.lookup(1, ROOT_INODE, b"new")
    assert at.given[1][:2] == ("entry", 0)
    assert at.given[1][-2] == 5_000_000_000
    assert at.create(2, b"new")
    inode = await at.m.inode("new")
    kind, number, size, _, mode, _, uid, gid = at.given[2][:8]
    assert (kind, number, size, mode, uid, gid) == ("created", inode, 0, 0o100640, 5, 6)
    handle = at.handle_of(2)
    at.write(handle, b"bytes")
    commits = at.m.journal._writes
    assert at.prompt.flush(3, handle)
    assert 3 not in at.given
    assert at.volume.under_way == 1
    assert await until(at, 3) == ("done", 0)
    assert at.volume.under_way == 0
    assert at.m.journal._writes == commits + 1
    assert at.m.journal.is_durable(next(iter(at.m.journal.files)))
    assert at.release(4, handle)
    assert at.given[4] == ("done", 0)
    assert at.prompt.getattr(5, inode)
    assert at.given[5][:3] == ("attr", inode, 5)
    assert at.prompt.lookup(6, ROOT_INODE, b"new")
    assert at.given[6][1] == inode
    assert set(at.operations.latency) == {"lookup", "create", "flush", "release", "getattr"}


async def test_attributes_of_a_file_that_is_dirty_are_set(at: Place) -> None:
    assert at.create(1, b"new")
    handle, inode = at.handle_of(1), await at.m.inode("new")
    at.write(handle, b"bytes")
    assert at.prompt.setattr(2, inode, 0o604, -1, 77, -1, 1_500_000_000_000_000_005)
    kind, number, size, _, mode, _, uid, gid, _, mtime_ns, ctime_ns, atime_ns = at.given[2][:12]
    assert (kind, number, size, mode, uid, gid) == ("attr", inode, 5, 0o100604, 5, 77)
    assert mtime_ns == 1_500_000_000_000_000_005
    assert ctime_ns > mtime_ns
    assert atime_ns > mtime_ns
    assert at.prompt.flush(3, handle)
    await until(at, 3)
    assert at.release(4, handle)
    assert at.prompt.setattr(5, inode, -1, 9, -1, 1_600_000_000_000_000_000, -1), "it is closed, and not stored yet"
    await at.m.drain()
    metadata = at.m.driver.head("new").metadata or {}
    assert {name: metadata[name] for name in ("mode", "uid", "gid", "mtime", "atime")} == {
        "mode": "0100604", "uid": "9", "gid": "77", "mtime": "1500000000.000000005", "atime": "1600000000.000000000",
    }  # fmt: skip


async def test_attributes_of_others_are_left_to_the_handlers(at: Place) -> None:
    assert not at.prompt.setattr(1, await at.m.inode("there"), 0o600, -1, -1, -1, -1)
    assert not at.prompt.setattr(2, ROOT_INODE, 0o700, -1, -1, -1, -1)
    assert not at.prompt.setattr(3, 12345, 0o700, -1, -1, -1, -1)
    assert at.create(4, b"new")
    inode = await at.m.inode("new")
    at.operations.read_only = True
    assert not at.prompt.setattr(5, inode, 0o600, -1, -1, -1, -1)
    at.operations.read_only = False
    await at.m.fs.unlink(ROOT_INODE, b"new")
    assert not at.prompt.setattr(6, inode, 0o600, -1, -1, -1, -1)
    assert set(at.given) == {4}


async def test_closes_of_one_moment_share_a_commit(at: Place) -> None:
    for number in range(8):
        assert at.create(number, b"file-%d" % number)
        at.write(at.handle_of(number), b"bytes")
    commits = at.m.journal._writes
    handles = [at.handle_of(number) for number in range(8)]
    for number, handle in enumerate(handles):
        assert at.prompt.flush(100 + number, handle)
    for number in range(8):
        assert await until(at, 100 + number) == ("done", 0)
    assert at.m.journal._writes - commits <= 2  # the one that the first began, and one for all that came meanwhile


async def test_a_close_with_nothing_written_since_is_answered_at_once(at: Place) -> None:
    assert at.create(1, b"new")
    handle = at.handle_of(1)
    assert at.prompt.flush(2, handle)
    await until(at, 2)
    assert at.prompt.flush(3, handle)
    assert at.given[3] == ("done", 0)


async def test_a_large_file_and_one_that_is_no_more_open_are_left_to_the_handlers(at: Place) -> None:
    assert at.create(1, b"new")
    handle = at.handle_of(1)
    at.write(handle, os.urandom(LARGE))
    assert not at.prompt.flush(2, handle)
    assert not at.prompt.flush(3, 1 << 63 | 77)
    assert at.given.keys() == {1}
    assert at.volume.under_way == 0


async def test_what_may_have_to_wait_is_left_to_the_handlers(at: Place) -> None:
    assert not at.create(1, b"there")
    assert not at.create(2, b"new", os.O_RDONLY | os.O_CREAT)
    async with at.m.fs._tree.turn((ROOT_INODE, b"new")):
        assert not at.create(3, b"new")
    assert not at.prompt.lookup(4, ROOT_INODE, b"..")
    assert not at.prompt.getattr(5, 12345)
    at.operations.read_only = True
    assert not at.create(6, b"new")
    assert not at.given


async def test_an_error_is_the_answer(at: Place) -> None:
    assert at.create(1, b"a.rclonelink")
    assert at.given[1] == ("done", errno.EINVAL)
    assert at.create(2, b"x" * 256)
    assert at.given[2] == ("done", errno.ENAMETOOLONG)


async def test_what_was_refused_is_kept_for_no_successor(at: Place) -> None:
    fd = os.memfd_create("estate")
    facts = Estate(fd).facts
    at.operations.begun = Begun(facts, at.operations.volumes)
    for unique in range(1, 4 * ANSWERED_KEPT):
        assert at.create(unique, b"x" * 300)
    assert len(list(facts.items(BEGUN))) == ANSWERED_KEPT
    os.close(fd)


async def test_what_is_left_to_a_handler_is_kept_for_a_successor_while_that_runs(at: Place) -> None:
    fd = os.memfd_create("estate")
    facts = Estate(fd).facts
    begun = at.operations.begun = Begun(facts, at.operations.volumes)
    key = BEGUN + (1).to_bytes(8, "big")
    assert not at.create(1, b"there")
    assert facts.get(key) is None, "the handler may refuse it before it begins"
    begun.begin(1, ROOT_INODE, b"there")
    for unique in range(2, 4 * ANSWERED_KEPT):
        assert at.create(unique, b"file-%d" % unique)
    assert facts.get(key) is not None
    begun.end(1)
    os.close(fd)


async def test_a_commit_that_fails_fails_the_close(at: Place, caplog: pytest.LogCaptureFixture) -> None:
    def full(_changes: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    assert at.create(1, b"new")
    at.m.journal._file.commit = full  # type: ignore[method-assign, assignment]
    assert at.prompt.flush(2, at.handle_of(1))
    assert await until(at, 2) == ("done", errno.ENOSPC)
    assert at.volume.under_way == 0
    del at.m.journal._file.commit
    assert at.prompt.flush(3, at.handle_of(1))
    assert await until(at, 3) == ("done", 0)
    caplog.clear()


@pytest.mark.parametrize("mode", [WriteMode.CACHE_THROUGH])
async def test_a_close_that_waits_for_the_store_is_left_to_the_handlers(at: Place) -> None:
    assert at.create(1, b"new")
    assert not at.prompt.flush(2, at.handle_of(1))
