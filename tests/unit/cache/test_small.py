"""Small files that a driver fetches whole, cache file included: the cache sees no difference, but for the cost."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import xxhash

from luxfuse.cache import disk
from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.small import Outcome, SmallFlights
from luxfuse.cache.sweep import Sweeper
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.errors import DeadlinePassed, NotFound, StoreRejected, StoreUnavailable, Unforeseen, VersionChanged
from luxfuse.types import ObjectInfo
from luxfuse.understore.base import OnDescribed, UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.s3 import direct
from luxfuse.understore.small_files import Answer, ArrivedFile, WantedFile
from tests.support.fake_store import FakeStore
from tests.support.harness import AWAY, MIB, Mount, mounted, pages, random_bytes, until
from tests.support.odd_s3 import Answer as Odd
from tests.support.odd_s3 import OddS3, Seen

SIZES = (1, 4096, 100_000, pages(1) + 1, pages(2))


@pytest.fixture
def s3() -> Iterator[OddS3]:
    with OddS3() as server:
        yield server


def driver_of(s3: OddS3) -> UnderStore:
    options = {"key": s3.access_key, "secret": s3.secret_key}
    return open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=options, direct_gets=8)


needs_curl = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")


async def fetched(mount: Mount, objs: Sequence[CachedObject]) -> list[Exception | None]:
    flights = mount.cache.start_small(objs)
    for flight in flights:
        await flight.done.wait()
    return [flight.error for flight in flights]


@needs_curl
async def test_many_at_a_time_and_one_alone(tmp_path: Path, s3: OddS3) -> None:
    contents = {f"f{size}": random_bytes(size, size) for size in SIZES}
    tags = {key: s3.place(key, data, mode="33188") for key, data in contents.items()}
    async with mounted(tmp_path, cast(FakeStore, driver_of(s3))) as m:
        *together, alone = [m.cache.acquire(key, tags[key], len(data)) for key, data in contents.items()]
        assert await fetched(m, together) == [None] * len(together)
        assert await m.cache.fetch_whole(alone)
        assert s3.names() == ["get"] * len(SIZES)
        assert m.store.counters.statistics().gets == len(SIZES)
        assert m.store.counters.latency["get"].count == len(SIZES)
        for obj in (*together, alone):
            assert obj.whole
            assert obj.described is not None
            assert obj.described[0].metadata == {"mode": "33188"}
            assert obj.space is not None
            assert obj.space.directory.file_of(obj.oid).read_bytes() == contents[obj.record.key]
            assert bytes(await m.cache.read(obj, 0, obj.size)) == contents[obj.record.key]
        assert s3.count("get") == len(SIZES), "pages are trusted as they were written"
        assert m.cache.budget.idle
        assert m.space.ledger.reserved_bytes == 0
        assert m.cache.counters.understore_bytes == sum(SIZES)
        for obj in (*together, alone):
            m.cache.release(obj)


@needs_curl
async def test_no_file_of_a_load_stays_open(tmp_path: Path, s3: OddS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        s3.place(f"d/f{n}", random_bytes(4096, n))
    fetch_all = SmallFlights.all

    def late(self: SmallFlights, driver: UnderStore) -> list[Outcome]:
        time.sleep(0.1)  # by now the load has asked to be told of the end
        return fetch_all(self, driver)

    monkeypatch.setattr(SmallFlights, "all", late)
    async with mounted(tmp_path, cast(FakeStore, driver_of(s3))) as m:
        job = m.loads.start(["d"])
        await job.ended.wait()
        assert job.progress().loaded_files == 20
        assert m.open_cache_files() == []


@needs_curl
async def test_what_is_not_there_is_asked_for_as_usual_and_counted(tmp_path: Path, s3: OddS3) -> None:
    data = random_bytes(5000, 5)
    tags = {key: s3.place(key, data) for key in ("good", "gone", "changed", "busy", "cut")}
    del s3.objects["gone"]
    s3.place("changed", data + b"!")
    refused = {"busy": 1}

    def odd(seen: Seen) -> Odd | None:
        if refused.get(seen.key):
            refused[seen.key] -= 1
            return Odd(503)
        return None

    s3.on["get"] = odd
    async with mounted(tmp_path, cast(FakeStore, driver_of(s3))) as m:
        objs = [m.cache.acquire(key, tag, 5000) for key, tag in tags.items()]
        errors = dict(zip(tags, await fetched(m, objs), strict=True))
        assert isinstance(errors["gone"], NotFound)
        assert isinstance(errors["changed"], VersionChanged)
        assert (errors["good"], errors["busy"], errors["cut"]) == (None, None, None)
        assert [obj.whole for obj in objs] == [True, False, False, True, True]
        assert m.store.counters.statistics().gets == s3.count("get") == 8, "two once more, of one a further attempt"
        assert m.store.counters.statistics().retries == 1
        for obj in objs:
            m.cache.release(obj)


class Slow(FakeStore):
    """Fetches small files, but only when `released`; then as if they were written."""

    fetches_small = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.abandoned: list[int] = []
        self.fds: list[int] = []
        self.asked = 0

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        self.asked += 1
        if self.asked > 1:
            return [Answer()] * len(files)
        while not abandoned[0]:
            time.sleep(0.01)
        self.abandoned.append(abandoned[0])
        answers = []
        for file in files:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            self.fds.append(fd)
            info = ObjectInfo(file.key, file.size, file.version, 0, {})
            answers.append(Answer(0.1, ArrivedFile(info, bytes(file.size), (1,), 1, 1, fd, 0, True)))
        return answers


@AWAY
async def test_what_arrives_after_its_deadline_is_not_recorded(tmp_path: Path) -> None:
    driver = Slow(tmp_path / "late")
    data = random_bytes(3000, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        sweeper = Sweeper(m.cache.contents)
        m.hierarchy.shared.on_left_files.append(sweeper.request)
        m.nursery.start_soon(sweeper.run)
        obj = m.cache.acquire("k", driver.objects["k"][1], 3000)
        path = m.space.directory.file_of(obj.oid)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"in part")  # by the batch, before it was given up
        with m.impatient():
            (error,) = await fetched(m, [obj])
        assert isinstance(error, DeadlinePassed)
        await until(lambda: bool(driver.fds))
        await until(lambda: not os.path.exists(f"/proc/self/fd/{driver.fds[0]}"))
        assert driver.abandoned == [1]
        assert not obj.pages.count
        await until(lambda: m.space.ledger.reserved_bytes == 0)
        await until(lambda: not path.exists())
        assert await m.cache.fetch_whole(obj)
        assert bytes(await m.cache.read(obj, 0, 3000)) == data
        m.cache.release(obj)


class Failing(FakeStore):
    """Says that small files could not be had, or be written."""

    fetches_small = True

    def __init__(self, error: int) -> None:
        super().__init__()
        self.errno = error

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        if not self.errno:
            raise StoreUnavailable("no credentials")
        answers = []
        for file in files:
            info = ObjectInfo(file.key, file.size, file.version, 0, {})
            data, _, _, _ = self.objects[file.key]
            answers.append(Answer(0.1, ArrivedFile(info, data, (1,), 0, 0, -1, self.errno, False)))
        return answers


@pytest.mark.parametrize("error", [0, errno.ENOSPC])
async def test_failures_of_credentials_and_of_the_disk(
    tmp_path: Path, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Failing(error)
    data = random_bytes(3000, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = m.cache.acquire("k", driver.objects["k"][1], 3000)
        assert await fetched(m, [obj]) == [None]
        assert obj.whole == (error == 0), "without credentials each is asked for by itself"
        assert (m.space.degraded is not None) == (error != 0)
        assert bytes(await m.cache.read(obj, 0, 3000)) == data
        m.cache.release(obj)
    caplog.clear()


class Midway(Slow):
    """Has the first file at once, and open; the second one is read as usual, which ends as ``read_ends`` does."""

    def __init__(self, path: Path, read_ends: Callable[[], None]) -> None:
        super().__init__(path)
        self.read_ends = read_ends
        self.midway = 0

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        if len(files) < 2:
            return [Answer()] * len(files)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.fds.append(fd)
        info = ObjectInfo(files[0].key, files[0].size, files[0].version, 0, {})
        return [Answer(0.1, ArrivedFile(info, bytes(files[0].size), (1,), 1, 1, fd, 0, True)), Answer()]

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> bytes:
        if self.fds and not self.midway:
            self.midway += 1
            self.read_ends()
        return super().read(key, start, end, version, on_described=on_described)


def is_open(path: Path) -> bool:
    """Whether this process has a file open."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == path:
                return True
    return False


