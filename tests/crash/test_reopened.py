"""Files that are emptied by an open and killed before they are closed again, and staging files after a power cut."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from luxfuse.errors import AccessDenied
from luxfuse.index import lifecycle
from luxfuse.index.entries import Attributes
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind, ObjectInfo
from luxfuse.vfs.attributes import AttributeChanges, to_metadata
from luxfuse.vfs.recovery import later
from tests.crash.lives import tree_of
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, Options, mounted, pages, random_bytes, snapshot, until

OLD, LARGE, HALF = random_bytes(9000, 1), random_bytes(pages(1), 2), random_bytes(3000, 3)
STATES = ["waiting", "stored", "open"]

pytestmark = pytest.mark.expected_logs(
    "was being written when the last run ended", "was not in the under-store yet", "is gone; fetching it again"
)


async def written(m: Mount, state: str, data: bytes) -> int:
    """Close a file; what becomes of it: it waits for the store, is there, or there with a descriptor still open.

    Returns the handle, which is of use in the last case only.
    """
    if state == "waiting":
        m.driver.hold("put", "put_file")
    handle, _ = await m.kernel.create(m.fs, ROOT_INODE, b"a")
    await m.kernel.write(m.fs, handle, 0, data)
    await m.kernel.flush(m.fs, handle)
    if state != "open":
        await m.kernel.release(m.fs, handle)
    if state != "waiting":
        await m.drain()
    return handle


async def emptied(path: Path, options: Options, state: str, data: bytes) -> FakeStore:
    """Open a file to be written anew, and be killed in the middle of that."""
    async with mounted(path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        first = await written(m, state, data)
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, HALF)
        await m.journal.commit()
        killed = snapshot(m, path / "killed")
        m.driver.release()
        await m.kernel.close(m.fs, handle)
        if state == "open":
            await m.kernel.close(m.fs, first)
    return killed


async def shows(path: Path, driver: FakeStore, options: Options, wanted: bytes, kept: list[bytes]) -> None:
    options.beginning_s = BEGINNING_S + 10
    async with mounted(path, driver, options) as m:
        assert await m.read_all("a") == wanted
        assert [path.read_bytes() for path in m.recovered.directory.glob("*")] == kept
        await m.drain()
        assert tree_of(driver)["a"] == (wanted, 0o644)
    async with mounted(path, driver, options) as m:  # and nothing is kept once more
        assert len(list(m.recovered.directory.glob("*"))) == len(kept)
        assert await m.read_all("a") == wanted


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])
@pytest.mark.parametrize(("mode", "state"), [*(("async-through", state) for state in STATES), ("cache-through", "open")])
async def test_what_is_written_anew_is_as_it_was_closed_last(
    tmp_path: Path, mode: str, state: str, passthrough: bool
) -> None:
    options = Options(write_mode=mode, passthrough=passthrough)  # type: ignore[arg-type]
    driver = await emptied(tmp_path, options, state, OLD)
    await shows(tmp_path / "killed", driver, options, OLD, [HALF])


async def test_what_is_large_and_waits_for_the_store_is_as_it_was_left(tmp_path: Path) -> None:
    options = Options(write_mode="async-through")
    driver = await emptied(tmp_path, options, "waiting", LARGE)
    options.beginning_s = BEGINNING_S + 10
    async with mounted(tmp_path / "killed", driver, options) as m:
        assert await m.read_all("a") == HALF


async def test_half_of_it_does_not_go_up(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries()
        await written(m, "waiting", OLD)
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, HALF)
        driver.release()
        m.writeback.hurry()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert driver.objects.get("a", (OLD,))[0] == OLD
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert driver.objects["a"][0] == HALF


@pytest.fixture
def other_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot"
    boot.write_text("another")
    monkeypatch.setattr(lifecycle, "BOOT_ID", boot)


async def test_what_was_written_after_it_was_stored_is_not_sent_after_a_power_cut(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nobody has synced it: any part of it may be on the disk."""
    options = Options(write_mode="cache-through", passthrough=True)
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        handle = await written(m, "open", OLD)
        await m.kernel.write(m.fs, handle, 100, HALF)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        again = snapshot(m, tmp_path / "cut")
        await m.kernel.close(m.fs, handle)
    after = OLD[:100] + HALF + OLD[100 + len(HALF) :]
    await shows(tmp_path / "killed", killed, options, after, [])
    request.getfixturevalue("other_boot")
    await shows(tmp_path / "cut", again, options, OLD, [after])


