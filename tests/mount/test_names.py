"""Names: odd ones, impossible ones, directories with and without markers, large ones that change, inode numbers."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from luxfuse.core.evidence import SAMPLE
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, digest, put, wait_for

ODD = (
    "with space", " leading", "trailing ", "Ünïcödé ☃ 日本語", "perc%25ent%", "hash#mark", "question?mark", "a+b&c=d;e",
    "back\\slash", "quote'and\"", "[brackets]*", "~tilde", "-dash", ".hidden", "..two", "colon:comma,", "$(date)`x`",
    "tab\there", "n" * 255, "ü" * 127, "<angle>", "{curly}", "CaseA", "casea", "é", "e\u0301",
    "new\nline", "carriage\rreturn",
)  # fmt: skip


@pytest.fixture
def moto(moto_url: str) -> Iterator[Any]:
    client = boto3.client(
        "s3", endpoint_url=moto_url, aws_access_key_id="test", aws_secret_access_key="test-secret",
        region_name="us-east-1", config=Config(retries={"max_attempts": 1}),
    )  # fmt: skip
    yield client
    client.close()


@pytest.fixture
def moto_bucket(moto: Any) -> str:
    name = f"names-{os.getpid()}-{time.time_ns()}"
    moto.create_bucket(Bucket=name)
    return name


def put_all(moto: Any, bucket: str, objects: dict[str, bytes]) -> None:
    for key, data in objects.items():
        moto.put_object(Bucket=bucket, Key=key, Body=data)


def test_odd_names(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    fill({f"{place}{name}": name.encode() for name in ODD for place in ("", "inside the directory/")})
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    # Each is looked up before anything is listed, and read after.
    for name in ODD:
        assert mount.read(f"inside the directory/{name}") == digest(name.encode()), name
    assert sorted(mount.do("list", str(mount.path))) == sorted([*ODD, "inside the directory"])
    for name in ODD:
        assert mount.read(name) == digest(name.encode()), name
    assert mount.status()["names"]["skipped_keys"] == 0


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_odd_names_on_moto(mounting: Mounts, moto_url: str, moto: Any, moto_bucket: str, driver: str) -> None:
    names = [name for name in ODD if name.isprintable()]  # moto takes no control characters
    put_all(moto, moto_bucket, {name: name.encode() for name in names} | {"odd dir é/x": b"x"})
    mount = mounting(f"s3://{moto_bucket}", "--driver", driver, endpoint_url=moto_url)
    listed = mount.do("list", str(mount.path))
    assert sorted(listed) == sorted([*names, "odd dir é"])
    for name in names:
        assert mount.read(name) == digest(name.encode()), name
    assert mount.read("odd dir é/x") == digest(b"x")


def test_keys_that_cannot_be_names(mounting: Mounts, moto_url: str, moto: Any, moto_bucket: str) -> None:
    put_all(moto, moto_bucket, {
        "good": b"good",
        "double//slash": b"1",
        "double/fine": b"fine",
        "/leading": b"1",
        "dots/../up": b"1",
        "dots/./here": b"1",
        "dots/fine": b"fine",
        "long/" + "x" * 256: b"1",
        "long/" + "é" * 128: b"1",
        "long/" + "x" * 255: b"fits",
        "both": b"the file",
        "both/inside": b"inside",
        "marked/": b"",
        "marked/file": b"file",
        "only-marked/": b"",
    })  # fmt: skip
    mount = mounting(f"s3://{moto_bucket}", endpoint_url=moto_url, expected_logs=["skipping key"])
    root = str(mount.path)
    assert sorted(mount.do("list", root)) == ["both", "dots", "double", "good", "long", "marked", "only-marked"]
    assert mount.do("list", f"{root}/double") == ["fine"]
    assert mount.do("list", f"{root}/dots") == ["fine"]
    assert mount.do("list", f"{root}/long") == ["x" * 255]
    assert mount.do("list", f"{root}/both") == ["inside"]
    assert mount.do("list", f"{root}/marked") == ["file"]
    assert mount.do("list", f"{root}/only-marked") == []
    for name, data in {"good": b"good", "double/fine": b"fine", "dots/fine": b"fine", "both/inside": b"inside",
                       "marked/file": b"file", f"long/{'x' * 255}": b"fits"}.items():  # fmt: skip
        assert mount.read(name) == digest(data)
    status = mount.status()
    # /leading and both at the top, one below double, two below dots, two below long.
    assert status["names"]["skipped_keys"] == 7
    assert mount.log().count("skipping key") == 1
    assert status["fuse"]["errors"] == 0
    assert status["state"] == "serving"


def test_marked_and_empty_directories(mounting: Mounts, moto_url: str, moto: Any, moto_bucket: str) -> None:
    put_all(moto, moto_bucket, {"marked/": b"", "a/b/c/": b"", "implied/file": b"x"})
    mount = mounting(f"s3://{moto_bucket}", endpoint_url=moto_url)
    for name in ("marked", "a", "a/b", "a/b/c", "implied"):
        assert mount.do("stat", f"{mount.path}/{name}")["mode"] & 0o170000 == 0o040000, name
    assert mount.do("list", f"{mount.path}/marked") == []
    assert mount.do("list", f"{mount.path}/a/b/c") == []
    assert mount.do("tree", str(mount.path)) == ["a", "a/b", "a/b/c", "implied", "implied/file", "marked"]
    assert mount.run(["ls", "-a", mount.path / "marked"], check=True).stdout.split() == [".", ".."]


def test_a_prefix_as_source(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    fill({"deep/down/file": b"seen", "deep/other": b"not seen", "deep/down2/file": b"not seen"})
    mount = mounting(f"s3://{bucket}/deep/down", endpoint_url=s3.endpoint)
    assert mount.do("tree", str(mount.path)) == ["file"]
    assert mount.read("file") == digest(b"seen")


def test_metadata_shows_in_stat(mounting: Mounts, moto_url: str, moto: Any, moto_bucket: str) -> None:
    metadata = {"mode": "33261", "uid": "1234", "gid": "567", "mtime": "1600000000.5"}
    moto.put_object(Bucket=moto_bucket, Key="file", Body=b"x", Metadata=metadata)
    mount = mounting(f"s3://{moto_bucket}", endpoint_url=moto_url)
    st = mount.do("stat", f"{mount.path}/file")
    assert (st["mode"], st["uid"], st["gid"], st["mtime_ns"]) == (0o100755, 1234, 567, 1_600_000_000_500_000_000)


def test_inode_numbers_are_stable_across_restarts(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    names = [f"dir{i % 3}/file{i}" for i in range(30)] + ["top"]
    fill({name: name.encode() for name in names})
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)

    def numbers() -> dict[str, int]:
        return {path: mount.do("stat", f"{mount.path}/{path}")["ino"] for path in ["", *mount.do("tree", str(mount.path))]}

    before = numbers()
    assert len(set(before.values())) == len(before) == 35
    listed = {name: number for name, number, _ in mount.do("list_slowly", f"{mount.path}/dir0")}
    assert {f"dir0/{name}": number for name, number in listed.items()} == {
        path: number for path, number in before.items() if path.startswith("dir0/")
    }
    mount.remount()
    assert numbers() == before
    mount.close_readers()
    mount.kill()
    assert mount.cli("unmount", mount.path).returncode == 0
    mount.mount()
    assert numbers() == before


def test_a_listing_answers_for_its_entries(mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str, fill) -> None:
    fill({f"dir/file{i:03}": b"x" * i for i in range(200)})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    proxy.reset_counts()
    found = mount.run(["find", mount.path, "-type", "f", "-printf", "%s %P\\n"], check=True).stdout.split("\n")[:-1]
    assert sorted(found) == sorted(f"{i} dir/file{i:03}" for i in range(200))
    assert mount.run(["ls", "-lR", mount.path], check=True).stdout.count("file") == 200
    files = [r for r in proxy.requests if r.method == "HEAD" and not r.path.endswith("/")]  # a marker may be asked for
    assert len(files) <= SAMPLE
    assert len([r for r in proxy.requests if "list-type" in r.query]) <= 4


@pytest.mark.parametrize("count", [5_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_large_directory_lists_completely_while_it_changes(mounting: Mounts, s3: FastS3, bucket: str, count: int) -> None:
    directory = s3.root / bucket / "large"
    directory.mkdir()
    stays = {f"stays-{i:05}" for i in range(count)}
    for name in stays:
        (directory / name).touch()
    mount = mounting(f"s3://{bucket}", "--metadata-ttl", "1s", endpoint_url=s3.endpoint)
    stop = threading.Event()

    def change() -> None:
        serial = 0
        while not stop.is_set():
            put(s3, bucket, f"large/comes-{serial:06}", b"")
            put(s3, bucket, f"large/stays-{serial % count:05}-{serial}", b"")
            if serial >= 10:
                (directory / f"comes-{serial - 10:06}").unlink()
                (directory / f"stays-{(serial - 10) % count:05}-{serial - 10}").unlink()
            serial += 1
            stop.wait(0.002)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        readers = [mount.reader() for _ in range(2)]
        give_up_at = time.monotonic() + 4
        rounds = 0
        while rounds < 3 or time.monotonic() < give_up_at:
            for reader in readers:
                reader.send("list", f"{mount.path}/large")
            for reader in readers:
                listed = reader.take()
                several = [name for name, times in Counter(listed).items() if times > 1]
                assert not several, several[:10]
                assert not stays - set(listed), sorted(stays - set(listed))[:10]
                assert len(listed) < count + 3000
            rounds += 1
    finally:
        stop.set()
        changer.join()
    assert mount.status()["names"]["listings"] >= 3
    expected = sorted(os.listdir(directory))
    wait_for("the listing is the bucket's", lambda: sorted(mount.do("list", f"{mount.path}/large")) == expected)


def test_lookups_while_a_directory_is_listed(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    """Names asked for one by one make the daemon list their directory; neither may hide the other's answers."""
    for round_ in range(6):
        fill({f"dir{round_}/file{i}": b"x" for i in range(12)})
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    readers = [mount.reader() for _ in range(4)]
    for round_ in range(6):
        for i in range(12):
            for reader in readers:
                reader.send("file", f"{mount.path}/dir{round_}/file{i}")
            assert [reader.take() for reader in readers] == [digest(b"x")] * 4
