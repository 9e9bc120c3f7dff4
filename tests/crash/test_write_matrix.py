"""The daemon is killed at every named step of every change, and the next one finishes it or undoes it.

Each case does one change, takes a copy of disk and store at each step (`lives.Killer`), and gives every copy to a new
daemon: the tree that it shows and the bucket that it leaves must be what was acknowledged, or that with the change that
was under way; nothing may be left over. Recovery is killed at each of its steps in turn.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from luxfuse.cache import upload
from luxfuse.core import parts
from luxfuse.errors import StoreRejected
from luxfuse.index import journal
from luxfuse.vfs import early
from tests.crash.lives import (
    DEFAULT_MODE,
    WHITEOUT,
    Killer,
    Tree,
    User,
    check,
    explain,
    idle,
    in_bucket,
    placed,
    seen,
    tree_of,
)
from tests.support.harness import Options, mounted, pages, random_bytes, until

Act = Callable[[User], Awaitable[None]]

OLD, NEW, MORE = random_bytes(5000, 1), random_bytes(7000, 2), random_bytes(3000, 3)
BIG, BIGGER = random_bytes(pages(5) + 17, 4), random_bytes(pages(6) + 4321, 5)


def file(data: bytes, mode: int = DEFAULT_MODE) -> tuple[bytes, int]:
    return data, mode


BEGINNING: Tree = {
    "a": file(OLD), "b": file(MORE), "x": file(b"x", 0o600), "link": "a", "empty": None, "full": None,
    "full/1": file(b"one"), "full/2": file(OLD), "full/deep": None, "full/deep/3": file(b"three"),
    "full/hollow": None, "target": None,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One change. ``before`` is done, and acknowledged, before the kills begin."""

    name: str
    act: Act
    before: Act | None = None
    tree: Tree = field(default_factory=lambda: BEGINNING)
    modes: tuple[str, ...] = ("cache-through", "async-through")


CASES: list[Case] = []


def case(before: Act | None = None, tree: Tree = BEGINNING) -> Callable[[Act], Act]:
    def add(act: Act) -> Act:
        CASES.append(Case(act.__name__, act, before, tree))
        return act

    return add


@case()
async def create(u: User) -> None:
    await u.create("new", NEW)


@case()
async def create_large(u: User) -> None:
    await u.create("new", BIG)


@case()
async def create_empty(u: User) -> None:
    await u.create("full/new", b"")


@case()
async def overwrite(u: User) -> None:
    await u.rewrite("a", NEW)


@case()
async def write_inside(u: User) -> None:
    await u.rewrite("a", MORE, 1000, truncate=False)


@case()
async def write_inside_a_cached_file(u: User) -> None:
    assert await u.m.read_all("a") == OLD
    await u.rewrite("a", MORE, 1000, truncate=False)


@case(tree={"big": file(BIG)})
async def write_inside_a_large_file(u: User) -> None:
    await u.rewrite("big", MORE, pages(2) + 5, truncate=False)


@case(tree={"big": file(BIG)})
async def append_to_a_large_file(u: User) -> None:
    await u.rewrite("big", NEW, len(BIG), truncate=False)


@case(tree={"big": file(BIG)})
async def replace_a_large_file(u: User) -> None:
    await u.rewrite("big", BIGGER)


async def written_twice(u: User) -> None:
    await u.create("new", OLD)


@case(before=written_twice)
async def write_again(u: User) -> None:
    await u.rewrite("new", NEW, 6000, truncate=False)


@case(before=written_twice)
async def overwrite_what_is_dirty(u: User) -> None:
    await u.rewrite("new", NEW, dirty=True)


@case()
async def append_with_fsync(u: User) -> None:
    await u.create("log", b"")
    handle = await u.open("log", os.O_WRONLY)
    written = b""
    for number in range(3):
        line = random_bytes(400, number)
        with u.doing(u.now | {"log": file(written + line)}):
            u.unclosed = True
            await u.m.kernel.write(u.m.fs, handle, len(written), line)
            await u.m.kernel.fsync(u.m.fs, handle)
            u.unclosed = False
        written += line
    await u.m.kernel.close(u.m.fs, handle)


@case()
async def append_to_a_larger_file_with_fsync(u: User) -> None:
    """The journal need not be told of each of them."""
    written = random_bytes(40_000, 10)
    await u.create("log", written)
    handle = await u.open("log", os.O_WRONLY)
    for number in range(3):
        line = random_bytes(9000, number)
        with u.doing(u.now | {"log": file(written + line)}):
            u.unclosed = True
            await u.m.kernel.write(u.m.fs, handle, len(written), line)
            await u.m.kernel.fsync(u.m.fs, handle)
            u.unclosed = False
        written += line
    await u.m.kernel.close(u.m.fs, handle)


