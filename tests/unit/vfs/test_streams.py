"""Directories that are read while they are listed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from luxfuse.core.listed_spans import Position
from luxfuse.errors import AccessDenied, LuxError, StoreError, StoreRejected, StoreUnavailable
from luxfuse.index.names import ROOT_INODE, Changes, Found
from luxfuse.index.transactions import Transaction
from luxfuse.types import Kind, ListPage
from luxfuse.understore import listing
from luxfuse.understore.base import ListedPart
from luxfuse.vfs import open_directories, recording, streams
from luxfuse.vfs.errors import Stale
from luxfuse.vfs.shares import LOCAL_MASK
from tests.support import fake_store
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import EVERYTHING, FROM_KEYS, FakeStore
from tests.support.harness import Mount, mounted, read_directory, until

PAGE = 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_store, "PAGE_ENTRIES", PAGE)
    monkeypatch.setattr(listing, "PAGE_ENTRIES", PAGE)
    monkeypatch.setattr(open_directories, "BATCH", 7)
    monkeypatch.setattr(recording, "MERGE_WANTED", 2 * PAGE)


class Gated(FakeStore):
    """A store that answers as many requests for pages as it is let, but for those of the root."""

    def __init__(self, *, ordered: bool = True) -> None:
        super().__init__(abilities=FROM_KEYS)
        self.ordered = ordered
        self.closed_gate = False
        self.answered = 0
        self._gate = threading.Semaphore(0)
        self.broken: StoreError | None = None

    def let(self, pages: int) -> None:
        """Answer so many more."""
        for _ in range(pages):
            self._gate.release()

    def open_gate(self) -> None:
        """Answer all."""
        self.closed_gate = False
        self.let(1000)

    def shut_gate(self) -> None:
        """Answer no more."""
        while self._gate.acquire(blocking=False):
            pass
        self.closed_gate = True

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        for page in super().list_directory(prefix):
            if self.closed_gate and prefix and self.abilities.in_order:
                self._gate.acquire()
            if self.broken is not None and self.abilities.in_order:
                raise self.broken
            yield page

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        if self.closed_gate and prefix:
            self._gate.acquire()
        if self.broken is not None:
            raise self.broken
        try:
            if self.ordered:
                return super().list_page(prefix, after, token)
            at, pages = int(token or "0"), list(self.list_directory(prefix))
            numbers = [0, *range(2, len(pages)), 1]
            return ListedPart(pages[numbers[at]], str(at + 1) if at + 1 < len(pages) else "", True)
        finally:
            self.answered += 1


def filled(names: int, **kwargs: bool) -> Gated:
    driver = Gated(**kwargs)
    for number in range(names):
        driver.place(f"d/f{number:04}", b"x")
    return driver


def count_merges(m: Mount, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of entries of each part that is recorded before the end."""
    merges: list[int] = []
    merge = m.names.merge

    async def counted(
        directory: int, serial: int, found: list[Found], checked_s: float, *, last: bool, came_as: dict[bytes, Kind]
    ) -> Changes:
        merges.append(len(found))
        return await merge(directory, serial, found, checked_s, last=last, came_as=came_as)

    monkeypatch.setattr(m.names, "merge", counted)
    return merges


def read_now(m: Mount, handle: int, cookie: int = 0) -> list[tuple[bytes, int]]:
    return [(name, cookie) for name, _, cookie in m.fs.directories.read(handle, cookie)]


def without_dots(names: list[bytes]) -> list[bytes]:
    assert names[:2] == [b".", b".."]
    return names[2:]


