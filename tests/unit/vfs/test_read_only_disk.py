"""A cache disk that turns read-only: files are in the store, and their staging files go when the disk lets them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio

from luxfuse.errors import StoreUnavailable
from luxfuse.index import lifecycle
from luxfuse.index.names import ROOT_INODE
from luxfuse.index.records import FileRecord
from luxfuse.orders.persisting import persist
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, WriteMode
from luxfuse.vfs import unfinished, writer
from luxfuse.vfs.attributes import AttributeChanges, Caller
from luxfuse.vfs.recovery import later
from luxfuse.vfs.recovery.contents import JournalContents
from luxfuse.vfs.recovery.files import PromisedFiles
from luxfuse.vfs.unfinished import Unfinished, error_of
from tests.support.disks import read_only
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, random_bytes, until
from tests.unit.orders.test_backlog import backlog_of, last

DATA = random_bytes(100_000, 1)
CALLER = Caller(0, 0, 1, 0o022)


def turn_read_only(m: Mount) -> Callable[[], None]:
    """Let no staging file change its name, or go; returns what ends that."""
    names = ("publish", "remove", "retire")
    were = [getattr(m.staging, name) for name in names]

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def end() -> None:
        for name, was in zip(names, were, strict=True):
            setattr(m.staging, name, was)

    for name in names:
        setattr(m.staging, name, refuse)
    return end


async def written(m: Mount, name: str) -> int:
    """Open a new file and write it; returns the handle."""
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode(), 0o644)
    await m.kernel.write(m.fs, handle, 0, DATA)
    return handle


def is_clean(m: Mount) -> bool:
    return not len(m.dirty) and not list(m.staging.stored()) and not m.space.staged_bytes


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(writer, "MAPPED_INTERVAL_S", 0.01)


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
async def test_a_file_that_is_closed(tmp_path: Path, mode: str) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        handle = await written(m, "a")
        end = turn_read_only(m)
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert driver.objects["a"][0] == DATA
        assert await m.read_all("a") == DATA
        assert not is_clean(m)
        end()
        await until(lambda: is_clean(m))
        assert await m.read_all("a") == DATA


async def test_a_file_that_a_program_had_mapped(tmp_path: Path) -> None:
    """It ends in the background, where an error would end the mount."""
    driver = FakeStore()
    async with mounted(tmp_path, driver) as m:
        handle = await written(m, "a")
        (dirty,) = m.dirty
        mapped = os.open(m.staging.place_of(dirty.number), os.O_RDWR)
        await m.kernel.close(m.fs, handle)
        await m.drain()
        refused = 0
        end = turn_read_only(m)
        os.close(mapped)
        remove = m.staging.remove

        def count(number: int) -> None:
            nonlocal refused
            refused += 1
            remove(number)

        m.staging.remove = count  # type: ignore[method-assign]
        await until(lambda: refused > 3)
        end()
        await until(lambda: is_clean(m))
        assert await m.read_all("a") == DATA


@pytest.mark.parametrize("mode", ["must-cache", "async-through"])
@pytest.mark.parametrize("opened", [True, False])
async def test_a_file_that_is_removed(tmp_path: Path, mode: str, opened: bool) -> None:
    async with mounted(tmp_path, FakeStore(), write_mode=mode, flusher=False) as m:
        handle = await written(m, "a")
        if not opened:
            await m.kernel.close(m.fs, handle)
        end = turn_read_only(m)
        await m.fs.unlink(ROOT_INODE, b"a")
        if opened:
            await m.kernel.close(m.fs, handle)
        assert not await m.entries()
        end()
        await until(lambda: is_clean(m))


@pytest.mark.expected_logs("cannot be taken up while", "cache directory")
@pytest.mark.parametrize("left", ["missing", "shorter", "retired"])
async def test_a_promise_that_only_a_disk_that_is_written_can_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """As a power cut leaves it: the journal has the content, or the staging file has no name. Nothing else waits for it."""
    monkeypatch.setattr(later, "PAUSE_S", 0.01)
    driver, data = FakeStore(), DATA if left == "retired" else DATA[:1000]
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        for name in ("a", "b"):
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode(), 0o644)
            await m.kernel.write(m.fs, handle, 0, data)
            await m.kernel.close(m.fs, handle)
        path, base = m.staging.path_of(min(m.dirty, key=lambda d: d.key).number), m.directory.path.parent
        if left == "missing":
            path.unlink()
        elif left == "shorter":
            os.truncate(path, 10)
            os.utime(path, ns=(0, 0))
        else:
            path.rename(f"{path}.gone")
    with read_only(base) as let_be_written:
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            await m.drain()
            assert driver.objects.keys() == {"b"}
            let_be_written()
            await until(lambda: m.writeback.pending or "a" in driver.objects)
            await m.drain()
            assert driver.objects["a"][0] == driver.objects["b"][0] == data


async def begun(m: Mount, name: str, data: bytes, parent: int = ROOT_INODE) -> None:
    """Have a file promised of which the journal alone has the content, as a power cut leaves it."""
    handle, inode = await m.kernel.create(m.fs, parent, name.encode(), 0o644)
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.close(m.fs, handle)
    dirty = m.dirty.get(inode)
    assert dirty is not None
    m.staging.path_of(dirty.number).unlink()


@contextlib.contextmanager
def unwritable(directory: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Let nothing be written to a directory; yields what ends that."""
    if why == "read-only":
        with read_only(directory) as let_be_written:
            yield let_be_written
        return

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr("luxfuse.tiers.staging.write_all", refuse)
        yield full.undo