@case()
async def truncate(u: User) -> None:
    await u.truncate("a", 100)


@case()
async def truncate_to_nothing(u: User) -> None:
    await u.truncate("a", 0)


@case()
async def extend(u: User) -> None:
    await u.truncate("full/1", 9000)


@case(tree={"big": file(BIG)})
async def truncate_a_large_file(u: User) -> None:
    await u.truncate("big", pages(3) + 100)


@case()
async def chmod(u: User) -> None:
    await u.chmod("a", 0o600)


@case(before=written_twice)
async def chmod_of_what_is_dirty(u: User) -> None:
    await u.chmod("new", 0o755)


@case()
async def rename(u: User) -> None:
    await u.rename("a", "full/a")


@case()
async def rename_over(u: User) -> None:
    await u.rename("a", "b")


@case()
async def rename_over_a_symlink(u: User) -> None:
    await u.rename("a", "link")


@case()
async def rename_a_symlink_over_a_file(u: User) -> None:
    await u.rename("link", "a")


@case()
async def rename_the_last_of_a_directory(u: User) -> None:
    await u.rename("full/deep/3", "three")


@case()
async def link(u: User) -> None:
    await u.link("x", "full/x")


@case()
async def link_a_symlink(u: User) -> None:
    await u.link("link", "full/link")


@case(before=written_twice)
async def link_what_is_dirty(u: User) -> None:
    await u.link("new", "newer", pending=True)


@case()
async def unlink_and_link(u: User) -> None:
    await u.unlink("b")
    await u.link("a", "b")
    await u.link("b", "c")


@case(before=written_twice)
async def rename_what_is_dirty(u: User) -> None:
    await u.rename("new", "newer")


@case(before=written_twice)
async def rename_what_is_dirty_over(u: User) -> None:
    await u.rename("new", "a")


async def changed(u: User) -> None:
    await u.rewrite("a", NEW, 2000, truncate=False)


@case(before=changed)
async def rename_what_is_changed(u: User) -> None:
    await u.rename("a", "full/a")


@case(before=changed)
async def link_what_is_changed(u: User) -> None:
    await u.link("a", "full/a", pending=True)


@case(before=changed)
async def rename_over_what_is_changed(u: User) -> None:
    await u.rename("b", "a")


@case(before=changed)
async def rename_away_and_make_anew(u: User) -> None:
    await u.rename("a", "aside")
    await u.create("a", MORE)


@case()
async def save_as_editors_do(u: User) -> None:
    await u.create("a.tmp", NEW)
    await u.rename("a", "a~")
    await u.rename("a.tmp", "a")
    await u.unlink("a~")


@case()
async def rename_a_directory(u: User) -> None:
    await u.rename("full", "moved")


@case()
async def rename_a_directory_over_an_empty_one(u: User) -> None:
    await u.rename("full", "target")


@case()
async def rename_an_empty_directory(u: User) -> None:
    await u.rename("empty", "full/inside")


async def dirty_children(u: User) -> None:
    await u.create("full/new", NEW)
    await u.rewrite("full/2", MORE, 100, truncate=False)
    await u.mkdir("full/made")
    await u.symlink("full/deep/link", "../1")
    await u.chmod("full/1", 0o611)


@case(before=dirty_children)
async def rename_a_directory_with_dirty_children(u: User) -> None:
    await u.rename("full", "moved")


async def large_child(u: User) -> None:
    await u.rewrite("full/big", MORE, pages(2) + 5, truncate=False)
    await u.chmod("full/big", 0o640)


@case(before=large_child, tree={"full": None, "full/big": file(BIG), "full/small": file(OLD)})
async def rename_a_directory_with_a_large_dirty_child(u: User) -> None:
    await u.rename("full", "moved")


@case(before=large_child, tree={"full": None, "full/big": file(BIG), "full/small": file(OLD)})
async def rename_a_large_dirty_file(u: User) -> None:
    await u.rename("full/big", "big")


async def unlinked(u: User) -> None:
    await u.unlink("b")
    await u.unlink("full/2")


@case(before=unlinked)
async def rename_to_what_was_unlinked(u: User) -> None:
    await u.rename("a", "b")


@case(before=unlinked)
async def rename_a_directory_of_which_some_was_unlinked(u: User) -> None:
    await u.rename("full", "moved")


@case(before=dirty_children)
async def rename_a_directory_twice(u: User) -> None:
    await u.rename("full", "moved")
    await u.rename("moved", "empty/again")


