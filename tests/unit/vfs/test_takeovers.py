"""What a successor makes of files that were about to be written, or were written, when the daemon was killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from luxfuse.cache.staged import StagedBytes
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.orders.backlog import Backlog
from luxfuse.types import Kind
from luxfuse.vfs.attributes import AttributeChanges
from luxfuse.vfs.errors import Stale
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.recovery import restart
from luxfuse.vfs.will import BackingFact, Inherited, Will
from luxfuse.vfs.writer import Writer
from luxfuse.volume.opened import VolumeEstate
from tests.support.fake_kernel import CALLER, MARK, MARK_FAST
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, snapshot, until

OLD, HALF, NEW = b"closed last", b"half", b"all of the new content"


class Facts:
    """Facts in a dictionary."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def put(self, key: bytes, value: bytes) -> None:
        self._values[key] = value

    def drop(self, key: bytes) -> None:
        self._values.pop(key, None)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter([(key.removeprefix(prefix), v) for key, v in self._values.items() if key.startswith(prefix)])


class Lives:
    """A daemon, and its successor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = Facts()
        self.driver = FakeStore()
        self.inode = 0
        self._found: dict[bytes, bytes] = {}

    def _options(self, inherited: Inherited | None) -> Options:
        estate = VolumeEstate(will=Will(self._facts, 0), inherited=inherited)  # type: ignore[arg-type]
        return Options(write_mode="async-through", estate=estate)

    def first(self, *, flusher: bool = True) -> AbstractAsyncContextManager[Mount]:
        options = self._options(None)
        options.flusher = flusher
        return mounted(self._path / "first", self.driver, options, clean_end=False)

    async def kill(self, m: Mount) -> None:
        """What there is at this instant is what the successor finds, the index too, as an estate has its trail."""
        await m.journal.commit()
        await m.index.flush()
        self.driver = snapshot(m, self._path / "second")
        self._facts._values, self._found = {}, dict(self._facts._values)

    def second(self, *, opens: int, writers: int, lost: bool = False) -> AbstractAsyncContextManager[Mount]:
        self._facts._values = self._found
        o = self._options(Inherited({self.inode: (opens, writers)} if opens else {}))
        o.beginning_s = BEGINNING_S + 10
        if lost:
            o.on_built = lambda m: m.kernel.not_inherited.add(self.inode)
        return mounted(self._path / "second", self.driver, o)


def backlog(m: Mount) -> Backlog:
    return Backlog(
        entries=m.dirty, journal=m.journal, writeback=m.writeback, store=m.store, unfinished=m.namespace.unfinished
    )


async def promised(m: Mount, *, stored: bool) -> int:
    """Close a file that is open for reading, too; returns the inode."""
    if not stored:
        m.driver.hold("put", "put_file")
    handle, inode = await m.kernel.create(m.fs, ROOT_INODE, b"a")
    await m.kernel.write(m.fs, handle, 0, OLD)
    await m.kernel.close(m.fs, handle)
    if stored:
        await m.drain()
    reader = await m.kernel.open(m.fs, inode)
    assert m.kernel.is_passthrough(reader)
    return inode


async def begin_to_empty(m: Mount, inode: int, monkeypatch: pytest.MonkeyPatch, *, cut: bool) -> None:
    """An open with O_TRUNC gets so far, and is not answered."""
    with monkeypatch.context() as patched:
        if not cut:

            async def truncate(_self: StagedBytes, _size: int) -> None:
                await trio.lowlevel.checkpoint()

            patched.setattr(StagedBytes, "truncate", truncate)
        await m.fs.open(inode, os.O_WRONLY | os.O_TRUNC, CALLER)


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "not cut"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "waiting"])
async def test_what_an_open_has_emptied_that_does_not_come_again_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, cut: bool
) -> None:
    """The program was killed meanwhile, and another one reads the file."""
    monkeypatch.setattr(restart, "RESENT_S", 0.1)
    lives = Lives(tmp_path)
    async with lives.first() as m:
        lives.inode = await promised(m, stored=stored)
        await begin_to_empty(m, lives.inode, monkeypatch, cut=cut)
        await lives.kill(m)
        m.driver.release()
    lives.driver.hold("put", "put_file", "copy")
    async with lives.second(opens=1, writers=0) as m:
        assert backlog(m).tally().due == 1, "until it is stored, `persist` waits for it"
        shown = b"" if cut else OLD
        lives.driver.release()
        assert await m.kernel.read_all(m.fs, await m.kernel.open(m.fs, lives.inode)) == shown
        await until(lambda: not m.writeback.pending)
        assert lives.driver.objects["a"][0] == shown
        assert backlog(m).tally().files == 0
        assert not any(record.emptied for record in m.journal.files.values())


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "not cut"])
async def test_an_open_to_empty_that_nobody_has_got_leaves_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    lives = Lives(tmp_path)
    async with lives.first() as m:
        lives.inode = await promised(m, stored=False)
        await begin_to_empty(m, lives.inode, monkeypatch, cut=cut)
        await lives.kill(m)
        m.driver.release()
    async with lives.second(opens=0, writers=0) as m:
        assert not list(m.recovered.directory.glob("*"))
        assert await m.read_all("a") == OLD
        await m.drain()
        assert lives.driver.objects["a"][0] == OLD


async def test_a_cache_file_that_was_just_to_be_written_to_is_not_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file of which new attributes wait for the store, so that the journal knows its number."""
    lives = Lives(tmp_path)
    lives.driver.place("a", OLD)
    async with lives.first(flusher=False) as m:
        await m.entries()
        lives.inode = await m.inode("a")
        await m.kernel.close(m.fs, await m.kernel.open(m.fs, lives.inode))
        await m.fs.setattr(lives.inode, AttributeChanges(mode=0o600), None, CALLER)

        def killed(*_: object) -> None:
            raise OSError(errno.EIO, "killed here")

        with monkeypatch.context() as patched:
            patched.setattr(Writer, "_stage", killed)
            with pytest.raises(OSError, match="killed here"):
                await m.fs.open(lives.inode, os.O_RDWR, CALLER)
        assert [path.read_bytes() for path in m.staging.path.glob("[0-9a-f]*")] == [OLD]
        await lives.kill(m)
    async with lives.second(opens=0, writers=0) as m:
        assert not list(m.recovered.directory.glob("*"))
        assert await m.read_all("a") == OLD
        await m.drain()
        assert not list(m.staging.path.glob("[0-9a-f]*"))


