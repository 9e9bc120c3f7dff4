"""What a check finds and mends: each kind of damage, made by hand."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
import trio

from luxfuse.core.cache_directory import CacheSetting
from luxfuse.errors import LuxError
from luxfuse.index.bulk import ROOT_INODE
from luxfuse.index.entries import Listing, encode
from luxfuse.index.object_records import TOTALS, standing_key, totals_key
from luxfuse.index.uncommitted import U64, Table
from luxfuse.orders import check
from luxfuse.orders.check import CheckProgress, CheckRefused
from luxfuse.orders.jobs import watch
from luxfuse.types import PAGE_BYTES, WriteMode
from luxfuse.vfs.attributes import Caller
from tests.support.fake_store import FakeStore
from tests.support.harness import MIB, Mount, mounted, pages, random_bytes, until
from tests.support.tiers import acquire, consistent

SIZE = pages(12) + 1000
"""More than one slice."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SECOND_LOOK_S", 0.01)
    monkeypatch.setattr("luxfuse.cache.sweep.PAUSE_S", 0.0)


async def run(m: Mount, *, repair: bool = False) -> CheckProgress:
    job = m.checks.start(repair=repair)
    async for step in watch(job):
        last = step
    assert last.done
    assert last.error is None
    return last


@asynccontextmanager
async def filled(tmp_path: Path, **changes: object) -> AsyncIterator[Mount]:
    """A mount that has cached a large file and three small ones."""
    driver = FakeStore()
    driver.place("big", random_bytes(SIZE, 1))
    for number in range(3):
        driver.place(f"d/{number}", random_bytes(5000, number))
    async with mounted(tmp_path, driver, **changes) as m:
        await m.loads.start([""]).ended.wait()
        await m.index.flush()
        yield m


async def finds(m: Mount, *lines: str, outcome: str, mended: bool = True) -> None:
    """A check tells of exactly this and changes nothing; one that repairs does, if it can; then all is well."""
    before = sorted((path, path.read_bytes(), path.stat().st_mtime_ns) for path in m.path.glob("cache/source/*/*/*"))
    for _ in range(2):
        step = await run(m)
        assert sorted(step.lines) == sorted(lines)
        assert (step.problems, step.mended) == (len(lines), 0)
    after = sorted((path, path.read_bytes(), path.stat().st_mtime_ns) for path in m.path.glob("cache/source/*/*/*"))
    assert before == after
    step = await run(m, repair=True)
    assert sorted(step.lines) == sorted(f"{line}; {outcome}" for line in lines)
    assert step.mended == (len(lines) if mended else 0)
    if mended:
        assert (await run(m)).lines == ()


def flip(path: Path, offset: int) -> None:
    """Change a byte, as a disk does: the mtime stays."""
    st = path.stat()
    with path.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