async def two_of(m: Mount, driver: FakeStore) -> tuple[list[CachedObject], list[Flight], list[int]]:
    objs = []
    for key in ("a", "b"):
        driver.place(key, bytes(3000))
        objs.append(m.cache.acquire(key, driver.objects[key][1], 3000))
    handed: list[int] = []
    flights = m.cache.start_small(objs, [handed.append] * 2, later=False, had_turn=False)
    for flight in flights:
        await flight.done.wait()
    return objs, flights, handed


@AWAY
async def test_files_of_a_batch_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    given_up = threading.Event()
    driver = Midway(tmp_path / "first", lambda: given_up.wait(120) and None)
    async with mounted(tmp_path, driver) as m:
        with m.impatient():
            objs, flights, handed = await two_of(m, driver)
        assert [isinstance(flight.error, DeadlinePassed) for flight in flights] == [True, True]
        given_up.set()
        await until(lambda: not is_open(driver.path))
        assert handed == [-1, -1]
        for obj in objs:
            m.cache.release(obj)


async def test_a_mistake_in_one_of_a_batch_is_that_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake")

    driver = Midway(tmp_path / "first", fail)
    async with mounted(tmp_path, driver) as m:
        objs, flights, handed = await two_of(m, driver)
        assert flights[0].error is None
        assert isinstance(flights[1].error, StoreRejected)
        assert handed == [driver.fds[0], -1]
        os.close(driver.fds[0])
        for obj in objs:
            m.cache.release(obj)
    assert "failed in an unexpected way" in caplog.text
    caplog.clear()