@case()
async def exchange_files(u: User) -> None:
    await u.rename("a", "full/1", 2)


@case(before=dirty_children)
async def exchange_dirty_files(u: User) -> None:
    await u.rename("a", "full/new", 2)


@case()
async def exchange_a_file_and_a_directory(u: User) -> None:
    await u.rename("a", "full", 2)


@case(before=dirty_children)
async def exchange_directories(u: User) -> None:
    await u.rename("full", "empty", 2)


@case()
async def unlink(u: User) -> None:
    await u.unlink("a")


@case()
async def unlink_the_last_of_a_directory(u: User) -> None:
    await u.unlink("full/deep/3")


@case(before=written_twice)
async def unlink_what_is_dirty(u: User) -> None:
    """The store never had it: as on a local disk, its removal is promised by fsync of the directory."""
    with u.doing({path: what for path, what in u.now.items() if path != "new"}):
        await u.m.fs.unlink(*(await u.place("new")))
        await u.sync_names()


async def promised(u: User) -> None:
    """Content that the journal has not in itself."""
    await u.create("new", random_bytes(40_000, 12))


@case(before=promised)
async def unlink_what_is_promised(u: User) -> None:
    await u.unlink("new")


@case(before=promised)
async def rename_over_what_is_promised(u: User) -> None:
    await u.rename("a", "new")


@case(before=promised)
async def unlink_what_is_promised_and_open(u: User) -> None:
    handle = await u.open("new", os.O_RDWR)
    await u.unlink("new")
    await u.m.kernel.close(u.m.fs, handle)


@case(before=changed)
async def unlink_what_is_changed(u: User) -> None:
    await u.unlink("a")


@case()
async def unlink_and_make_anew(u: User) -> None:
    await u.unlink("a")
    await u.create("a", NEW)


@case()
async def unlink_a_symlink(u: User) -> None:
    await u.unlink("link")


@case()
async def rmdir(u: User) -> None:
    await u.rmdir("empty")


@case()
async def remove_a_tree(u: User) -> None:
    for path in ("full/1", "full/2", "full/deep/3"):
        await u.unlink(path)
    for path in ("full/deep", "full/hollow", "full"):
        await u.rmdir(path)


@case()
async def mkdir(u: User) -> None:
    await u.mkdir("made")


@case()
async def make_a_tree(u: User) -> None:
    await u.mkdir("made")
    await u.mkdir("made/inside")
    await u.create("made/inside/file", NEW)
    await u.symlink("made/link", "inside/file")


@case()
async def symlink(u: User) -> None:
    await u.symlink("full/new", "../a")


FIFO = stat.S_IFIFO | 0o644


async def made_fifo(u: User) -> None:
    await u.mknod("fifo", FIFO)


@case()
async def mkfifo(u: User) -> None:
    await u.mknod("full/fifo", FIFO)


@case(before=made_fifo)
async def rename_a_fifo_over_a_file(u: User) -> None:
    await u.rename("fifo", "a")


@case(before=made_fifo)
async def rename_a_fifo_over_a_symlink(u: User) -> None:
    await u.rename("fifo", "link")


@case(before=made_fifo)
async def rename_a_fifo_over_the_last_of_a_directory(u: User) -> None:
    await u.rename("fifo", "full/deep/3")
    await u.unlink("full/deep/3")


@case(before=made_fifo)
async def rename_a_file_over_a_fifo(u: User) -> None:
    await u.rename("a", "fifo")


@case(before=made_fifo)
async def exchange_a_fifo_and_a_file(u: User) -> None:
    await u.rename("fifo", "full/deep/3", 2)


@case(before=made_fifo)
async def exchange_a_fifo_and_a_directory(u: User) -> None:
    await u.rename("full", "fifo", 2)


async def fifos_over_others(u: User) -> None:
    for path in ("full/1", "full/deep/3"):
        await u.mknod("fifo", FIFO)
        await u.rename("fifo", path)


@case(before=fifos_over_others)
async def rename_a_directory_with_fifos(u: User) -> None:
    await u.rename("full", "moved")


async def unlinked_and_made_a_fifo(u: User) -> None:
    await u.unlink("a")
    await u.mknod("a", FIFO)


@case()
async def unlink_and_make_a_fifo(u: User) -> None:
    await unlinked_and_made_a_fifo(u)


@case(before=unlinked_and_made_a_fifo)
async def rename_over_a_fifo_in_place_of_a_file(u: User) -> None:
    await u.rename("b", "a")


@case(before=unlinked_and_made_a_fifo)
async def unlink_a_fifo_in_place_of_a_file(u: User) -> None:
    await u.unlink("a")
    await u.create("a", NEW)