async def test_a_cache_that_is_as_it_should_be(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        gets = m.driver.counts["get"]
        step = await run(m)
        assert (step.files, step.total_files, step.bytes) == (4, 4, SIZE + 15000)
        assert (step.problems, step.lines) == (0, ())
        assert (await run(m, repair=True)).problems == 0
        m.driver.place("d/1", b"another version")  # what the store has does not matter
        assert (await run(m)).problems == 0
        assert m.driver.counts["get"] == gets
        assert len(m.driver.objects) == 4


@pytest.mark.expected_logs("3 damaged page")
async def test_damaged_pages_are_dropped_and_fetched_again(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        path = m.file_of("big")
        for offset in (0, pages(9) + 5, SIZE - 1):
            flip(path, offset)
        await finds(m, "big: pages 0,9,12 damaged", outcome="dropped, to be fetched again")
        gets = m.driver.counts["get"]
        assert await m.read_all("big") == m.driver.objects["big"][0]
        assert m.driver.counts["get"] > gets
        assert path.read_bytes() == m.driver.objects["big"][0]
        consistent(m)


@pytest.mark.expected_logs("1 damaged page")
async def test_a_file_that_is_open_in_passthrough_is_mended_once_it_is_closed(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        handle = await m.open("big")
        assert m.kernel.registered == 1
        flip(m.file_of("big"), pages(3))
        await finds(m, "big: page 3 damaged", outcome=check.OPEN, mended=False)
        assert acquire(m, "big").whole
        await m.kernel.release(m.fs, handle)
        await finds(m, "big: page 3 damaged", outcome="dropped, to be fetched again")
        assert await m.read_all("big") == m.driver.objects["big"][0]


async def test_a_missing_file(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        m.file_of("d/1").unlink()
        await finds(m, "d/1: its cache file is missing", outcome="dropped, to be fetched again")
        assert await m.read_all("d/1") == m.driver.objects["d/1"][0]
        consistent(m)


async def test_a_missing_file_of_an_object_in_use_stays_recorded(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        handle = await m.open("d/1")
        m.file_of("d/1").unlink()
        await finds(m, "d/1: its cache file is missing", outcome=check.OPEN, mended=False)
        assert await m.kernel.read_all(m.fs, handle) == m.driver.objects["d/1"][0]
        await m.kernel.release(m.fs, handle)
        await finds(m, "d/1: its cache file is missing", outcome="dropped, to be fetched again")


async def test_files_of_the_wrong_size(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        os.truncate(m.file_of("d/2"), 6000)
        await finds(m, "d/2: its cache file has the wrong size, 6000 bytes", outcome="corrected")
        assert m.file_of("d/2").read_bytes() == m.driver.objects["d/2"][0]
        verified = m.cache.counters.verified_bytes
        assert await m.read_all("d/2") == m.driver.objects["d/2"][0]
        assert m.cache.counters.verified_bytes == verified, "the check has vouched for it"


@pytest.mark.expected_logs("1 damaged page")
async def test_a_file_that_was_cut(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        os.truncate(m.file_of("d/2"), 4000)
        line = "d/2: page 0 damaged, its cache file has the wrong size, 4000 bytes"
        await finds(m, line, outcome="dropped, to be fetched again")
        assert await m.read_all("d/2") == m.driver.objects["d/2"][0]


async def test_a_file_that_somebody_else_touched(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        m.file_of("d/0").touch()
        line = "d/0: somebody else has written to its cache file; what it holds is right"
        await finds(m, line, outcome="corrected")
        verified = m.cache.counters.verified_bytes
        assert await m.read_all("d/0") == m.driver.objects["d/0"][0]
        assert m.cache.counters.verified_bytes == verified


async def test_a_file_that_takes_more_than_is_counted(tmp_path: Path) -> None:
    async with filled(tmp_path, passthrough=False, whole_file_bytes=0, readahead_bytes=0) as m:
        await m.inventory.drop(m.cache.object_id("big", m.driver.objects["big"][1]))
        handle = await m.open("big")
        await m.kernel.read(m.fs, handle, 0, 100)
        await m.kernel.release(m.fs, handle)
        path = m.file_of("big")
        st = path.stat()
        with path.open("r+b") as file:  # as a request that was given up, and wrote all the same
            file.seek(pages(2))
            file.write(b"x" * pages(10))
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        line = "big: its cache file takes 11.0 MiB on disk, more than is counted"
        await finds(m, line, outcome="corrected")
        consistent(m)


async def test_files_that_belong_to_nothing(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        strays = [m.directory.file_of(bytes([number]) * 16) for number in range(2)]
        left = m.directory.path / "moving" / ("ab" * 16)
        for path in (*strays, left):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        lines = [*(f"{path}: belongs to nothing" for path in strays), f"{left}: was left by a move"]
        await finds(m, *lines, outcome="removed")
        assert not any(path.exists() for path in (*strays, left))
        consistent(m)


async def test_files_that_are_none_of_ours_are_told_of_and_stay(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        objects = m.directory.path / "objects"
        (objects / "0f").mkdir(exist_ok=True)
        foreign = [objects / "note.txt", objects / "0f" / "x", objects / "0f" / ("ab" * 16)]
        for path in foreign:
            path.write_text("whose?")
        lines = [f"{path}: is no file of luxfuse; remove it by hand" for path in foreign]
        await finds(m, *lines, outcome=check.LEFT_ALONE, mended=False)
        assert all(path.exists() for path in foreign)


async def test_standings_and_totals_of_the_index(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        obj = acquire(m, "d/1")
        record = obj.record
        m.index.delete(Table.STANDINGS, standing_key(record, obj.oid))
        nothing = b"\xaa" * 16
        m.index.put(Table.STANDINGS, standing_key(record, nothing), U64.pack(4096))
        where = record.directory, record.segment
        used, count = m.objects.totals(*where)
        m.objects._totals[where] = used + 8192, count + 1
        m.index.put(Table.META, totals_key(*where), TOTALS.pack(used + 8192, count + 1))
        m.space.ledger.used_bytes += 8192
        told = [
            "d/1: its place in the order of eviction is wrong",
            f"index: object {nothing.hex()} stands in the order of eviction, but is not there",
            "index: the totals count 8.0 KiB too much and 1 file too many",
        ]
        assert sorted((await run(m)).lines) == sorted(told)
        step = await run(m, repair=True)
        told.append(f"{m.directory.name}: cache: 8.0 KiB too much counted")  # it counted what the totals said
        assert sorted(step.lines) == sorted(f"{line}; corrected" for line in told)
        assert step.mended == 4
        assert (await run(m)).problems == 0
        assert m.objects.totals(*where) == (used, count)
        consistent(m)


async def test_names_and_inode_numbers_of_the_index(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        root = U64.pack(ROOT_INODE)
        directory = m.names.get(ROOT_INODE, b"d")
        big = m.names.get(ROOT_INODE, b"big")
        assert directory is not None
        assert big is not None
        zero = m.names.get(directory.inode, b"0")
        assert zero is not None
        gone = U64.pack(10**6)
        m.index.delete(Table.INODES, U64.pack(big.inode))
        m.index.put(Table.NAMES, root + b"double", encode(msgspec.structs.replace(zero)))
        m.index.put(Table.NAMES, gone + b"stray", encode(msgspec.structs.replace(zero, inode=10**6 + 1)))
        m.index.put(Table.INODES, U64.pack(10**6 + 1), gone + b"stray")
        m.index.put(Table.INODES, U64.pack(10**6 + 2), root + b"nothing")
        m.index.put(Table.LISTINGS, gone, encode(Listing(7, 0.0, 1)))
        m.names._forget_decoded()
        await finds(
            m,
            "big: its inode number leads elsewhere",
            "double: its inode number leads elsewhere",
            "(1000000)/stray: is recorded in a directory that is not there",
            "index: inode 1000002 leads to a name that is not there",
            "index: the listing of a directory that is not there, inode 1000000",
            outcome="corrected",
        )
        assert m.names.locate(big.inode) == (ROOT_INODE, b"big")
        assert m.names.locate(zero.inode) == (directory.inode, b"0")
        assert m.names.get(ROOT_INODE, b"double") is None


@pytest.mark.expected_logs("was written by somebody else meanwhile", "has been written by somebody else")
async def test_names_are_right_while_they_change(tmp_path: Path) -> None:
    """Each audit sees the tree in the middle of something, none of which is a mistake."""
    driver = FakeStore()
    for number in range(40):
        driver.place(f"d{number % 4}/{number}", b"x")
    async with mounted(tmp_path, driver, write_mode=WriteMode.ASYNC_THROUGH) as m:

        async def change(rng: random.Random) -> None:
            while True:
                number = rng.randrange(40)
                what = rng.randrange(5)
                with suppress(LuxError):
                    parent = await m.inode(f"d{number % 4}")
                    name = str(number).encode()
                    if what == 0:
                        m.names.listings.forget(parent)
                        await m.entries(f"d{number % 4}")
                    elif what == 1:
                        handle, _ = await m.kernel.create(m.fs, parent, name)
                        await m.kernel.close(m.fs, handle)
                    elif what == 2:
                        await m.fs.unlink(parent, name)
                    elif what == 3:
                        await m.fs.mkdir(parent, b"below", 0o755, Caller(0, 0))
                        await m.fs.rmdir(parent, b"below")
                    else:
                        driver.place(f"d{number % 4}/{number}", rng.randbytes(3))

        async with trio.open_nursery() as nursery:
            for seed in range(3):
                nursery.start_soon(change, random.Random(seed))
            for _ in range(20):
                assert (await run(m)).lines == ()
            nursery.cancel_scope.cancel()


async def test_what_quotas_count(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        await m.cache.quotas.replace([MIB, 100 * MIB], lambda key: int(not key.startswith("d/")))
        assert (await run(m)).problems == 0
        small, big = m.cache.quotas._ledgers
        small.used_bytes += 8192
        big.used_bytes -= MIB
        lines = ["quota of 1.0 MiB: 8.0 KiB too much counted", "quota of 100.0 MiB: 1.0 MiB too little counted"]
        await finds(m, *lines, outcome="corrected")
        assert small.used_bytes == 3 * 8192


@pytest.mark.parametrize("wrong", [8192, -8192])
async def test_ledgers(tmp_path: Path, wrong: int) -> None:
    async with filled(tmp_path) as m:
        m.space.ledger.used_bytes += wrong
        line = f"{m.directory.name}: cache: 8.0 KiB too {'much' if wrong > 0 else 'little'} counted"
        await finds(m, line, outcome="corrected")
        consistent(m)


async def test_what_is_written_is_never_touched(tmp_path: Path) -> None:
    async with filled(tmp_path, write_mode=WriteMode.ASYNC_THROUGH) as m:
        m.driver.hold()
        handle, _ = await m.kernel.create(m.fs, 1, b"mine")
        await m.kernel.write(m.fs, handle, 0, b"content")
        assert (await run(m, repair=True)).lines == ()
        unknown = m.directory.path / "staging" / f"{999999:016x}"
        unknown.write_bytes(b"whose?")
        dirty = next(iter(m.dirty))
        staged = m.staging.path_of(dirty.number)
        away = staged.rename(tmp_path / "away")
        await finds(
            m,
            f"{unknown}: is a staging file of which nothing is known; the next mount sets it aside",
            "mine: its staging file is missing; what was written is there only while the daemon runs",
            outcome=check.LEFT_ALONE,
            mended=False,
        )
        assert unknown.read_bytes() == b"whose?"
        away.rename(staged)
        unknown.unlink()
        m.space.count_staged(4096)
        m.space.ledger.free(4096)
        line = f"{m.directory.name}: files being written: 4.0 KiB too much counted"
        assert line in (await run(m)).lines
        await run(m, repair=True)
        assert (await run(m)).lines == ()
        m.driver.release()
        await m.kernel.close(m.fs, handle)
        await m.drain()
        assert m.driver.objects["mine"][0] == b"content"
        assert (await run(m)).lines == ()


@pytest.mark.expected_logs("reading from the under-store until it recovers")
async def test_a_directory_that_is_sick_is_told_of(tmp_path: Path) -> None:
    async with filled(tmp_path) as m:
        m.space.fail(OSError(5, "Input/output error"))
        step = await run(m, repair=True)
        (line,) = step.lines
        assert line.startswith(f"{m.directory.name}: could not be looked at: ")
        assert (step.problems, step.mended) == (1, 0)
        m.space.degraded = None


async def test_other_directories_are_checked_too(tmp_path: Path) -> None:
    lower = CacheSetting("lower", 64 << 20, tier="hdd", high_watermark=1.0, low_watermark=1.0)
    async with filled(tmp_path, more_caches=(lower,)) as m:
        other = next(space for space in m.hierarchy if space.tier == "hdd")
        assert await m.mover.move(acquire(m, "d/1").oid, other)
        flip(m.file_of("d/1"), 7)
        assert (await run(m)).lines == ("d/1: page 0 damaged",)


async def test_one_at_a_time_and_it_ends_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luxfuse.cache.check.BYTES_PER_S", PAGE_BYTES)
    async with filled(tmp_path) as m:
        job = m.checks.start(repair=False)
        await until(lambda: job.progress().bytes > 0)
        with pytest.raises(CheckRefused, match="is running already"):
            m.checks.start(repair=True)
        job.stop()
        with trio.fail_after(60):
            await job.ended.wait()
        assert job.progress().done
        monkeypatch.undo()
        assert (await run(m)).problems == 0


async def test_it_reads_no_more_than_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice is paid for before the next one, so that a disk has time for programs."""
    paid: list[float] = []
    sleep_until = trio.sleep_until

    async def note(deadline_s: float) -> None:
        paid.append(deadline_s - trio.current_time())
        await sleep_until(trio.current_time())

    monkeypatch.setattr("luxfuse.cache.check.BYTES_PER_S", PAGE_BYTES // 1000)
    async with filled(tmp_path) as m:
        monkeypatch.setattr("luxfuse.cache.check.trio.sleep_until", note)
        checked = (await run(m)).bytes
    assert checked >= SIZE
    assert sum(paid) == pytest.approx(checked / (PAGE_BYTES // 1000), rel=0.02)


async def test_it_waits_behind_what_is_fetched_and_keeps_nobody_from_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luxfuse.cache.budget.LONGEST_YIELD_S", 60.0)
    async with filled(tmp_path) as m:
        assert await m.inventory.drop(m.cache.object_id("d/0", m.driver.objects["d/0"][1]))
        m.driver.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.read_all, "d/0")
            await until(lambda: not m.cache.budget.idle)
            job = m.checks.start(repair=False)
            await until(lambda: job.progress().files == 1)
            await trio.sleep(0.05)
            assert job.progress().bytes == 0
            assert await m.inventory.drop(m.cache.object_id("big", m.driver.objects["big"][1]))
            m.driver.release()
        await job.ended.wait()
        assert job.progress().lines == ()


async def test_programs_read_write_and_evict_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what goes on passes for damage."""
    driver = FakeStore()
    for number in range(12):
        driver.place(f"k{number}", random_bytes(pages(2.5), number))
    async with mounted(tmp_path, driver, capacity_bytes=pages(16)) as m:
        steps: list[CheckProgress] = []

        async def check_on() -> None:
            while True:
                steps.append(await run(m, repair=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_on)
            for number in range(60):
                name = f"k{number * 7 % 12}"
                if number % 5 == 0:
                    handle, _ = await m.kernel.create(m.fs, 1, f"new{number}".encode())
                    await m.kernel.write(m.fs, handle, 0, random_bytes(pages(1.2), number))
                    await m.kernel.close(m.fs, handle)
                assert await m.read_all(name) == driver.objects[name][0]
            await until(lambda: len(steps) > 2)
            nursery.cancel_scope.cancel()
        assert [line for step in steps for line in step.lines] == []
        assert m.cache.counters.checksum_failures == 0


async def test_the_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LINES", 2)
    async with filled(tmp_path) as m:
        for number in range(3):
            m.file_of(f"d/{number}").unlink()
        step = await run(m)
        assert (step.problems, len(step.lines)) == (3, 2)
        assert set(asdict(step)) >= {"files", "bytes", "total_files", "total_bytes", "problems", "mended", "lines"}