async def test_an_open_that_comes_again_finds_what_was_closed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(tmp_path)
    async with lives.first() as m:
        lives.inode = await promised(m, stored=False)
        await begin_to_empty(m, lives.inode, monkeypatch, cut=True)
        await lives.kill(m)
        m.driver.release()
    async with lives.second(opens=1, writers=0) as m:
        assert m.recovery._opens is not None
        left = m.recovery._opens.left()
        handle = await m.kernel.open(m.fs, lives.inode, os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, HALF)
        monkeypatch.setattr(restart, "RESENT_S", 0.0)
        await m.recovery._promise_what_is_left(left)
        assert [dirty.inode for dirty in left] == [lives.inode]
        ((number, record),) = m.journal.files.items()
        assert (record.emptied, m.journal.inline(number)) == (True, OLD)
        assert "a" not in lives.driver.objects
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert lives.driver.objects["a"][0] == HALF


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "taken over"])
async def test_the_end_of_an_open_that_is_not_taken_over_is_an_end(tmp_path: Path, lost: bool) -> None:
    lives = Lives(tmp_path)
    async with lives.first() as m:
        handle, lives.inode = await m.kernel.create(m.fs, ROOT_INODE, b"a")
        assert m.kernel.is_passthrough(handle)
        await m.kernel.write(m.fs, handle, 0, NEW)
        await lives.kill(m)
    async with lives.second(opens=1, writers=1, lost=lost) as m:
        await m.fs.flush(Ref(lives.inode, None))
        await until(lambda: "a" in lives.driver.objects)
        for backing in m.kernel.table.values():
            os.close(backing.writers.pop())
        await m.fs.release(Ref(lives.inode, None))
        await until(lambda: not len(m.dirty))
        assert lives.driver.objects["a"][0] == NEW
        assert await m.read_all("a") == NEW


