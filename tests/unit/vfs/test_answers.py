"""What the lanes answer: what is fresh and not changed here. `FakeKernel` compares it with what the file system says."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from luxfuse.core.notices import Change, ChangeKind
from luxfuse.index.entries import Changes
from luxfuse.index.names import ROOT_INODE
from luxfuse.index.transactions import Transaction
from luxfuse.types import ObjectInfo
from luxfuse.vfs import answers, news
from luxfuse.vfs.attributes import AttributeChanges
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted, until
from tests.support.several import two_volumes

TTL_S = 60.0


def store(files: int = 10) -> FakeStore:
    driver = FakeStore()
    for number in range(files):
        driver.place(f"d/{number:04}", b"content")
    driver.place("e/x", b"x")
    return driver


async def told(m: Mount, path: str = "d/0000") -> tuple[int, bytes]:
    """Look a listed name up; returns its place, which the lanes answer for from then on."""
    directory, _, name = path.rpartition("/")
    await m.entries(directory)
    place = (await m.inode(directory), name.encode())
    await m.inode(path)
    assert m.kernel.knows(*place)
    return place


@asynccontextmanager
async def small(tmp_path: Path, **options: object) -> AsyncIterator[Mount]:
    async with mounted(tmp_path, store(), **options) as m:
        yield m


async def test_a_listed_name_is_answered_for_after_it_was_looked_up(tmp_path: Path) -> None:
    async with small(tmp_path, attributes="listing") as m:
        place = await told(m)
        offer = m.kernel.offered[place]
        assert offer.until_s == pytest.approx(m.clock.now_s + TTL_S, abs=1)
        assert offer.only_name, "the store is asked for the attributes of a file when it is looked at"
        await m.inode("d/0000")
        assert m.kernel.answered > 0
        await m.kernel.getattr(m.fs, await m.inode("d/0000"))
        assert not m.kernel.offered[place].only_name
        m.clock.advance(TTL_S + 1)
        assert not m.kernel.knows(*place)


async def test_names_after_it_are_answered_for_too_ever_more_of_them(tmp_path: Path) -> None:
    async with mounted(tmp_path, store(300)) as m:
        await told(m)
        assert len([key for key in m.kernel.offered if key[0] != ROOT_INODE]) == 1
        looked, number = 1, 0
        while number < 300:
            if not m.kernel.knows(await m.inode("d"), b"%04d" % number):
                looked += 1
            await m.inode(f"d/{number:04}")
            number += 1
        assert looked < 20
        assert answers.MOST_AHEAD < 300


async def chmod(m: Mount) -> None:
    await m.fs.setattr(await m.inode("d/0000"), AttributeChanges(mode=0o600), None, CALLER)


async def write(m: Mount) -> None:
    handle = await m.kernel.open(m.fs, await m.inode("d/0000"), os.O_WRONLY)
    await m.kernel.write(m.fs, handle, 0, b"changed")
    await m.kernel.close(m.fs, handle)


async def open_to_write(m: Mount) -> None:
    await m.kernel.open(m.fs, await m.inode("d/0000"), os.O_RDWR)


async def unlink(m: Mount) -> None:
    await m.fs.unlink(await m.inode("d"), b"0000")


async def rename(m: Mount) -> None:
    await m.fs.rename(await m.inode("d"), b"0000", await m.inode("d"), b"other", 0)


async def replace(m: Mount) -> None:
    await m.fs.rename(await m.inode("d"), b"0001", await m.inode("d"), b"0000", 0)


async def set_xattr(m: Mount) -> None:
    await m.fs.xattrs.set(await m.inode("d/0000"), b"user.x", b"1")


async def refresh(m: Mount) -> None:
    m.driver.place("d/0000", b"another")
    await m.fs.refresh("d/0000")


async def list_again(m: Mount) -> None:
    m.driver.place("d/0000", b"another")
    m.names.listings.forget(await m.inode("d"))
    await m.entries("d")


async def list_anew(m: Mount) -> None:
    m.clock.advance(1)
    m.names.listings.forget(await m.inode("d"))
    await m.entries("d")


async def hear_of_it(m: Mount) -> None:
    m.driver.place("d/0000", b"another")
    m.clock.advance(0.001)
    m.namespace.news.changed_elsewhere(Change("d/0000", ChangeKind.WRITTEN))


async def hold(m: Mount) -> None:
    m.namespace.hold(await m.inode("d/0000"), await m.inode("d"), b"0000")


async def expire(m: Mount) -> None:
    m.namespace.belief.expire(await m.inode("d/0000"))


async def set_ttls(m: Mount) -> None:
    m.namespace.belief.set_ttls(metadata_s=1.0, negative_s=1.0)


async def find_attributes(m: Mount) -> None:
    info = ObjectInfo("d/0009", 7, m.driver.objects["d/0009"][1], 0, {"mode": "0100600"})
    m.fs._descriptions.heard([(info, m.clock.now_s)])


CHANGES = [
    chmod, write, open_to_write, hold, unlink, rename, replace, set_xattr, refresh, list_again, list_anew, hear_of_it,
    expire, set_ttls, find_attributes,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_change_ends_that(tmp_path: Path, change: Callable[[Mount], Awaitable[None]]) -> None:
    async with small(tmp_path) as m:
        place = await told(m)
        await change(m)
        assert not m.kernel.knows(*place)


async def test_news_of_a_directory_ends_it_for_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "KERNEL_BATCH", 1)  # that the kernel is told of
    async with small(tmp_path) as m:
        place = await told(m, "d/0005")
        m.clock.advance(0.001)
        m.namespace.news.changed_elsewhere(Change("d/", ChangeKind.BELOW))
        assert not m.kernel.knows(*place)


async def test_it_ends_before_the_change_is_there(tmp_path: Path) -> None:
    async with small(tmp_path) as m:
        place = await told(m)
        revoke, seen = m.kernel.revoke, []

        def observed(parent: int, name: bytes) -> None:
            seen.append((parent, name, name in m.names.names_in(parent, 100)))
            revoke(parent, name)

        m.kernel.revoke = observed  # type: ignore[method-assign]
        await unlink(m)
        assert (*place, True) in seen, "the name was there when it was revoked"


async def test_it_ends_before_a_listing_shows_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop sees what the writer thread commits before it hears of that."""
    async with small(tmp_path) as m:
        place = await told(m)
        directory, old = place[0], m.names.get(*place)
        assert old is not None
        before, shown = old.inode, []
        run = m.names._store.run

        async def observed(function: Callable[[Transaction], Changes]) -> Changes:
            changes = await run(function)
            if m.names.after(directory, b"", 1)[0][1].inode != before:
                m.fs.answers.looked_up(*place)
                shown.append(m.kernel.knows(*place))
            return changes

        monkeypatch.setattr(m.names._store, "run", observed)
        m.driver.place("d/0000", b"another")
        m.clock.advance(1)
        m.namespace.relisting.list_ahead(directory)
        await until(lambda: bool(shown) and not m.names.is_changing(directory))
        assert shown[0] is False
        assert await m.inode("d/0000") != before
        assert m.kernel.knows(*place)