@pytest.mark.expected_logs("cannot be taken up while", "cache directory")
@pytest.mark.parametrize(("stored", "why"), [(True, "read-only"), (False, "read-only"), (True, "full")])
async def test_a_name_waits_while_what_was_promised_of_it_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, why: str
) -> None:
    """Were it opened meanwhile, it would show what was there before, and one of two promises would be lost."""
    monkeypatch.setattr(later, "PAUSE_S", 1000.0)
    driver = FakeStore()
    if stored:
        driver.place("a", b"stored")
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        await m.entries()
        if stored:
            handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
            await m.kernel.write(m.fs, handle, 0, b"promised")
            await m.kernel.close(m.fs, handle)
            m.staging.path_of(next(iter(m.dirty)).number).unlink()
        else:
            await begun(m, "a", b"promised")
        await m.index.flush()
        base = m.directory.path.parent
    with unwritable(base, why, monkeypatch) as let_be_written:
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            entries = await m.entries()
            assert entries.keys() == {b"a"}
            inode = entries[b"a"]
            for call in (
                m.fs.lookup(ROOT_INODE, b"a"),
                m.fs.getattr(inode),
                m.fs.open(inode, os.O_RDONLY, CALLER),
                m.fs.open(inode, os.O_WRONLY | os.O_TRUNC, CALLER),
                m.fs.unlink(ROOT_INODE, b"a"),
                m.kernel.create(m.fs, ROOT_INODE, b"a", 0o644),
            ):
                with pytest.raises(Unfinished) as told:
                    await call
                assert told.value.errno == errno.EIO
            backlog = backlog_of(m)
            tally = backlog.tally()
            assert (tally.files, tally.bytes, tally.due, tally.failing) == (1, len(b"promised"), 1, 1)
            assert backlog.has_changes("a")
            assert (
                "cannot be taken up from the last run yet: the cache disk"
                in (await last(persist(backlog, ["a"]))).failures[0]
            )
            let_be_written()
            await m.recovery._later.try_again()
            assert not m.namespace.unfinished
            assert (ROOT_INODE, b"a") in m.kernel.invalidated
            assert await m.read_all("a") == b"promised"
            handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY)
            await m.kernel.write(m.fs, handle, 0, b"A")
            await m.kernel.close(m.fs, handle)
            await m.drain()
            assert driver.objects["a"][0] == b"Aromised"
            assert not m.recovered.directory.exists()


