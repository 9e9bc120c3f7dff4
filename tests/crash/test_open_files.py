"""What becomes of files that are open for writing while they are brought up, renamed, replaced or removed, and of a kill
then: each test is one sequence of calls, with the state looked at afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from luxfuse.cache import upload
from luxfuse.core import parts
from luxfuse.errors import AccessDenied, LuxError, StoreError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import AttributeChanges
from tests.crash.lives import Killer, Tree, User, idle, placed, seen, tree_of
from tests.support.fake_kernel import CALLER, ref_of
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, pages, random_bytes, snapshot, until

LARGE, THEIRS = random_bytes(pages(4) + 17, 1), random_bytes(1000, 2)
MODES = pytest.mark.parametrize("mode", ["cache-through", "async-through"])


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SINGLE_BYTES", pages(2))
    monkeypatch.setattr(parts, "PART_BYTES", pages(1))
    monkeypatch.setattr(parts, "LEAST_PART_BYTES", pages(1))


def options(mode: str = "cache-through", **changes: object) -> Options:
    return Options(write_mode=mode, capacity_bytes=pages(24), whole_file_bytes=pages(2), **changes)  # type: ignore[arg-type]


def later(mode: str = "cache-through") -> Options:
    """Of the life after a kill."""
    return options(mode, beginning_s=BEGINNING_S + 1000)


def user(m: Mount, tree: Tree | None = None) -> User:
    return User(m, dict(tree or {}))


async def write(m: Mount, path: str, data: bytes, flags: int = os.O_RDWR, offset: int = 0) -> int:
    """Open a file, write to it, and leave it open; returns the handle."""
    handle = await m.kernel.open(m.fs, await m.inode(path), flags)
    await m.kernel.write(m.fs, handle, offset, data)
    return handle


async def killed(m: Mount, target: Path) -> FakeStore:
    """Take a copy for the next life of what a kill leaves, after the directory was synced."""
    await m.fs.fsyncdir(ROOT_INODE)
    return snapshot(m, target)


async def content(m: Mount, path: str) -> bytes:
    return (await seen(m))[path][0]  # type: ignore[index, return-value]


# -- pushed while it is open


async def test_a_file_that_went_up_while_it_was_open_is_no_conflict_after_a_kill(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path / "a", driver, options("async-through")) as m:
        await user(m).create("f", b"promised")
        handle = await m.kernel.open(m.fs, await m.inode("f"), os.O_RDWR)
        await m.drain()
        await m.kernel.write(m.fs, handle, 0, b"and more than that")
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        assert await content(m, "f") == b"and more than that"
        await m.drain()
        assert not m.recovered.count()
        assert driver.objects["f"][0] == b"and more than that"


async def test_an_answer_that_got_lost_in_a_kill_is_no_conflict(tmp_path: Path) -> None:
    async with mounted(tmp_path / "a", FakeStore(), options("async-through")) as m:
        await user(m).create("f", b"promised")
        handle = await write(m, "f", b"and more than that", os.O_RDWR)
        record = next(iter(m.journal.files.values()))
        seconds, nanoseconds = divmod(record.stamp, 10**9)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    driver.place("f", b"promised", {"mtime": f"{seconds}.{nanoseconds:09}"})  # it is there, and nobody has noted it
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        await m.drain()
        assert not m.recovered.count()
        assert driver.objects["f"][0] == b"and more than that"


async def test_an_answer_that_got_lost_in_a_kill_is_no_conflict_whatever_went_up(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path / "a", driver, options("async-through")) as m:
        await user(m).create("f", b"promised")
        handle = await write(m, "f", b"and more than that")
        killer = Killer(tmp_path / "kills", lambda step, time: step == "push.stored")
        with killer.watching(m, lambda: ([], False)):
            m.writeback.hurry()
            await until(lambda: len(killer.kills) > 0)
        await m.kernel.close(m.fs, handle)
    kill = killer.kills[0]
    driver = kill.driver
    assert driver.objects["f"][0] == b"and more than that"
    staging = next(kill.path.glob("cache/*/staging/*"))
    staging.write_bytes(b"and yet more than that")  # by a program, after it went up
    async with mounted(kill.path, driver, later("async-through")) as m:
        await m.drain()
        assert not m.recovered.count()
        assert driver.objects["f"][0] == b"and yet more than that"


async def test_a_version_that_new_attributes_made_is_no_conflict_after_a_kill(tmp_path: Path) -> None:
    async with mounted(tmp_path / "a", FakeStore(), options()) as m:
        handle, inode = await m.kernel.create(m.fs, ROOT_INODE, b"f", 0o644, os.O_RDONLY | os.O_CREAT)
        await m.fs.xattrs.set(inode, b"user.x", b"y")
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later()) as m:
        await m.kernel.close(m.fs, await write(m, "f", b"new"))
        await m.drain()
        assert not m.recovered.count()
        assert driver.objects["f"][0] == b"new"


async def test_what_a_restart_has_shown_is_not_taken_back_by_the_next(tmp_path: Path) -> None:
    async with mounted(tmp_path / "a", FakeStore(), options("async-through")) as m:
        await user(m).create("f", b"promised")
        handle = await write(m, "f", b"and more than that")
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        assert await content(m, "f") == b"and more than that"
        await user(m).rename("f", "g")
        handle = await m.kernel.open(m.fs, await m.inode("g"), os.O_RDWR)
        await user(m).set("g", size=3)
        driver = await killed(m, tmp_path / "c")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "c", driver, later("async-through")) as m:
        assert await content(m, "g") in (b"and more than that", b"and")


@pytest.mark.parametrize("flags", [0, 2], ids=["rename", "exchange"])
@pytest.mark.parametrize("name", ["d", "d/f"])
async def test_a_file_that_a_rename_waited_for_is_clean_again(tmp_path: Path, name: str, flags: int) -> None:
    driver = placed({"d": None, "other": None})
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await user(m).create("d/f", LARGE)
        driver.hold("begin_upload")
        m.writeback.hurry()
        await until(lambda: driver.counts["begin_upload"] > 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user(m).rename, name, "other" if flags or name == "d" else "new", flags)
            await trio.sleep(0.05)
            driver.release()
        await m.drain()
        await idle(m)


# -- what a file that was changed in part needs of its object


@MODES
async def test_parts_that_were_never_fetched_are_there_after_an_fsync(tmp_path: Path, mode: str) -> None:
    driver = placed({"f": (LARGE, 0o644)})
    async with mounted(tmp_path, driver, options(mode)) as m:
        handle = await write(m, "f", b"new")
        await m.kernel.fsync(m.fs, handle)
        await m.drain()
        await m.kernel.write(m.fs, handle, pages(2) + 5, b"newer")
        wanted = bytearray(LARGE)
        wanted[:3], wanted[pages(2) + 5 : pages(2) + 10] = b"new", b"newer"
        assert await m.kernel.read_all(m.fs, handle) == wanted
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert driver.objects["f"][0] == wanted


async def test_parts_that_were_never_fetched_are_there_after_a_chmod(tmp_path: Path) -> None:
    driver = placed({"f": (LARGE, 0o644)})
    async with mounted(tmp_path, driver, options()) as m:
        handle = await m.kernel.open(m.fs, await m.inode("f"), os.O_RDWR)
        await user(m, {"f": (LARGE, 0o644)}).set("f", mode=0o600)
        await m.kernel.fsync(m.fs, handle)
        assert driver.counts["copy"] == 1
        await m.kernel.write(m.fs, handle, pages(2) + 5, b"newer")
        assert (await m.kernel.read_all(m.fs, handle))[: pages(2)] == LARGE[: pages(2)]
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert driver.objects["f"][0] == LARGE[: pages(2) + 5] + b"newer" + LARGE[pages(2) + 10 :]


async def test_who_reads_while_the_object_is_replaced_by_us_waits_for_the_new_one(tmp_path: Path) -> None:
    driver = placed({"f": (LARGE, 0o644)})
    async with mounted(tmp_path, driver, options()) as m:
        handle = await write(m, "f", b"new")
        real, replaced, go_on = driver.complete_upload, trio.Event(), trio.Event()

        def complete(*arguments: object, **named: object) -> object:
            info = real(*arguments, **named)  # type: ignore[arg-type]
            trio.from_thread.run_sync(replaced.set)
            trio.from_thread.run(go_on.wait)
            return info

        driver.complete_upload = complete  # type: ignore[assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.kernel.fsync, m.fs, handle)
            await replaced.wait()
            nursery.start_soon(m.kernel.write, m.fs, handle, pages(3) + 5, b"newer")
            await trio.sleep(0.05)
            go_on.set()
        driver.complete_upload = real  # type: ignore[method-assign]
        await m.kernel.close(m.fs, handle)
        assert driver.objects["f"][0] == b"new" + LARGE[3 : pages(3) + 5] + b"newer" + LARGE[pages(3) + 10 :]


@MODES
async def test_a_removed_file_that_is_open_keeps_what_was_never_fetched(tmp_path: Path, mode: str) -> None:
    driver = placed({"f": (LARGE, 0o644)})
    async with mounted(tmp_path, driver, options(mode)) as m:
        handle = await write(m, "f", b"new")
        await user(m).unlink("f")
        await user(m).create("f", b"another")
        m.writeback.hurry()
        await trio.sleep(0.05)
        assert await m.kernel.read_all(m.fs, handle) == b"new" + LARGE[3:]
        await m.kernel.close(m.fs, handle)
        await m.drain()
        await idle(m)
        assert tree_of(driver) == {"f": (b"another", 0o644)}


@pytest.mark.expected_logs("was written by somebody else since it was removed here")
@pytest.mark.parametrize("change", ["unlink", "rename"])
async def test_what_others_write_while_a_removal_waits_stays(tmp_path: Path, change: str) -> None:
    """For the last one who reads it, or for the upload under the new name."""
    driver = placed({"f": (LARGE if change == "unlink" else b"small", 0o644)})
    async with mounted(tmp_path, driver, options("async-through")) as m:
        handle = await write(m, "f", b"new")
        await (user(m).unlink("f") if change == "unlink" else user(m).rename("f", "g"))
        m.writeback.hurry()
        await until(lambda: "f" in m.writeback.deletes._waited)
        driver.place("f", THEIRS)
        await m.kernel.close(m.fs, handle)
        await m.drain()
        await until(lambda: not m.journal.deletes)
        assert driver.objects["f"][0] == THEIRS
        assert change == "unlink" or driver.objects["g"][0] == b"newll"


@pytest.mark.expected_logs("cannot be removed yet", "was written by somebody else since it was removed here")
@pytest.mark.parametrize("keys", [("f", "g"), ("f", "over"), ("f", "link"), ("d/x", "e/x")], ids=lambda keys: keys[1])
async def test_what_others_write_under_the_old_name_of_a_renamed_file_stays(tmp_path: Path, keys: tuple[str, str]) -> None:
    """The store has the copy, and did not take the removal. The symlink that goes has another key than the file."""
    driver = placed({"f": (LARGE, 0o644), "over": (b"over", 0o644), "d": None, "d/x": (LARGE, 0o644)})
    driver.place("link.rclonelink", b"target")
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await seen(m)
        driver.fail_next(1000, lambda: AccessDenied("DELETE: 403 Forbidden"), "delete")
        old, new = (key.partition("/")[0] for key in keys)
        await user(m).rename(old, new)
        gone = [keys[0], *(["link.rclonelink"] if new == "link" else [])]
        for key in gone:
            driver.place(key, THEIRS)
        driver.heal()
        m.writeback.hurry()
        await until(lambda: not m.journal.deletes)
        assert {key: driver.objects[key][0] for key in (*gone, keys[1])} == {**dict.fromkeys(gone, THEIRS), keys[1]: LARGE}


async def test_a_removed_file_in_a_directory_that_moves_leaves_nothing_in_the_journal(tmp_path: Path) -> None:
    driver = placed({"d": None, "d/f": (LARGE, 0o644)})
    async with mounted(tmp_path, driver, options("async-through")) as m:
        handle = await write(m, "d/f", b"new")
        await user(m).unlink("d/f")
        await user(m).rename("d", "e")
        assert await m.kernel.read_all(m.fs, handle) == b"new" + LARGE[3:]
        await m.kernel.close(m.fs, handle)
        await m.drain()
        await idle(m)


async def test_a_push_that_an_unlink_ends_is_no_failure(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await user(m).create("f", LARGE)
        driver.hold("begin_upload")
        m.writeback.hurry()
        await until(lambda: driver.counts["begin_upload"] > 0)
        await user(m).unlink("f")
        driver.release()
        await m.drain()
        await idle(m)
        assert not m.writeback.pace.failures
        assert not driver.objects
        assert not driver.uploads


# -- renamed while it is open


@MODES
async def test_what_was_promised_survives_that_its_old_name_is_used_anew(tmp_path: Path, mode: str) -> None:
    driver = placed({"old": (b"promised", 0o644), "new": (b"replaced", 0o644)})
    async with mounted(tmp_path / "a", driver, options(mode)) as m:
        handle = await write(m, "old", b"not closed", os.O_RDWR | os.O_TRUNC)
        await user(m).rename("old", "new")
        await user(m).create("old", b"another")
        m.writeback.hurry()
        await trio.sleep(0.05)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later(mode)) as m:
        assert await content(m, "new") in (b"promised", b"not closed")
        assert await content(m, "old") == b"another"
        await m.drain()
        await idle(m)
        assert tree_of(driver)["new"][0] in (b"promised", b"not closed")  # type: ignore[index]


@pytest.mark.expected_logs("was being written when the last run ended")
async def test_what_was_promised_is_not_what_a_rename_has_replaced(tmp_path: Path) -> None:
    driver = placed({"a": (b"promised", 0o644), "b": (b"replaced", 0o644)})
    async with mounted(tmp_path / "a", driver, options()) as m:
        handle = await write(m, "a", b"not closed", os.O_RDWR | os.O_TRUNC)
        await user(m).rename("a", "b")
        await user(m).rename("b", "c")
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later()) as m:
        await m.drain()
        assert await seen(m) == {"c": (b"promised", 0o644)}
        await idle(m)
        assert tree_of(driver) == {"c": (b"promised", 0o644)}


@pytest.mark.expected_logs("was being written when the last run ended")
async def test_what_was_promised_survives_that_a_rename_is_taken_back(tmp_path: Path) -> None:
    driver = placed({"a": (b"promised", 0o644), "b": (b"replaced", 0o644)})
    async with mounted(tmp_path / "a", driver, options()) as m:
        handle = await write(m, "a", b"not closed", os.O_RDWR | os.O_TRUNC)
        for old, new in (("a", "b"), ("b", "c"), ("c", "b")):
            await user(m).rename(old, new)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later()) as m:
        await m.drain()
        assert await seen(m) == {"b": (b"promised", 0o644)}


@pytest.mark.expected_logs("was being written when the last run ended")
async def test_what_was_promised_survives_that_its_first_name_comes_back(tmp_path: Path) -> None:
    driver = placed({"a": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options()) as m:
        handle = await write(m, "a", b"not closed", os.O_RDWR | os.O_TRUNC)
        await user(m).rename("a", "b")
        await user(m).rename("b", "a")
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later()) as m:
        await m.drain()
        assert await seen(m) == {"a": (b"promised", 0o644)}


@MODES
async def test_what_was_promised_survives_that_its_old_directory_moves(tmp_path: Path, mode: str) -> None:
    driver = placed({"d": None, "d/f": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options(mode)) as m:
        handle = await write(m, "d/f", b"not closed", os.O_RDWR | os.O_TRUNC)
        await user(m).rename("d/f", "g")
        await user(m).rename("d", "e")
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", driver, later(mode)) as m:
        assert await content(m, "g") in (b"promised", b"not closed")
        await m.drain()
        assert set(await seen(m)) == {"g", "e"}


async def test_a_file_whose_attributes_wait_moves_with_its_directory(tmp_path: Path) -> None:
    driver = placed({"d": None, "d/f": (b"content", 0o644)})
    async with mounted(tmp_path, driver, options("async-through", passthrough=False)) as m:
        await m.read_all("d/f")
        await user(m, {"d/f": (b"content", 0o644)}).chmod("d/f", 0o600)
        await user(m).rename("d", "e")
        assert await m.read_all("e/f") == b"content"


async def test_a_new_directory_that_replaces_one_of_the_store_can_be_removed(tmp_path: Path) -> None:
    driver = placed({"d": None})
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await user(m).mkdir("new")
        await user(m).rename("new", "d")
        await user(m).rmdir("d")
        await m.drain()
        assert tree_of(driver) == {}


async def test_a_file_that_gets_shorter_while_it_goes_up_goes_up_as_it_is_then(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, options("async-through", passthrough=False)) as m:
        await user(m).create("f", LARGE)
        handle = await m.kernel.open(m.fs, await m.inode("f"), os.O_RDWR)
        driver.hold("begin_upload")
        m.writeback.hurry()
        await until(lambda: driver.counts["begin_upload"] > 0)
        await user(m).set("f", size=5)
        driver.release()
        await m.drain()
        assert driver.objects["f"][0] == LARGE[:5]
        assert not m.writeback.pace.failures
        await m.kernel.close(m.fs, handle)


@MODES
async def test_who_reads_what_a_link_replaces_reads_on(tmp_path: Path, mode: str) -> None:
    driver = placed({"f": (LARGE, 0o644), "link": "target"})
    async with mounted(tmp_path, driver, options(mode, passthrough=False)) as m:
        handle = await m.open("f")
        await user(m).rename("link", "f")
        m.writeback.hurry()
        await trio.sleep(0.05)
        assert await m.kernel.read_all(m.fs, handle) == LARGE
        await m.kernel.release(m.fs, handle)
        await m.drain()
        await idle(m)
        assert tree_of(driver) == {"f": "target"}
        m.clock.advance(61)
        assert await seen(m) == {"f": "target"}


# -- names of objects that wait for their removal


async def stored_then_renamed(m: Mount, path: str, new: str) -> int:
    """Leave the old object of a file to be removed once the file, which is open, has gone up."""
    handle = await write(m, path, b"not closed")
    await user(m).rename(path, new)
    assert path in m.journal.deletes
    return handle


async def brought_up(m: Mount, key: str) -> None:
    """Wait until an object is in the store and nothing of it in the journal."""
    m.writeback.hurry()
    await until(lambda: key in m.driver.objects and all(r.key != key for r in m.journal.files.values()))


async def test_a_removal_that_waits_hides_no_other_object_of_the_name(tmp_path: Path) -> None:
    driver = placed({"c": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options("async-through", flusher=False)) as m:
        handle = await stored_then_renamed(m, "c", "f")
        snapshot(m, tmp_path / "old")
        await user(m).symlink("c", "target")
        await brought_up(m, "c.rclonelink")
        await m.kernel.fsync(m.fs, handle)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    shutil.rmtree(tmp_path / "b" / "index")
    (tmp_path / "old" / "index").rename(tmp_path / "b" / "index")
    driver.hold("put")
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        assert "c" in m.journal.deletes
        assert (await seen(m))["c"] == "target"
        driver.release()


@MODES
async def test_a_directory_that_was_removed_does_not_come_back_with_what_waits_for_its_removal(
    tmp_path: Path, mode: str
) -> None:
    driver = placed({"d": None, "d/f": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options(mode)) as m:
        handle = await stored_then_renamed(m, "d/f", "g")
        await user(m).rmdir("d")
        m.writeback.hurry()
        await trio.sleep(0.05)
        m.clock.advance(61)
        assert set(await m.entries()) == {b"g"}
        assert "d/f" in m.journal.deletes
        # Whatever the next life makes of the file, it promises that the directory is gone.
        await m.kernel.fsync(m.fs, handle)
        await m.kernel.write(m.fs, handle, 0, b"more")
        await m.kernel.close(m.fs, handle)
        await m.drain()
        await idle(m)
        m.clock.advance(61)
        assert set(await m.entries()) == {b"g"}
        await user(m).mkdir("d")
        await m.drain()
        m.clock.advance(61)
        assert set(await m.entries()) == {b"d", b"g"}


async def test_a_directory_that_was_removed_stays_away_after_a_kill(tmp_path: Path) -> None:
    driver = placed({"d": None, "d/f": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options("async-through")) as m:
        handle = await stored_then_renamed(m, "d/f", "g")
        await user(m).rmdir("d")
        await m.kernel.fsync(m.fs, handle)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    driver.hold("put")
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        assert "d/f" in m.journal.deletes
        assert set(await m.entries()) == {b"g"}
        driver.release()
        await m.drain()
        await idle(m)
        m.clock.advance(61)
        assert set(await m.entries()) == {b"g"}


async def test_a_directory_where_a_file_waits_for_its_removal_keeps_its_mode_after_a_kill(tmp_path: Path) -> None:
    driver = placed({"c": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options("async-through", flusher=False)) as m:
        handle = await stored_then_renamed(m, "c", "f")
        await m.fs.mkdir(ROOT_INODE, b"c", 0o700, CALLER)
        await brought_up(m, "c/")
        await user(m).create("c/x", b"in it")
        await m.kernel.fsync(m.fs, handle)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    driver.hold("put")
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        assert "c" in m.journal.deletes
        assert (await m.fs.getattr(await m.inode("c"))).mode & 0o7777 == 0o700
        driver.release()


async def test_an_index_that_missed_a_removal_shows_nothing_while_another_one_waits(tmp_path: Path) -> None:
    driver = placed({"c": (b"promised", 0o644)})
    async with mounted(tmp_path / "a", driver, options("async-through", flusher=False)) as m:
        handle = await stored_then_renamed(m, "c", "f")
        await user(m).mkdir("c")
        await m.index.flush()
        snapshot(m, tmp_path / "old")
        await user(m).rmdir("c")
        await m.kernel.fsync(m.fs, handle)
        driver = await killed(m, tmp_path / "b")
        await m.kernel.close(m.fs, handle)
    shutil.rmtree(tmp_path / "b" / "index")
    (tmp_path / "old" / "index").rename(tmp_path / "b" / "index")
    driver.hold("put")
    async with mounted(tmp_path / "b", driver, later("async-through")) as m:
        assert "c" in m.journal.deletes
        assert set(await m.entries()) == {b"f"}
        driver.release()


async def test_a_directory_that_is_made_anew_shows_nothing_of_what_was_in_the_one_before(tmp_path: Path) -> None:
    driver = placed({"d": None, "d/f": (b"f", 0o644), "d/link": "f", "d/e": None, "d/e/g": (b"g", 0o644)})
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await seen(m)
        driver.hold("delete")
        for path in ("d/f", "d/link", "d/e/g"):
            await user(m).unlink(path)
        for path in ("d/e", "d"):
            await user(m).rmdir(path)
        await user(m).mkdir("d")
        m.clock.advance(61)
        assert await seen(m) == {"d": None}
        await user(m).mkdir("d/link")
        await user(m).create("d/f", b"new")
        await user(m).mkdir("d/e")
        m.clock.advance(61)
        wanted: Tree = {"d": None, "d/link": None, "d/e": None, "d/f": (b"new", 0o644)}
        assert await seen(m) == wanted
        driver.release()
        await m.drain()
        await idle(m)
        m.clock.advance(61)
        assert await seen(m) == tree_of(driver) == wanted
        driver.place("d/e/other", b"remote")
        m.clock.advance(61)
        assert await m.read_all("d/e/other") == b"remote"


# -- asked for under a name that a directory no longer has


class Slow:
    """Requests about a prefix are made when `ask` is set, and answered when `answer` is."""

    def __init__(self, driver: FakeStore, kind: str, prefix: str) -> None:
        self.ask, self.answer = threading.Event(), threading.Event()
        self.waiting = 0
        real = getattr(driver, kind)

        def request(key: str) -> object:
            if not key.startswith(prefix):
                return real(key)
            self.waiting += 1
            assert self.ask.wait(120)
            try:
                found = real(key)
                return iter(list(found)) if kind == "list_directory" else found
            finally:
                assert self.answer.wait(120)

        setattr(driver, kind, request)


MOVES = pytest.mark.parametrize("flags", [0, 2], ids=["rename", "exchange"])
AND_BACK = pytest.mark.parametrize("back", [False, True], ids=["moved", "moved back"])


async def move_meanwhile(m: Mount, slow: Slow, flags: int, back: bool) -> str:
    """Let requests about a directory reach the store when it has moved; returns its name then."""
    await until(lambda: slow.waiting > 0)
    await user(m).rename("d", "other", flags)
    slow.ask.set()
    if back:
        await trio.sleep(0.05)
        await user(m).rename("other", "d", flags)
    slow.answer.set()
    return "d" if back else "other"


def with_other(tree: Tree, flags: int) -> FakeStore:
    return placed({**tree, **({"other": None} if flags else {})})


@MOVES
@AND_BACK
async def test_a_listing_that_a_move_of_the_directory_overtook_removes_nothing(
    tmp_path: Path, flags: int, back: bool
) -> None:
    driver = with_other({"d": None, "d/e": None, "d/e/f": (b"f", 0o644), "d/e/g": None}, flags)
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await seen(m)
        m.clock.advance(4)
        slow = Slow(driver, "list_directory", "d/e/")
        with pytest.raises(LuxError):
            await m.inode("d/e/new")  # lists ahead
        path = await move_meanwhile(m, slow, flags, back)
        await until(lambda: not m.lister._running)
        assert set(await m.entries(f"{path}/e")) == {b"f", b"g"}


@MOVES
async def test_a_listing_that_was_made_before_the_directory_moved_is_made_again(tmp_path: Path, flags: int) -> None:
    driver = with_other({"d": None, "d/e": None, "d/e/f": (b"f", 0o644), "d/e/g": None}, flags)
    async with mounted(tmp_path, driver, options("async-through")) as m:
        before = await m.entries("d/e")
        m.clock.advance(61)
        directory = await m.inode("d/e")
        slow = Slow(driver, "list_directory", "d/e/")
        slow.ask.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.namespace.relisting.listed, directory)
            path = await move_meanwhile(m, slow, flags, False)
        assert await m.entries(f"{path}/e") == before


@MOVES
@AND_BACK
@pytest.mark.parametrize("kind", ["has_prefix", "head"])
async def test_a_look_up_that_a_move_of_the_directory_overtook_finds_what_is_there(
    tmp_path: Path, kind: str, flags: int, back: bool
) -> None:
    name = "g" if kind == "has_prefix" else "f"
    driver = with_other({"d": None, "d/e": None, "d/e/f": (b"f", 0o600), "d/e/g": None}, flags)
    async with mounted(tmp_path, driver, options("async-through")) as m:
        before = (await m.entries("d/e"))[name.encode()]
        m.clock.advance(61)
        directory = await m.inode("d/e")
        slow, found = Slow(driver, kind, "d/e/"), []

        async def look_up() -> None:
            stat = await m.fs.lookup(directory, name.encode())
            found.append((stat.inode, stat.mode & 0o7777))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            await move_meanwhile(m, slow, flags, back)
        assert found == [(before, 0o755 if name == "g" else 0o600)]


async def test_who_asks_during_an_exchange_is_told_of_what_there_is_after_it(tmp_path: Path) -> None:
    driver = placed({"d": None, "d/e": None, "d/e/g": None, "other": None})
    async with mounted(tmp_path, driver, options("async-through")) as m:
        await seen(m)
        m.clock.advance(61)
        directory, real = await m.inode("d/e"), driver.delete
        shown: list[bytes] = []

        async def look() -> None:
            await m.namespace.relisting.listed(directory)
            shown.extend(name for name, _ in m.namespace.after(directory, b"", 10))

        def delete(keys: Sequence[str]) -> dict[str, StoreError]:
            failures = real(keys)
            driver.hold("copy")  # from now on, until it is there under its new name, it is between the names
            return failures

        driver.delete = delete  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user(m).rename, "d", "other", 2)
            await until(lambda: driver.counts["delete"] > 0)
            driver.delete = real  # type: ignore[method-assign]
            nursery.start_soon(look)
            await trio.sleep(0.05)
            assert not shown
            driver.release()
        assert shown == [b"g"]


# -- set aside after a conflict


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
@pytest.mark.expected_logs(
    "was written by somebody else meanwhile|cannot be brought to the under-store yet|was being written when the last"
)
async def test_a_kill_while_a_conflict_is_set_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """And the next life does not call lost what it finds among what was recovered."""
    monkeypatch.setattr("luxfuse.index.journal.COMMIT_DELAY_S", 3600)
    driver = FakeStore()
    driver.place("f", b"before")
    killer = Killer(tmp_path / "kills", lambda step, _time: step.startswith("conflict."))
    async with mounted(tmp_path / "life", driver, options(mode, on_conflict="fail")) as m:
        handle = await m.kernel.open(m.fs, await m.inode("f"), os.O_RDWR)
        await m.kernel.write(m.fs, handle, 0, b"ours, and longer")
        driver.place("f", b"by somebody else")
        with killer.watching(m, lambda: ([], False)):
            with contextlib.suppress(LuxError):
                await m.kernel.flush(m.fs, handle)
            await m.kernel.release(m.fs, handle)
            m.writeback.hurry()
            await until(lambda: killer.times["conflict.kept"] == 1)
    assert [kill.step for kill in killer.kills] == ["conflict.noted#1", "conflict.kept#1"]
    for kill in killer.kills:
        async with mounted(kill.path, kill.driver, later(mode)) as m:
            assert m.outcome.lost == 0
            assert await content(m, "f") == b"by somebody else"
            kept = [path.read_bytes() for path in m.recovered.directory.iterdir()]
            assert kept == [b"ours, and longer"]


async def test_the_end_of_an_object_that_was_changed_stays_so_where_the_file_went_on(tmp_path: Path) -> None:
    """The page in which the object ends has a hole behind that."""
    driver = placed({"f": (LARGE, 0o644)})
    async with mounted(tmp_path / "a", driver, options("async-through")) as m:
        await m.entries()
        driver.hold("complete_upload")
        handle = await write(m, "f", b"new", offset=pages(4) + 5)
        await m.kernel.write(m.fs, handle, pages(6), b"end")
        await m.kernel.close(m.fs, handle)
        left = await killed(m, tmp_path / "b")
        driver.release()
    wanted = bytearray(LARGE.ljust(pages(6), b"\0") + b"end")
    wanted[pages(4) + 5 : pages(4) + 8] = b"new"
    async with mounted(tmp_path / "b", left, later("async-through")) as m:
        assert await content(m, "f") == bytes(wanted)
        await m.drain()
        assert left.objects["f"][0] == bytes(wanted)


@pytest.mark.expected_logs("was being written when the last run ended")
@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
async def test_a_staging_file_that_was_just_begun_is_no_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """Only that the attributes of the file were changed is in the journal."""
    driver = placed({"f": (LARGE, 0o644)})
    left: list[FakeStore] = []
    async with mounted(tmp_path / "a", driver, options("async-through")) as m:
        await m.entries()
        driver.hold("put", "put_file", "copy")
        inode = await m.inode("f")
        await m.fs.setattr(inode, AttributeChanges(mode=0o600), None, CALLER)
        await m.journal.commit()
        create = m.staging.create

        def begun(number: int) -> int:
            fd = create(number)
            left.append(snapshot(m, tmp_path / "b"))
            return fd

        monkeypatch.setattr(m.staging, "create", begun)
        handle = await m.kernel.open(m.fs, inode, flags)
        driver.release()
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", left[0], later("async-through")) as m:
        assert await content(m, "f") == LARGE
        await m.drain()
        assert left[0].objects["f"][0] == LARGE


async def test_what_was_cut_off_a_large_file_does_not_come_back(tmp_path: Path) -> None:
    driver = placed({"f": (LARGE, 0o644)})
    async with mounted(tmp_path / "a", driver, options("async-through")) as m:
        await m.entries()
        driver.hold("complete_upload", "put", "put_file")
        handle = await write(m, "f", b"1")
        await m.kernel.fsync(m.fs, handle)  # promised, with what is from the object
        await m.fs.setattr(await m.inode("f"), AttributeChanges(size=0), ref_of(handle), CALLER)
        await m.kernel.write(m.fs, handle, 8192, b"x")
        left = await killed(m, tmp_path / "b")
        driver.release()
        await m.kernel.close(m.fs, handle)
    async with mounted(tmp_path / "b", left, later("async-through")) as m:
        assert await content(m, "f") == bytes(8192) + b"x"