async def test_what_is_changed_here_is_answered_here(tmp_path: Path) -> None:
    async with small(tmp_path, write_mode="async-through", flusher=False) as m:
        place = await told(m)
        await chmod(m)
        await m.kernel.getattr(m.fs, await m.inode("d/0000"))
        assert not m.kernel.knows(*place)
        await m.drain()
        await until(lambda: not m.writeback.pending)
        await m.inode("d/0000")
        assert m.kernel.knows(*place), "the store has it"


async def test_a_directory_is_answered_for_until_a_name_in_it_changes(tmp_path: Path) -> None:
    async with small(tmp_path) as m:
        await m.entries("")
        await m.inode("d")
        assert m.kernel.knows(ROOT_INODE, b"d")
        await unlink(m)
        assert not m.kernel.knows(ROOT_INODE, b"d"), "its time of change is another one"


async def test_a_directory_that_was_made_here_is_answered_for_until_the_store_has_it(tmp_path: Path) -> None:
    async with small(tmp_path, write_mode="async-through", flusher=False) as m:
        made = await m.fs.mkdir(ROOT_INODE, b"new", 0o750, CALLER)
        await m.kernel.getattr(m.fs, made.inode)
        assert m.kernel.knows(ROOT_INODE, b"new")
        assert (await m.kernel.lookup(m.fs, ROOT_INODE, b"new")).mode & 0o777 == 0o750
        assert m.kernel.answered == 1
        await m.kernel.close(m.fs, (await m.kernel.create(m.fs, made.inode, b"file"))[0])
        assert not m.kernel.knows(ROOT_INODE, b"new"), "its times are others now"
        await m.kernel.getattr(m.fs, made.inode)
        await m.fs.setattr(made.inode, AttributeChanges(mode=0o700), None, CALLER)
        assert not m.kernel.knows(ROOT_INODE, b"new")
        await m.kernel.getattr(m.fs, made.inode)
        assert m.kernel.knows(ROOT_INODE, b"new")
        await m.drain()
        assert not m.kernel.knows(ROOT_INODE, b"new"), "it holds for a time of its own from now on"