async def test_the_first_names_come_when_the_first_page_has(tmp_path: Path) -> None:
    driver = filled(500)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, holds = await m.fs.directories.open(inode)
        assert driver.answered == 1
        assert (m.fs.directories.streams(handle), holds) == (True, False)
        first = read_now(m, handle)
        assert without_dots([name for name, _ in first]) == [b"f%04d" % number for number in range(PAGE)]
        assert m.names.listings.of(inode) is None, "it is not recorded as complete"
        heads = driver.counts["head"]
        assert (await m.fs.lookup(inode, b"f0400")).size == 1, "what has not come is asked for"
        assert driver.counts["head"] > heads
        driver.open_gate()
        with trio.fail_after(60):
            rest = [name for name, _, _ in await read_directory(m.fs, handle, first[-1][1])]
        assert sorted([name for name, _ in first[2:]] + rest) == [b"f%04d" % number for number in range(500)]
        listing = m.names.listings.of(inode)
        assert listing is not None
        assert listing.entries == 500
        lists = driver.counts["list"]
        other, _ = await m.fs.directories.open(inode)
        assert not m.fs.directories.streams(other)
        assert without_dots([name for name, _ in read_now(m, other)]) == [b"f%04d" % number for number in range(500)]
        again = [name for name, _, _ in await read_directory(m.fs, handle)]
        assert sorted(without_dots(again)) == [b"f%04d" % number for number in range(500)]
        assert driver.counts["list"] == lists


async def test_one_page_is_no_stream_and_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = filled(PAGE)
    async with mounted(tmp_path, driver) as m:
        merges = count_merges(m, monkeypatch)
        handle, _ = await m.fs.directories.open(await m.inode("d"))
        assert not m.fs.directories.streams(handle)
        assert len(read_now(m, handle)) == PAGE + 2
        assert not merges


async def test_without_readers_parts_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = filled(2000)
    async with mounted(tmp_path, driver) as m:
        merges = count_merges(m, monkeypatch)
        inode = await m.inode("d")
        await m.fs.namespace.relisting.listed(inode)
        assert not merges
        m.clock.advance(61)
        handle, _ = await m.fs.directories.open(inode)
        assert len(await read_directory(m.fs, handle)) == 2002
        assert 1 <= len(merges) <= 2000 / PAGE / 2 + 4


async def test_a_directory_that_is_closed_is_listed_to_its_end(tmp_path: Path) -> None:
    driver = filled(300)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        m.fs.directories.close(handle)
        driver.open_gate()
        await until(lambda: m.names.listings.of(inode) is not None)
        lists = driver.counts["list"]
        assert len(await m.entries("d")) == 300
        assert driver.counts["list"] == lists


@pytest.mark.parametrize("pages", [1, 2, 3])
async def test_a_listing_that_fails_says_so_behind_what_it_brought(tmp_path: Path, pages: int) -> None:
    driver = filled(400)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(pages)
        handle, _ = await m.fs.directories.open(inode)
        await until(lambda: driver.answered == pages)
        found, cookie = read_now(m, handle), 0
        while len(found) < pages * PAGE + 2:
            cookie = found[-1][1]
            if not (more := read_now(m, handle, cookie)):
                assert await m.fs.directories.more(handle)
            found += more
        driver.broken = StoreRejected("no more")
        driver.open_gate()
        with pytest.raises(StoreRejected, match="no more"):
            await read_directory(m.fs, handle, found[-1][1])
        names = without_dots([name for name, _ in found])
        assert len(names) == len(set(names)) == pages * PAGE
        for _ in range(2):  # it stays so, also from the start
            with pytest.raises(StoreRejected, match="no more"):
                await read_directory(m.fs, handle)
        assert m.names.listings.of(inode) is None
        driver.broken = None
        assert len(await m.entries("d")) == 400