@case()
async def rename_and_leave_a_whiteout(u: User) -> None:
    await u.rename("a", "full/a", WHITEOUT)


@case()
async def rename_over_and_leave_a_whiteout(u: User) -> None:
    await u.rename("full/deep/3", "b", WHITEOUT)


@case(before=written_twice)
async def rename_what_is_dirty_and_leave_a_whiteout(u: User) -> None:
    await u.rename("new", "newer", WHITEOUT)


@case()
async def rename_a_directory_and_leave_a_whiteout(u: User) -> None:
    await u.rename("full", "moved", WHITEOUT)


async def left_a_whiteout(u: User) -> None:
    await u.rename("a", "full/a", WHITEOUT)


@case(before=left_a_whiteout)
async def rename_over_a_whiteout(u: User) -> None:
    await u.rename("full/a", "a")


@case(before=left_a_whiteout)
async def exchange_a_whiteout_and_a_directory(u: User) -> None:
    await u.rename("full", "a", 2)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts from 2 MiB on."""
    monkeypatch.setattr(upload, "SINGLE_BYTES", pages(2))
    monkeypatch.setattr(parts, "PART_BYTES", pages(1))
    monkeypatch.setattr(parts, "LEAST_PART_BYTES", pages(1))
    monkeypatch.setattr(early, "PART_BYTES", pages(1))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system in memory where there is one: nothing here outlives a power cut anyway."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = Path("/dev/shm") / f"luxfuse-{os.getpid()}-{tmp_path.name}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def options(mode: str, *, passthrough: bool) -> Options:
    return Options(write_mode=mode, passthrough=passthrough, whole_file_bytes=pages(2), max_requests=8, hardlinks="copy")  # type: ignore[arg-type]


QUIET = ("finishing the", "was being written when the last run ended", "is gone; fetching it again", "damaged page")


async def live(place: Path, wanted: Case, o: Options, killer: Killer) -> None:
    """Do the change once, with copies taken on the way until everything is in the bucket."""
    driver = placed(wanted.tree)
    async with mounted(place / "life", driver, o) as m:
        assert await seen(m) == wanted.tree
        user = User(m, dict(wanted.tree))
        if wanted.before is not None:
            await wanted.before(user)
        with killer.watching(m, lambda: (user.states, user.unclosed)):
            await wanted.act(user)
            killer("returned")
            await m.drain()
            await idle(m)
        wanted_there = in_bucket(user.now)
        assert tree_of(driver) == wanted_there, explain("the bucket without any kill", tree_of(driver), [wanted_there])
        assert await seen(m) == user.now


def chosen(limit: int) -> Callable[[str, int], bool]:
    """A step that comes often (each part, each file) is only interesting a few times.

    When a file is published, the note that it is closed may be on its way to the journal: what the store has, nobody waits
    for. A kill at that moment keeps a copy of it in the recovered directory.
    """
    return lambda step, time: time <= limit and step != "publish.begun"


async def kill_everywhere(
    place: Path, wanted: Case, mode: str, *, passthrough: bool, limit: int, again: float, most: int | None = None
) -> None:
    """``limit``: copies are taken the first times that a step comes; ``again``: the share of kills of which recovery is
    killed too; ``most``: look at no more kills than that, chosen by chance.
    """
    killer = Killer(place / "kills", chosen(limit))
    killer.power_cut = not passthrough
    await live(place, wanted, options(mode, passthrough=passthrough), killer)
    assert len(killer.kills) >= 2
    rng = random.Random(wanted.name + mode)
    kills = killer.kills if most is None or len(killer.kills) <= most else rng.sample(killer.kills, most)
    for kill in kills:
        second_killer = Killer(kill.path, chosen(2)) if rng.random() < again else None
        await check(kill, options(mode, passthrough=passthrough), second_killer)
        for second in second_killer.kills if second_killer is not None else ():
            second.step = f"{kill.step} and {second.step}"
            await check(second, options(mode, passthrough=passthrough))
        shutil.rmtree(kill.path)


@pytest.mark.expected_logs(*QUIET)
@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
@pytest.mark.parametrize("wanted", CASES, ids=lambda c: c.name)
async def test_killed_at_every_step(place: Path, wanted: Case, mode: str) -> None:
    """Copying is taken for a power cut: what was not synced is lost."""
    passthrough = random.Random(mode + wanted.name).random() < 0.5
    await kill_everywhere(place, wanted, mode, passthrough=passthrough, limit=1, again=0.1, most=5)


@pytest.mark.slow
@pytest.mark.expected_logs(*QUIET)
@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])
@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
@pytest.mark.parametrize("wanted", CASES, ids=lambda c: c.name)
async def test_killed_at_every_step_and_while_it_recovers(place: Path, wanted: Case, mode: str, passthrough: bool) -> None:
    await kill_everywhere(place, wanted, mode, passthrough=passthrough, limit=3, again=0.5)


async def test_what_was_not_closed_is_kept_aside(place: Path, expected_logs: list[str]) -> None:
    expected_logs += QUIET
    for passthrough in (True, False):
        for mode in ("cache-through", "async-through"):
            path = place / f"{mode}-{passthrough}"
            o = options(mode, passthrough=passthrough)
            async with mounted(path / "life", placed(BEGINNING), o) as m:
                user = User(m, dict(BEGINNING))
                first, _ = await m.kernel.create(m.fs, *(await user.place("new")))
                second = await user.open("a", os.O_RDWR)
                untouched = await user.open("b", os.O_RDWR)
                await m.kernel.write(m.fs, first, 0, NEW)
                await m.kernel.write(m.fs, second, 100, MORE)
                await m.journal.commit()
                killer = Killer(path / "kills")
                with killer.watching(m, lambda: ([BEGINNING], True)):
                    killer("writing")
                for handle in (first, second, untouched):
                    await m.kernel.close(m.fs, handle)
            async with mounted(killer.kills[0].path, killer.kills[0].driver, o) as m:
                assert m.outcome.recovered == 2
                kept = sorted(path.read_bytes() for path in m.recovered.directory.iterdir())
                assert kept == sorted([NEW, OLD[:100] + MORE + OLD[100 + len(MORE) :]])
                assert await seen(m) == BEGINNING
                assert not list(m.staging.stored())


@pytest.mark.expected_logs(*QUIET)
@pytest.mark.parametrize("what", ["file", "directory"])
async def test_what_was_pushed_and_removed_does_not_come_back(
    place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The journal on disk has the record of a push, and not yet that it is over, when the name goes from the store."""
    monkeypatch.setattr(journal, "COMMIT_DELAY_S", 3600)
    driver, killer, o = placed(BEGINNING), Killer(place / "kills"), options("cache-through", passthrough=True)
    async with mounted(place / "life", driver, o) as m:
        user = User(m, dict(BEGINNING))
        assert await seen(m) == BEGINNING
        puts = driver.counts["put"] + driver.counts["put_file"]
        driver.hold("put", "put_file")
        async with trio.open_nursery() as nursery:
            if what == "file":
                nursery.start_soon(user.create, "new", NEW)
            else:  # which gets its marker when the last entry goes
                nursery.start_soon(user.unlink, "full/deep/3")
            await until(lambda: driver.counts["put"] + driver.counts["put_file"] > puts)
            await m.journal.commit()
            driver.release()
        if what == "file":
            await user.unlink("new")
        else:
            await user.rmdir("full/deep")
        with killer.watching(m, lambda: (user.states, user.unclosed)):
            killer("removed")
    await check(killer.kills[0], options("cache-through", passthrough=True))


