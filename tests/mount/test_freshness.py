"""Changes in the bucket: when they show, as what, and what those who have the old version open see."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, Mount, Mounts, content, digest, wait_for

TTL_S = 1.0
SMALL, LARGE = MIB + 7, 20 * MIB
MODES_AND_SIZES = [
    pytest.param("true", LARGE, id="passthrough-large"),
    pytest.param("false", SMALL, id="copying-small"),
    pytest.param("true", SMALL, id="passthrough-small", marks=pytest.mark.slow),
    pytest.param("false", LARGE, id="copying-large", marks=pytest.mark.slow),
]


@pytest.fixture
def make(mounting: Mounts, s3: FastS3, bucket: str):
    def mount_it(*flags: str, **settings) -> Mount:
        settings.setdefault("endpoint_url", s3.endpoint)
        return mounting(f"s3://{bucket}", "--metadata-ttl", "1s", "--negative-ttl", "1s", *flags, **settings)

    return mount_it


def unless_stale(read: Callable[[], Any]) -> Any:
    """Return what ``read`` returns, None where it meets ESTALE; any other error is one."""
    try:
        return read()
    except OSError as exc:
        if exc.errno != errno.ESTALE:
            raise
        return None


@pytest.mark.parametrize(("passthrough", "size"), MODES_AND_SIZES)
def test_a_changed_object_shows_as_a_new_file(make, s3: FastS3, bucket: str, fill, passthrough: str, size: int) -> None:
    old, new = content("old", size), content("new", size)  # of one size, so that only the version tells
    fill({"file": old})
    mount = make(options={"passthrough": passthrough})
    path = f"{mount.path}/file"
    assert mount.read("file") == digest(old)
    before = mount.do("stat", path)
    version = mount.do("getxattr", path, "user.luxfuse.version")
    fill({"file": new})
    wait_for("the new content", lambda: mount.read("file") == digest(new))
    after = mount.do("stat", path)
    assert after["ino"] != before["ino"]
    assert after["mtime_ns"] >= before["mtime_ns"]  # stores tell whole seconds
    assert mount.do("getxattr", path, "user.luxfuse.version") != version
    for _ in range(3):
        assert mount.read("file") == digest(new)


@pytest.mark.parametrize(("passthrough", "size"), MODES_AND_SIZES)
def test_an_open_file_keeps_its_version(make, s3: FastS3, bucket: str, fill, passthrough: str, size: int) -> None:
    old, new = content("old", size), content("new", size + 4096)
    fill({"file": old})
    mount = make(options={"passthrough": passthrough})
    holder, other = mount.reader(), mount.reader()
    holder("open", "it", f"{mount.path}/file")
    holder("map", "map", f"{mount.path}/file")
    assert holder("all", "it") == digest(old)
    assert holder("mapped", "map") == digest(old)
    fill({"file": new})
    wait_for("the new content", lambda: other("file", f"{mount.path}/file") == digest(new))
    # All of the old version is in the cache, so it can still be read, from the start and by every way.
    assert holder("all", "it") == digest(old)
    assert holder("backwards", "it", 100_000) == digest(old)
    assert holder("mapped", "map") == digest(old)
    holder("open", "again", f"{mount.path}/file")
    assert holder("all", "again") == digest(new)
    assert holder("all", "it") == digest(old)
    holder("close", "it")
    holder("unmap", "map")
    assert holder("all", "again") == digest(new)


def test_an_open_file_whose_version_is_gone_is_stale(make, bucket: str, fill, proxy: FaultProxy) -> None:
    size = 40 * MIB
    old, new = content("old", size), content("new", size)
    fill({"file": old})
    mount = make(endpoint_url=proxy.endpoint, options={"readahead": "0"})
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/file")
    assert reader("pread", "it", 5 * MIB, 4096) == digest(old[5 * MIB : 5 * MIB + 4096])
    fill({"file": new})
    # What was fetched stays, the rest is refused; nothing of the new version appears.
    assert reader("pread", "it", 5 * MIB, 4096) == digest(old[5 * MIB : 5 * MIB + 4096])
    assert reader.error("pread", "it", 35 * MIB, 4096) == "ESTALE"
    assert reader.error("all", "it") == "ESTALE"
    assert reader("file", f"{mount.path}/file") == digest(new)
    assert reader.error("pread", "it", 35 * MIB, 4096) == "ESTALE"
    assert mount.status()["fuse"]["errors"] == 0


@pytest.mark.parametrize("passthrough", ["true", "false"])
def test_a_file_that_somebody_has_open_is_opened_as_what_it_is_now(
    mounting: Mounts, s3: FastS3, bucket: str, fill, passthrough: str
) -> None:
    """As just after a close: the kernel sends its RELEASE later."""
    sizes = {"longer": 44, "shorter": 24, "same": 40}
    old, new = content("old", 40 * MIB), {name: content(name, size * MIB) for name, size in sizes.items()}
    fill(dict.fromkeys(sizes, old))
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"readahead": "0", "passthrough": passthrough})
    holder, other = mount.reader(), mount.reader()
    for name in sizes:
        path = f"{mount.path}/{name}"
        holder("open", name, path)
        assert holder("pread", name, 0, 1) == digest(old[:1])
        fill({name: new[name]})
        other("map", name, path)
        assert other("mapped", name) == digest(new[name])
        assert other("file", path) == digest(new[name])
        assert holder("pread", name, 0, 1) == digest(old[:1])
        assert holder.error("pread", name, 20 * MIB, 1) == "ESTALE"


def test_a_large_file_that_changes_under_its_readers(make, s3: FastS3, bucket: str, fill) -> None:
    """Each read shows slices of one version only, or ends in ESTALE."""
    size = 24 * MIB
    versions = [content(("version", i), size) for i in range(6)]
    allowed = [digest(v) for v in versions]
    fill({"file": versions[0]})
    mount = make()
    readers = [mount.reader() for _ in range(3)]
    for version in versions[1:]:
        for i, reader in enumerate(readers):
            reader.send("file", f"{mount.path}/file", (128 << 10) * (i + 1))
        fill({"file": version})
        for reader in readers:
            assert unless_stale(reader.take) in [*allowed, None]
    wait_for("the last version", lambda: unless_stale(lambda: mount.read("file")) == allowed[-1])


def test_a_deleted_object_goes(make, s3: FastS3, bucket: str, fill) -> None:
    data = content("deleted", MIB)
    fill({"file": data, "other": b"x"})
    mount = make()
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/file")
    assert reader("all", "it") == digest(data)
    assert sorted(mount.do("list", str(mount.path))) == ["file", "other"]
    (s3.root / bucket / "file").unlink()
    wait_for("the name is gone", lambda: mount.error("stat", f"{mount.path}/file") == "ENOENT")
    wait_for("the listing lacks it", lambda: mount.do("list", str(mount.path)) == ["other"])
    assert reader("all", "it") == digest(data)


def test_a_new_object_appears(make, s3: FastS3, bucket: str, fill) -> None:
    fill({"dir/first": b"1"})
    mount = make()
    assert mount.error("stat", f"{mount.path}/dir/second") == "ENOENT"
    assert mount.do("list", f"{mount.path}/dir") == ["first"]
    fill({"dir/second": b"2", "new-dir/file": b"3"})
    wait_for("the file", lambda: mount.error("stat", f"{mount.path}/dir/second") is None)
    assert mount.read("dir/second") == digest(b"2")
    wait_for("the listing", lambda: sorted(mount.do("list", f"{mount.path}/dir")) == ["first", "second"])
    wait_for("the directory", lambda: sorted(mount.do("list", str(mount.path))) == ["dir", "new-dir"])
    assert mount.read("new-dir/file") == digest(b"3")


def test_a_file_becomes_a_directory_and_back(make, s3: FastS3, bucket: str, fill) -> None:
    fill({"name": b"file"})
    mount = make()
    assert mount.read("name") == digest(b"file")
    (s3.root / bucket / "name").unlink()
    fill({"name/inside": b"inside"})
    wait_for("the directory", lambda: mount.error("list", f"{mount.path}/name") is None)
    assert mount.read("name/inside") == digest(b"inside")
    (s3.root / bucket / "name/inside").unlink()
    (s3.root / bucket / "name").rmdir()
    fill({"name": b"file again"})
    wait_for("the file", lambda: mount.error("file", f"{mount.path}/name") is None)
    assert mount.read("name") == digest(b"file again")


class TestRefresh:
    """With time-outs that never end, only `luxfuse refresh` shows changes."""

    @pytest.fixture
    def mount(self, mounting: Mounts, s3: FastS3, bucket: str, fill) -> Mount:
        fill({"dir/file": b"old", "dir/gone": b"x", "top": b"old"})
        flags = "--metadata-ttl", "never", "--negative-ttl", "never"
        made = mounting(f"s3://{bucket}", *flags, endpoint_url=s3.endpoint)
        for name in ("dir/file", "top"):
            assert made.read(name) == digest(b"old")
            state = made.path / name, "user.luxfuse.state"
            # Else the next open would need the store, and so find the other object that is there by then.
            wait_for(f"{name} is whole", lambda state=state: made.do("getxattr", *map(str, state)) == "cached")
        assert sorted(made.do("list", f"{made.path}/dir")) == ["file", "gone"]
        assert made.error("stat", f"{made.path}/dir/new") == "ENOENT"
        made.do("lstats", f"{made.path}/dir")
        made.await_answers()  # any answer of the store that comes later may tell of the changes
        fill({"dir/file": b"new!", "top": b"new!", "dir/new": b"new!"})
        (s3.root / bucket / "dir/gone").unlink()
        return made

    def test_nothing_changes_without(self, mount: Mount) -> None:
        assert mount.read("dir/file") == digest(b"old")
        assert mount.error("stat", f"{mount.path}/dir/new") == "ENOENT"
        assert sorted(mount.do("list", f"{mount.path}/dir")) == ["file", "gone"]

    def test_of_a_file(self, mount: Mount) -> None:
        mount.cli("refresh", mount.path / "top", check=True)
        assert mount.read("top") == digest(b"new!")
        assert mount.read("dir/file") == digest(b"old")

    def test_of_a_directory(self, mount: Mount) -> None:
        mount.cli("refresh", mount.path / "dir", check=True)
        assert sorted(mount.do("list", f"{mount.path}/dir")) == ["file", "new"]
        assert mount.read("dir/file") == digest(b"new!")
        assert mount.read("dir/new") == digest(b"new!")
        assert mount.error("stat", f"{mount.path}/dir/gone") == "ENOENT"

    def test_of_the_mount(self, mount: Mount) -> None:
        mount.cli("refresh", mount.path, check=True)
        assert mount.read("top") == digest(b"new!")

    def test_of_a_new_name(self, mount: Mount) -> None:
        mount.cli("refresh", mount.path / "dir/new", check=True)
        assert mount.read("dir/new") == digest(b"new!")

    def test_of_a_name_that_is_gone(self, mount: Mount) -> None:
        done = mount.cli("refresh", mount.path / "dir/gone")
        assert mount.error("stat", f"{mount.path}/dir/gone") == "ENOENT"
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1

    def test_outside_any_mount(self, mount: Mount) -> None:
        done = mount.cli("refresh", "/tmp")
        assert done.returncode == 1
        assert done.stderr == "luxfuse: /tmp is not in a luxfuse mount; see: luxfuse list\n"


def test_changes_behind_a_server_that_ignores_if_match(make, bucket: str, fill, proxy: FaultProxy) -> None:
    size = 24 * MIB
    versions = [content(("ignored", i), size) for i in range(4)]
    fill({"file": versions[0]})
    proxy.set(drop_if_match=True)
    mount = make(endpoint_url=proxy.endpoint)
    stop = threading.Event()

    def change() -> None:
        i = 0
        while not stop.wait(0.15):
            i += 1
            fill({"file": versions[i % 4]})

    changer = threading.Thread(target=change)
    changer.start()
    allowed = [digest(v) for v in versions]
    seen = []
    try:
        give_up_at = time.monotonic() + 4
        while time.monotonic() < give_up_at or len(seen) < 2:
            seen.append(unless_stale(lambda: mount.read("file")))
            assert seen[-1] in [*allowed, None]
    finally:
        stop.set()
        changer.join()
    fill({"file": versions[1]})
    wait_for("the last version", lambda: unless_stale(lambda: mount.read("file")) == allowed[1])