async def test_an_error_that_comes_before_the_first_names_are_recorded_is_said_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = filled(400)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        merge, give_up = m.names.merge, recording.Recorder.give_up
        failed = trio.Event()

        async def slow(*args: Any, **kwargs: Any) -> Changes:
            driver.broken = StoreRejected("no more")
            driver.open_gate()
            await failed.wait()
            return await merge(*args, **kwargs)

        def fails(recorder: recording.Recorder) -> None:
            give_up(recorder)
            failed.set()

        monkeypatch.setattr(m.names, "merge", slow)
        monkeypatch.setattr(recording.Recorder, "give_up", fails)
        for _ in range(10):  # of the tasks that go on then, any may be the first
            failed, driver.broken = trio.Event(), None
            driver.shut_gate()
            driver.let(1)
            handle, _ = await m.fs.directories.open(inode)
            first = read_now(m, handle)
            assert len(first) == PAGE + 2
            with pytest.raises(StoreRejected, match="no more"):
                await read_directory(m.fs, handle, first[-1][1])


class Failed(StoreUnavailable):
    """Another try fails, too, so none is made until the time is over."""

    retryable = False


@pytest.mark.parametrize("error", [Failed("an outage"), AccessDenied("expired", renewable=True)])
async def test_where_an_older_listing_is_known_it_stands_in_for_the_rest(tmp_path: Path, error: StoreError) -> None:
    driver = filled(400)
    async with mounted(tmp_path, driver) as m:
        before = await m.entries("d")
        m.clock.advance(61)
        driver.remove("d/f0003")
        driver.remove("d/f0333")
        inode = await m.inode("d")
        await until(lambda: not m.lister.is_listing(ROOT_INODE))
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        first = read_now(m, handle)
        assert b"f0003" not in dict(first)
        with m.impatient():
            driver.broken = error
            driver.open_gate()
            rest = await read_directory(m.fs, handle, first[-1][1])
        names = without_dots([name for name, _ in first] + [name for name, _, _ in rest])
        assert sorted(names) == sorted(before.keys() - {b"f0003"})
        assert m.fs.namespace.belief.stale_served


