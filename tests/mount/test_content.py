"""The right bytes, by every way to read them, cold and warm, in each mode a mount can have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import new_bucket
from tests.support.fast_s3 import FastS3
from tests.support.mounted import ALWAYS, MIB, Mount, content, digest, mounted, put

SIZES = (0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 3 * MIB + 7, 17 * MIB)
"""The last one is above the size up to which files are fetched whole."""
WAYS = ("blocks", "large-blocks", "backwards", "edges", "mmap", "sendfile", "cp", "together")
LINK_TARGET = "deep/er/file"


@pytest.fixture(scope="module")
def data() -> dict[int, bytes]:
    return {size: content(f"content-{size}", size) for size in SIZES}


@pytest.fixture(scope="module")
def filled(s3: FastS3, data: dict[int, bytes]) -> str:
    """Each way reads files of its own, so that each meets them cold."""
    name = new_bucket(s3)
    for way in WAYS:
        for size, whole in data.items():
            put(s3, name, f"{way}/{size}", whole)
    put(s3, name, "deep/er/file", b"deep\n")
    put(s3, name, "link.rclonelink", LINK_TARGET.encode())
    put(s3, name, "executable", b"#!/bin/sh\n")
    (s3.root / name / "empty").mkdir()
    put(s3, name, "empty/.fast-s3-directory", b"")
    return name


@pytest.fixture(scope="module", params=["passthrough", "copying", "plain user", "Python"])
def mount(request: pytest.FixtureRequest, s3: FastS3, filled: str) -> Iterator[Mount]:
    mode = request.param
    if mode == "passthrough" and ALWAYS.get("passthrough") == "off":
        pytest.skip("passthrough is off in all mounts")
    if mode == "plain user":
        request.getfixturevalue("plain_user")
    options = {"copying": {"passthrough": "off"}, "Python": {"passthrough": "off", "dataplane": "off"}}.get(mode, {})
    with mounted(f"s3://{filled}", endpoint_url=s3.endpoint, options=options, plain_user=mode == "plain user") as made:
        yield made
        status = made.status()
        assert status["fuse"]["errors"] == 0
        assert status["understore"]["errors"] == 0
        reads = status["reads"]
        assert (reads["passthrough_opens"] > 0) == (mode == "passthrough")
        if ALWAYS.get("dataplane") != "off":
            assert (reads["dataplane_opens"] > 0) == (mode in ("copying", "plain user"))
            assert (reads["dataplane_bytes"] > 0) == (mode != "Python"), "passthrough: of a large file since it was cold"


def test_mode_is_told(mount: Mount) -> None:
    status = mount.status()
    if status["passthrough"]:
        assert status["passthrough_reason"] is None
    else:
        expected = "plain user" if mount.plain_user and "passthrough" not in ALWAYS else "settings"
        assert {"plain user": "root only", "settings": "settings"}[expected] in status["passthrough_reason"]


@pytest.mark.parametrize("way", WAYS)
def test_bytes(mount: Mount, data: dict[int, bytes], way: str) -> None:
    for temperature in ("cold", "warm"):
        for size, whole in data.items():
            path = f"{mount.path}/{way}/{size}"
            assert mount.do("stat", path)["size"] == size
            _READ[way](mount, path, whole)
        assert temperature


def _blocks(mount: Mount, path: str, whole: bytes) -> None:
    assert mount.do("file", path, 64 << 10) == digest(whole)


def _large_blocks(mount: Mount, path: str, whole: bytes) -> None:
    assert mount.do("file", path, 32 * MIB) == digest(whole)


def _backwards(mount: Mount, path: str, whole: bytes) -> None:
    mount.do("open", "it", path)
    assert mount.do("backwards", "it", 300_000) == digest(whole)
    mount.do("close", "it")


def _edges(mount: Mount, path: str, whole: bytes) -> None:
    size = len(whole)
    mount.do("open", "it", path)
    starts = {0, 1, 4095, 4096, MIB - 1, MIB, 2 * MIB - 1, 16 * MIB - 5, size - 1, size - 4096, size, size + 1, size + MIB}
    for start in sorted(s for s in starts if s >= 0):
        for length in (1, 2, 4096, 2 * MIB):
            assert mount.do("pread", "it", start, length) == digest(whole[start : start + length]), (start, length)
    mount.do("close", "it")


def _mmap(mount: Mount, path: str, whole: bytes) -> None:
    if not whole:
        return  # nothing to map
    mount.do("map", "it", path)
    middle = len(whole) // 2
    assert mount.do("mapped", "it", middle, 5000) == digest(whole[middle : middle + 5000])
    assert mount.do("mapped", "it") == digest(whole)
    mount.do("unmap", "it")


def _sendfile(mount: Mount, path: str, whole: bytes) -> None:
    assert mount.do("sendfile", path) == digest(whole)


def _cp(mount: Mount, path: str, whole: bytes) -> None:
    copy = mount.base / "copy"
    mount.run(["cp", path, copy], check=True)
    assert copy.read_bytes() == whole
    copy.unlink()


def _together(mount: Mount, path: str, whole: bytes) -> None:
    if mount.pid not in _READERS:
        _READERS[mount.pid] = [mount.reader() for _ in range(4)]
    readers = _READERS[mount.pid]
    for i, reader in enumerate(readers):
        reader.send("file", path, (4096, 128 << 10, MIB, 999_983)[i])
    assert [reader.take() for reader in readers] == [digest(whole)] * len(readers)


_READERS: dict[int, list] = {}
_READ = {
    "blocks": _blocks, "large-blocks": _large_blocks, "backwards": _backwards, "edges": _edges, "mmap": _mmap,
    "sendfile": _sendfile, "cp": _cp, "together": _together,
}  # fmt: skip


def test_symlink(mount: Mount) -> None:
    path = f"{mount.path}/link"
    assert mount.do("os.readlink", path) == LINK_TARGET
    assert mount.do("stat", path)["mode"] & 0o170000 == 0o120000
    assert mount.read("link") == digest(b"deep\n")
    assert "link" in mount.do("list", str(mount.path))
    assert "link.rclonelink" not in mount.do("list", str(mount.path))
    assert mount.error("stat", f"{path}.rclonelink") == "ENOENT"


def test_statfs(mount: Mount) -> None:
    st = mount.do("statvfs", str(mount.path))
    assert st["bfree"] > 0
    assert st["namemax"] == 255
    assert not st["flag"] & os.ST_RDONLY
    assert st["flag"] & os.ST_NOSUID
    assert st["flag"] & os.ST_NODEV


def test_names_beyond_namemax(s3: FastS3, filled: str) -> None:
    with mounted(f"s3://{filled}", endpoint_url=s3.endpoint) as made:
        assert made.error("stat", f"{made.path}/{'x' * 255}") == "ENOENT"
        assert made.error("stat", f"{made.path}/{'x' * 256}") == "ENAMETOOLONG"
        assert made.error("file", f"{made.path}/deep/{'ü' * 128}") == "ENAMETOOLONG"


def test_attributes(mount: Mount) -> None:
    path = f"{mount.path}/blocks/{MIB}"
    mount.do("file", path)
    assert mount.do("os.listxattr", path) == []  # else `cp -a` would write them onto the copy
    values = {n: mount.do("getxattr", path, f"user.luxfuse.{n}") for n in ("cached_bytes", "state", "tier", "version")}
    assert values["cached_bytes"] == str(MIB)
    assert values["state"] == "cached"
    assert values["tier"] == "ssd"
    assert values["version"].startswith('"')
    fresh = f"{mount.path}/executable"
    assert mount.do("getxattr", fresh, "user.luxfuse.state") == "remote"
    assert mount.do("getxattr", fresh, "user.luxfuse.cached_bytes") == "0"
    assert mount.error("getxattr", path, "user.luxfuse.nothing") == "ENODATA"
    assert mount.error("getxattr", path, "security.capability") == "ENODATA"
    assert mount.do("os.listxattr", str(mount.path)) == []


def test_a_long_listing_does_not_ask_about_labels_and_lists_of_each_file(mount: Mount) -> None:
    """`ls -l` asks a file system that says that it has none of them once, and goes on to other attributes."""
    before = _count(mount, "getxattr")
    files = sum(mount.run(["ls", "-l", mount.path / way]).stdout.count("\n") - 1 for way in WAYS)
    assert files == len(WAYS) * len(SIZES)
    assert _count(mount, "getxattr") - before <= 3 * len(WAYS)
    path = f"{mount.path}/executable"
    for name in ("security.selinux", "system.posix_acl_access", "system.posix_acl_default"):
        assert mount.error("getxattr", path, name) == "ENOTSUP", name
    assert mount.error("getxattr", path, "user.nothing") == "ENODATA"


def _count(mount: Mount, handler: str) -> int:
    """How many requests of a kind have reached the handlers."""
    histogram = mount.status()["latency"]["fuse"].get(handler)
    return int(histogram["count"]) if histogram else 0


def test_owner_and_access(mount: Mount) -> None:
    st = mount.do("stat", f"{mount.path}/executable")
    user = 65534 if mount.plain_user else 0
    assert (st["uid"], st["gid"], st["mode"]) == (user, user, 0o100644)
    assert mount.do("stat", f"{mount.path}/deep")["mode"] == 0o040755
    assert mount.do("os.access", f"{mount.path}/executable", os.R_OK)
    assert not mount.do("os.access", f"{mount.path}/executable", os.X_OK)
    assert mount.do("os.access", f"{mount.path}/executable", os.W_OK)
    assert not mount.do("os.access", f"{mount.path}/no-such-file", os.F_OK)


def test_missing_names(mount: Mount) -> None:
    assert mount.error("stat", f"{mount.path}/no-such-file") == "ENOENT"
    assert mount.error("stat", f"{mount.path}/no/such/file") == "ENOENT"
    assert mount.error("stat", f"{mount.path}/executable/below") == "ENOTDIR"
    assert mount.error("list", f"{mount.path}/executable") == "ENOTDIR"
    assert mount.error("file", f"{mount.path}/deep") == "EISDIR"


def test_tree(mount: Mount, s3: FastS3, filled: str) -> None:
    expected = sorted(
        os.path.relpath(os.path.join(directory, name), s3.root / filled).removesuffix(".rclonelink")
        for directory, names, files in os.walk(s3.root / filled)
        for name in [*names, *files]
        if name != ".fast-s3-directory"
    )
    assert mount.do("tree", str(mount.path)) == expected
    found = mount.run(["find", mount.path, "-mindepth", "1", "-printf", "%P %s %y\\n"], check=True).stdout.splitlines()
    assert sorted(line.split(" ")[0] for line in found) == expected
    for line in found:
        path, size, kind = line.split(" ")
        if kind == "f":
            assert int(size) == Path(s3.root / filled / path).stat().st_size


def test_empty_directory(mount: Mount) -> None:
    assert mount.do("list", f"{mount.path}/empty") == []
    listed = mount.run(["ls", "-a", mount.path / "empty"], check=True).stdout.split()
    assert listed == [".", ".."]


def test_dot_entries_lead_where_they_should(mount: Mount) -> None:
    root = mount.do("stat", str(mount.path))["ino"]
    inner = mount.do("stat", f"{mount.path}/deep/er")["ino"]
    assert mount.do("stat", f"{mount.path}/deep/er/.")["ino"] == inner
    assert mount.do("stat", f"{mount.path}/deep/er/../..")["ino"] == root
    listed = mount.run(["ls", "-ai", mount.path / "deep/er"], check=True).stdout.splitlines()
    rows = dict(line.split()[::-1] for line in listed)
    assert int(rows["."]) == inner


def test_read_only_refuses_every_change(s3: FastS3, filled: str) -> None:
    with mounted(f"s3://{filled}", endpoint_url=s3.endpoint, options={"read_only": "true"}) as made:
        assert made.do("statvfs", str(made.path))["flag"] & os.ST_RDONLY
        _assert_refuses_every_change(made)


def _assert_refuses_every_change(mount: Mount) -> None:
    root = str(mount.path)
    file, directory = f"{root}/executable", f"{root}/deep"
    for order in (
        ("create", f"{root}/new"),
        ("open", "it", file, os.O_WRONLY),
        ("open", "it", file, os.O_RDWR),
        ("open", "it", file, os.O_RDONLY | os.O_TRUNC),
        ("open", "it", file, os.O_WRONLY | os.O_APPEND),
        ("os.mkdir", f"{root}/new"),
        ("os.mkfifo", f"{root}/new"),
        ("os.rmdir", f"{root}/empty"),
        ("os.unlink", file),
        ("os.rename", file, f"{root}/new"),
        ("os.rename", directory, f"{root}/new"),
        ("os.link", file, f"{root}/new"),
        ("os.symlink", "target", f"{root}/new"),
        ("os.chmod", file, 0o600),
        ("os.chown", file, os.getuid(), os.getgid()),
        ("os.truncate", file, 0),
        ("os.utime", file, [1, 1]),
        ("setxattr", file),
        ("os.removexattr", file, "user.luxfuse.version"),
    ):
        assert mount.error(*order) == "EROFS", order
    assert mount.read("executable") == digest(b"#!/bin/sh\n")