@pytest.mark.expected_logs(*QUIET)
@pytest.mark.parametrize("refused", [False, True], ids=["pushed", "promised"])
async def test_a_kill_while_what_was_pushed_is_removed(place: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """The journal on disk has the file still as closed, with a staging file that is in the cache by now."""
    monkeypatch.setattr(journal, "COMMIT_DELAY_S", 3600)
    driver, killer, o = placed(BEGINNING), Killer(place / "kills"), options("cache-through", passthrough=True)
    async with mounted(place / "life", driver, o) as m:
        user, data = User(m, dict(BEGINNING)), random_bytes(40_000, 12)  # which the journal has not in itself
        assert await seen(m) == BEGINNING
        handle, _ = await m.kernel.create(m.fs, *(await user.place("new")), DEFAULT_MODE)
        await m.kernel.write(m.fs, handle, 0, data)
        if refused:
            driver.fail_next(1, lambda: StoreRejected("fake: 400"), "put")
            with pytest.raises(StoreRejected):
                await m.kernel.flush(m.fs, handle)
            await m.drain()
        else:
            await m.kernel.flush(m.fs, handle)
            await m.journal.commit()
        await m.kernel.release(m.fs, handle)
        await until(lambda: not list(m.staging.stored()))
        assert m.journal.uncommitted
        user.now["new"] = data, DEFAULT_MODE
        with killer.watching(m, lambda: (user.states, user.unclosed)):
            await user.unlink("new")
            killer("removed")
    assert any(kill.step.startswith("remove.stored") for kill in killer.kills)
    for kill in killer.kills:
        await check(kill, options("cache-through", passthrough=True))