@pytest.mark.parametrize("order", ["first", "later"])
async def test_a_store_that_keeps_no_order(tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out when the second page has come; by then the first was read, or not."""
    driver = filled(400, ordered=False)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        first = read_now(m, handle) if order == "first" else []
        cookie = first[-1][1] if first else 0
        driver.open_gate()
        rest = await read_directory(m.fs, handle, cookie)
        names = without_dots([name for name, _ in first] + [name for name, _, _ in rest])
        assert sorted(names) == [b"f%04d" % number for number in range(400)]
        assert sorted(name for name, _, _ in await read_directory(m.fs, handle)) == sorted([b".", b"..", *names])
        assert m.names.listings.of(await m.inode("d")) is not None


async def test_too_much_without_order_is_an_error_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_DISORDERED", PAGE - 1)
    driver = filled(400, ordered=False)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        driver.open_gate()
        with pytest.raises(streams.Disordered):
            await read_directory(m.fs, handle)
        assert len(await m.entries("d")) == 400


async def test_a_directory_that_is_renamed_meanwhile_comes_whole(tmp_path: Path) -> None:
    driver = filled(300)
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        first = read_now(m, handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.rename, ROOT_INODE, b"d", ROOT_INODE, b"e", 0)
            await trio.sleep(0.05)
            driver.open_gate()
            rest = await read_directory(m.fs, handle, first[-1][1])
        names = without_dots([name for name, _ in first] + [name for name, _, _ in rest])
        assert sorted(names) == [b"f%04d" % number for number in range(300)]


def nasty_names(rng: random.Random, count: int) -> set[str]:
    return {"".join(rng.choices("ab-.z0", k=rng.randrange(1, 7))) for _ in range(count)} - {".", ".."}


class World:
    """A directory of which some names stay, and others come and go, here and in the store."""

    def __init__(self, m: Mount, driver: Gated, rng: random.Random, inode: int) -> None:
        self.m, self.driver, self.rng, self.inode = m, driver, rng, inode
        self.loose: set[bytes] = set()
        """Names that may be there or not, once or more often."""

    async def change(self) -> None:
        name = f"n{self.rng.randrange(30)}".encode() if self.rng.random() < 0.5 else self.rng.choice(sorted(self.loose))
        other = f"n{self.rng.randrange(30)}".encode()
        self.loose |= {name, other}
        fs = self.m.fs
        try:
            match self.rng.randrange(5):
                case 0:
                    handle, _ = await fs.create(self.inode, name, 0o644, 0o2, CALLER)
                    await self.m.kernel.release(fs, handle)
                case 1:
                    await fs.unlink(self.inode, name)
                case 2:
                    await fs.mkdir(self.inode, name, 0o755, CALLER)
                case 3:
                    await fs.rename(self.inode, name, self.inode, other, 0)
                case 4:
                    self.driver.place(f"d/{name.decode()}", b"from elsewhere")
        except LuxError:
            pass  # it is there, or is not


@pytest.mark.expected_logs(
    "a file and a directory", "was written by somebody else meanwhile", "of this name", "under-store yet: GET .* version is"
)
@pytest.mark.parametrize("seed", range(24))
async def test_what_stays_comes_once_to_each_reader_whatever_changes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    driver = Gated()
    names = nasty_names(rng, rng.randrange(30, 400))
    stay: set[bytes] = set()
    loose: set[bytes] = set()
    for name in sorted(names):
        kinds = rng.choices(["", "/x", ".rclonelink"], [6, 2, 1], k=1 + (rng.random() < 0.1))
        for kind in kinds:
            driver.place(f"d/{name}{kind}", b"x")
        (stay if rng.random() < 0.8 else loose).add(name.encode())
    stay -= {name for name in stay if any(other.startswith(name) and b"rclonelink" in other for other in stay)}
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        inode = await m.inode("d")
        if rng.random() < 0.5:
            await m.entries("d")
            m.clock.advance(61)
            for gone in sorted(loose)[::3]:
                for kind in ("", "/x", ".rclonelink"):
                    driver.objects.pop(f"d/{gone.decode()}{kind}", None)
        world = World(m, driver, rng, inode)
        world.loose = loose | {b"n0"}
        for _ in range(rng.randrange(4)):
            await world.change()
        driver.shut_gate()
        driver.let(1 + rng.randrange(3))
        readers = [_Reader(m, (await m.fs.directories.open(inode))[0], rng) for _ in range(3)]
        for _ in range(400):
            await rng.choice(readers).step()
            if rng.random() < 0.3:
                driver.let(1)
            if rng.random() < 0.2:
                await world.change()
            if rng.random() < 0.2:
                await trio.sleep(0.001)
            if rng.random() < 0.03:
                readers.append(_Reader(m, (await m.fs.directories.open(inode))[0], rng))
        driver.open_gate()
        for reader in readers:
            with trio.fail_after(60):
                await reader.finish()
            count = Counter(reader.seen)
            twice = {name for name in count if count[name] > 1} - world.loose
            assert not twice, twice
            assert stay <= count.keys(), stay - count.keys()
        assert stay <= (await m.entries("d")).keys()


class _Reader:
    """Reads a directory in small replies, as the kernel does, and goes back sometimes."""

    def __init__(self, m: Mount, handle: int, rng: random.Random) -> None:
        self.m, self.handle, self.rng = m, handle, rng
        self.seen: list[bytes] = []
        self.cookies = [0]
        """Where each entry that was seen ends."""

    async def step(self) -> None:
        if self.rng.random() < 0.05:  # rewinddir, seekdir
            back = self.rng.choice([0, self.rng.randrange(max(0, len(self.cookies) - 20), len(self.cookies))])
            del self.cookies[back + 1 :], self.seen[back:]
        part = []
        for name, _, cookie in self.m.fs.directories.read(self.handle, self.cookies[-1]):
            part.append((name, cookie))
            if len(part) == self.rng.randrange(1, 30):
                break
        self.seen += [name for name, _ in part]
        self.cookies += [cookie for _, cookie in part]

    async def finish(self) -> None:
        for name, _, cookie in await read_directory(self.m.fs, self.handle, self.cookies[-1]):
            self.seen.append(name)
            self.cookies.append(cookie)


def both_kinds() -> Gated:
    """A file and a directory of one name, far apart: "-" comes before the slash that ends the directory's key."""
    driver = filled(0)
    driver.place("d/a", b"a file")
    for number in range(100):
        driver.place(f"d/a-{number:03}", b"")
    driver.place("d/a/x", b"")
    return driver


BOTH_KINDS = [b"a", *(b"a-%03d" % number for number in range(100))]


@pytest.mark.expected_logs("a file and a directory")
async def test_a_name_of_two_kinds_comes_once_to_a_reader_between_commit_and_wake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index has what the writer thread committed before the loop hears of that."""
    driver = both_kinds()
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        between: list[tuple[Kind, list[tuple[bytes, int]]]] = []
        run = m.names._store.run

        async def observed(function: Callable[[Transaction], Changes]) -> Changes:
            changes = await run(function)
            if (found := m.names.after(inode, b"", 1)) and found[0][1].listing:
                between.append((found[0][1].kind, read_now(m, handle)))
            return changes

        monkeypatch.setattr(m.names._store, "run", observed)
        driver.open_gate()
        assert sorted(without_dots([name for name, _, _ in await read_directory(m.fs, handle)])) == BOTH_KINDS
        assert Kind.DIRECTORY in [kind for kind, _ in between]
        for _, first in between:
            rest = await read_directory(m.fs, handle, first[-1][1])
            assert sorted([name for name, _ in first[2:]] + [name for name, _, _ in rest]) == BOTH_KINDS


async def test_a_reader_goes_on_where_it_was_though_the_name_is_another_kind_now(tmp_path: Path) -> None:
    """Another has read it where the new kind comes."""
    driver = both_kinds()
    driver.remove("d/a/x")
    driver.place("d/b", b"")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        cookie = dict(read_now(m, handle))[b"a"]
        other, _ = await m.fs.directories.open(inode)
        assert m.fs.directories.streams(other)
        await m.fs.unlink(inode, b"a")
        await m.fs.mkdir(inode, b"a", 0o755, CALLER)
        driver.open_gate()
        assert len(await read_directory(m.fs, other)) == len(BOTH_KINDS) + 1 + 2
        rest = [name for name, _, _ in await read_directory(m.fs, handle, cookie)]
        assert sorted({*rest} - {b"a"}) == [*BOTH_KINDS[1:], b"b"]
        assert len(rest) == len(set(rest))


@pytest.mark.parametrize("when", ["ended", "going on"])
async def test_a_directory_that_is_a_file_now_comes_once(tmp_path: Path, when: str) -> None:
    """Until the listing ends it is the directory, whose key is far from the file's."""
    driver = both_kinds()
    driver.remove("d/a")
    async with mounted(tmp_path, driver) as m:
        await m.entries("d")
        driver.remove("d/a/x")
        driver.place("d/a", b"a file")
        m.clock.advance(61)
        await until(lambda: not m.lister.is_listing(ROOT_INODE))
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        stream = m.fs.directories._handles[handle].stream
        assert stream is not None
        first = read_now(m, handle)
        driver.open_gate()
        if when == "ended":
            await until(lambda: stream.over)
        rest = await read_directory(m.fs, handle, first[-1][1])
        assert sorted(without_dots([name for name, _ in first] + [name for name, _, _ in rest])) == BOTH_KINDS


def test_other_cookies_are_not_those_of_attach_points() -> None:
    assert 0 < open_directories.FIRST_SPARE_COOKIE <= LOCAL_MASK


IN_ORDER = replace(EVERYTHING, in_order=True)


async def test_pages_that_come_in_order_are_read_as_they_come(tmp_path: Path) -> None:
    """As from Google and Azure, which cannot be asked for several at once."""
    driver = filled(95)
    driver.abilities = IN_ORDER
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(2)
        handle, _ = await m.fs.directories.open(inode)
        assert m.fs.directories.streams(handle)
        first = read_now(m, handle)
        assert len(first) >= PAGE + 2
        driver.open_gate()
        rest = await read_directory(m.fs, handle, first[-1][1])
        names = without_dots([name for name, _ in first] + [name for name, _, _ in rest])
        assert names == [b"f%04d" % number for number in range(95)]


async def test_pages_that_turn_out_to_come_in_no_order_are_each_read_once(tmp_path: Path) -> None:
    class Mixed(Gated):
        def list_directory(self, prefix: str) -> Iterator[ListPage]:
            pages = list(FakeStore.list_directory(self, prefix))
            for page in pages[1:2] + pages[:1] + pages[2:]:
                if self.closed_gate and prefix:
                    self._gate.acquire()
                yield page

    driver = Mixed()
    driver.abilities = IN_ORDER
    for number in range(95):
        driver.place(f"d/f{number:04}", b"x")
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        first = read_now(m, handle)
        assert len(first) == PAGE + 2
        driver.open_gate()
        rest = await read_directory(m.fs, handle, first[-1][1])
        names = without_dots([name for name, _ in first] + [name for name, _, _ in rest])
        assert sorted(names) == [b"f%04d" % number for number in range(95)]
        assert not m.store.lists_in_order


async def test_pages_without_order_are_not_read_before_the_end(tmp_path: Path) -> None:
    driver = FakeStore()
    for number in range(200):
        driver.place(f"d/{number:03}", b"")
    async with mounted(tmp_path, driver) as m:
        handle, _ = await m.fs.directories.open(await m.inode("d"))
        assert not m.fs.directories.streams(handle)
        assert isinstance(next(driver.list_directory("d/")), ListPage)
        assert len(read_now(m, handle)) == 202


async def test_a_directory_comes_behind_files_that_begin_as_it_does(tmp_path: Path) -> None:
    """Its key has a slash at the end, and "-" comes before that: so it is in a later page than its name would be."""
    driver = filled(0)
    for number in range(100):
        driver.place(f"d/a-{number:03}", b"")
    driver.place("d/a/x", b"")
    for number in range(100):
        driver.place(f"d/b.{number:03}", b"")
    driver.place("d/b.rclonelink", b"a")
    async with mounted(tmp_path, driver) as m:
        inode = await m.inode("d")
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        driver.open_gate()
        seen: list[bytes] = []
        cookie = 0
        while True:  # one by one, so that each is where the next reply begins
            entry = next(m.fs.directories.read(handle, cookie), None)
            if entry is not None:
                assert entry[0] not in seen
                seen.append(entry[0])
                cookie = entry[2]
            elif not await m.fs.directories.more(handle):
                break
        assert len(seen) == len(set(seen)) == 204


async def test_what_only_exists_here_comes_while_it_is_listed_again(tmp_path: Path) -> None:
    """As a name that is held, and one that was another kind when it was listed before."""
    driver = filled(100)
    driver.place("d/f0005-/x", b"a directory")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        await m.entries("d")
        inode = await m.inode("d")
        driver.hold("put")
        made, _ = await m.fs.create(inode, b"f0004-", 0o644, 0o2, CALLER)
        await m.kernel.release(m.fs, made)
        driver.remove("d/f0005-/x")
        driver.place("d/f0005-", b"a file")
        m.clock.advance(61)
        driver.shut_gate()
        driver.let(1)
        handle, _ = await m.fs.directories.open(inode)
        first = read_now(m, handle)
        assert {b"f0004-", b"f0005-"} <= dict(first).keys()
        driver.open_gate()
        rest = await read_directory(m.fs, handle, first[-1][1])
        names = without_dots([name for name, _ in first] + [name for name, _, _ in rest])
        assert len(names) == len(set(names)) == 102
        driver.release()


async def part_of(m: Mount, handle: int, start: int, most: int) -> tuple[list[bytes], int, dict[int, Position]]:
    """Read some entries; returns their names, the cookie of the last (0: none is left), and what a successor is told."""
    directories = m.fs.directories
    await directories.prepare(handle, start)
    while not (part := read_now(m, handle, start)[:most]):
        if not await directories.more(handle):
            return [], 0, {}
    name, cookie = part[-1]
    return [name for name, _ in part], cookie, directories.positions(handle, start, cookie, name)


async def read_on(m: Mount, handle: int, cookie: int) -> list[bytes]:
    """Read what is left, in small parts."""
    found: list[bytes] = []
    while True:
        names, cookie, _ = await part_of(m, handle, cookie, 9)
        found += names
        if not names:
            return found


async def test_a_successor_goes_on_where_a_listing_was_read(tmp_path: Path) -> None:
    """Each name comes once, whether the last answer has arrived or not, and if that daemon is killed as well."""
    driver = filled(60)
    for number in range(0, 60, 3):
        driver.place(f"d/f{number:04}.d/x", b"x")
        driver.place(f"d/f{number:04}.d-file", b"x")
        driver.place(f"d/f{number:04}.d.file", b"x")
    for parts in range(1, 15):
        async with mounted(tmp_path / str(parts), driver) as m:
            inode, directories = await m.inode("d"), m.fs.directories
            driver.shut_gate()
            driver.let(3)
            handle, _ = await directories.open(inode)
            assert directories.streams(handle)
            seen, start = [b".", b".."], 2
            for number in range(parts):
                if number == parts // 2:
                    driver.open_gate()
                before, (names, cookie, told) = start, await part_of(m, handle, start, 9)
                seen, start = seen + names, cookie
            everything = sorted([b".", b"..", *await m.entries("d")])
            for arrived in (False, True):
                had, at = (seen, cookie) if arrived else (seen[: -len(names)], before)
                directories.inherit(77, inode, told)
                assert sorted(had + await read_on(m, 77, at)) == everything, (parts, arrived)
                directories.inherit(77, inode, told)
                more, at, told_again = await part_of(m, 77, at, 5)
                directories.inherit(77, inode, told_again)
                assert sorted(had + more + await read_on(m, 77, at)) == everything, (parts, arrived)
                assert sorted(await read_on(m, 77, 0)) == everything


@pytest.mark.expected_logs("a file and a directory")
async def test_a_successor_gives_a_name_of_two_kinds_once(tmp_path: Path) -> None:
    """It came as a file, and is a directory now, whose key has not been read."""
    driver = both_kinds()
    async with mounted(tmp_path, driver) as m:
        inode, directories = await m.inode("d"), m.fs.directories
        driver.shut_gate()
        driver.let(1)
        handle, _ = await directories.open(inode)
        stream = directories._handles[handle].stream
        assert stream is not None
        seen, at, _ = await part_of(m, handle, 2, 3)
        driver.open_gate()
        await until(lambda: stream.over)
        more, at, told = await part_of(m, handle, at, 5)
        kinds = {name: entry.kind for name, entry in m.names.after(inode, b"", 1)}
        assert kinds == {b"a": Kind.DIRECTORY}
        assert b"a" in seen
        directories.inherit(77, inode, told)
        assert sorted(seen + more + await read_on(m, 77, at)) == BOTH_KINDS


async def test_a_successor_reads_a_listing_without_order_from_the_start_only(tmp_path: Path) -> None:
    """A position in it means nothing to the next daemon."""
    async with mounted(tmp_path, filled(50)) as m:
        inode = await m.inode("d")
        await m.entries("d")
        m.fs.directories.inherit(77, inode, {open_directories.UNORDERED: Position(b"")})
        with pytest.raises(Stale):
            read_now(m, 77, await m.inode("d/f0007"))
        everything = read_now(m, 77)
        assert len(everything) == 52
        assert read_now(m, 77, everything[9][1]) == everything[10:]