@pytest.mark.expected_logs("open in passthrough, and nothing is known of it")
async def test_opens_of_which_nothing_is_known_are_left_to_the_kernel(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    async with lives.first() as m:
        lives.inode = await promised(m, stored=True)
        await until(lambda: not len(m.dirty))
        await lives.kill(m)
    lives._found.clear()
    async with lives.second(opens=1, writers=0) as m:
        assert not m.kernel.left
        assert not m.kernel.is_registered(lives.inode)
        assert await m.read_all("a") == OLD


def drop_cache_files(path: Path) -> None:
    for file in path.glob("cache/*/objects/*/*"):
        file.unlink()


@pytest.mark.expected_logs("the cache file of 'a' is gone; fetching it again")
async def test_what_is_open_is_read_from_the_store_where_its_cache_file_is_gone(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    async with lives.first() as m:
        lives.inode = await promised(m, stored=True)
        await until(lambda: not len(m.dirty))
        await lives.kill(m)
    drop_cache_files(tmp_path / "second")
    async with lives.second(opens=1, writers=0) as m:
        handle = MARK | MARK_FAST | lives.inode
        assert await m.kernel.read_all(m.fs, handle) == OLD
        await m.kernel.release(m.fs, handle)
        assert lives.inode not in m.kernel.table
        assert await m.read_all("a") == OLD


async def test_a_written_file_that_is_lost_while_it_is_open_is_stale_and_not_what_it_was_before(
    tmp_path: Path, expected_logs: list[str]
) -> None:
    expected_logs += [
        "was not in the under-store yet, and is not in the cache directory",
        "nothing is known of its content",
    ]
    lives = Lives(tmp_path)
    lives.driver.put("a", OLD, {})
    async with lives.first() as m:
        lives.inode = await m.inode("a")
        handle = await m.kernel.open(m.fs, lives.inode, os.O_RDWR)
        await m.kernel.write(m.fs, handle, 0, NEW)
        await lives.kill(m)
    for file in (tmp_path / "second").glob("cache/*/staging/*"):
        file.unlink()
    async with lives.second(opens=1, writers=1) as m:
        with pytest.raises(Stale):
            await m.fs.getattr(lives.inode)
        with pytest.raises(Stale):
            await m.kernel.read(m.fs, MARK | MARK_FAST | lives.inode, 0, 100)
        assert await m.read_all("a") == OLD


def test_a_fact_of_the_format_of_before_does_not_say_whether_it_is_of_a_staging_file() -> None:
    fact = BackingFact(1, b"a", "a", Entry(16, Kind.FILE, 5, "v", 0, 0.0), None, False, staged=True)
    before = msgspec.msgpack.encode(msgspec.msgpack.decode(msgspec.msgpack.encode(fact))[:-1])
    assert msgspec.msgpack.decode(before, type=BackingFact) == msgspec.structs.replace(fact, staged=False)


async def test_new_attributes_of_an_open_file_leave_its_content(tmp_path: Path) -> None:
    """They were to go to the store when the daemon was killed, while a program read the file: it has no staging file."""
    lives = Lives(tmp_path)
    async with lives.first() as m:
        lives.inode = await promised(m, stored=True)
        await until(lambda: not len(m.dirty))
        m.driver.hold("put", "put_file", "copy")
        await m.fs.setattr(lives.inode, AttributeChanges(mode=0o600), None, CALLER)
        await lives.kill(m)
        m.driver.release()
    async with lives.second(opens=1, writers=0) as m:
        await m.drain()
        assert lives.driver.objects["a"][0] == OLD
        assert (await m.fs.getattr(lives.inode)).mode & 0o777 == 0o600
