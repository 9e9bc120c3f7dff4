"""``lux://`` without mounts, and which mount a path is in."""

from __future__ import annotations

import itertools
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from luxfuse.control import registry
from luxfuse.control.registry import MountRecord
from luxfuse.fuse.mountpoint import FSTYPE, MountInfo
from luxfuse.lux import LuxFileSystem
from luxfuse.lux.routes import Held, Route, Routes, account_of, place_of
from tests.support.abstract_suites import Suites

ROOT = Path(__file__).parents[3]
_serial = itertools.count()


@pytest.fixture(autouse=True)
def _no_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUXFUSE_STATE_DIR", str(tmp_path / "state"))
    fsspec.register_implementation("lux", LuxFileSystem, clobber=True)


class TestOfAStore(Suites):
    """What is in no mount."""

    @pytest.fixture
    def fs_path(self) -> Iterator[str]:
        name = f"suites{next(_serial)}"
        MemoryFileSystem().mkdir(f"/{name}")
        yield f"memory/{name}"
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


class TestOfADirectory(Suites):
    """Of the local disk, by the protocol ``file``."""

    @pytest.fixture
    def fs_path(self, tmp_path: Path) -> str:
        (tmp_path / "suites").mkdir()
        return f"file{tmp_path}/suites"


def test_names_are_those_of_lux() -> None:
    fs = LuxFileSystem()
    fs.pipe({"lux://memory/b/d/x": b"1", "lux://memory/b/y": b"22"})
    assert sorted(fs.ls("lux://memory/b", detail=False)) == ["memory/b/d", "memory/b/y"]
    assert sorted(fs.find("memory/b")) == ["memory/b/d/x", "memory/b/y"]
    assert fs.glob("memory/b/**/x") == ["memory/b/d/x"]
    assert fs.info("lux://memory/b/y")["name"] == "memory/b/y"
    assert fs.info("lux://memory")["type"] == "directory"
    assert [(path, sorted(files)) for path, _, files in fs.walk("memory/b")] == [("memory/b", ["y"]), ("memory/b/d", ["x"])]
    assert fs.unstrip_protocol("memory/b/y") == "lux://memory/b/y"
    with fsspec.open("lux://memory/b/d/x", "rt") as file:
        assert file.read() == "1"
    assert fs.cat(["memory/b/d/x", "lux://memory/b/y"]) == {"memory/b/d/x": b"1", "memory/b/y": b"22"}
    fs.mv("memory/b/y", "memory/b/z")
    assert pickle.loads(pickle.dumps(fs)).cat("memory/b/z") == b"22"
    for wrong in ("lux://", "lux://memory"):
        with pytest.raises((FileNotFoundError, PermissionError)):
            fs.rm(wrong, recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.open("lux://memory/b/none")
    with pytest.raises(ValueError, match="nosuch"):
        fs.open("lux://nosuch/b/none")
    fs.rm("memory/b", recursive=True)
    assert not fs.exists("memory/b/d/x")


def test_options_are_those_of_the_driver() -> None:
    fs = LuxFileSystem(use_mount=False, endpoint_url="http://nowhere", key="k", secret="s")
    store = fs._store("s3")
    assert (store.endpoint_url, store.key) == ("http://nowhere", "k")


@pytest.mark.parametrize(
    ("url", "hint"),
    [("lux://bucket/x", ""), ("lux://sftpp/host/x", "; did you mean sftp?"), ("lux://s3://bucket/x", "; did you mean s3?")],
)
def test_a_url_without_a_protocol_is_refused_with_the_form_to_write(url: str, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown protocol") as info:
        LuxFileSystem().open(url)
    protocol = url.split("/")[2]
    assert str(info.value) == (
        f"lux://{protocol}/: unknown protocol {protocol!r}{hint}; write lux://PROTOCOL/BUCKET/KEY, such as lux://s3/bucket/key"
    )


def test_an_option_that_the_driver_does_not_know_is_refused_with_the_nearest_one() -> None:
    """As mounts do: s3fs would hand it to a session, or drop it."""
    for wrong, near in (("endpoint", "endpoint_url"), ("use_mounts", "use_mount"), ("secrets", "secret")):
        fs = LuxFileSystem(**{wrong: "hunter2"})
        with pytest.raises(ValueError, match=f"^storage option {wrong}: s3:// does not know it; did you mean {near}\\?$"):
            fs.cat_file("lux://s3/bucket/x")
    known = {"anon": True, "use_listings_cache": False, "profile": None, "client_kwargs": {}, "session": None}
    assert LuxFileSystem(**known)._store("s3").anon is True


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("sftp", {"host_key_policy": "reject", "temppath": "/tmp"}), ("https", {"params": {"token": "x"}}),
        ("az", {"workload_identity_tenant_id": "t", "process_timeout": 1, "require_envvar": True}),
    ],
)  # fmt: skip
def test_options_that_a_driver_takes_though_no_signature_says_so(protocol: str, options: dict[str, object]) -> None:
    pytest.importorskip({"sftp": "paramiko", "https": "aiohttp", "az": "adlfs"}[protocol])
    LuxFileSystem(**options)._check(protocol)


