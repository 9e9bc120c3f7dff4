"""Attributes in object metadata: what s3fs and rclone write is read, and what we write says the same."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.cache import upload
from luxfuse.errors import AccessDenied
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs.attributes import AttributeChanges, Defaults, parse_attributes, stat_of, to_metadata
from tests.support.fake_kernel import CALLER
from tests.support.fake_store import EVERYTHING, FakeStore
from tests.support.harness import Mount, mounted, pages, random_bytes, until

SECOND = 10**9
MOMENT = 981_173_106 * SECOND + 123_456_789
"""2001-02-03T04:05:06.123456789Z."""
DEFAULTS = Defaults(uid=1000, gid=1001, umask=0o027, mtime_ns=7)
TYPES = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


def parsed(**metadata: str) -> Attributes:
    found = parse_attributes(metadata)
    assert found is not None
    return found


moments = st.integers(0, 4 * 10**18)
attributes = st.builds(
    Attributes,
    mode=st.none() | st.integers(0, 0o7777),
    uid=st.none() | st.integers(0, 2**32 - 1),
    gid=st.none() | st.integers(0, 2**32 - 1),
    mtime_ns=st.none() | moments,
    atime_ns=st.none() | moments,
    ctime_ns=st.none() | moments,
    xattrs=st.none() | st.dictionaries(st.text(min_size=1, max_size=9), st.binary(max_size=30), min_size=1, max_size=4),
)


@given(st.sampled_from(sorted(TYPES)), attributes)
def test_what_is_written_reads_the_same(kind: Kind, known: Attributes) -> None:
    written = to_metadata(kind, known)
    assert all(text.isascii() and text.isprintable() for text in written.values())  # HTTP headers
    assert parse_attributes(written) == known


@given(st.sampled_from(sorted(TYPES)), st.integers(0, 0o7777))
def test_a_mode_reads_the_same_in_c_and_as_octal(kind: Kind, mode: int) -> None:
    """As strtoll with base 0 (s3fs) and as an octal number (rclone) do it."""
    text = to_metadata(kind, Attributes(mode=mode))["mode"]
    assert text[0] == "0"
    assert int(text, 8) == TYPES[kind] | mode


@given(st.integers(0, 0o7777))
def test_modes_of_others(mode: int) -> None:
    file, directory = stat.S_IFREG | mode, stat.S_IFDIR | mode
    assert parsed(mode=str(file)).mode == mode  # s3fs
    assert parsed(mode=f"{file:o}").mode == mode  # rclone
    assert parsed(mode=str(directory)).mode == mode
    assert parsed(mode=f"0{mode:o}").mode == mode
    if mode < 0o1000:
        assert parsed(mode=str(mode)).mode == mode  # s3fs, of directories that it makes
        assert parsed(mode=f"{directory:o}").mode == mode


@pytest.mark.parametrize("text", ["", "rw-r--r--", "-1", "33188.0", "99999999999", "08", "70000", "0200000"])
def test_modes_that_make_no_sense(text: str) -> None:
    assert parsed(mode=text, uid="5") == Attributes(uid=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("981173106.123456789", MOMENT),  # s3fs, and the mtime of rclone
        ("981173106", MOMENT // SECOND * SECOND),
        ("981173106.", MOMENT // SECOND * SECOND),
        ("981173106.5", MOMENT // SECOND * SECOND + SECOND // 2),
        ("981173106.1234567899", MOMENT),
        ("2001-02-03T04:05:06.123456789Z", MOMENT),  # the atime of rclone
        ("2001-02-03T05:35:06.123456789+01:30", MOMENT),
        ("2001-02-02T20:05:06-08:00", MOMENT // SECOND * SECOND),
        ("1995-12-31T23:59:59Z", 820_454_399 * SECOND),
        ("", None),
        ("yesterday", None),
        ("2001-02-03T04:05:06", None),
        ("2001-02-30T04:05:06Z", None),
        ("2001-02-03", None),
        ("1.2.3", None),
        ("981173106.x", None),
        ("9999999999999999999", None),
        ("nan", None),
    ],
)
def test_times(text: str, expected: int | None) -> None:
    assert parsed(mtime=text).mtime_ns == expected
    assert parsed(atime=text).atime_ns == expected
    assert parsed(ctime=text).ctime_ns == expected


def test_xattrs_of_s3fs() -> None:
    found = parsed(xattr="%7B%22user.color%22%3A%22Ymx1ZQ%3D%3D%22%2C%22user.none%22%3A%22%22%7D")
    assert found.xattrs == {"user.color": b"blue", "user.none": b""}
    assert to_metadata(Kind.FILE, found) == {
        "xattr": "%7B%22user.color%22%3A%22Ymx1ZQ%3D%3D%22%2C%22user.none%22%3A%22%22%7D"
    }


@pytest.mark.parametrize("text", ["", "%7B", "{}", "[]", "3", '{"a": 5}', '{"a": "x"}', '{"a": null}', "%ff"])
def test_xattrs_that_make_no_sense(text: str) -> None:
    assert parsed(xattr=text, uid="1") == Attributes(uid=1)


@given(st.dictionaries(st.sampled_from(["mode", "uid", "gid", "mtime", "atime", "ctime", "xattr", "other"]), st.text()))
def test_no_metadata_is_an_error(metadata: dict[str, str]) -> None:
    found = parse_attributes(metadata)
    assert found is not None
    assert parse_attributes(to_metadata(Kind.FILE, found)) == found


def test_nothing_known() -> None:
    assert parse_attributes(None) is None
    assert parse_attributes({}) == Attributes()
    assert to_metadata(Kind.FILE, None) == {}
    assert to_metadata(Kind.FILE, Attributes()) == {}


def test_stat_shows_what_is_known_and_defaults_for_the_rest() -> None:
    entry = Entry(5, Kind.FILE, 1000, "v", 77, 0.0)
    shown = stat_of(entry, DEFAULTS, 1.5)
    assert (shown.mode, shown.uid, shown.gid, shown.size) == (stat.S_IFREG | 0o640, 1000, 1001, 1000)
    assert (shown.mtime_ns, shown.atime_ns, shown.ctime_ns) == (77, 77, 77)
    assert (shown.blocks, shown.nlink, shown.ttl_s) == (2, 1, 1.5)
    entry.attributes = Attributes(mode=0o4755, uid=0, gid=2, mtime_ns=MOMENT, atime_ns=5, ctime_ns=9)
    shown = stat_of(entry, DEFAULTS, 0)
    assert (shown.mode, shown.uid, shown.gid) == (stat.S_IFREG | 0o4755, 0, 2)
    assert (shown.mtime_ns, shown.atime_ns, shown.ctime_ns) == (MOMENT, 5, MOMENT)


def test_stat_of_other_kinds() -> None:
    directory = stat_of(Entry(5, Kind.DIRECTORY, 99, "", 0, 0.0), DEFAULTS, 0)
    assert (directory.mode, directory.size, directory.mtime_ns) == (stat.S_IFDIR | 0o750, 0, 7)
    link = stat_of(Entry(5, Kind.SYMLINK, 9, "v", 5, 0.0, 0, Attributes(mode=0o600)), DEFAULTS, 0)
    assert (link.mode, link.size) == (stat.S_IFLNK | 0o777, 9)
    fifo = Attributes(mode=stat.S_IFIFO | 0o600)
    assert stat_of(Entry(5, Kind.SPECIAL, 0, "", 0, 0.0, 0, fifo), DEFAULTS, 0).mode == stat.S_IFIFO | 0o600
    device = Attributes(mode=stat.S_IFCHR | 0o600, rdev=0x103)
    assert stat_of(Entry(5, Kind.SPECIAL, 0, "", 0, 0.0, 0, device), DEFAULTS, 0).rdev == 0x103


async def test_a_directory_has_the_attributes_of_its_marker(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("d/", b"", {"mode": "16832", "uid": "5", "mtime": "981173106.123456789"})
    driver.place("d/sub/file", b"x")
    async with mounted(tmp_path, driver) as m:
        shown = await m.fs.getattr(await m.inode("d"))
        assert (shown.mode, shown.uid, shown.mtime_ns) == (stat.S_IFDIR | 0o700, 5, MOMENT)
        assert (await m.fs.getattr(await m.inode("d/sub"))).mode == stat.S_IFDIR | 0o755
        driver.place("d/", b"", {"mode": "16877"})
        m.clock.advance(61)
        assert (await m.fs.getattr(await m.inode("d"))).mode == stat.S_IFDIR | 0o755


async def test_of_a_directory_that_was_listed_the_marker_is_asked_for_once(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("d/", b"", {"mode": "16832"})
    driver.place("e/file", b"x")
    async with mounted(tmp_path, driver) as m:
        listed = await m.entries()
        for _ in range(3):
            assert (await m.fs.getattr(listed[b"d"])).mode == stat.S_IFDIR | 0o700
            assert (await m.fs.getattr(listed[b"e"])).mode == stat.S_IFDIR | 0o755
        assert driver.counts["head"] == 2


async def test_a_directory_is_there_even_if_its_marker_cannot_be_described(tmp_path: Path) -> None:
    driver = FakeStore()
    driver.place("d/", b"", {"mode": "16832"})
    async with mounted(tmp_path, driver) as m:
        listed = await m.entries()
        m.clock.advance(61)
        driver.fail_next(1, lambda: AccessDenied("HEAD: 403 Forbidden"), "head")
        assert await m.inode("d") == listed[b"d"]


async def changed(m: Mount, inode: int) -> int:
    """Change the mode of ``inode``; return what is shown afterwards."""
    await m.fs.setattr(inode, AttributeChanges(mode=0o711), None, CALLER)
    return stat.S_IMODE((await m.fs.getattr(inode)).mode)


@pytest.mark.parametrize("kind", ["put", "complete_upload"])
async def test_those_that_change_while_a_content_goes_up_reach_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The content takes those along that were there when it was begun."""
    monkeypatch.setattr(upload, "SINGLE_BYTES", pages(2) if kind == "complete_upload" else pages(20))
    driver = FakeStore()
    async with mounted(tmp_path, driver, write_mode="async-through") as m:
        driver.hold(*(("put", "put_file") if kind == "put" else (kind,)))
        handle, inode = await m.kernel.create(m.fs, ROOT_INODE, b"file", 0o644)
        await m.kernel.write(m.fs, handle, 0, random_bytes(pages(5), 1))
        await m.kernel.close(m.fs, handle)
        await until(lambda: driver.counts[kind] + driver.counts[f"{kind}_file"] > 0)
        await m.fs.setattr(inode, AttributeChanges(mode=0o600), None, CALLER)
        driver.release()
        await m.drain()
        assert stat.S_IMODE(int(driver.objects["file"][3]["mode"], 8)) == 0o600


async def test_those_of_the_root_stay_until_it_is_unmounted(tmp_path: Path) -> None:
    driver = FakeStore()
    async with mounted(tmp_path, driver) as m:
        assert await changed(m, ROOT_INODE) == 0o711
    async with mounted(tmp_path, driver) as m:
        assert stat.S_IMODE((await m.fs.getattr(ROOT_INODE)).mode) == 0o755
    assert driver.objects == {}


async def test_where_the_store_keeps_none_the_index_does(tmp_path: Path) -> None:
    driver = FakeStore(abilities=replace(EVERYTHING, metadata=False))
    driver.place("file", b"x")
    async with mounted(tmp_path, driver) as m:
        assert await changed(m, await m.inode("file")) == 0o711
    async with mounted(tmp_path, driver) as m:
        assert stat.S_IMODE((await m.fs.getattr(await m.inode("file"))).mode) == 0o711
    assert driver.objects["file"][3] == {}
