"""Mounts of what is not S3."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from pathlib import Path

import pytest

from luxfuse.understore.factory import open_driver
from tests.support.contents import Contents
from tests.support.fast_s3 import FastS3
from tests.support.hadoop import Hadoop
from tests.support.mounted import AWAY, MIB, Mount, Mounts, content, digest, wait_for
from tests.support.servers_files import file_server
from tests.support.servers_store import FileServer, azurite_url, swift  # noqa: F401
from tests.support.store_targets import Target, open_target
from tests.support.writing import Scribe

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


@pytest.mark.parametrize("protocol", ["sftp", "webdav", "ftp"])
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


OBJECT_STORES = ["obstore-az", "fsspec-az", "fsspec-gs", pytest.param("obstore-gs", marks=pytest.mark.slow),
                 pytest.param("obstore-swift", marks=pytest.mark.swift)]  # fmt: skip


@pytest.mark.parametrize("name", OBJECT_STORES)
def test_object_stores(mounting: Mounts, request: pytest.FixtureRequest, name: str) -> None:
    """Read and written through a mount, with another one who writes; what is there at the end is what the store has."""
    for target in open_target(request, name):
        for each, data in FILES.items():
            target.put(each, data)
        options = [f"--storage-option={key}={value}" for key, value in target.options.items()]
        if name != "fsspec-gs":  # which the driver auto is
            options.append(f"--driver={target.driver}")
        mount = mounting(target.source, *options, endpoint_url=target.endpoint)
        assert mount.status()["driver"] == target.driver
        assert mount.do("tree", str(mount.path)) == TREE
        for each, data in FILES.items():
            assert mount.read(each) == digest(data), each
        script = (
            f"cd '{mount.path}'; echo v1 > r; echo v2 > r.t; mv r.t r; cat r; echo more >> top; chmod 600 top; "
            "mkdir -p d/e; echo x > 'd/e/sp ace ü%23+.txt'; ln -s e d/link; cp large copy; printf changed | dd of=copy "
            "bs=1 seek=5 conv=notrunc status=none; mv d f; rm 'a directory/empty'; mkdir -m 750 empty"
        )
        assert mount.run(["sh", "-ec", script], check=True).stdout == "v2\n"
        if name == "obstore-swift":
            mount.expected_logs.append("the store knows no conditional writes")
        else:
            write_as_another_does(mount, target)
        assert mount.unmount().returncode == 0
        store = target.open()
        large = FILES["large"]
        wanted = {"r": b"v2\n", "top": FILES["top"] + b"more\n", "f/e/sp ace ü%23+.txt": b"x\n", "large": large,
                  "copy": large[:5] + b"changed" + large[12:]}  # fmt: skip
        for key, data in wanted.items():
            info = store.head(key)
            assert (info.size, store.read(key, 0, info.size, info.version)) == (len(data), data), key
        keys = {info.key for page in store.list_all("") for info in page.objects}
        assert {"empty/", "f/link.rclonelink", "a directory/with space"} <= keys
        assert not keys & {"r.t", "d/", "d/link.rclonelink", "a directory/empty"}
        assert (store.head("top").metadata or {})["mode"].endswith("600")
        store.close()


def write_as_another_does(mount: Mount, target: Target) -> None:
    """Let two write one file: the later close wins, and the other version is kept aside."""
    mount.expected_logs.append("their version is kept as")
    with contextlib.ExitStack() as stack:
        writer = Scribe(mount)
        stack.callback(writer.end)
        writer("open", "f", f"{mount.path}/both", os.O_CREAT | os.O_WRONLY)
        writer("write", "f", "ours")
        target.put("both", b"theirs")
        writer("close", "f")
    wait_for("their version", lambda: mount.status()["recovered"]["files"] == 1)
    (kept,) = Path(mount.status()["recovered"]["path"]).iterdir()
    assert kept.read_bytes() == b"theirs"


def test_google(mounting: Mounts, request: pytest.FixtureRequest) -> None:
    """Directories are markers, which keep their attributes, as files do."""
    bucket, server = "sources", file_server(request, "gcs")
    made = urllib.request.Request(
        f"{server.url}/storage/v1/b?project=p", json.dumps({"name": bucket}).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(made).close()
    mount = mounting(f"gs://{bucket}", "--storage-option=token=anon", endpoint_url=server.url)
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
        options={"write_mode": "async-through"}, expected_logs=["the daemon died", AWAY],
    )  # fmt: skip
    assert mount.do("list", str(mount.path)) == ["cached", "remote"]
    assert mount.read("cached") == digest(b"cached")
    if how != "a successor":
        assert mount.unmount().returncode == 0
    server.stop()
    with mount.impatient():
        if how == "a successor":
            mount.replaced()
        else:
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