@pytest.mark.expected_logs("cannot be taken up while", "cache directory")
async def test_a_directory_stays_where_something_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that it takes along would be made anew at the old place."""
    monkeypatch.setattr(later, "PAUSE_S", 1000.0)
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
        await begun(m, "a", b"promised", await m.inode("d"))
        await m.index.flush()
        base = m.directory.path.parent
    with read_only(base) as let_be_written:
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            with m.impatient(), pytest.raises(StoreUnavailable, match="which cannot be taken up yet"):
                await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)
            let_be_written()
            await m.recovery._later.try_again()
            await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)
            assert await m.read_all("e/a") == b"promised"
            await m.drain()
            assert driver.objects["e/a"][0] == b"promised"
            assert "d/a" not in driver.objects


@pytest.mark.expected_logs("cannot be taken up while", "cache directory")
async def test_a_directory_is_made_above_what_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its object alone is changed; were that waited for, it would be in the place of another push."""
    monkeypatch.setattr(later, "PAUSE_S", 1000.0)
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        await m.fs.mkdir(ROOT_INODE, b"d", 0o755, CALLER)
        await begun(m, "a", b"promised", await m.inode("d"))
        await m.index.flush()
        base = m.directory.path.parent
    with read_only(base):
        async with mounted(tmp_path, driver, flusher=False) as m:
            (directory,) = m.dirty
            await m.writeback.push(directory)
            assert driver.objects.keys() == {"d/"}
            await m.fs.setattr(await m.inode("d"), AttributeChanges(mode=0o700), None, CALLER)
            assert driver.objects["d/"][3]["mode"] == "040700"
            with m.impatient(), pytest.raises(StoreUnavailable, match="which cannot be taken up yet"):
                await m.fs.rename(ROOT_INODE, b"d", ROOT_INODE, b"e", 0)


@pytest.mark.expected_logs("cannot be taken up while", "cannot be taken up, in an unexpected way")
async def test_a_mistake_of_ours_ends_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name waits on, and is tried again for a program that asks for it."""
    monkeypatch.setattr(later, "PAUSE_S", 0.01)
    monkeypatch.setattr(unfinished, "HURRY_S", 0.0)
    driver, resume, wrong = FakeStore(), PromisedFiles.resume, OSError(errno.ENOSPC, "full")
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        await begun(m, "a", b"promised")

    async def fail(*_arguments: object) -> bool:
        await trio.lowlevel.checkpoint()
        raise wrong

    with monkeypatch.context() as patched:
        patched.setattr(PromisedFiles, "resume", fail)
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            wrong = RuntimeError("mistake")  # type: ignore[assignment]
            await until(lambda: "internal error (RuntimeError: mistake)" in str(error_of(m.namespace.unfinished.promises)))
            patched.setattr(PromisedFiles, "resume", resume)
            assert await m.read_all("a") == b"promised"


@pytest.mark.expected_logs("was left twice")
async def test_a_name_that_the_journal_has_twice(tmp_path: Path) -> None:
    """One of both is kept aside."""
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        for name, data in (("a", b"first"), ("b", b"second")):
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, name.encode(), 0o644)
            await m.kernel.write(m.fs, handle, 0, data)
            await m.kernel.close(m.fs, handle)
        first, second = sorted(m.journal.files.items())
        record = msgspec.structs.replace(second[1], key="a", inode=first[1].inode)
        m.journal.put_file(second[0], record, m.journal.inline(second[0]))
        await m.journal.commit()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.drain()
        assert driver.objects["a"][0] == b"first"
        assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [b"second"]


async def killed_while_written_anew(path: Path, *, promised: bool) -> FakeStore:
    """Be killed while a file is written anew that is ``promised``, or else is in the store; returns the store."""
    driver = FakeStore()
    if not promised:
        driver.place("a", b"closed")
    async with mounted(path, driver, write_mode="async-through", flusher=False, clean_end=False) as m:
        if promised:
            handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a", 0o644)
            await m.kernel.write(m.fs, handle, 0, b"closed")
            await m.kernel.close(m.fs, handle)
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, b"begun")
        await m.journal.commit()
    return driver


@contextlib.contextmanager
def no_room_aside(code: int) -> Iterator[Callable[[], None]]:
    """Let the state directory take no file; yields what ends that."""

    def refuse(*_arguments: object) -> Path:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as full:
        full.setattr("luxfuse.tiers.staging._reserve", refuse)
        yield full.undo


@pytest.mark.expected_logs("was being written when the last run ended")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_what_was_never_promised_stays_where_there_is_no_room_to_keep_it(tmp_path: Path, code: int) -> None:
    """Else a full state disk refused the mount. The next run keeps it."""
    driver = await killed_while_written_anew(tmp_path, promised=False)
    with no_room_aside(code):
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            assert await m.read_all("a") == b"closed"
            assert len(list(m.staging.stored())) == 1
            assert m.recovered.count() == m.outcome.recovered == 0
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        assert await m.read_all("a") == b"closed"
        assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [b"begun"]
        assert is_clean(m)


@pytest.mark.expected_logs("was being written when the last run ended", "cannot be taken up while")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
async def test_what_is_in_the_way_of_a_promise_has_to_be_kept_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Were it left, it would be taken for what was promised."""
    monkeypatch.setattr(later, "PAUSE_S", 1000.0)
    driver = await killed_while_written_anew(tmp_path, promised=True)
    with no_room_aside(code) as make_room:
        async with mounted(tmp_path, driver, write_mode="async-through") as m:
            with pytest.raises(Unfinished):
                await m.fs.lookup(ROOT_INODE, b"a")
            make_room()
            await m.recovery._later.try_again()
            assert await m.read_all("a") == b"closed"
            assert [path.read_bytes() for path in m.recovered.directory.iterdir()] == [b"begun"]