class Ready(FakeStore):
    """Fetches small files at once; ``meanwhile`` is called before it answers."""

    fetches_small = True

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        answers = []
        for file in files:
            data, fd = self.objects[file.key][0], -1
            if file.path is not None:
                Path(file.path).parent.mkdir(exist_ok=True)
                Path(file.path).write_bytes(data)
                fd = os.open(file.path, os.O_RDONLY) if file.stay_open else -1
            sums = tuple(xxhash.xxh3_64_intdigest(data[at : at + MIB]) for at in range(0, len(data), MIB))
            st = Path(file.path).stat() if file.path is not None else None
            stamp, number = (st.st_mtime_ns, st.st_ino) if st is not None else (0, 0)
            info = ObjectInfo(file.key, file.size, file.version, self.objects[file.key][2], self.objects[file.key][3])
            answers.append(Answer(0.1, ArrivedFile(info, data, sums, stamp, number, fd, 0, st is not None)))
        self.meanwhile()
        return answers


def files_of(driver: FakeStore) -> dict[str, bytes]:
    sizes = (1, 4096, 100_000, pages(1) + 1, pages(2), 3000, 3001)
    contents = {f"{'ab'[n % 2]}/{n}": random_bytes(size, n) for n, size in enumerate(sizes)}
    for key, data in contents.items():
        driver.place(key, data, {"mode": "0100600"})
    return contents


