"""Uploads that have no answer, and have reached the store when their file gets another name, or loses the one it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.errors import LuxError, StoreRejected, StoreUnavailable
from tests.support.fake_store import FakeStore
from tests.support.harness import Mount, mounted

LATER = pytest.mark.expected_logs("cannot be brought to the under-store yet", "cannot be reached")
MODES = pytest.mark.parametrize("mode", ["cache-through", "async-through"])


class Down(StoreUnavailable):
    """The store does not answer; nor would it another try, so that none has to be made."""

    retryable = False


class Gone:
    """A store that takes one upload (or copy), and answers nothing from then on, until it is ``back``."""

    def __init__(self, driver: FakeStore, monkeypatch: pytest.MonkeyPatch, last: str = "put") -> None:
        self._down, self._last = False, last
        self.back: Callable[[], None] = lambda: setattr(self, "_down", False)
        for name in ("put", "head", "delete", "copy", "has_prefix", "list_directory"):
            monkeypatch.setattr(driver, name, self._failing(name, getattr(driver, name)))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def request(*arguments: Any, **named: Any) -> Any:
            if self._down:
                raise Down("down")
            answer = real(*arguments, **named)
            if name == self._last:
                self._down = True
                raise Down("the answer is lost")
            return answer

        return request


async def make(m: Mount) -> None:
    """Make a file whose upload has no answer."""
    handle, _ = await m.kernel.create(m.fs, 1, b"a", 0o644)
    await m.kernel.write(m.fs, handle, 0, b"content")
    try:
        await m.kernel.flush(m.fs, handle)
    except LuxError:
        pass
    await m.kernel.release(m.fs, handle)
    (dirty,) = m.dirty
    with trio.fail_after(60):
        while dirty.tries.attempts == 0 or dirty.lock.locked():
            m.writeback.hurry()
            await trio.sleep(0.01)


async def settled(m: Mount) -> None:
    with trio.fail_after(60):
        while len(m.dirty) or m.journal.deletes:
            m.writeback.hurry()
            await trio.sleep(0.01)


@LATER
@MODES
async def test_what_is_removed_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    driver = FakeStore()
    gone = Gone(driver, monkeypatch)
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        await m.entries()
        await make(m)
        assert list(driver.objects) == ["a"]
        await m.fs.unlink(1, b"a")
        gone.back()
        monkeypatch.undo()
        await settled(m)
        assert await m.entries() == {}
    assert driver.objects == {}


@LATER
@MODES
async def test_the_copy_of_a_rename_that_failed_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        handle, _ = await m.kernel.create(m.fs, 1, b"a", 0o644)
        await m.kernel.write(m.fs, handle, 0, b"content")
        await m.kernel.close(m.fs, handle)
        await m.drain()
        gone = Gone(driver, monkeypatch, "copy")
        with pytest.raises(LuxError):
            await m.fs.rename(1, b"a", 1, b"b", 0)
        assert set(driver.objects) == {"a", "b"}
        gone.back()
        await settled(m)
        assert list(driver.objects) == ["a"]
        m.clock.advance(1000)
        assert list(await m.entries()) == [b"a"]
        monkeypatch.undo()
        await m.fs.rename(1, b"a", 1, b"b", 0)
        await m.drain()
        assert list(driver.objects) == ["b"]


@LATER
async def test_what_is_renamed_does_not_keep_its_old_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    gone = Gone(driver, monkeypatch)
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries()
        await make(m)
        await m.fs.rename(1, b"a", 1, b"b", 0)
        gone.back()
        monkeypatch.undo()
        await settled(m)
        assert list(await m.entries()) == [b"b"]
    assert {key: data for key, (data, *_) in driver.objects.items()} == {"b": b"content"}


@LATER
async def test_what_was_refused_is_not_looked_for(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        driver.fail_next(1000, lambda: StoreRejected("no"), "put")
        await make(m)
        await m.fs.unlink(1, b"a")
        assert not m.journal.deletes
    assert driver.counts["delete"] == 0


async def refused(m: Mount, key: str = "a") -> None:
    """Wait until the removal of a file has failed."""
    with trio.fail_after(60):
        while m.writeback.deletes.error(key) is None:
            m.writeback.hurry()
            await trio.sleep(0.01)


KEPT = pytest.mark.expected_logs(
    "cannot be brought to the under-store yet",
    "cannot be reached",
    "was written by somebody else since it was removed here",
)


@KEPT
@pytest.mark.parametrize(("mode", "move"), [("cache-through", False), ("async-through", False), ("async-through", True)])
async def test_what_somebody_else_wrote_since_a_removal_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, move: bool
) -> None:
    driver = FakeStore()
    gone = Gone(driver, monkeypatch)
    async with mounted(tmp_path, driver, write_mode=mode) as m:
        await m.entries()
        await make(m)
        await (m.fs.rename(1, b"a", 1, b"b", 0) if move else m.fs.unlink(1, b"a"))
        driver.place("a", b"theirs!")  # of the same size
        gone.back()
        monkeypatch.undo()
        m.clock.advance(1)
        await settled(m)
        m.clock.advance(1)
        assert sorted(await m.entries()) == ([b"a", b"b"] if move else [b"a"])
    assert driver.objects["a"][0] == b"theirs!"


@KEPT
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_removal_that_had_to_wait_takes_the_version_that_was_removed(tmp_path: Path, replaced: bool) -> None:
    driver = FakeStore()
    driver.place("a", b"one")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries()
        driver.fail_next(1, lambda: StoreRejected("not now"), "delete")
        await m.fs.unlink(1, b"a")
        await refused(m)
        if replaced:
            driver.place("a", b"two")
        m.clock.advance(1)
        await settled(m)
        m.clock.advance(1)
        assert list(await m.entries()) == ([b"a"] if replaced else [])
    assert [data for data, *_ in driver.objects.values()] == ([b"two"] if replaced else [])


@KEPT
async def test_a_directory_takes_along_what_somebody_else_wrote_since_a_removal_in_it(tmp_path: Path) -> None:
    driver = FakeStore()
    for name in ("a", "b"):
        driver.place(f"d/{name}", b"one")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries("d")
        driver.fail_next(1, lambda: StoreRejected("not now"), "delete")
        await m.fs.unlink(await m.inode("d"), b"a")
        await refused(m, "d/a")
        driver.place("d/a", b"two")
        await m.fs.rename(1, b"d", 1, b"e", 0)
        m.clock.advance(100)
        await settled(m)
        assert sorted(await m.entries("e")) == [b"a", b"b"]
    assert {key: data for key, (data, *_) in driver.objects.items()} == {"e/a": b"two", "e/b": b"one"}


async def remake(m: Mount, *, move: bool) -> None:
    """Make a file anew under the name of one whose upload had no answer, or rename another one over it."""
    if not move:
        await m.fs.unlink(1, b"a")
    name = b"b" if move else b"a"
    handle, _ = await m.kernel.create(m.fs, 1, name, 0o644)
    await m.kernel.write(m.fs, handle, 0, b"anew")
    await m.kernel.close(m.fs, handle)
    if move:
        await m.fs.rename(1, b"b", 1, b"a", 0)


@pytest.mark.expected_logs(
    "cannot be brought to the under-store yet", "cannot be reached", "was written by somebody else meanwhile; their version"
)
@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("theirs", [None, b"theirs!"])
async def test_what_is_made_anew_replaces_no_more_than_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move: bool, theirs: bytes | None
) -> None:
    driver = FakeStore()
    gone = Gone(driver, monkeypatch)
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries()
        await make(m)
        await remake(m, move=move)
        if theirs is not None:
            driver.place("a", theirs)  # of the same size as what was sent
        gone.back()
        monkeypatch.undo()
        await settled(m)
        kept = [path.read_bytes() for path in m.recovered.directory.iterdir()] if m.recovered.count() else []
        assert kept == ([theirs] if theirs is not None else [])
    assert {key: data for key, (data, *_) in driver.objects.items()} == {"a": b"anew"}
