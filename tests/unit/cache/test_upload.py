"""Uploads of staging files: the right bytes in as few requests as possible, whatever programs write meanwhile."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import trio

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.checksums import has_same_content
from luxfuse.cache.disk import checksum
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.upload import Uploader
from luxfuse.cache.upload_source import Cancelled, OldObject, Source
from luxfuse.core.parts import LEAST_PART_BYTES, PART_BYTES
from luxfuse.errors import StoreRejected, StoreUnavailable, VersionChanged
from luxfuse.index.journal import Journal
from luxfuse.types import ABSENT, PAGE_BYTES, Buffer
from luxfuse.understore.base import Abilities, UnderStore
from luxfuse.understore.retrying import Store
from luxfuse.understore.unopened import abilities_of, open_or_wait
from luxfuse.workers import Threads
from tests.support.fake_store import FakeStore
from tests.support.harness import pages, random_bytes, until
from tests.support.late_requests import given_up

METADATA = {"mode": "0100644"}


@dataclass
class Bench:
    """An uploader over a fake store, and a file to go up."""

    path: Path
    driver: FakeStore
    store: Store
    uploader: Uploader
    journal: Journal
    budget: ByteBudget

    def source(self, data: bytes, old: OldObject | None = None) -> Source:
        """A complete staging file."""
        path = self.path / "file"
        path.write_bytes(data)
        content = StagedBytes(os.open(path, os.O_RDWR), path, cache=None, threads=Threads(4))  # type: ignore[arg-type]
        return Source("key", content, old)

    def place(self, data: bytes) -> OldObject:
        """Store an object; returns what is known of it."""
        info = self.driver.place("key", data)
        return OldObject("key", info.version, len(data), sums_of(data))

    @property
    def stored(self) -> bytes:
        return self.driver.objects["key"][0]


def sums_of(data: bytes) -> dict[int, int]:
    """The checksum of each page."""
    return {at // PAGE_BYTES: checksum(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)}


@asynccontextmanager
async def bench(
    path: Path, driver: FakeStore | None = None, *, budget: int = 64 << 20, uploads: int = 4
) -> AsyncIterator[Bench]:
    """An uploader whose buffers and parts on their way are bounded by ``budget`` bytes and ``uploads``."""
    path.mkdir(exist_ok=True)
    driver = driver or FakeStore()
    driver.least_part_bytes = LEAST_PART_BYTES
    store = Store(driver, request_timeout_s=60, max_requests=16, rng=random.Random(0))
    journal = Journal(path / "journal")
    bytes_ = ByteBudget(budget)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch_deadlines)
            nursery.start_soon(journal.committer)
            yield Bench(
                path, driver, store, Uploader(store=store, journal=journal, budget=bytes_, max_uploads=uploads), journal,
                bytes_,
            )  # fmt: skip
            await journal.commit()
            nursery.cancel_scope.cancel()
    finally:
        journal.close()


@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES, pages(16)])
async def test_a_small_file_is_one_request(tmp_path: Path, size: int) -> None:
    data = random_bytes(size, 1)
    async with bench(tmp_path) as b:
        done = await b.uploader.upload(b.source(data), METADATA, ABSENT)
        assert b.driver.objects["key"][0] == data
        assert b.driver.objects["key"][3] == METADATA
        assert done.info.version == b.driver.objects["key"][1]
        assert done.checksums == sums_of(data)
        assert done.stamp.size == size
        assert b.driver.writes == [("put", "key")]
        assert b.budget.held_bytes == 0


@pytest.mark.parametrize("size", [pages(16) + 1, pages(24), pages(33) + 4097])
async def test_a_large_file_goes_up_in_parts(tmp_path: Path, size: int) -> None:
    data = random_bytes(size, 2)
    async with bench(tmp_path) as b:
        done = await b.uploader.upload(b.source(data), METADATA, ABSENT)
        assert b.stored == data
        assert done.checksums == sums_of(data)
        assert b.driver.counts["upload_part"] == -(-size // PART_BYTES)
        assert b.driver.uploads == {}
        assert b.journal.uploads.open == set()
        assert b.budget.held_bytes == 0


async def test_a_store_without_parts_gets_the_whole_file(tmp_path: Path) -> None:
    plain = Abilities(metadata=True, conditional=True, multipart=False, part_copy=False, hierarchical=False)
    data = random_bytes(pages(20), 3)
    async with bench(tmp_path, FakeStore(abilities=plain)) as b:
        done = await b.uploader.upload(b.source(data), METADATA, ABSENT)
        assert b.stored == data
        assert done.checksums == sums_of(data)
        assert b.driver.writes == [("put_file", "key")]


@pytest.mark.parametrize("page", [0, 30, 63])
async def test_unchanged_pages_are_copied_inside_the_store(tmp_path: Path, page: int) -> None:
    before = random_bytes(pages(64), 4)
    after = bytearray(before)
    after[page * PAGE_BYTES + 7] ^= 1
    async with bench(tmp_path) as b:
        old = b.place(before)
        done = await b.uploader.upload(b.source(bytes(after), old), METADATA, old.version)
        assert b.stored == bytes(after)
        assert done.checksums == sums_of(bytes(after))
        assert b.store.counters.statistics().put_bytes <= LEAST_PART_BYTES
        assert b.driver.counts["upload_part"] == 1


async def test_what_cannot_be_copied_is_sent(tmp_path: Path) -> None:
    """No part copy, or no page that is known to be the same."""
    before = random_bytes(pages(20), 5)
    async with bench(tmp_path) as b:
        old = b.place(before)
        unknown = OldObject("key", old.version, old.size, {})
        await b.uploader.upload(b.source(before, unknown), METADATA, old.version)
        assert b.driver.counts["copy_part"] == 0
        assert b.stored == before
        poor = Abilities(metadata=True, conditional=True, multipart=True, part_copy=False, hierarchical=False)
        b.driver.abilities = poor
        await b.uploader.upload(b.source(before, b.place(before)), METADATA, None)
        assert b.driver.counts["copy_part"] == 0
        assert b.stored == before


async def test_somebody_elses_version_is_not_replaced(tmp_path: Path) -> None:
    for size in (10, pages(20)):
        async with bench(tmp_path / str(size)) as b:
            theirs = b.place(b"theirs")
            with pytest.raises(VersionChanged):
                await b.uploader.upload(b.source(random_bytes(size, 6)), METADATA, ABSENT)
            with pytest.raises(VersionChanged):
                await b.uploader.upload(b.source(random_bytes(size, 6)), METADATA, '"other"')
            assert b.stored == b"theirs"
            await b.uploader.upload(b.source(random_bytes(size, 6)), METADATA, theirs.version)
            assert b.stored == random_bytes(size, 6)


@pytest.mark.parametrize("kind", ["upload_part", "complete_upload", "begin_upload"])
async def test_what_arrived_of_an_upload_that_fails_is_not_sent_again(tmp_path: Path, kind: str) -> None:
    data = random_bytes(pages(40) + 5, 7)
    async with bench(tmp_path) as b:
        source, send = b.source(data), b.driver.upload_part

        def refuse(key: str, upload: str, number: int, part: Buffer) -> str:
            if number == 3:
                raise StoreRejected("no")
            return send(key, upload, number, part)

        for _ in range(4):
            if kind == "upload_part":
                b.driver.upload_part = refuse  # type: ignore[method-assign]
            else:
                b.driver.fail_next(1, lambda: StoreRejected("no"), kind)
            with pytest.raises(StoreRejected):
                await b.uploader.upload(source, METADATA, ABSENT)
            assert b.budget.held_bytes == 0
            assert "key" not in b.driver.objects
        b.driver.upload_part = send  # type: ignore[method-assign]
        done = await b.uploader.upload(source, METADATA, ABSENT)
        assert b.stored == data
        assert done.checksums == sums_of(data)
        assert b.driver.counts["upload_part"] <= (6 if kind != "upload_part" else 6 + 4)  # those on their way are cut off
        assert b.driver.counts["begin_upload"] == (5 if kind == "begin_upload" else 1)
        assert b.driver.uploads == {}
        assert b.journal.uploads.open == set()


async def test_what_arrived_is_not_sent_again_by_a_successor_whose_driver_is_not_open_yet(tmp_path: Path) -> None:
    data = random_bytes(pages(40), 3)
    async with bench(tmp_path) as b:
        source = b.source(data)
        b.driver.fail_next(error=lambda: StoreRejected("no"), kind="complete_upload")
        with pytest.raises(StoreRejected):
            await b.uploader.upload(source, METADATA, ABSENT)
        assert (sent := b.driver.counts["upload_part"]) == 5
        opens = threading.Event()

        def opened() -> UnderStore:
            opens.wait(60)
            return cast(UnderStore, b.driver)

        driver = open_or_wait(opened, abilities_of("s3://b"), 0.0, lambda _error: True)
        store = Store(driver, request_timeout_s=60, max_requests=16, rng=random.Random(0))
        later = Uploader(store=store, journal=b.journal, budget=b.budget, max_uploads=4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later.upload, source, METADATA, ABSENT)
            await trio.testing.wait_all_tasks_blocked()
            opens.set()
        assert b.stored == data
        assert b.driver.counts["upload_part"] == sent
        assert [verb for verb, _ in b.driver.writes if verb.startswith("put")] == []
        assert b.driver.uploads == {}


async def test_what_has_changed_since_an_upload_failed_is_sent_again(tmp_path: Path) -> None:
    data = bytearray(random_bytes(pages(40), 7))
    async with bench(tmp_path) as b:
        source = b.source(bytes(data))
        b.driver.fail_next(1, lambda: StoreRejected("no"), "complete_upload")
        with pytest.raises(StoreRejected):
            await b.uploader.upload(source, METADATA, ABSENT)
        data[pages(9)] ^= 1
        os.pwrite(source.bytes.fd, bytes(data[pages(9) : pages(9) + 1]), pages(9))
        data += b"more"
        os.pwrite(source.bytes.fd, b"more", pages(40))
        done = await b.uploader.upload(source, {"mode": "other"}, ABSENT)
        assert b.stored == bytes(data)
        assert done.checksums == sums_of(bytes(data))
        assert done.metadata == METADATA
        assert b.driver.counts["upload_part"] == 5 + 2


async def test_copied_parts_that_arrived_are_not_copied_again_but_from_another_version(tmp_path: Path) -> None:
    before = random_bytes(pages(40), 3)
    data = before[: pages(39)] + random_bytes(pages(1), 4)
    async with bench(tmp_path) as b:
        old = b.place(before)
        source = b.source(data, old)
        for _ in range(2):
            b.driver.fail_next(1, lambda: StoreRejected("no"), "complete_upload")
            with pytest.raises(StoreRejected):
                await b.uploader.upload(source, METADATA, old.version)
        assert (b.driver.counts["copy_part"], b.driver.counts["upload_part"]) == (1, 1)
        source.old = b.place(before)
        await b.uploader.upload(source, METADATA, source.old.version)
        assert (b.driver.counts["copy_part"], b.driver.counts["upload_part"]) == (2, 1)
        assert b.stored == data


async def test_a_try_after_a_failure_is_one_request(tmp_path: Path) -> None:
    async with bench(tmp_path, uploads=4) as b:
        source = b.source(random_bytes(pages(40), 7))
        b.driver.fail_next(100, lambda: StoreUnavailable("broken"), "upload_part")
        for _ in range(3):
            before = b.driver.counts["upload_part"]
            source.retrying = True
            with pytest.raises(StoreUnavailable):
                await b.uploader.upload(source, METADATA, ABSENT)
            assert b.driver.counts["upload_part"] == before + 1
        b.driver._failures.clear()
        source.retrying = True
        await b.uploader.upload(source, METADATA, ABSENT)
        assert b.stored == random_bytes(pages(40), 7)


async def test_an_upload_that_is_given_up_and_cannot_be_aborted_stays_in_the_journal(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        source = b.source(random_bytes(pages(20), 7))
        b.driver.fail_next(1, lambda: StoreRejected("no"), "upload_part")
        with pytest.raises(StoreRejected):
            await b.uploader.upload(source, METADATA, ABSENT)
        b.driver.fail_next(1, lambda: StoreRejected("no"), "abort_upload")
        await b.uploader.parts.give_up_open(source)
        assert len(b.driver.uploads) == len(b.journal.uploads.open) == 1


async def test_cancelling_ends_an_upload(tmp_path: Path) -> None:
    async with bench(tmp_path, uploads=1) as b:
        source = b.source(random_bytes(pages(40), 8))
        b.driver.hold("upload_part")
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                with pytest.raises(Cancelled):
                    await b.uploader.upload(source, METADATA, ABSENT)

            nursery.start_soon(upload)
            await until(lambda: b.driver.counts["upload_part"] == 1)
            source.cancelled = True
            b.driver.release()
        assert b.driver.uploads == {}
        assert b.driver.counts["upload_part"] == 1


async def test_parts_in_memory_are_bounded(tmp_path: Path) -> None:
    async with bench(tmp_path, budget=2 * PART_BYTES, uploads=8) as b:
        b.driver.hold("upload_part")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.upload, b.source(random_bytes(pages(64), 9)), METADATA, ABSENT)
            await until(lambda: b.driver.counts["upload_part"] == 2)
            await trio.sleep(0.05)
            assert b.driver.counts["upload_part"] == 2
            assert b.budget.held_bytes == 2 * PART_BYTES
            b.driver.release()
        assert b.stored == random_bytes(pages(64), 9)


async def test_parts_on_their_way_are_bounded(tmp_path: Path) -> None:
    async with bench(tmp_path, budget=64 * PART_BYTES, uploads=3) as b:
        b.driver.hold("upload_part")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.upload, b.source(random_bytes(pages(64), 9)), METADATA, ABSENT)
            await until(lambda: b.driver.counts["upload_part"] == 3)
            await trio.sleep(0.05)
            assert b.driver.counts["upload_part"] == 3
            b.driver.release()
        assert b.stored == random_bytes(pages(64), 9)


# -- while the file is written


async def test_early_parts_are_used_unless_they_changed(tmp_path: Path) -> None:
    data = bytearray(random_bytes(pages(40), 10))
    async with bench(tmp_path) as b:
        source = b.source(bytes(data))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
            await until(lambda: source.open is not None and len(source.open.tags) == 4)
            assert len(b.journal.uploads.open) == 1
            data[pages(9)] ^= 1
            os.pwrite(source.bytes.fd, bytes(data[pages(9) : pages(9) + 1]), pages(9))
            done = await b.uploader.upload(source, {"mode": "other"}, ABSENT)
        assert b.stored == bytes(data)
        assert done.checksums == sums_of(bytes(data))
        assert b.driver.counts["upload_part"] == 4 + 2  # the changed one and the last
        assert b.driver.counts["begin_upload"] == 1
        assert b.driver.objects["key"][3] == METADATA  # those of the beginning
        assert b.journal.uploads.open == set()


async def test_the_rest_goes_up_beside_early_parts_that_are_still_on_their_way(tmp_path: Path) -> None:
    data = random_bytes(pages(56) + 5, 15)
    async with bench(tmp_path, uploads=8, budget=16 * PART_BYTES) as b:
        source = b.source(data[: pages(40)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
            await until(lambda: source.open is not None and len(source.open.tags) == 4)
            b.driver.hold("upload_part")
            os.pwrite(source.bytes.fd, data[pages(40) :], pages(40))
            await until(lambda: b.driver.counts["upload_part"] == 6)
            changed = bytes([data[pages(44)] ^ 1])
            os.pwrite(source.bytes.fd, changed, pages(44))
            expected = data[: pages(44)] + changed + data[pages(44) + 1 :]
            nursery.start_soon(b.uploader.upload, source, METADATA, ABSENT)
            await until(lambda: b.driver.counts["upload_part"] == 8)
            b.driver.release()
        assert b.stored == expected
        assert b.driver.counts["upload_part"] == 8 + 1  # the one that changed on its way
        assert b.driver.uploads == {}
        assert b.journal.uploads.open == set()


async def test_early_parts_of_a_file_that_was_renamed_are_given_up(tmp_path: Path) -> None:
    data = random_bytes(pages(40), 11)
    async with bench(tmp_path) as b:
        source = b.source(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
            await until(lambda: source.open is not None and len(source.open.tags) == 4)
            source.key = "renamed"
            await b.uploader.upload(source, METADATA, ABSENT)
        assert b.driver.objects["renamed"][0] == data
        assert "key" not in b.driver.objects
        assert b.driver.uploads == {}
        assert b.journal.uploads.open == set()


async def test_a_file_that_became_small_after_early_parts(tmp_path: Path) -> None:
    data = random_bytes(pages(40), 12)
    for size in (0, 5, pages(12)):
        async with bench(tmp_path / str(size)) as b:
            source = b.source(data)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
                await until(lambda source=source: source.open is not None and len(source.open.tags) == 4)  # type: ignore[misc]
                os.ftruncate(source.bytes.fd, size)
                done = await b.uploader.upload(source, METADATA, ABSENT)
            assert b.stored == data[:size]
            assert done.checksums == sums_of(data[:size])
            assert b.driver.uploads == {}


async def test_a_file_that_got_its_size_first_goes_up_as_it_is_written(tmp_path: Path) -> None:
    """Of zeros that are going to be written over nothing goes up, be they holes or room that was allocated."""
    data = random_bytes(pages(40), 16)
    for allocated in (False, True):
        async with bench(tmp_path / str(allocated)) as b:
            source = b.source(b"")
            fd = source.bytes.fd
            if allocated:
                os.posix_fallocate(fd, 0, len(data))
            os.ftruncate(fd, len(data))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
                await until(lambda: b.driver.counts["begin_upload"] == 1)
                os.pwrite(fd, data[: 3 * PART_BYTES], 0)
                await until(lambda source=source: source.open is not None and len(source.open.tags) == 2)  # type: ignore[misc]
                await trio.sleep(0.1)
                os.pwrite(fd, data[3 * PART_BYTES :], 3 * PART_BYTES)
                await b.uploader.upload(source, METADATA, ABSENT)
            assert b.stored == data
            assert b.driver.counts["upload_part"] == 5


async def test_an_early_part_that_fails_leaves_the_others_on_their_way(tmp_path: Path) -> None:
    data = random_bytes(pages(64), 17)
    async with bench(tmp_path, uploads=8, budget=16 * PART_BYTES) as b:
        source = b.source(data)
        b.driver.hold("upload_part")
        b.driver.fail_next(1, lambda: StoreRejected("no"), "upload_part")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
            await until(lambda: b.driver.counts["upload_part"] == 7)
            b.driver.release()
            await until(lambda: source.open is not None and source.open.running.is_set())
            await b.uploader.upload(source, METADATA, ABSENT)
        assert b.stored == data
        assert b.driver.counts["upload_part"] == 8 + 1
        assert b.driver.counts["begin_upload"] == 1
        assert b.driver.uploads == {}


async def test_early_parts_that_fail_do_not_harm(tmp_path: Path) -> None:
    data = random_bytes(pages(40), 13)
    async with bench(tmp_path) as b:
        source = b.source(data)
        b.driver.fail_next(1, lambda: StoreRejected("no"), "upload_part")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.parts.send_early, source, METADATA, PART_BYTES)
            await until(lambda: source.open is not None and source.open.running.is_set())
            await b.uploader.upload(source, METADATA, ABSENT)
        assert b.stored == data
        assert b.driver.uploads == {}


# -- whose version it is


async def test_has_same_content(tmp_path: Path) -> None:
    data = random_bytes(pages(3) + 5, 14)
    async with bench(tmp_path) as b:
        b.place(data)
        info = b.driver.head("key")
        sums = sums_of(data)
        assert await has_same_content(b.store, info, sums, len(data))
        assert await has_same_content(b.store, info, {2: sums[2]}, len(data))
        assert not await has_same_content(b.store, info, sums | {1: 0}, len(data))
        assert not await has_same_content(b.store, info, sums, len(data) - 1)
        assert not await has_same_content(b.store, info, {}, len(data))
        b.place(data)
        assert not await has_same_content(b.store, info, sums, len(data))
        b.place(b"")
        assert await has_same_content(b.store, b.driver.head("key"), {}, 0)


async def test_what_waits_for_a_late_request_holds_no_memory(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        late = given_up(b.store, "key")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.uploader.upload, b.source(b"new"), METADATA, ABSENT)
            await until(lambda: bool(b.store.presence.waiting))
            assert b.budget.held_bytes == 0
            assert not b.driver.objects
            late.running = False
        assert b.stored == b"new"