@pytest.mark.parametrize("other", ["", "quota", "full quota", "two directories", "no room", "no room at all"])
async def test_what_comes_together_is_recorded_as_what_comes_alone(tmp_path: Path, other: str) -> None:
    books = []
    for together in (True, False):
        driver = Ready()
        contents = files_of(driver)
        more = (CacheSetting("second", 64 * MIB),) if other == "two directories" else ()
        capacity = {"no room": pages(2), "no room at all": 4096}.get(other, 64 * MIB)
        options = {"capacity_bytes": capacity, "more_caches": more, "attributes": "listing"}
        async with mounted(tmp_path / f"{together}", driver, **options) as m:
            if "quota" in other:
                limits = [64 * MIB] if other == "quota" else [8192]
                await m.cache.quotas.replace(limits, lambda key: 0 if key[0] == "a" else None)
            for directory in "ab":
                await m.entries(directory)
            objs = [m.cache.acquire(key, driver.objects[key][1], len(data)) for key, data in contents.items()]
            if together:
                assert await fetched(m, objs) == [None] * len(objs)
            else:
                for obj in objs:
                    assert await fetched(m, [obj]) == [None]
            for obj in objs:
                if obj.pages.count:
                    assert obj.space is not None
                    assert obj.space.directory.file_of(obj.oid).read_bytes() == contents[obj.record.key]
                assert bytes(await m.cache.read(obj, 0, obj.size)) == contents[obj.record.key]
                m.cache.release(obj)
            assert m.cache.budget.idle
            assert all(space.ledger.reserved_bytes == 0 for space in m.hierarchy)
            assert all(ledger.reserved_bytes == 0 for ledger in m.cache.quotas._ledgers)
            for space in m.hierarchy:
                assert space.ledger.used_bytes == m.objects.used_bytes_in(space.number)
            counted = [obj.record.allocated_bytes for obj in objs if obj.record.key[0] == "a" and obj.pages.count]
            assert [ledger.used_bytes for ledger in m.cache.quotas._ledgers] == ([sum(counted)] if "quota" in other else [])
            entries = [m.names.get(await m.inode(key[0]), key[2:].encode()) for key in contents]
            modes = [entry.attributes.mode for entry in entries if entry is not None and entry.attributes is not None]
            assert modes == [0o600] * len(contents)
            if not other.startswith(("no room", "full")):  # else chance decides which ones stay
                assert all(obj.whole for obj in objs)
                books.append((m.objects.count, m.objects.used_bytes, m.cache.counters.understore_bytes))
        async with mounted(tmp_path / f"{together}", driver, **options) as m:
            assert m.objects.count == (len(contents) if books else m.objects.count)
            gets = driver.counts["get"]
            for key, data in contents.items() if books else ():
                assert await m.read_all(key) == data
            assert driver.counts["get"] == gets
    assert not books or books[0] == books[1]


async def test_what_the_index_does_not_take_it_gets_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Ready()
    contents = files_of(driver)
    async with mounted(tmp_path, driver) as m:
        objs = [m.cache.acquire(key, driver.objects[key][1], len(data)) for key, data in contents.items()]

        def refuse() -> None:
            monkeypatch.setattr("luxfuse.index.store.PENDING_BOUND", 0)
            m.index.failing = "made up"

        driver.meanwhile = refuse
        assert await fetched(m, objs) == [None] * len(objs)
        assert m.objects.refused == 1, "all of them at once"
        monkeypatch.undo()
        m.index.failing = None
        assert m.objects.count == 0
        for obj in objs:
            assert obj.whole
            m.cache.contents.save(obj)
            assert m.cache.contents.hierarchy.home.directory.file_of(obj.oid).exists()
            m.cache.release(obj)
        assert m.objects.count == len(contents)
    async with mounted(tmp_path, driver) as m:
        for key, data in contents.items():
            assert await m.read_all(key) == data
        assert not driver.counts["get"]
    caplog.clear()