def test_a_wrong_option_is_not_taken_for_a_file_that_is_missing() -> None:
    with pytest.raises(ValueError, match="storage option endpoint"):
        LuxFileSystem(endpoint="http://x").exists("lux://s3/bucket/x")
    assert not LuxFileSystem().exists("lux://memory/none")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/a/b/", ("s3", "bucket/a/b")), ("s3a://bucket", ("s3", "bucket")), ("gcs://b/x", ("gs", "b/x")),
        ("abfs://c@account.dfs.core.windows.net/x", ("az", "c/x")), ("sftp://me@host/dir", ("sftp", "host/dir")),
        ("/data//x/", ("file", "data/x")), ("file:///data", ("file", "data")),
        ("github://org:one@main/x", ("github", "org:one@main/x")),
    ],
)  # fmt: skip
def test_places(url: str, place: tuple[str, str]) -> None:
    assert place_of(url) == place


def path_in(routes: Routes, *place: str) -> str | None:
    """Return the path of a place in a mount."""
    held = routes.hold(*place)
    if held is None:
        return None
    with held:
        return held.path


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory pass for a mountpoint."""
    records: list[MountRecord] = []
    infos: list[MountInfo] = []
    monkeypatch.setattr(registry, "list_mounts", lambda _root: records)
    monkeypatch.setattr("luxfuse.lux.routes.mounts.read_mounts", lambda: infos)

    def mount(name: str, source: str, places: dict[str, str] | None = None, **changes: Any) -> Path:
        path, state = tmp_path / name, tmp_path / f"{name}.state"
        path.mkdir()
        state.mkdir()
        device = path.stat().st_dev
        known = {"mountpoint": str(path), "source": source, "pid": 1, "version": "", "started_at": 0.0, "alive": True}
        records.append(MountRecord(**{**known, "directory": str(state), "places": places or {}, **changes}))
        infos.append(MountInfo(str(path), FSTYPE, source, f"{os.major(device)}:{os.minor(device)}", ()))
        return path

    return mount


def test_a_path_goes_through_the_mount_that_it_is_in(mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner = mounted("outer", "s3://bucket"), mounted("inner", "s3://bucket/deep/er")
    dead = mounted("dead", "s3://gone", alive=False)
    (outer / "a").write_bytes(b"outer")
    (inner / "a").write_bytes(b"inner")
    fs = LuxFileSystem(skip_instance_cache=True)
    assert fs.cat("lux://s3/bucket/a") == b"outer"
    assert fs.cat("lux://s3/bucket/deep/er/a") == b"inner"
    assert fs.in_mount("lux://s3/bucket/deep/era") == f"{outer}/deep/era"
    assert fs.in_mount("lux://s3/bucket") == str(outer)
    assert fs.in_mount("lux://s3/gone/x") is None
    assert not list(dead.iterdir())
    assert fs.ls("s3/bucket", detail=False) == ["s3/bucket/a"]
    fs.pipe("s3/bucket/new/b", b"made")  # as in a store, no directory has to be made
    assert (outer / "new/b").read_bytes() == b"made"
    monkeypatch.setattr(Route, "hold", lambda *_: None)  # it was unmounted since: nothing goes to the disk below
    assert fs.in_mount("lux://s3/bucket/a") is None
    assert LuxFileSystem(use_mount=False).in_mount("lux://s3/bucket/a") is None


def test_a_mount_of_another_place_is_another_bucket(mounted: Callable[..., Path]) -> None:
    path = mounted("minio", "s3://bucket", {"endpoint_url": "https://minio/"})
    for options, expected in (
        ({}, True), ({"endpoint_url": "https://minio"}, True), ({"endpoint_url": "https://other"}, False),
        ({"client_kwargs": {"endpoint_url": "https://other"}}, False), ({"account_name": "x"}, False),
    ):  # fmt: skip
        assert (path_in(Routes(options), "s3", "bucket/a") is not None) == expected, options
    assert path_in(Routes({}), "gs", "bucket/a") is None
    assert path_in(Routes({}), "s3", "bucket/a") == f"{path}/a"


def test_a_key_that_is_no_path_is_asked_of_the_store(mounted: Callable[..., Path]) -> None:
    """As a path it would be another file, of this machine even."""
    path = mounted("m", "s3://bucket/p")
    for key in ("../x", "a/../../../etc/passwd", "a//b", "./a", "a/.", "a/.."):
        assert path_in(Routes({}), "s3", f"bucket/p/{key}") is None, key
    assert path_in(Routes({}), "s3", "bucket/p/a/..b") == f"{path}/a/..b"


def test_a_mount_of_another_account_is_another_container(mounted: Callable[..., Path]) -> None:
    mounted("one", "abfs://c@one.dfs.core.windows.net")
    mounted("two", "az://d", {"account_name": "two"})
    for url, options, expected in (
        ("abfs://c@one.dfs.core.windows.net/x", {}, True), ("abfs://c@two.dfs.core.windows.net/x", {}, False),
        ("az://c/x", {"account_name": "one"}, True), ("az://c/x", {"account_name": "two"}, False),
        ("az://d/x", {"connection_string": "AccountName=two;AccountKey=k=="}, True),
        ("az://d/x", {"connection_string": "AccountName=one;AccountKey=k=="}, False),
        ("abfs://d@one.dfs.core.windows.net/x", {}, False), ("az://d/x", {}, True),
    ):  # fmt: skip
        assert (path_in(Routes(options), *place_of(url), account_of(url)) is not None) == expected, (url, options)


def test_what_an_attached_store_hides_is_not_taken_for_the_mounts_own(mounted: Callable[..., Path]) -> None:
    path = mounted("m", "s3://bucket")
    (path.parent / "m.state/attached.json").write_text(
        '{"format": 1, "attached": [{"path": "x/other", "source": "s3://second/p", "number": 1, '
        '"options": {"endpoint_url": "https://minio", "storage_options": {"key": "k"}}}]}'
    )
    routes = Routes({})
    for place, expected in {
        "bucket/x/other/f": None, "bucket/x/other": None, "bucket/x": None, "bucket/x/otherwise": f"{path}/x/otherwise",
        "second/p/f": f"{path}/x/other/f", "second/q": None,
    }.items():  # fmt: skip
        assert path_in(routes, "s3", place) == expected, place
    assert path_in(Routes({"endpoint_url": "https://else"}), "s3", "second/p/f") is None


def test_a_mount_that_dies_is_gone_around(mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    mounted("m", "memory://bucket")
    MemoryFileSystem().pipe("/bucket/a", b"of the store")
    fs = LuxFileSystem(skip_instance_cache=True)
    alive = [True]

    def dead(*_: object, **__: object) -> None:
        alive[0] = False
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(fs._local, "cat_file", dead)
    hold = Route.hold
    monkeypatch.setattr(Route, "hold", lambda route, path: hold(route, path) if alive[0] else None)
    assert fs.cat_file("memory/bucket/a") == b"of the store"
    MemoryFileSystem.store.clear()


def in_transaction(fs: LuxFileSystem) -> None:
    with fs.transaction, fs.open("memory/bucket/new/a", "wb") as file:
        file.write(b"new")


CHANGES: dict[str, Callable[[LuxFileSystem], object]] = {
    "pipe": lambda fs: fs.pipe_file("memory/bucket/new/a", b"new"),
    "open": lambda fs: fs.open("memory/bucket/new/a", "wb").close(),
    "append": lambda fs: fs.open("memory/bucket/old", "ab").close(),
    "transaction": in_transaction,
    "put": lambda fs: fs.put_file(__file__, "memory/bucket/new/a"),
    "touch": lambda fs: fs.touch("memory/bucket/old"),
    "makedirs": lambda fs: fs.makedirs("memory/bucket/new/a"),
    "mkdir": lambda fs: fs.mkdir("memory/bucket/new"),
    "rmdir": lambda fs: fs.rmdir("memory/bucket/empty"),
    "copy": lambda fs: fs.cp_file("memory/bucket/old", "memory/bucket/new/a"),
    "move": lambda fs: fs.mv("memory/bucket/old", "memory/bucket/new/a"),
    "remove": lambda fs: fs.rm_file("memory/bucket/old"),
    "remove all": lambda fs: fs.rm("memory/bucket/dir", recursive=True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_unmount_just_before_a_change(mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What was begun goes on in the mount, and nothing is done to the disk below the mountpoint."""
    path = mounted("m", "memory://bucket")
    hidden, hold = path.with_name("hidden"), Route.hold

    def fill(directory: Path) -> None:
        (directory / "old").write_bytes(b"old")
        (directory / "dir").mkdir()
        (directory / "dir/x").touch()
        (directory / "empty").mkdir()

    def state(directory: Path) -> dict[str, tuple[bytes, int]]:
        return {str(each.relative_to(directory)): (b"" if each.is_dir() else each.read_bytes(), each.stat().st_mtime_ns)
                for each in directory.rglob("*")}  # fmt: skip

    def unmounted(route: Route, local: str) -> Held | None:
        if hidden.exists():
            return None
        held, looks[:] = hold(route, local), looks[1:]
        if not looks:
            path.rename(hidden)
            path.mkdir()
            fill(path)
            below.update(state(path))
        return held

    below: dict[str, tuple[bytes, int]] = {}
    looks = [1, 2] if name in ("copy", "move") else [1]
    fill(path)
    before = state(path)
    monkeypatch.setattr(Route, "hold", unmounted)
    CHANGES[name](LuxFileSystem(skip_instance_cache=True))
    assert state(path) == below
    assert (state(hidden) != before) == (name not in ("append", "transaction"))
    assert MemoryFileSystem().exists("/bucket/new/a") == (name == "transaction")  # which ends in the store, then
    MemoryFileSystem.store.clear()


