"""Names that lanes answer to be missing: in directories of which all names are known, as long as that is believed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from luxfuse.core.notices import Change, ChangeKind
from luxfuse.index.entries import Changes, Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.index.transactions import Transaction
from luxfuse.vfs import answers
from luxfuse.vfs.errors import NoSuchName
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until

NEGATIVE_TTL_S = 5.0


def store(files: int = 10) -> FakeStore:
    driver = FakeStore()
    for number in range(files):
        driver.place(f"d/{number:04}", b"content")
    driver.place("e/x", b"x")
    return driver


async def missed(m: Mount, directory: int, name: bytes = b"new") -> None:
    with pytest.raises(NoSuchName):
        await m.kernel.lookup(m.fs, directory, name)


async def known(m: Mount) -> int:
    """Miss a name in a directory that was listed; lanes answer for others from then on."""
    await m.entries("d")
    directory = await m.inode("d")
    await missed(m, directory)
    assert m.kernel.misses(directory, b"new")
    assert not m.kernel.misses(directory, b"0000")
    return directory


async def create(m: Mount, directory: int) -> None:
    handle, _ = await m.kernel.create(m.fs, directory, b"new")
    await m.kernel.close(m.fs, handle)


async def mkdir(m: Mount, directory: int) -> None:
    await m.fs.mkdir(directory, b"new", 0o755, CALLER)


async def symlink(m: Mount, directory: int) -> None:
    await m.fs.symlink(directory, b"new", b"target", CALLER)


async def mknod(m: Mount, directory: int) -> None:
    await m.fs.mknod(directory, b"new", 0o010644, 0, CALLER)


async def rename(m: Mount, directory: int) -> None:
    await m.fs.rename(directory, b"0000", directory, b"new", 0)


async def rename_into(m: Mount, directory: int) -> None:
    await m.fs.rename(await m.inode("e"), b"x", directory, b"new", 0)


async def hear_of_it(m: Mount, directory: int) -> None:
    m.driver.place("d/new", b"by another node")
    m.clock.advance(0.001)
    m.namespace.news.changed_elsewhere(Change("d/new", ChangeKind.WRITTEN))


async def hear_of_all(m: Mount, directory: int) -> None:
    m.driver.place("d/new", b"by another node")
    m.clock.advance(0.001)
    m.namespace.news.changed_elsewhere(Change("d/", ChangeKind.BELOW))


async def list_again(m: Mount, directory: int) -> None:
    m.driver.place("d/new", b"by somebody else")
    m.clock.advance(1)
    m.names.listings.forget(directory)
    await m.entries("d")


async def refresh(m: Mount, directory: int) -> None:
    m.driver.place("d/new", b"by somebody else")
    await m.fs.refresh("d")


MAKES = [create, mkdir, symlink, mknod, rename, rename_into, hear_of_it, hear_of_all, list_again, refresh]


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
async def test_a_name_that_comes_is_not_missing(tmp_path: Path, make: Callable[[Mount, int], Awaitable[None]]) -> None:
    async with mounted(tmp_path, store()) as m:
        directory = await known(m)
        await make(m, directory)
        assert not m.kernel.misses(directory, b"new")
        assert (await m.kernel.lookup(m.fs, directory, b"new")).inode


async def test_it_ends_before_the_name_is_there(tmp_path: Path) -> None:
    async with mounted(tmp_path, store()) as m:
        directory = await known(m)
        revoke, seen = m.kernel.revoke, []

        def observed(parent: int, name: bytes) -> None:
            seen.append((parent, name, name in m.names.names_in(parent, 100)))
            revoke(parent, name)

        m.kernel.revoke = observed  # type: ignore[method-assign]
        await create(m, directory)
        assert seen[0] == (directory, b"new", False)


async def test_it_ends_before_a_listing_shows_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop sees what the writer thread commits before it hears of that, and so do programs that read a directory."""
    async with mounted(tmp_path, store()) as m:
        directory, shown = await known(m), []
        run = m.names._store.run

        async def observed(function: Callable[[Transaction], Changes]) -> Changes:
            changes = await run(function)
            if b"new" in m.names.names_in(directory, 100):
                m.fs.answers.missed(directory)
                shown.append((m.kernel.misses(directory, b"new"), m.namespace.known(directory, b"new")))
            return changes

        monkeypatch.setattr(m.names._store, "run", observed)
        m.driver.place("d/new", b"by somebody else")
        m.clock.advance(1)
        m.namespace.relisting.list_ahead(directory)
        await until(lambda: bool(shown) and not m.names.is_changing(directory))
        assert shown[0] == (False, m.names.get(directory, b"new"))
        await missed(m, directory, b"another")
        assert m.kernel.misses(directory, b"yet-another")
        assert not m.kernel.misses(directory, b"new")