@pytest.mark.expected_logs("cache directory")
async def test_what_the_store_has_is_shown_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of the staging file may have been on the disk, from which it cannot be taken away."""
    driver = FakeStore()
    async with mounted(tmp_path, driver, clean_end=False) as m:
        handle = await written(m, "a")
        await m.kernel.flush(m.fs, handle)
        await m.journal.commit()
        (dirty,) = m.dirty
        path, base = m.staging.path_of(dirty.number), m.directory.path.parent
    st = path.stat()
    path.write_bytes(bytes(len(DATA)))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(lifecycle, "BOOT_ID", tmp_path / "boot")
    with read_only(base) as let_be_written:
        async with mounted(tmp_path, driver) as m:
            assert await m.read_all("a") == DATA
            let_be_written()
            handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY)
            await m.kernel.write(m.fs, handle, 0, b"A")
            await m.kernel.close(m.fs, handle)
            await m.drain()
            assert driver.objects["a"][0] == b"A" + DATA[1:]
            assert m.recovered.count() == 0


@pytest.mark.parametrize("emptied", [True, False])
def test_what_a_power_cut_has_torn_is_not_taken_for_what_was_promised(tmp_path: Path, emptied: bool) -> None:
    """It cannot be taken away as long as the disk is read-only. What the store has is not waited for."""
    directory = CacheDirectory(tmp_path / "cache", "source")
    staging = Staging(directory)
    os.close(staging.create(1))
    stamp = staging.path_of(1).stat().st_mtime_ns + 1
    record = FileRecord(
        key="a", kind=Kind.FILE, mode=WriteMode.ASYNC_THROUGH, inode=2, attributes=None, expect=None, base_key="",
        base_version="", base_size=0, size=10, stamp=stamp, closed=True, content=False, since_s=0.0, emptied=emptied,
    )  # fmt: skip
    journal = SimpleNamespace(rebooted=True, inline=lambda _number: None)
    contents = JournalContents(journal, staging, cache=None)  # type: ignore[arg-type]
    with read_only(directory.path) as let_be_written:
        with pytest.raises(OSError, match="Read-only file system") if emptied else contextlib.nullcontext():
            assert not contents.is_torn(1, record)
        assert emptied or not contents.is_there(1, record)
        let_be_written()
        assert contents.is_torn(1, record) is emptied
        assert staging.path_of(1).exists() is emptied
    staging.close()
    directory.close()


@pytest.mark.parametrize("is_open", [True, False])
def test_what_waited_since_a_power_cut_is_what_was_promised_for_a_successor_too(tmp_path: Path, is_open: bool) -> None:
    """It knows that no machine went down since the daemon before it had begun. What is open a program may have cut."""
    directory = CacheDirectory(tmp_path / "cache", "source")
    staging = Staging(directory)
    os.close(staging.create(1))
    record = FileRecord(
        key="a", kind=Kind.FILE, mode=WriteMode.ASYNC_THROUGH, inode=2, attributes=None, expect=None, base_key="",
        base_version="", base_size=0, size=8, stamp=staging.path_of(1).stat().st_mtime_ns, closed=True, content=True,
        since_s=0.0,
    )  # fmt: skip
    journal = SimpleNamespace(rebooted=False, inline=lambda _number: b"promised")
    contents = JournalContents(journal, staging, cache=None, intact=True)  # type: ignore[arg-type]
    content = contents.open(1, record, is_open=is_open)
    assert content is not None
    assert staging.path_of(1).read_bytes() == (b"" if is_open else b"promised")
    content.close()
    staging.close()
    directory.close()