async def made(m: Mount) -> tuple[int, bytes]:
    """Make a directory; returns its place, which the lanes answer for from then on."""
    stat = await m.fs.mkdir(ROOT_INODE, b"new", 0o755, CALLER)
    await m.kernel.getattr(m.fs, stat.inode)
    assert m.kernel.knows(ROOT_INODE, b"new")
    return ROOT_INODE, b"new"


async def chmod_it(m: Mount) -> None:
    await m.fs.setattr(await m.inode("new"), AttributeChanges(mode=0o700), None, CALLER)


async def make_in_it(m: Mount) -> None:
    await m.kernel.close(m.fs, (await m.kernel.create(m.fs, await m.inode("new"), b"file"))[0])


async def link_in_it(m: Mount) -> None:
    await m.fs.symlink(await m.inode("new"), b"link", b"target", CALLER)


async def rename_it(m: Mount) -> None:
    await m.fs.rename(ROOT_INODE, b"new", ROOT_INODE, b"other", 0)


async def rename_into_it(m: Mount) -> None:
    await m.fs.rename(await m.inode("d"), b"0000", await m.inode("new"), b"0000", 0)


async def replace_it(m: Mount) -> None:
    await m.fs.mkdir(ROOT_INODE, b"another", 0o700, CALLER)
    await m.fs.rename(ROOT_INODE, b"another", ROOT_INODE, b"new", 0)


async def exchange_it(m: Mount) -> None:
    await m.fs.rename(ROOT_INODE, b"new", ROOT_INODE, b"e", 2)  # RENAME_EXCHANGE


async def remove_it(m: Mount) -> None:
    await m.fs.rmdir(ROOT_INODE, b"new")


async def remove_in_it_what_the_store_has(m: Mount) -> None:
    await make_in_it(m)
    await m.drain()
    await m.kernel.getattr(m.fs, await m.inode("new"))
    await m.fs.unlink(await m.inode("new"), b"file")


async def set_its_xattr(m: Mount) -> None:
    await m.fs.xattrs.set(await m.inode("new"), b"user.x", b"1")