async def test_a_listing_is_recorded_while_a_name_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer thread commits the name and that all is known between two looks of the loop, which waits for nothing."""
    async with mounted(tmp_path, store()) as m:
        directory, committing = await known(m), threading.Event()
        serial = m.names.listings.serial(directory)
        commit, may_commit = m.names._store._commit, threading.Event()

        def held(*arguments: object) -> object:
            if m.names.is_changing(directory):
                committing.set()
                assert may_commit.wait(60)
            return commit(*arguments)  # type: ignore[arg-type]

        def look(parent: int, name: bytes) -> Entry | None:
            entry = m.names.get(parent, name)
            may_commit.set()
            while m.names.listings.serial(directory) == serial:
                m.names.listings.forget_decoded()
                time.sleep(0.001)
            return entry

        monkeypatch.setattr(m.names._store, "_commit", held)
        m.driver.place("d/new", b"by somebody else")
        m.clock.advance(1000)
        m.namespace.relisting.list_ahead(directory)
        await until(committing.is_set, timeout_s=60)
        monkeypatch.setattr(m.namespace, "peek", look)
        assert m.namespace.known(directory, b"new") == m.names.get(directory, b"new")
        monkeypatch.undo()
        await until(lambda: not m.names.is_changing(directory), timeout_s=60)


async def forget_the_listing(m: Mount, directory: int) -> None:
    m.names.listings.forget(directory)


async def set_ttls(m: Mount, directory: int) -> None:
    m.namespace.belief.set_ttls(metadata_s=1.0, negative_s=1.0)


async def hear_of_another(m: Mount, directory: int) -> None:
    m.clock.advance(0.001)
    m.namespace.news.changed_elsewhere(Change("d/another", ChangeKind.GONE))


@pytest.mark.parametrize("change", [forget_the_listing, set_ttls, hear_of_another], ids=lambda change: change.__name__)
async def test_what_is_not_believed_any_more_ends_it(
    tmp_path: Path, change: Callable[[Mount, int], Awaitable[None]]
) -> None:
    async with mounted(tmp_path, store()) as m:
        directory = await known(m)
        await change(m, directory)
        assert not m.kernel.misses(directory, b"other")


async def test_a_directory_is_listed_ahead_and_answered_for_all_the_while(tmp_path: Path) -> None:
    async with mounted(tmp_path, store()) as m:
        directory = await known(m)
        for _ in range(3):
            m.clock.advance(NEGATIVE_TTL_S / 2 + 0.1)
            assert not m.kernel.misses(directory, b"new"), "look-ups here have it listed ahead"
            lists = m.driver.counts["list"]
            with trio.fail_after(60):
                while not m.kernel.misses(directory, b"new"):
                    await missed(m, directory)
                    await trio.sleep(0.01)
            assert m.driver.counts["list"] == lists + 1


async def test_what_was_removed_is_asked_for_here(tmp_path: Path) -> None:
    async with mounted(tmp_path, store()) as m:
        directory = await known(m)
        await m.fs.unlink(directory, b"0000")
        assert not m.kernel.misses(directory, b"0000")
        await missed(m, directory, b"0000")


async def test_a_directory_that_is_made_is_known(tmp_path: Path) -> None:
    async with mounted(tmp_path, store(), write_mode="async-through") as m:
        directory = (await m.fs.mkdir(ROOT_INODE, b"made", 0o755, CALLER)).inode
        await missed(m, directory, b"0")
        for number in range(20):
            name = b"%d" % number
            assert m.kernel.misses(directory, name)
            handle, _ = await m.kernel.create(m.fs, directory, name, 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            await m.kernel.close(m.fs, handle)
            assert not m.kernel.misses(directory, name)
        await m.drain()


async def test_too_many_names_are_read_once_for_a_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_NAMES", 9)
    async with mounted(tmp_path, store(10)) as m:
        await m.entries("d")
        directory, read = await m.inode("d"), []
        names_in = m.namespace.names_in
        monkeypatch.setattr(m.namespace, "names_in", lambda *asked: read.append(asked) or names_in(*asked))
        for number in range(5):
            await missed(m, directory, b"new-%d" % number)
        assert read == [(directory, 10)]
        assert not m.kernel.misses(directory, b"new")


async def test_nothing_is_offered_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(tmp_path, store()) as m:
        await m.entries("d")
        directory = await m.inode("d")
        monkeypatch.setattr(type(m.namespace), "can_ask", False)
        await missed(m, directory)
        assert not m.kernel.misses(directory, b"new")