@pytest.mark.parametrize("together", [True, False])
async def test_what_cannot_be_recorded_is_closed(
    tmp_path: Path, together: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = FakeStore()
    driver.place("k", bytes(3000))
    async with mounted(tmp_path, driver) as m:
        obj = m.cache.acquire("k", driver.objects["k"][1], 3000)
        handed: list[int] = []

        def fail(*_: object) -> int:
            raise RuntimeError("a mistake")

        monkeypatch.setattr(m.cache.fetching._landing, "_note_described", fail)
        start = m.cache.start_small if together else m.cache.start
        (flight,) = start([obj], [handed.append]) if together else start(obj, range(1), on_end=handed.append)
        await flight.done.wait()
        assert flight.error is not None
        assert handed == [-1]
        assert not is_open(m.space.directory.file_of(obj.oid))
        m.cache.release(obj)
    caplog.clear()


@pytest.mark.parametrize("where", ["standings", "index"])
async def test_what_cannot_be_recorded_is_not_there(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Ready()
    contents = files_of(driver)
    async with mounted(tmp_path, driver) as m:
        objs = [m.cache.acquire(key, driver.objects[key][1], len(data)) for key, data in contents.items()]

        def fail(*_: object) -> None:
            raise RuntimeError("a mistake")

        with monkeypatch.context() as patch:
            patch.setattr(*((m.space.standings, "insert_new") if where == "standings" else (m.objects, "save_new")), fail)
            assert all(isinstance(error, Unforeseen) for error in await fetched(m, objs))
        assert [obj.cached_bytes for obj in objs] == [0] * len(objs)
        assert m.space.ledger.used_bytes == m.space.ledger.reserved_bytes == m.objects.count == 0
        assert await fetched(m, objs) == [None] * len(objs)
        assert m.space.ledger.used_bytes == m.objects.used_bytes_in(m.space.number) > 0
        for obj in objs:
            assert obj.whole
            m.cache.release(obj)
    caplog.clear()


@AWAY
async def test_a_file_that_is_stored_past_its_deadline_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up, stored = threading.Event(), threading.Event()
    store_run = disk.store_run

    def slowly(*args: Any, **named: Any) -> disk.Stored:
        late = not stored.is_set()
        result = store_run(*args, **named)
        stored.set()
        if late:
            given_up.wait(120)
        return result

    driver = FakeStore()
    driver.place("k", bytes(3000))
    async with mounted(tmp_path, driver) as m:
        told: list[None] = []
        m.hierarchy.shared.on_left_files.append(lambda: told.append(None))
        monkeypatch.setattr(disk, "store_run", slowly)
        obj = m.cache.acquire("k", driver.objects["k"][1], 3000)
        handed: list[int] = []
        with m.impatient():
            (flight,) = m.cache.start(obj, range(1), on_end=handed.append)
            await flight.done.wait()
        for fd in handed:
            if fd >= 0:
                os.close(fd)
        assert not told
        given_up.set()
        await until(lambda: bool(told))
        await until(lambda: not is_open(m.space.directory.file_of(obj.oid)))
        m.cache.release(obj)


class Torn(Slow):
    """Begins to write files, and fails; ``late``: when nobody waits for the first attempt any more."""

    def __init__(self, late: bool) -> None:
        super().__init__(Path())
        self.late = late
        self.go_on = threading.Event()
        self.ended = 0

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        self.asked += 1
        if self.asked > 1:
            return [Answer()] * len(files)
        (file,) = files
        assert file.path is not None
        if self.late:
            self.go_on.wait(120)
            assert abandoned[0]
        Path(file.path).parent.mkdir(exist_ok=True)
        with open(file.path, "ab"):  # where another attempt has written, there are the same bytes already
            pass
        info = ObjectInfo(file.key, file.size, file.version, 0, {})
        data, _, _, _ = self.objects[file.key]
        self.ended += 1
        return [Answer(0.1, ArrivedFile(info, data, (1,), 0, 0, -1, errno.ENOSPC, True))]


@pytest.mark.expected_logs("until it recovers")
async def test_a_file_that_could_not_be_written_goes(tmp_path: Path) -> None:
    driver = Torn(late=False)
    driver.place("k", bytes(3000))
    async with mounted(tmp_path, driver) as m:
        obj = m.cache.acquire("k", driver.objects["k"][1], 3000)
        assert await fetched(m, [obj]) == [None]
        assert driver.ended == 1
        assert not m.space.directory.file_of(obj.oid).exists()
        assert m.space.ledger.used_bytes == m.space.ledger.reserved_bytes == 0
        m.cache.release(obj)


@AWAY
async def test_a_late_failure_does_not_remove_what_another_attempt_stored(tmp_path: Path) -> None:
    driver = Torn(late=True)
    data = random_bytes(3000, 1)
    driver.place("k", data)
    async with mounted(tmp_path, driver) as m:
        obj = m.cache.acquire("k", driver.objects["k"][1], 3000)
        with m.impatient():
            (error,) = await fetched(m, [obj])
        assert isinstance(error, DeadlinePassed)
        assert await m.cache.fetch_whole(obj)
        driver.go_on.set()
        await until(lambda: driver.ended == 1)
        await until(lambda: not m.store._workers._outstanding)
        assert obj.whole
        assert m.space.directory.file_of(obj.oid).read_bytes() == data
        m.cache.release(obj)
