"""Two writers of one object from different places: nothing is lost, and what happens is said."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.mounted import MIB, Mount, Mounts, content, digest, put, wait_for
from tests.support.writing import Scribe

KEPT = "their version is kept as"
FAIL = ("--on-conflict", "fail")
LARGE = 20 * MIB
"""Goes up in parts."""

Scribing = Callable[[Mount], Scribe]


@pytest.fixture
def scribe() -> Iterator[Scribing]:
    """Makes processes that write to a mount."""
    made: list[Scribe] = []

    def make(mount: Mount) -> Scribe:
        made.append(Scribe(mount))
        return made[-1]

    yield make
    for each in made:
        each.end()


def kept(mount: Mount) -> list[Path]:
    """The files in the recovered directory."""

    def found() -> list[Path] | None:
        status = mount.status()["recovered"]
        files = sorted(Path(status["path"]).iterdir()) if Path(status["path"]).exists() else []
        return files if status["files"] == len(files) else None

    while (files := found()) is None:  # it may be on its way; the test has a time limit
        time.sleep(0.05)
    return files


def stored(s3: FastS3, bucket: str, key: str) -> bytes:
    """What the server has."""
    return (s3.root / bucket / key).read_bytes()


@pytest.fixture(params=["passthrough", pytest.param("copying", marks=pytest.mark.slow)])
def options(request: pytest.FixtureRequest) -> dict[str, str]:
    """Of both ways to write."""
    return {"passthrough": "true" if request.param == "passthrough" else "false"}


# -- the later close wins


@pytest.mark.parametrize("size", [6, LARGE])
def test_the_later_close_wins_and_the_other_version_is_kept(
    mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing, options: dict[str, str], size: int
) -> None:
    ours, theirs = content("ours", size), content("theirs", size)
    put(s3, bucket, "file", b"before")
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options=options, expected_logs=[KEPT])
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", os.O_RDWR)
    writer("write", "f", ["ours", size], 0)
    put(s3, bucket, "file", theirs)
    assert writer.error("close", "f") is None
    assert stored(s3, bucket, "file") == ours
    (other,) = kept(mount)
    assert other.read_bytes() == theirs
    assert other.name.startswith("file.")
    assert str(other) in mount.log()
    assert mount.status()["dirty"]["conflicts"] == 1
    assert mount.status()["dirty"]["files"] == 0
    assert mount.read("file") == digest(ours)


def test_created_by_both(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, expected_logs=[KEPT])
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    writer("write", "f", "ours")
    put(s3, bucket, "new", b"theirs")
    writer("close", "f")
    assert stored(s3, bucket, "new") == b"ours"
    assert [path.read_bytes() for path in kept(mount)] == [b"theirs"]


def test_deleted_by_somebody_else_meanwhile(
    mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing, options: dict[str, str]
) -> None:
    put(s3, bucket, "small", b"before")
    put(s3, bucket, "large", content("before", LARGE))
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options=options)
    writer = scribe(mount)
    mount.read("large")
    for name in ("small", "large"):
        writer("open", name, f"{mount.path}/{name}", os.O_RDWR)
        writer("write", name, "after", 0)
        (s3.root / bucket / name).unlink()
    for name in ("small", "large"):
        assert writer.error("close", name) is None
    assert stored(s3, bucket, "small") == b"aftere"
    assert stored(s3, bucket, "large") == b"after" + content("before", LARGE)[5:]
    assert kept(mount) == []
    assert mount.status()["dirty"]["conflicts"] == 0


def test_two_mounts(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    one, other = (
        mounting(f"s3://{bucket}", "--metadata-ttl", "0.1s", endpoint_url=s3.endpoint, expected_logs=[KEPT])
        for _ in range(2)
    )
    first, second = scribe(one), scribe(other)
    assert first.put("file", "before") is None
    for mount, writer, text in ((one, first, "of the one"), (other, second, "of the other")):
        writer("open", "f", f"{mount.path}/file", os.O_WRONLY | os.O_TRUNC)
        writer("write", "f", text)
    first("close", "f")
    second("close", "f")
    assert stored(s3, bucket, "file") == b"of the other"
    assert kept(one) == []
    assert [path.read_bytes() for path in kept(other)] == [b"of the one"]
    for mount in (one, other):
        wait_for("it is seen", lambda mount=mount: mount.read("file") == digest(b"of the other"))


def test_in_the_background(mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing) -> None:
    mount = mounting(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint, expected_logs=[KEPT])
    put(s3, bucket, "file", b"before")
    assert mount.read("file") == digest(b"before")
    proxy.only(is_write)
    proxy.set(hold=True)  # until theirs is there
    assert scribe(mount).put("file", "ours") is None
    put(s3, bucket, "file", b"theirs")
    proxy.clear()
    wait_for("it goes up", lambda: stored(s3, bucket, "file") == b"ours")
    assert [path.read_bytes() for path in kept(mount)] == [b"theirs"]


# -- nobody else wrote it


def is_write(request: Request) -> bool:
    """A request that makes an object."""
    return request.method == "PUT" and "partNumber" not in request.query


def is_complete(request: Request) -> bool:
    """A request that ends an upload in parts."""
    return request.method == "POST" and "uploadId" in request.query


@pytest.mark.parametrize(
    ("size", "lost", "existing", "flags"),
    [  # each pair of values in every run
        (100_000, is_write, False, ()),
        (100_000, is_write, True, FAIL),
        (LARGE, is_complete, False, FAIL),
        (LARGE, is_complete, True, ()),
        pytest.param(100_000, is_write, False, FAIL, marks=pytest.mark.slow),
        pytest.param(100_000, is_write, True, (), marks=pytest.mark.slow),
        pytest.param(LARGE, is_complete, False, (), marks=pytest.mark.slow),
        pytest.param(LARGE, is_complete, True, FAIL, marks=pytest.mark.slow),
    ],
)
def test_a_lost_answer_is_no_conflict(
    mounting: Mounts,
    proxy: FaultProxy,
    s3: FastS3,
    bucket: str,
    scribe: Scribing,
    size: int,
    lost,
    existing: bool,
    flags: tuple[str, ...],
) -> None:
    if existing:
        put(s3, bucket, "file", b"before")
    mount = mounting(f"s3://{bucket}", *flags, endpoint_url=proxy.endpoint)
    proxy.only(lost)
    proxy.next("truncate")
    assert scribe(mount).put("file", ["ours", size]) is None
    assert proxy.injected() == {"truncate": 1}
    assert stored(s3, bucket, "file") == content("ours", size)
    assert kept(mount) == []
    status = mount.status()["dirty"]
    assert (status["conflicts"], status["files"]) == (0, 0)
    assert mount.read("file") == digest(content("ours", size))


def test_a_lost_answer_to_a_change_of_a_remote_file(
    mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str, scribe: Scribing
) -> None:
    before = content("before", LARGE)
    put(s3, bucket, "file", before)
    mount = mounting(f"s3://{bucket}", "--whole-file-threshold", "1MiB", *FAIL, endpoint_url=proxy.endpoint)
    writer = scribe(mount)
    proxy.only(is_complete)
    proxy.next("truncate")
    writer("open", "f", f"{mount.path}/file", os.O_RDWR)
    writer("write", "f", "changed", 9 * MIB)
    assert writer.error("close", "f") is None
    assert stored(s3, bucket, "file") == before[: 9 * MIB] + b"changed" + before[9 * MIB + 7 :]
    assert kept(mount) == []


def test_equal_content_is_no_conflict(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    mount = mounting(f"s3://{bucket}", *FAIL, endpoint_url=s3.endpoint)
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", os.O_CREAT | os.O_WRONLY)
    writer("write", "f", "the same")
    put(s3, bucket, "file", b"the same")
    assert writer.error("close", "f") is None
    assert kept(mount) == []


# -- --on-conflict fail

OURS = "our version is kept as"


@pytest.mark.parametrize("size", [6, LARGE])
def test_fail_gives_estale_and_keeps_our_version(
    mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing, options: dict[str, str], size: int
) -> None:
    ours = content("ours", size)
    put(s3, bucket, "file", b"before")
    mount = mounting(f"s3://{bucket}", *FAIL, endpoint_url=s3.endpoint, options=options, expected_logs=[OURS])
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", os.O_RDWR)
    writer("write", "f", ["ours", size], 0)
    put(s3, bucket, "file", b"theirs")
    assert writer.error("fsync", "f") == "ESTALE"
    assert writer.error("write", "f", "more", size) is None
    assert writer.error("close", "f") == "ESTALE"
    (path,) = wait_for("it is kept", lambda: kept(mount))
    assert path.read_bytes() == ours + b"more"
    assert str(path) in wait_for("it is said", lambda: mount.log() if OURS in mount.log() else None)
    assert stored(s3, bucket, "file") == b"theirs"
    wait_for("theirs is shown", lambda: mount.read("file") == digest(b"theirs"))
    status = mount.status()
    assert (status["dirty"]["files"], status["dirty"]["conflicts"], status["state"]) == (0, 1, "serving")
    assert writer.put("file", "again") is None  # it is known by now what the store has
    assert stored(s3, bucket, "file") == b"again"
    mount.remount()
    assert len(kept(mount)) == 1


def test_fail_when_created_by_both(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    mount = mounting(f"s3://{bucket}", *FAIL, endpoint_url=s3.endpoint, expected_logs=[OURS])
    writer, reader = scribe(mount), mount.reader()
    writer("open", "f", f"{mount.path}/new", os.O_CREAT | os.O_WRONLY)
    reader("open", "f", f"{mount.path}/new")
    writer("write", "f", "ours")
    put(s3, bucket, "new", b"theirs")
    assert writer.error("close", "f") == "ESTALE"
    assert [path.read_bytes() for path in wait_for("it is kept", lambda: kept(mount))] == [b"ours"]
    assert reader("all", "f") == digest(b"ours")  # who has it open keeps it
    wait_for("theirs is shown", lambda: mount.read("new") == digest(b"theirs"))


def test_fail_when_deleted_by_somebody_else(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    """Nothing is lost by that: our write makes it again."""
    put(s3, bucket, "file", b"before")
    mount = mounting(f"s3://{bucket}", *FAIL, endpoint_url=s3.endpoint)
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", os.O_RDWR)
    writer("write", "f", "ours", 0)
    (s3.root / bucket / "file").unlink()
    assert writer.error("close", "f") is None
    assert stored(s3, bucket, "file") == b"oursre"
    assert kept(mount) == []


def test_fail_in_the_background(mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing) -> None:
    put(s3, bucket, "file", b"before")
    mount = mounting(
        f"s3://{bucket}", *FAIL, "--write-mode", "async-through", endpoint_url=proxy.endpoint, expected_logs=[OURS]
    )
    assert mount.read("file") == digest(b"before")
    proxy.only(is_write)
    proxy.set(hold=True)  # until theirs is there
    assert scribe(mount).put("file", "ours") is None
    put(s3, bucket, "file", b"theirs")
    proxy.clear()
    assert [path.read_bytes() for path in wait_for("it is kept", lambda: kept(mount))] == [b"ours"]
    wait_for("theirs is shown", lambda: mount.read("file") == digest(b"theirs"))
    assert stored(s3, bucket, "file") == b"theirs"


def test_fail_of_a_part_of_a_remote_file(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    """The rest of it is gone with the version that it was of; what was written is kept."""
    put(s3, bucket, "file", content("before", LARGE))
    mount = mounting(
        f"s3://{bucket}", *FAIL, "--whole-file-threshold", "1MiB", endpoint_url=s3.endpoint,
        expected_logs=[OURS, "cannot be fetched any more"],
    )  # fmt: skip
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", os.O_RDWR)
    writer("write", "f", "changed", 9 * MIB)
    put(s3, bucket, "file", content("theirs", LARGE))
    assert writer.error("close", "f") == "ESTALE"
    (path,) = wait_for("it is kept", lambda: kept(mount))
    assert path.read_bytes()[9 * MIB : 9 * MIB + 7] == b"changed"
    wait_for("theirs is shown", lambda: mount.read("file") == digest(content("theirs", LARGE)))