@pytest.mark.parametrize("committing", [False, True], ids=["closed", "being closed"])
@pytest.mark.parametrize("size", [len(HALF), pages(1)], ids=["small", "large"])
async def test_what_was_closed_while_an_older_content_went_up_outlives_a_power_cut(
    tmp_path: Path, request: pytest.FixtureRequest, size: int, committing: bool
) -> None:
    """What the answer to that says is no news of what was promised since, be that not committed yet."""
    new = random_bytes(size, 5)

    async def answer(m: Mount, number: int) -> None:
        m.driver.release()
        m.driver.hold("put", "put_file")
        await until(lambda: "a" in m.driver.objects)
        data, version, *_ = m.driver.objects["a"]
        await until(lambda: m.journal.files[number].expect == version)
        assert data == OLD

    async with mounted(tmp_path / "life", FakeStore(), Options(write_mode="async-through"), clean_end=False) as m:
        await m.entries()
        await written(m, "waiting", OLD)
        await until(lambda: m.driver.counts["put"] > 0)
        (number,) = m.journal.files
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, new)
        async with trio.open_nursery() as nursery:
            with m.durable.lock if committing else nullcontext():  # no commit ends meanwhile
                nursery.start_soon(m.kernel.close, m.fs, handle)
                await until(lambda: m.journal.files[number].size == size)
                if committing:
                    await answer(m, number)
        if not committing:
            await answer(m, number)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        m.driver.release()
    if size == len(HALF):  # of which the blocks may not be on the disk
        for staged in (tmp_path / "killed").glob("cache/*/staging/*"):
            os.truncate(staged, 0)
    request.getfixturevalue("other_boot")
    options = Options(write_mode="async-through")
    await shows(tmp_path / "killed", killed, options, new, [])


