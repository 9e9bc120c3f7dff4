"""What directories and web servers have that buckets do not: links, special files, ways out of the root."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from luxfuse.errors import AccessDenied, BucketMissing, NotFound, VersionChanged
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.times import to_ns
from tests.support.servers_store import FileServer, nginx_files  # noqa: F401


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def local(root: Path) -> UnderStore:
    return open_driver(str(root))


@pytest.fixture
def web(nginx_files: FileServer) -> Iterator[tuple[UnderStore, Path]]:  # noqa: F811
    base = nginx_files.directory / uuid.uuid4().hex
    directory = base / "root"
    directory.mkdir(parents=True)
    (base / "outside").write_bytes(b"secret")
    driver = open_driver(f"{nginx_files.url}/{base.name}/root")
    yield driver, directory
    driver.close()
    shutil.rmtree(base)


def names(store: UnderStore, prefix: str = "") -> list[str]:
    pages = list(store.list_directory(prefix))
    return sorted([i.key for p in pages for i in p.objects] + [x for p in pages for x in p.prefixes])


def assert_closed_in(store: UnderStore) -> None:
    for key in ("../outside", "d/../../outside", "./../outside"):
        with pytest.raises(NotFound):
            store.head(key)
        with pytest.raises(NotFound):
            store.read(key, 0, 6, '"v"')
    assert list(store.list_directory("../")) == []
    assert not store.has_prefix("d/../../")


def test_no_way_out_of_a_directory(local, root):
    (root / "d").mkdir()
    assert_closed_in(local)


def test_no_way_out_of_a_web_directory(web):
    store, directory = web
    (directory / "d").mkdir()
    assert_closed_in(store)


def test_no_way_out_of_a_generic_root():
    memory = fsspec.filesystem("memory")
    base = f"/{uuid.uuid4().hex}"
    memory.pipe_file(f"{base}/outside", b"secret")
    memory.pipe_file(f"{base}/root/x", b"x")
    assert_closed_in(open_driver(f"memory:/{base}/root"))


def test_links_are_followed_and_special_files_left_out(local, root):
    (root / "file").write_bytes(b"data")
    (root / "dir").mkdir()
    (root / "link").symlink_to("file")
    (root / "dirlink").symlink_to("dir")
    (root / "dangling").symlink_to("nowhere")
    (root / "circular").symlink_to("circular")
    os.mkfifo(root / "fifo")
    assert names(local) == ["dir/", "dirlink/", "file", "link"]
    for key in ("fifo", "dir", "dangling", "circular"):
        with pytest.raises(NotFound):
            local.head(key)


def test_names_that_are_no_text(local, root):
    Path(os.fsdecode(os.fsencode(root) + b"/b\xff")).write_bytes(b"data")
    (key,) = names(local)
    assert os.fsencode(key) == b"b\xff"
    assert bytes(local.read(key, 0, 4, local.head(key).version)) == b"data"
    with pytest.raises(NotFound):
        local.head("nul\0byte")


def test_in_place_change_is_a_new_version(local, root):
    (root / "x").write_bytes(b"one")
    version = local.head("x").version
    os.utime(root / "x", ns=(1, 1))
    with pytest.raises(VersionChanged):
        local.read("x", 0, 3, version)


def test_unreadable_directory(local, root):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (root / "d").mkdir(mode=0)
    with pytest.raises(AccessDenied):
        list(local.list_directory("d/"))


def test_root_that_is_gone(local, root):
    root.rmdir()
    with pytest.raises(BucketMissing):
        local.probe()


def test_unreadable_web_files_do_not_spoil_the_listing(web):
    store, directory = web
    (directory / "good").write_bytes(b"data")
    (directory / "dangling").symlink_to("nowhere")
    assert names(store) == ["good"]


@pytest.mark.parametrize(
    ("moment", "expected_ns"),
    [
        (0, 0), (1.5, 1_500_000_000), (1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9), ("2023-11-14T22:13:20", 1_700_000_000 * 10**9),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000 * 10**9), ("yesterday", 0), ("", 0), (None, 0),
    ],
)  # fmt: skip
def test_times_of_all_libraries(moment, expected_ns):
    assert to_ns(moment) == expected_ns
