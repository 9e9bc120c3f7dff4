"""Writes to directories and other file systems: never half a file, never a temporary name, the right errno."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    QuotaExceeded,
    ReadOnlyStore,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
    VersionChanged,
)
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.local import writes as local_writes
from luxfuse.understore.local.writes import TEMPORARY


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def local(root: Path) -> UnderStore:
    return open_driver(str(root))


def everything(store: UnderStore) -> list[str]:
    return sorted(info.key for page in store.list_all("") for info in page.objects)


def test_readers_see_the_old_file_or_the_new_one(local, root):
    bodies = [bytes([number]) * (1 << 20) for number in (1, 2)]
    local.put("x", bodies[0], {})
    done = threading.Event()
    torn = []

    def read() -> None:
        while not done.is_set():
            if (data := (root / "x").read_bytes()) not in bodies:
                torn.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        local.put("x", bodies[number % 2], {})
    done.set()
    reader.join()
    assert not torn


@pytest.mark.parametrize(("number", "error"), [
    (errno.ENOSPC, StoreFull), (errno.EDQUOT, QuotaExceeded), (errno.EROFS, ReadOnlyStore), (errno.EACCES, AccessDenied),
])  # fmt: skip
def test_failed_write_changes_nothing(local, root, monkeypatch, number, error):
    local.put("x", b"old", {})

    def fail(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    for request in (lambda: local.put("x", b"new", {}), lambda: local.copy("x", "y"),
                    lambda: local.put_file("x", __file__, {})):  # fmt: skip
        with pytest.raises(StoreError) as caught:
            request()
        assert type(caught.value) is error
        assert caught.value.errno == number
    assert os.listdir(root) == ["x"]
    assert (root / "x").read_bytes() == b"old"


def test_temporary_files_are_not_seen_and_go_with_their_directory(local, root):
    local.put("d/x", b"data", {})
    left = root / "d" / f"{TEMPORARY}0123"
    left.write_bytes(b"half")
    assert everything(local) == ["d/", "d/x"]
    assert [info.key for page in local.list_directory("d/") for info in page.objects] == ["d/x"]
    assert local.delete(["d/x"]) == {}
    failures = local.delete(["d/"])  # it may be a write that still runs
    assert failures["d/"].errno == errno.ENOTEMPTY
    old_s = left.stat().st_mtime - local_writes.LEFT_BEHIND_S - 10
    os.utime(left, (old_s, old_s))
    assert local.delete(["d/"]) == {}
    assert os.listdir(root) == []


def test_permissions_of_the_old_file_are_kept(local, root):
    local.put("x", b"old", {})
    (root / "x").chmod(0o640)
    local.put("x", b"new", {})
    assert (root / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("key", "number"), [
    ("file/x", errno.ENOTDIR), ("file/", errno.EEXIST), ("dir", errno.EISDIR), ("n" * 256, errno.ENAMETOOLONG),
    ("nul\0", None), ("../x", None), ("a//b", None), ("", None),
])  # fmt: skip
def test_keys_that_clash(local, root, key, number):
    local.put("file", b"data", {})
    local.put("dir/x", b"data", {})
    with pytest.raises(StoreRejected) as caught:
        local.put(key, b"", {})
    assert number in (None, caught.value.errno)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(root)) == ["dir", "file"]
    assert os.listdir(root / "dir") == ["x"]


def test_links_to_directories_are_not_followed_by_deep_listings(local, root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_bytes(b"data")
    local.put("d/x", b"data", {})
    (root / "d" / "link").symlink_to(tmp_path / "outside")
    (root / "d" / "loop").symlink_to(root)
    assert everything(local) == ["d/", "d/link/", "d/loop/", "d/x"]
    failures = local.delete(["d/link/", "d/x", "d/loop/"])
    assert {key: error.errno for key, error in failures.items()} == {
        "d/link/": errno.ENOTDIR, "d/loop/": errno.ENOTDIR}  # fmt: skip
    assert (tmp_path / "outside" / "precious").exists()


def test_root_that_is_gone_is_not_made_again(local, root):
    root.rmdir()
    for request in (lambda: local.put("x", b"data", {}), lambda: local.put("d/x", b"data", {}),
                    lambda: local.put("d/", b"", {})):  # fmt: skip
        with pytest.raises(BucketMissing):
            request()
    assert not root.exists()


def test_source_that_changes_while_it_is_copied(local, monkeypatch):
    first = local.put("x", b"old", {})
    copy_all = local_writes.copy_all

    def change(source: int, target: int) -> None:
        copy_all(source, target)
        os.utime(source, ns=(1, 1))

    monkeypatch.setattr(local_writes, "copy_all", change)
    with pytest.raises(VersionChanged):
        local.copy("x", "y", version=first.version)
    assert everything(local) == ["x"]


def test_directories_come_and_go_while_files_are_written(local):
    done = threading.Event()

    def prune() -> None:
        while not done.is_set():
            local.delete(["a/b/", "a/"])

    pruner = threading.Thread(target=prune)
    pruner.start()
    try:
        for number in range(200):
            local.put(f"a/b/{number}", b"data", {}, expect=ABSENT)
            local.delete([f"a/b/{number}"])
    finally:
        done.set()
        pruner.join()


@pytest.fixture
def memory() -> UnderStore:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    filesystem.makedirs("/base/root")
    return open_driver("memory://base/root")


def test_other_file_systems_make_directories(memory):
    memory.put("a/b/c", b"data", {})
    memory.put_file("a/d", __file__, {})
    assert everything(memory) == ["a/", "a/b/", "a/b/c", "a/d"]
    with pytest.raises(StoreRejected):
        memory.put("../x", b"data", {})
    with pytest.raises(StoreRejected):
        memory.begin_upload("x", {})
    assert memory.delete(["../../x", "a/b/c"]).keys() == {"../../x"}


def test_copy_where_the_file_system_has_none(memory, monkeypatch):
    memory.put("x", b"data" * 1000, {})

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(memory._fs), "cp_file", refuse)
    info = memory.copy("x", "d/y")
    assert bytes(memory.read("d/y", 0, 4000, info.version)) == b"data" * 1000


def bad_entry(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have directories say an error of what is named "bad"."""

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.is_dir = entry.name, entry.is_dir
            self._entry = entry

        def stat(self) -> os.stat_result:
            if self.name == "bad":
                raise OSError(number, os.strerror(number))
            return self._entry.stat()

    scandir = os.scandir

    @contextlib.contextmanager
    def entries_of(path: str) -> Iterator[Iterator[Entry]]:
        with scandir(path) as entries:
            yield map(Entry, entries)

    monkeypatch.setattr(os, "scandir", entries_of)


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_dead_mount_hides_nothing_beside_it(local, root, monkeypatch, number):
    (root / "bad").mkdir()
    (root / "good").write_bytes(b"data")
    bad_entry(monkeypatch, number)
    (page,) = local.list_directory("")
    assert [info.key for info in page.objects] == ["good"]
    assert page.prefixes == ([] if number == errno.EACCES else ["bad/"])
    local.probe()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOENT, errno.ELOOP])
def test_an_entry_that_cannot_be_looked_at_now_is_not_missing(local, root, monkeypatch, number):
    """Of a network file system, say: the listing would take its file for gone."""
    for name in ("bad", "good"):
        (root / name).write_bytes(b"data")
    bad_entry(monkeypatch, number)
    if number in (errno.EIO, errno.ESTALE):
        with pytest.raises(StoreUnavailable):
            list(local.list_directory(""))
    else:
        assert [info.key for page in local.list_directory("") for info in page.objects] == ["good"]