@pytest.mark.parametrize(
    "change",
    [
        chmod_it, make_in_it, link_in_it, rename_it, rename_into_it, replace_it, exchange_it, remove_it,
        remove_in_it_what_the_store_has, set_its_xattr, set_ttls,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
@pytest.mark.parametrize("mode", ["async-through", "cache-through"])
async def test_a_change_of_a_directory_of_ours_ends_that(
    tmp_path: Path, change: Callable[[Mount], Awaitable[None]], mode: str
) -> None:
    async with small(tmp_path, write_mode=mode, flusher=False) as m:
        place = await made(m)
        await change(m)
        assert not m.kernel.knows(*place)


async def test_names_below_a_directory_that_is_gone_end_before_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with small(tmp_path) as m:
        place = await told(m)
        m.clock.advance(1)
        for number in range(10):
            m.driver.remove(f"d/{number:04}")
        m.names.listings.forget(ROOT_INODE)
        assert b"d" not in await m.entries("")
        run, shown = m.names._store.run, []

        async def observed(function: Callable[[Transaction], object]) -> object:
            result = await run(function)
            if not m.names.names_in(place[0], 1):
                shown.append(m.kernel.knows(*place))
            return result

        monkeypatch.setattr(m.names._store, "run", observed)
        assert m.kernel.knows(*place)
        await until(lambda: bool(shown))
        assert shown[0] is False
        await until(lambda: not m.names.purger.running)


async def test_names_on_the_way_to_attach_points_are_never_answered_for(tmp_path: Path) -> None:
    outer, inner = FakeStore(), FakeStore()
    for key in ("d/m/old", "d/l", "d/n", "f/g"):
        outer.place(key, b"1")
    inner.place("x", b"2")
    async with two_volumes(tmp_path, outer, inner, "d/m") as (tree, volume, _, _):
        kernel = tree.kernel
        await tree.listing("")
        await tree.listing("d")
        for path in ("d/l", "d/m", "d/n", "f/g", "d/m/x"):
            await tree.inode(path)
        directory = await tree.inode("d")
        assert not {key for key in kernel.offered if key[0] in (ROOT_INODE, directory)}
        assert (await tree.inode("f"), b"g") in kernel.offered
        assert (volume.base | ROOT_INODE, b"x") in kernel.offered
        await tree.volumes.getattr(await tree.inode("d/n"))
        assert not {key for key in kernel.offered if key[0] in (ROOT_INODE, directory)}
        tree.volumes.detach(volume)
        assert not kernel.offered


async def test_nothing_is_answered_for_a_volume_that_cannot_be_served(tmp_path: Path) -> None:
    async with two_volumes(tmp_path, FakeStore(), store(), "m") as (tree, volume, _, _):
        await tree.inode("m/e/x")
        assert tree.kernel.offered
        fs = volume.fs
        tree.volumes.withdraw(volume)
        assert not tree.kernel.offered
        assert fs is not None
        volume.serve(fs, negative_ttl_s=1.0, read_only=False)


async def hear(m: Mount, metadata: dict[str, str]) -> tuple[int, bytes]:
    """Tell of a name that is answered for, once it is known that objects carry no attributes."""
    place = await told(m)
    entry = m.names.get(*place)
    assert entry is not None
    assert entry.attributes is None
    info = ObjectInfo("d/0000", entry.size, entry.version, entry.mtime_ns, metadata)
    m.clock.advance(0.001)
    m.fs._descriptions.heard([(info, m.clock.now_s)])
    assert entry.attributes is not None, "it was taken note of"
    return place


async def test_a_description_that_says_nothing_ends_no_answers(tmp_path: Path) -> None:
    async with small(tmp_path, attributes="listing") as m:
        place = await hear(m, {})
        offer, stat = m.kernel.offered[place], await m.kernel.getattr(m.fs, await m.inode("d/0000"))
        stat.ttl_s = offer.stat.ttl_s
        assert offer.stat == stat, "a look-up is answered as one here would be"
        assert offer.until_s <= m.clock.now_s + TTL_S


async def test_a_description_that_says_something_ends_answers(tmp_path: Path) -> None:
    async with small(tmp_path, attributes="listing") as m:
        assert not m.kernel.knows(*await hear(m, {"mode": "0100600"}))