def test_files_have_their_own_names(mounted: Callable[..., Path]) -> None:
    """And not those by which they are reached."""
    path = mounted("m", "s3://bucket")
    (path / "a").write_bytes(b"1")
    fs = LuxFileSystem(skip_instance_cache=True)
    with fs.open("s3/bucket/a") as file:
        assert (file.path, file.name) == (f"{path}/a", f"{path}/a")
    assert fs.info("s3/bucket")["type"] == "directory"
    assert not fs.info("s3/bucket")["islink"]
    with fs.transaction:
        with fs.open("s3/bucket/d/b", "wb") as file:
            file.write(b"2")
        assert not (path / "d/b").exists()
    assert fs.cat(["s3/bucket/a", "s3/bucket/d/b"]) == {"s3/bucket/a": b"1", "s3/bucket/d/b": b"2"}
    with pytest.raises(FileNotFoundError, match=re.escape(f"'{path}/none'")):
        fs.cat_file("s3/bucket/none")
    with pytest.raises(FileExistsError, match=re.escape(f"{path}/d")):
        fs.mkdir("s3/bucket/d")
    with pytest.raises(OSError, match=re.escape(str(path))):
        fs.rmdir("s3/bucket")


def test_it_is_registered_and_imports_nothing_heavy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["fsspec.specs"] == {"lux": "luxfuse.lux.LuxFileSystem"}
    program = (
        "import sys, luxfuse.lux\n"
        "heavy = {'trio', 'pyfuse3', 'lmdb', 'obstore', 's3fs', 'botocore', 'aiohttp', 'typer', 'h11', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