async def test_what_is_shorter_than_promised_is_not_sent_after_a_power_cut(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = Options(write_mode="async-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        await written(m, "waiting", LARGE)
        killed = snapshot(m, tmp_path / "killed")
        m.driver.release()
    (staged,) = (path for path in (tmp_path / "killed").glob("cache/*/staging/*") if path.stat().st_size)
    st = staged.stat()
    os.truncate(staged, 5000)
    os.utime(staged, ns=(st.st_mtime_ns, st.st_mtime_ns))
    request.getfixturevalue("other_boot")
    options.beginning_s = BEGINNING_S + 10
    async with mounted(tmp_path / "killed", killed, options) as m:
        assert m.outcome.lost == 1
        assert [path.read_bytes() for path in m.recovered.directory.glob("*")] == [LARGE[:5000]]
        await until(lambda: not len(m.dirty))
        assert tree_of(killed) == {}


async def test_what_is_renamed_over_while_it_is_being_closed_is_not_missed(tmp_path: Path) -> None:
    """The journal on the disk has the record of an earlier close, whose content was in the staging file alone."""
    options, small = Options(write_mode="async-through"), random_bytes(100, 4)
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        await written(m, "waiting", LARGE)
        await m.kernel.close(m.fs, (await m.kernel.create(m.fs, ROOT_INODE, b"b"))[0])
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, small)
        await m.journal.commit()
        async with trio.open_nursery() as nursery:
            with m.durable.lock:  # no commit ends meanwhile
                nursery.start_soon(m.kernel.flush, m.fs, handle)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await m.kernel.release(m.fs, handle)  # its process was killed, and did not wait
                nursery.start_soon(m.fs.rename, ROOT_INODE, b"b", ROOT_INODE, b"a", 0)
                await trio.testing.wait_all_tasks_blocked(0.02)
                killed = snapshot(m, tmp_path / "killed")
            m.driver.release()
    options.beginning_s = BEGINNING_S + 10
    async with mounted(tmp_path / "killed", killed, options) as m:
        assert m.outcome.lost == 0
        assert (await m.read_all("a"), await m.read_all("b")) == (small, b"")


class Hashing(FakeStore):
    """The same content has the same version, as in S3."""

    def place(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> ObjectInfo:
        info = super().place(key, data, metadata)
        version = hashlib.sha256(data).hexdigest()
        self.objects[key] = data, version, *self.objects[key][2:]
        return msgspec.structs.replace(info, version=version)


async def test_what_was_stored_once_more_is_not_missed(tmp_path: Path) -> None:
    """The same content has the same version: the journal on the disk knows the file before its upload."""
    options, driver = Options(write_mode="async-through"), Hashing()
    driver.place("a", LARGE)
    async with mounted(tmp_path / "life", driver, options, clean_end=False) as m:
        await m.entries()
        driver.hold("put", "put_file")
        await written(m, "waiting", LARGE)
        await until(lambda: driver.counts["put_file"] + driver.counts["put"] > 0)
        await m.journal.commit()
        with m.durable.lock:
            driver.release()
            await until(lambda: not len(m.dirty))
            killed = snapshot(m, tmp_path / "killed")
    options.beginning_s = BEGINNING_S + 10
    async with mounted(tmp_path / "killed", killed, options) as m:
        assert m.outcome.lost == 0
        assert await m.read_all("a") == LARGE


async def test_what_arrived_before_it_was_written_to_is_ours(tmp_path: Path) -> None:
    """The journal knows a later content by then."""
    options = Options(write_mode="async-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        await written(m, "waiting", OLD)
        (dirty,) = m.dirty
        sent = dirty.stamp
        assert sent is not None
        await until(lambda: m.driver.counts["put"] > 0)
        handle = await m.kernel.open(m.fs, await m.inode("a"), os.O_WRONLY)
        await m.kernel.write(m.fs, handle, 0, HALF)
        await m.kernel.close(m.fs, handle)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        killed.place("a", OLD, to_metadata(Kind.FILE, Attributes(mtime_ns=sent.mtime_ns)))
        m.driver.release()
    options.beginning_s = BEGINNING_S + 10
    async with mounted(tmp_path / "killed", killed, options) as m:
        await m.drain()
        assert m.recovered.count() == 0
        assert killed.objects["a"][0] == HALF + OLD[len(HALF) :]


async def test_a_store_that_refuses_the_credentials_keeps_no_successor_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(later, "PAUSE_S", 0.01)
    options, driver = Options(write_mode="async-through"), FakeStore()
    driver.place("a", OLD)
    async with mounted(tmp_path / "life", driver, options, clean_end=False) as m:
        await m.entries()
        driver.hold("copy")
        await m.fs.setattr(await m.inode("a"), AttributeChanges(mode=0o600), None, CALLER)
        await m.journal.commit()
        killed = snapshot(m, tmp_path / "killed")
        driver.release()
    shutil.rmtree(tmp_path / "killed" / "index")
    killed.fail_next(1000, lambda: AccessDenied("no"), "head")
    options.beginning_s = BEGINNING_S + 10
    async with mounted(tmp_path / "killed", killed, options) as m:
        assert m.outcome.lost == 0
        killed.heal()
        await until(lambda: len(m.dirty) > 0 or killed.objects["a"][3].get("mode") == "33152")
        await m.drain()
    assert tree_of(killed)["a"] == (OLD, 0o600)


async def test_what_is_written_anew_after_a_change_of_mode_is_as_it_was_closed_last(tmp_path: Path) -> None:
    """Half of it does not go up with the attributes, either."""
    options = Options(write_mode="async-through")
    async with mounted(tmp_path / "life", FakeStore(), options, clean_end=False) as m:
        await m.entries()
        await written(m, "stored", OLD)
        inode = await m.inode("a")
        await m.fs.setattr(inode, AttributeChanges(mode=0o644), None, CALLER)
        handle = await m.kernel.open(m.fs, inode, os.O_WRONLY | os.O_TRUNC)
        await m.kernel.write(m.fs, handle, 0, HALF)
        m.writeback.hurry()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert m.driver.objects["a"][0] == OLD
        await m.journal.commit()
        driver = snapshot(m, tmp_path / "killed")
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert m.driver.objects["a"][0] == HALF
    await shows(tmp_path / "killed", driver, options, OLD, [HALF])
