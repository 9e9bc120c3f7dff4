"""Mounts of what is not S3."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest

from luxfuse.understore.factory import open_driver
from tests.support.contents import Contents
from tests.support.fast_s3 import FastS3
from tests.support.hadoop import Hadoop
from tests.support.mounted import AWAY, MIB, Mounts, content, digest, wait_for
from tests.support.servers_files import file_server
from tests.support.servers_store import FileServer

FILES = Contents({
    "top": ("top", MIB + 3),
    "a directory/with space": ("space", 5000),
    "a directory/deeper/ünïcödé": ("unicode", 3),
    "a directory/empty": ("", 0),
    "large": ("large", 18 * MIB + 5),
})  # fmt: skip


def write(root: Path) -> None:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


TREE = sorted([*FILES, "a directory", "a directory/deeper"])


def test_local_directory(mounting: Mounts, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "nothing here").mkdir()
    mount = mounting(f"file://{tmp_path}", "--metadata-ttl", "500ms", "--negative-ttl", "500ms")
    assert mount.do("tree", str(mount.path)) == sorted([*TREE, "nothing here"])
    for _ in range(2):
        for name, data in FILES.items():
            assert mount.read(name) == digest(data), name
    assert mount.do("stat", f"{mount.path}/top")["mtime_ns"] == (tmp_path / "top").stat().st_mtime_ns
    fresh = tmp_path / ".fresh"
    fresh.write_bytes(b"changed")
    os.replace(fresh, tmp_path / "top")
    wait_for("the change", lambda: mount.read("top") == digest(b"changed"))
    (tmp_path / "large").unlink()
    wait_for("it is gone", lambda: mount.error("stat", f"{mount.path}/large") == "ENOENT")
    mount.remount()
    assert mount.read("a directory/with space") == digest(FILES["a directory/with space"])
    assert mount.gets() == 0


def test_http(mounting: Mounts, nginx_files: FileServer) -> None:
    root = nginx_files.directory / "sources"
    write(root)
    for directory in (root, *(path for path in root.rglob("*") if path.is_dir())):  # it serves as another user
        directory.chmod(0o755)
    mount = mounting(f"{nginx_files.url}/sources/", "--read-only", "--metadata-ttl", "500ms")
    assert mount.do("tree", str(mount.path)) == TREE
    for _ in range(2):
        for name, data in FILES.items():
            assert mount.read(name) == digest(data), name
    assert mount.error("stat", f"{mount.path}/no such file") == "ENOENT"
    fresh = nginx_files.directory.parent / "fresh"
    fresh.write_bytes(b"changed")
    fresh.replace(root / "top")
    wait_for("the change", lambda: mount.read("top") == digest(b"changed"))


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_s3_by_each_driver(mounting: Mounts, s3: FastS3, bucket: str, fill, driver: str) -> None:
    fill(FILES)
    mount = mounting(f"s3://{bucket}", "--driver", driver, endpoint_url=s3.endpoint)
    assert mount.do("tree", str(mount.path)) == TREE
    for _ in range(2):
        for name, data in FILES.items():
            assert mount.read(name) == digest(data), name
    assert mount.status()["driver"] == driver
    assert mount.status()["understore"]["errors"] == 0


@pytest.mark.parametrize("protocol", ["sftp", "webdav"])
def test_file_servers(mounting: Mounts, request: pytest.FixtureRequest, protocol: str) -> None:
    """Large files, names that look like syntax, a rename over another file, a server that is restarted."""
    server = file_server(request, protocol)
    directory = server.directory / "sources"
    write(directory)
    large, name = content("larger", 30 * MIB), "sp ace ü%23+.txt"
    (directory / "larger").write_bytes(large)
    (directory / name).write_bytes(b"syntax")
    options = [f"--storage-option={key}={value}" for key, value in server.options.items()]
    mount = mounting(f"{server.url.rstrip('/')}{'/' if protocol == 'webdav' else ''}/sources", *options)
    assert mount.do("tree", str(mount.path)) == sorted([*TREE, "larger", name])
    assert mount.read("larger") == digest(large)
    assert mount.read(name) == digest(b"syntax")
    server.restart()
    for each, data in FILES.items():
        assert mount.read(each) == digest(data), each
    script = (
        f"cd '{mount.path}'; echo v1 > r; echo v2 > r.t; mv r.t r; cat r; echo new > '{name}'; mkdir d; echo x > d/x; "
        f"rm '{name}'; rm -r d"
    )
    assert mount.run(["sh", "-ec", script], check=True).stdout == "v2\n"
    assert mount.unmount().returncode == 0
    assert (directory / "r").read_bytes() == b"v2\n"
    assert sorted(path.name for path in directory.iterdir()) == ["a directory", "large", "larger", "r", "top"]


@pytest.mark.hdfs
@pytest.mark.parametrize("protocol", ["hdfs", "webhdfs"])
def test_hdfs(mounting: Mounts, hadoop: Hadoop, protocol: str) -> None:
    """Written by one mount, and read by another one that has nothing of it."""
    directory, large = f"sources-{protocol}", content("large", 18 * MIB + 5)
    top = open_driver(f"{hadoop.url}/")
    top.put(f"{directory}/", b"", {})
    top.close()
    source = f"{hadoop.url if protocol == 'hdfs' else hadoop.web_url}/{directory}"
    mount = mounting(source)
    mount.expected_logs.append("cannot be removed yet")  # of d, into which something is still on its way
    (mount.path / "large").write_bytes(large)
    script = (
        f"cd '{mount.path}'; echo v1 > r; echo v2 > r.t; mv r.t r; cat r; mkdir -p d/e; echo x > 'd/e/sp ace ü#.txt'; "
        "mv d f; echo y >> 'f/e/sp ace ü#.txt'; echo z > gone; rm gone; ! touch a:b"
    )
    assert mount.run(["sh", "-ec", script], check=True).stdout == "v2\n"
    assert mount.unmount().returncode == 0
    other = mounting(source)
    assert other.do("tree", str(other.path)) == ["f", "f/e", "f/e/sp ace ü#.txt", "large", "r"]
    assert other.read("large") == digest(large)
    assert other.read("f/e/sp ace ü#.txt") == digest(b"x\ny\n")
    assert other.gets() > 0
    assert other.status()["understore"]["errors"] == 0


def test_google(mounting: Mounts, request: pytest.FixtureRequest) -> None:
    """Directories are markers, which keep their attributes, as files do."""
    bucket, server = "sources", file_server(request, "gcs")
    made = urllib.request.Request(
        f"{server.url}/storage/v1/b?project=p", json.dumps({"name": bucket}).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(made).close()
    mount = mounting(f"gs://{bucket}", "--driver=fsspec", "--storage-option=token=anon", endpoint_url=server.url)
    script = (
        f"cd '{mount.path}'; mkdir -p d/e; mkdir -m 750 empty; echo one > d/x; echo two > d/e/y; chmod 600 d/x; "
        "ln -s x d/link; mv d moved; cat moved/e/y moved/link; rm moved/e/y; rmdir moved/e"
    )
    assert "two\none\n" in mount.run(["sh", "-ec", script], check=True).stdout
    mount.remount()
    assert mount.do("tree", str(mount.path)) == ["empty", "moved", "moved/link", "moved/x"]
    assert mount.do("stat", f"{mount.path}/moved/x")["mode"] & 0o777 == 0o600
    assert mount.do("stat", f"{mount.path}/empty")["mode"] & 0o777 == 0o750


@pytest.mark.parametrize(("protocol", "how"), [("sftp", "a successor"), ("webdav", "mounted anew")])
def test_a_file_server_that_is_away_ends_no_mount(
    mounting: Mounts, request: pytest.FixtureRequest, protocol: str, how: str
) -> None:
    """Though its driver connects when it is opened."""
    server = file_server(request, protocol)
    directory = server.directory / f"away-{protocol}"
    directory.mkdir()
    for name in ("cached", "remote"):
        (directory / name).write_bytes(name.encode())
    server.restart()  # rclone remembers the names of before
    options = [f"--storage-option={key}={value}" for key, value in server.options.items()]
    mount = mounting(
        f"{server.url.rstrip('/')}{'/' if protocol == 'webdav' else ''}/{directory.name}", *options,
        options={"request_timeout": "4s", "write_mode": "async-through"}, expected_logs=["the daemon died", AWAY],
    )  # fmt: skip
    assert mount.do("list", str(mount.path)) == ["cached", "remote"]
    assert mount.read("cached") == digest(b"cached")
    if how == "a successor":
        server.stop()
        mount.replaced()
    else:
        assert mount.unmount().returncode == 0
        server.stop()
        done = mount.try_mount()
        assert done.returncode == 0, done.stderr
        assert "mounted all the same, with what is known and cached here" in done.stderr
    assert mount.read("cached") == digest(b"cached")
    assert mount.error("file", f"{mount.path}/remote") == "EIO"
    mount.run(["sh", "-c", f"printf new > {mount.path}/new"], check=True)
    server.start()
    wait_for("it is found though nobody asks", lambda: mount.status()["understore"]["state"] == "ok")
    assert mount.read("remote") == digest(b"remote")
    wait_for("all is in the store", lambda: mount.status()["dirty"]["files"] == 0)
    assert (directory / "new").read_bytes() == b"new"
    assert server.options.get("key_filename") or "s3cr3t" not in mount.log()
