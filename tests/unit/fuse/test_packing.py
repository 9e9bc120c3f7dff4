"""Answers to READDIRPLUS that the extension packs: they say what Python would say of each entry."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luxfuse.core.listed_spans import Position
from luxfuse.fuse import prompt as prompt_module
from luxfuse.fuse.attributes import form_of, nanoseconds_of
from luxfuse.fuse.kept import KeptHandles
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.packing import Packing
from luxfuse.fuse.prompt import Prompt
from luxfuse.index.entries import NOTHING_SAID, Attributes, Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs import open_directories
from luxfuse.vfs.attributes import AttributeChanges
from luxfuse.vfs.kernel import NoKernel
from luxfuse.vfs.shown import Shown
from luxfuse.vfs.unfinished import Wait
from luxfuse.vfs.volumes import Volumes
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import FakeStore
from tests.support.harness import BEGINNING_S, Mount, mounted

ENTRY_OUT = struct.Struct("=QQQQII")
ATTR = struct.Struct("=6Q10I")
DIRENT = struct.Struct("=QQII")
BASE = 3 << 40
TYPE = 12


def unpacked(answer: bytes) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
    """Yield (name, cookie, attributes and times as the extension is given them) as the kernel takes them."""
    at = 0
    while at < len(answer):
        node, generation, entry_s, attr_s, entry_ns, attr_ns = ENTRY_OUT.unpack_from(answer, at)
        ino, size, blocks, atime, mtime, ctime, *small = ATTR.unpack_from(answer, at + ENTRY_OUT.size)
        atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, rdev, block, flags = small
        head = at + ENTRY_OUT.size + ATTR.size
        again, cookie, length, kind = DIRENT.unpack_from(answer, head)
        assert (node, generation, block, flags) == (ino, 0, 4096, 0)
        assert (again, kind) == (ino, mode >> TYPE)
        name = answer[head + DIRENT.size : head + DIRENT.size + length]
        end = head + DIRENT.size + length
        at = -(-end // 8) * 8
        assert not any(answer[end:at]), "what is left between entries is told nobody"
        times = (mtime * 10**9 + mtime_ns, ctime * 10**9 + ctime_ns, atime * 10**9 + atime_ns)
        valid = (entry_s * 10**9 + entry_ns, attr_s * 10**9 + attr_ns)
        yield name, cookie, (ino, size, blocks, mode, nlink, uid, gid, rdev, *times, *valid)


def drawn_attributes(rng: random.Random) -> Attributes | None:
    if rng.random() < 0.5:
        return rng.choice((None, NOTHING_SAID))
    moment = rng.choice((None, 0, 1, 999_999_999, 10**9, rng.getrandbits(62)))
    return Attributes(
        mode=rng.choice((None, 0, 0o600, 0o7777)),
        uid=rng.choice((None, 0, 77, 2**32 - 1)),
        gid=rng.choice((None, 5)),
        mtime_ns=moment,
        atime_ns=rng.choice((None, 0, 10**18 + 1)),
        ctime_ns=rng.choice((None, 0, moment, rng.getrandbits(62))),
        rdev=rng.choice((None, 0, 1281)),
        xattrs=rng.choice((None, {"user.a": b"b"})),
    )


def drawn_batch(rng: random.Random, held: list[int]) -> list[tuple[bytes, Entry]]:
    """Entries, many of which are alike, as in a listing."""
    batch, kind, checked_s, attributes = [], Kind.FILE, BEGINNING_S, drawn_attributes(rng)
    for number in range(rng.randrange(60)):
        if rng.random() < 0.3:
            kind = rng.choice(list(Kind))
            checked_s = BEGINNING_S + rng.choice((0, -1e9, -61, -60, -59.75, -30, -0.001, 0.5, 1, 1.5, 1e9))
            attributes = drawn_attributes(rng)
        if kind is Kind.SPECIAL:
            attributes = Attributes(mode=0o010644)
        name = b"%03d" % number + b"n" * rng.choice((0, 1, 7, 8, 200))
        inode = rng.choice((*held, number + 1000)) if rng.random() < 0.1 else number + 1000
        size, mtime_ns = rng.choice((0, 1, 512, 513, 1 << 40)), rng.choice((0, 1, 1_700_000_000_123_456_789))
        batch.append(
            (name, Entry(inode, kind, size, "v", mtime_ns, checked_s, 1, attributes, rng.choice((0.0, checked_s))))
        )
    return batch


def expected(shown: Shown, batch: list[tuple[bytes, Entry]], cookies: dict[int, int]) -> list[Any]:
    return [
        (name, cookies.get(inode, inode), (*form_of(stat, BASE), *nanoseconds_of(stat)))
        for name, stat, inode in shown.listed(ROOT_INODE, batch)
    ]


@pytest.mark.parametrize(("shared", "attributes"), [(False, "auto"), (False, "exact"), (False, "listing"), (True, "auto")])
async def test_what_is_packed_is_what_is_listed(tmp_path: Path, shared: bool, attributes: str) -> None:
    rng = random.Random(f"{shared} {attributes}")
    driver = FakeStore()
    driver.place("there", b"content")
    alike = 0
    async with mounted(tmp_path, driver, allow_other=shared, attributes=attributes, write_mode="async-through") as m:
        shown, belief = m.fs.directories.shown, m.fs.namespace.belief
        handle, dirty = await m.kernel.create(m.fs, ROOT_INODE, b"dirty")
        waits: list[Wait] = []
        held = [dirty, await m.inode("there")]
        for number in range(400):
            batch = drawn_batch(rng, held)
            if number % 3 == 1:
                belief.hold(held[1])
            elif number % 3 == 2:
                belief.let_go(held[1])
            if number == 300 and batch:
                waits.append(m.fs.namespace.unfinished.begin([(ROOT_INODE, batch[-1][0])]))
            elif number == 340:
                for wait in waits:
                    m.fs.namespace.unfinished.end(wait)
            if number == 350:
                belief.doubts.entries.note(batch[0][1].inode if batch else 1000, BEGINNING_S)
            cookies = {entry.inode: rng.getrandbits(40) for _, entry in batch if rng.random() < 0.1}
            packing = Packing(rng.choice((1 << 17, rng.randrange(4000))), BASE)
            whole = packing.add_batch(shown, ROOT_INODE, batch, cookies)
            found, all_of_it = list(unpacked(bytes(packing.answer[: packing.used]))), expected(shown, batch, cookies)
            assert found == all_of_it[: len(found)], f"of {number}"
            assert whole == (len(found) == len(batch)) == (not packing.full)
            assert packing.last == ((found[-1][1], found[-1][0]) if found else None)
            if not whole:
                name = all_of_it[len(found)][0]
                assert packing.used + -(-(152 + len(name)) // 8) * 8 > len(packing.answer), "there was room for another"
            alike += len(found)
        await m.kernel.close(m.fs, handle)
    assert alike > 3000


class Kept(KeptHandles):
    """What is kept for a successor."""

    wanted = True

    def __init__(self) -> None:
        super().__init__(None)
        self.read: list[set[int]] = []

    def read_directory(self, _number: int, positions: dict[int, Any]) -> None:
        """Note the cookies."""
        self.read.append(set(positions))


class Asking:
    """A mount whose READDIRPLUS are answered promptly, and what was answered."""

    def __init__(self, m: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
        self.m, self.kept, self.answer, self.stats = m, Kept(), b"", 0
        volumes = Volumes(NoKernel())
        volumes.main.serve(m.fs, negative_ttl_s=5.0, read_only=False)
        self.operations = Operations(volumes, read_only=False, kept=self.kept)
        self.prompt = Prompt(self.operations, volumes)
        monkeypatch.setattr(prompt_module, "passthrough", SimpleNamespace(reply_packed=self._reply))
        shown, stat = m.fs.directories.shown, m.fs.directories.shown.stat

        def counted(entry: Entry) -> Any:
            self.stats += 1
            return stat(entry)

        monkeypatch.setattr(shown, "stat", counted)

    def _reply(self, _unique: int, answer: bytearray, used: int) -> None:
        self.answer = bytes(answer[:used])

    def read(self, handle: int, start: int, size: int) -> list[tuple[bytes, int]] | None:
        """Entries and their cookies; None: it is left to the handler."""
        if not self.prompt.readdir(1, passthrough.MARK | handle, start, size):
            return None
        return [(name, cookie) for name, cookie, _ in unpacked(self.answer)]


async def test_a_directory_is_read_in_pieces_of_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_directories, "BATCH", 37)
    rng, driver = random.Random(5), FakeStore()
    for number in range(1500):
        driver.place(f"d/{number:04}{'n' * (number % 90)}", b"x")
    async with mounted(tmp_path, driver) as m:
        asking = Asking(m, monkeypatch)
        handle, _ = await m.fs.directories.open(await m.inode("d"), whole=True)
        everything = [(name, cookie) for name, _, cookie in m.fs.directories.read(handle, 0)]
        asking.stats, found, starts = 0, [], [0]
        while part := asking.read(handle, starts[-1], rng.choice((512, 4096, 32768, 100_000))):
            found += part
            starts.append(part[-1][1])
        assert part == []
        assert found == everything
        assert asking.stats <= 8, "entries that are alike are said one by one"
        assert asking.operations.latency["readdir"].count == len(starts)
        assert [read - {1, 2} for read in asking.kept.read] == [{start, end} - {0, 1, 2} for start, end in pairwise(starts)]
        for position in rng.sample(range(len(everything)), 30):  # seekdir
            again = asking.read(handle, everything[position][1], 4096)
            assert again
            assert again == everything[position + 1 : position + 1 + len(again)]
        m.fs.directories.close(handle)
        assert asking.read(handle, 0, 4096) is None, "the handler says that it is not open"


async def test_what_changes_here_is_shown_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    for number in range(300):
        driver.place(f"{number:04}", b"x")
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        asking = Asking(m, monkeypatch)
        handle, _ = await m.fs.directories.open(ROOT_INODE, whole=True)
        first = asking.read(handle, 0, 4096)
        assert first is not None
        inode = await m.inode("0250")
        await m.fs.setattr(inode, AttributeChanges(mode=0o600), None, CALLER)
        await m.fs.unlink(ROOT_INODE, b"0251")
        await m.fs.rename(ROOT_INODE, b"0001", ROOT_INODE, b"0280x", 0)
        rest, start = [], first[-1][1]
        while part := asking.read(handle, start, 4096):
            rest += [(name, said[3]) for name, _, said in unpacked(asking.answer)]
            start = part[-1][1]
        names = [name for name, _ in rest]
        assert names == sorted({b"%04d" % number for number in range(len(first) - 2, 300)} - {b"0251"} | {b"0280x"})
        assert dict(rest)[b"0250"] == 0o100600
        assert {mode for name, mode in rest if name != b"0250"} == {0o100644}


async def test_what_has_to_be_waited_for_is_left_to_the_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeStore()
    driver.place("d/a", b"x")
    async with mounted(tmp_path, driver) as m:
        asking = Asking(m, monkeypatch)
        inode = await m.inode("d")
        handle, _ = await m.fs.directories.open(inode, whole=True)
        assert asking.read(handle, 0, 160) == [(b".", 1)], "one finds room"
        assert asking.read(handle, 1, 100) is None, "an answer without any is the end"
        m.fs.directories.inherit(77, inode, {})
        assert asking.read(77, 0, 4096) is not None
        m.fs.directories.inherit(78, inode, {open_directories.UNORDERED: Position(b"")})
        assert asking.read(78, 0, 4096) is None
        assert asking.read(1 << 46, 0, 4096) is None
