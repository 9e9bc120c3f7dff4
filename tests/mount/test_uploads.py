"""How content goes up: in parts, early, only what changed, once; what errors of the store become; what is bounded."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.mounted import ALWAYS, MIB, Mount, Mounts, content, digest, put, stats_of, wait_for
from tests.support.versions import other_version
from tests.support.writing import NEW, Scribe

LATER = ["cannot be brought to the under-store yet"]
ASYNC = ("--write-mode", "async-through")
BASE_BYTES = 112 * MIB
"""What the daemon takes without buffers (SEMANTICS, "Limits that hold")."""

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


@pytest.fixture
def client(s3: FastS3) -> Any:
    """A plain S3 client."""
    return boto3.client(
        "s3", endpoint_url=s3.endpoint, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
        region_name=s3.region,
    )  # fmt: skip


def stored(s3: FastS3, bucket: str, key: str) -> bytes | None:
    """What the server has, None if it has nothing."""
    try:
        return (s3.root / bucket / key).read_bytes()
    except FileNotFoundError:
        return None


def uploads(client: Any, bucket: str) -> list[str]:
    """The keys that uploads in parts are open for."""
    return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def is_part(request: Request) -> bool:
    """A part that is sent or copied."""
    return request.method == "PUT" and "partNumber" in request.query


def writes(proxy: FaultProxy) -> list[Request]:
    """The requests that change the bucket, but not the clean-up of them."""
    return [r for r in proxy.requests if r.method in ("PUT", "POST") and "delete" not in r.query]


def is_write(request: Request) -> bool:
    return request.method in ("PUT", "POST")


@pytest.fixture
def mount(mounting: Mounts, proxy: FaultProxy, bucket: str) -> Mount:
    """The bucket behind the proxy, with the defaults (cache-through)."""
    return mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, expected_logs=LATER)


# -- in parts


def test_parts_arrive_while_the_file_is_written(
    mount: Mount, s3: FastS3, client: Any, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["early", 48 * MIB])
    wait_for("parts arrive", lambda: sum(map(is_part, proxy.requests)) >= 4)
    assert uploads(client, bucket) == ["file"]
    assert stored(s3, bucket, "file") is None
    writer("write", "f", "the end", 48 * MIB)
    writer("close", "f")
    assert stored(s3, bucket, "file") == content("early", 48 * MIB) + b"the end"
    assert uploads(client, bucket) == []
    parts = [r.query for r in proxy.requests if is_part(r)]
    assert len(parts) == len(set(parts)) == 7  # none twice
    assert mount.read("file") == digest(content("early", 48 * MIB) + b"the end")


def test_a_part_that_changes_after_it_went_up_is_sent_again(
    mount: Mount, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["early", 40 * MIB])
    wait_for("parts arrive", lambda: sum(map(is_part, proxy.requests)) >= 4)
    time.sleep(0.2)
    writer("write", "f", "changed", 3 * MIB + 5)
    writer("close", "f")
    whole = bytearray(content("early", 40 * MIB))
    whole[3 * MIB + 5 : 3 * MIB + 12] = b"changed"
    assert stored(s3, bucket, "file") == bytes(whole)
    numbers = [r.query for r in proxy.requests if is_part(r)]
    assert len(numbers) - len(set(numbers)) == 1  # the first part, and no other


def test_a_file_that_got_its_size_first_goes_up_once(
    mount: Mount, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("truncate", "f", 64 * MIB)
    wait_for("an upload begins", lambda: any(r.method == "POST" for r in proxy.requests))
    time.sleep(0.3)
    writer("write", "f", ["early", 64 * MIB])
    writer("close", "f")
    assert stored(s3, bucket, "file") == content("early", 64 * MIB)
    parts = [r.query for r in proxy.requests if is_part(r)]
    assert len(parts) == len(set(parts)) == 8


def test_a_file_that_shrinks_after_parts_went_up(
    mount: Mount, s3: FastS3, client: Any, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["early", 40 * MIB])
    wait_for("parts arrive", lambda: sum(map(is_part, proxy.requests)) >= 3)
    writer("truncate", "f", 9 * MIB)
    writer("close", "f")
    assert stored(s3, bucket, "file") == content("early", 40 * MIB)[: 9 * MIB]
    assert uploads(client, bucket) == []


def test_parts_go_up_in_parallel(mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    proxy.only(is_part)
    proxy.set(hold=True)
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["parallel", 30 * MIB])
    writer.send("close", "f")
    wait_for("all parts wait for their answers", lambda: len({r.query for r in proxy.requests if is_part(r)}) == 4)
    proxy.clear()
    writer.take()
    assert stored(s3, bucket, "file") == content("parallel", 30 * MIB)


# -- abandoned uploads


def test_removing_a_file_while_it_goes_up_aborts_its_upload(
    mount: Mount, client: Any, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["early", 40 * MIB])
    wait_for("parts arrive", lambda: uploads(client, bucket) == ["file"])
    mount.run(["rm", mount.path / "file"], check=True)
    writer("close", "f")
    wait_for("it is aborted", lambda: uploads(client, bucket) == [])
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_what_arrived_of_an_upload_that_fails_is_not_sent_again(
    mount: Mount, s3: FastS3, client: Any, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    proxy.only(lambda request: is_part(request) and "partNumber=2" in request.query)
    proxy.set(error_probability=1.0, error_status=403)
    assert scribe(mount).put("file", ["failing", 24 * MIB]) == "EACCES"
    assert stored(s3, bucket, "file") is None
    wait_for("it is tried again", lambda: mount.status()["dirty"]["failures"] >= 3)
    assert "403" in mount.status()["dirty"]["error"]
    proxy.clear()
    wait_for("it goes up later", lambda: stored(s3, bucket, "file") == content("failing", 24 * MIB))
    wait_for("the server has done with it", lambda: uploads(client, bucket) == [])
    numbers = [number for r in proxy.requests if is_part(r) for number in "123" if f"partNumber={number}" in r.query]
    assert (numbers.count("1"), numbers.count("3")) == (1, 1)


def test_a_restart_aborts_the_uploads_that_a_kill_left(
    mounting: Mounts, client: Any, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing, tmp_path: Path
) -> None:
    """Nobody waits for that, though this luxfuse would for an hour."""
    put(s3, bucket, "other", b"other")
    mount = mounting.make(
        f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"request_timeout": "1h"}, forked=False,
        expected_logs=[*LATER, "was being written when"],
    )  # fmt: skip
    patient = {"vfs/recovery/restart.py": ("\nABORT_DEADLINE_S = 5.0\n", "\nABORT_DEADLINE_S = 3600.0\n")}
    mount.python = other_version(tmp_path / "patient", "9.8.6", patient)
    mount.mount()
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["early", 40 * MIB])
    wait_for("parts arrive", lambda: sum(map(is_part, proxy.requests)) >= 3)
    mount.kill()  # the journal heard of it before any part was sent
    writer.end()
    mount.cli("unmount", mount.path, check=True)
    assert uploads(client, bucket) == ["file"]
    proxy.only(lambda request: request.method == "DELETE")
    proxy.set(hold=True)
    assert mount.try_mount().returncode == 0
    wait_for("it is to be aborted", lambda: any(r.method == "DELETE" for r in proxy.requests))
    assert mount.read("other") == digest(b"other")
    assert scribe(mount).put("new", ["new", 10]) is None
    assert uploads(client, bucket) == ["file"]
    assert mount.status()["understore"]["in_flight"] > 0
    proxy.clear()
    wait_for("it is aborted", lambda: uploads(client, bucket) == [])


# -- only what changed


def test_an_unchanged_file_is_never_uploaded_again(mount: Mount, bucket: str, proxy: FaultProxy, scribe: Scribing) -> None:
    writer = scribe(mount)
    assert writer.put("file", ["same", 100_000]) is None
    assert mount.read("file") == digest(content("same", 100_000))
    proxy.reset_counts()
    for _ in range(2):
        writer("open", "f", f"{mount.path}/file", os.O_RDWR)
        writer("fsync", "f")
        writer("close", "f")
    assert writes(proxy) == []
    mount.run(["touch", mount.path / "file"], check=True)  # attributes: a copy inside the store
    assert {(r.method, r.query) for r in writes(proxy)} == {("PUT", "")}
    assert mount.status()["understore"]["put_bytes"] == 100_000
    mount.remount()
    proxy.reset_counts()
    mount.run(["sh", "-c", f": <> {mount.path}/file"], check=True)
    assert writes(proxy) == []
    assert mount.status()["understore"]["put_bytes"] == 0


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("cached", "append"),
        ("remote", "middle"),
        pytest.param("cached", "middle", marks=pytest.mark.slow),
        pytest.param("remote", "append", marks=pytest.mark.slow),
    ],
)
def test_small_changes_to_a_large_object_send_little(
    mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing, mode: str, change: str
) -> None:
    before = content("large", 100 * MIB)
    put(s3, bucket, "file", before)
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    if mode == "cached":
        mount.read("file")
        # A read is answered when the bytes are there: a moment before they are counted.
        wait_for("the end of fetching", lambda: mount.status()["understore"]["get_bytes"] >= len(before))
    fetched = mount.status()["understore"]["get_bytes"]
    proxy.reset_counts()
    writer = scribe(mount)
    if change == "append":
        writer("open", "f", f"{mount.path}/file", os.O_WRONLY | os.O_APPEND)
        writer("write", "f", ["more", MIB])
        expected = before + content("more", MIB)
    else:
        writer("open", "f", f"{mount.path}/file", os.O_RDWR)
        writer("write", "f", ["change", 4096], 50 * MIB + 100)
        expected = before[: 50 * MIB + 100] + content("change", 4096) + before[50 * MIB + 4196 :]
    writer("close", "f")
    assert stored(s3, bucket, "file") == expected
    status = mount.status()["understore"]
    parts = {r.query for r in proxy.requests if is_part(r)}  # the first copies are tried twice: does it check versions?
    assert status["put_bytes"] == (MIB if change == "append" else 5 * MIB)
    assert len(parts) == (2 if change == "append" else 3)
    # The last page of 5 MiB around the change, or nothing at all.
    assert status["get_bytes"] - fetched <= (0 if mode == "cached" or change == "append" else 5 * MIB)
    assert mount.read("file") == digest(expected)


# -- errors of the store

ERRORS = [
    (403, "AccessDenied", "EACCES"), (403, "QuotaExceeded", "EDQUOT"), (507, "XMinioStorageFull", "ENOSPC"),
    (500, "InternalError", "EIO"), (503, "SlowDown", "EIO"),
]  # fmt: skip
ERRORS_OF_PARTS = [ERRORS[0], ERRORS[3]]
"""In every run: one that is given up at once, and one that is tried again."""


@pytest.mark.parametrize(
    ("status", "code", "error", "size"),
    [
        *((*error, 1000) for error in ERRORS),
        *((*error, 20 * MIB) for error in ERRORS_OF_PARTS),
        *(pytest.param(*each, 20 * MIB, marks=pytest.mark.slow) for each in ERRORS if each not in ERRORS_OF_PARTS),
    ],
)
def test_errors_of_the_store_reach_close_and_the_data_go_up_later(
    mount: Mount,
    s3: FastS3,
    bucket: str,
    proxy: FaultProxy,
    scribe: Scribing,
    status: int,
    code: str,
    error: str,
    size: int,
) -> None:
    writer = scribe(mount)
    writer("open", "f", f"{mount.path}/file", NEW)
    writer("write", "f", ["kept", size])
    proxy.only(is_write)
    proxy.set(error_probability=1.0, error_status=status, error_code=code)
    with mount.impatient():
        assert writer.error("fsync", "f") == error
        assert writer.error("close", "f") == error
    shown = mount.status()
    assert (shown["dirty"]["files"], shown["dirty"]["bytes"], shown["state"]) == (1, size, "degraded")
    assert shown["dirty"]["oldest_s"] > 0
    assert stored(s3, bucket, "file") is None
    assert mount.read("file") == digest(content("kept", size))
    proxy.clear()
    wait_for("it goes up", lambda: stored(s3, bucket, "file") == content("kept", size))
    wait_for("nothing is dirty", lambda: mount.status()["dirty"]["files"] == 0)
    wait_for("it says so", lambda: mount.status()["state"] == "serving")


def test_an_error_of_a_change_without_content_leaves_all_as_it_was(
    mount: Mount, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    assert scribe(mount).put("file", "text") is None
    proxy.only(lambda request: request.method in ("PUT", "POST", "DELETE"))
    proxy.set(error_probability=1.0, error_status=403)
    assert mount.error("os.chmod", f"{mount.path}/file", 0o600) == "EACCES"
    assert mount.error("os.mkdir", f"{mount.path}/directory") == "EACCES"
    assert mount.error("os.symlink", "file", f"{mount.path}/link") == "EACCES"
    assert mount.error("os.unlink", f"{mount.path}/file") == "EACCES"
    assert mount.do("list", str(mount.path)) == ["file"]
    assert mount.do("stat", f"{mount.path}/file")["mode"] == 0o100644
    assert mount.status()["dirty"]["files"] == 0


def test_throttling_backs_off_and_succeeds(
    mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    proxy.only(is_write)
    proxy.set(error_probability=0.4, error_status=503)
    writer = scribe(mount)
    for name, size in (("small", 1000), ("large", 24 * MIB)):
        assert writer.put(name, [name, size]) is None
        assert stored(s3, bucket, name) == content(name, size)
    assert mount.status()["understore"]["retries"] > 0


# -- write modes


def test_must_cache_never_uploads_and_survives(
    mounting: Mounts, client: Any, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    mount = mounting(f"s3://{bucket}", "--write-mode", "must-cache", endpoint_url=proxy.endpoint)
    writer = scribe(mount)
    assert writer.put("file", ["local", 3 * MIB]) is None
    mount.run(["sh", "-c", f"mkdir {mount.path}/dir && ln -s ../file {mount.path}/dir/link && rm -f {mount.path}/no"])
    for _ in range(2):
        assert mount.read("file") == digest(content("local", 3 * MIB))
        assert mount.read("dir/link") == digest(content("local", 3 * MIB))
        assert sorted(mount.do("tree", str(mount.path))) == ["dir", "dir/link", "file"]
        status = mount.status()["dirty"]
        assert (status["files"], status["local_only"]) == (0, 3)
        mount.remount()
    assert writes(proxy) == []
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_through_is_uploaded_and_not_kept(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing) -> None:
    mount = mounting(f"s3://{bucket}", "--write-mode", "through", endpoint_url=s3.endpoint)
    writer = scribe(mount)
    for name, size in (("small", 1000), ("large", 20 * MIB)):
        assert writer.put(name, [name, size]) is None
        assert stored(s3, bucket, name) == content(name, size)
    wait_for("nothing is kept", lambda: mount.status()["tiers"][0]["used_bytes"] == 0)
    wait_for("its files are gone", lambda: mount.cache_files() == [])
    for name, size in (("small", 1000), ("large", 20 * MIB)):
        assert mount.read(name) == digest(content(name, size))


def test_rules_for_paths(mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing, tmp_path: Path) -> None:
    config = tmp_path / "luxfuse.toml"
    config.write_text(
        'write_mode = "async-through"\n'
        '[[path]]\npattern = "scratch/**"\nwrite_mode = "must-cache"\n'
        '[[path]]\npattern = "**/*.ckpt"\nwrite_mode = "through"\n'
    )
    mount = mounting(f"s3://{bucket}", "--config", str(config), endpoint_url=s3.endpoint)
    mount.run(["mkdir", "-p", mount.path / "scratch/deep", mount.path / "out"], check=True)
    writer = scribe(mount)
    for name in ("scratch/deep/a.ckpt", "out/b.ckpt", "out/c"):
        assert writer.put(name, name) is None
    assert stored(s3, bucket, "out/b.ckpt") == b"out/b.ckpt"  # at the close
    wait_for("the rest goes up", lambda: stored(s3, bucket, "out/c") == b"out/c")
    assert mount.unmount().returncode == 0
    below = sorted(path.name for path in (s3.root / bucket / "scratch").rglob("*"))
    assert below == [".fast-s3-directory"]  # the marker of scratch itself, which the rule for what is below leaves out
    mount.mount()
    assert mount.read("scratch/deep/a.ckpt") == digest(b"scratch/deep/a.ckpt")


# -- bounds


def test_memory_is_bounded_while_eight_large_files_go_up(
    mounting: Mounts, s3: FastS3, bucket: str, scribe: Scribing
) -> None:
    limit = 64 * MIB
    mount = mounting(f"s3://{bucket}", *ASYNC, "--memory-limit", "64MiB", endpoint_url=s3.endpoint)
    size, count = 100 * MIB, 8
    for number in range(count):
        mount.run(["sh", "-c", f"head -c {size} /dev/zero | tr '\\0' '{number}' > {mount.path}/file{number}"], check=True)
    largest = 0

    def done() -> bool:
        nonlocal largest
        status = mount.status()
        largest = max(largest, status["memory_bytes"])
        return bool(status["dirty"]["files"] == 0)

    wait_for("all go up", done, pause_s=0.02)
    assert largest <= limit + BASE_BYTES
    for number in range(count):
        path = s3.root / bucket / f"file{number}"
        assert path.stat().st_size == size
        with path.open("rb") as file:
            assert set(file.read(MIB)) == {ord(str(number))}


def test_a_cache_full_of_dirty_data(mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing) -> None:
    """Writers wait, then get ENOSPC; what they wrote before is safe, and goes up when the store is back."""
    mount = mounting(
        f"s3://{bucket}", *ASYNC, "--cache-size", "24MiB", endpoint_url=proxy.endpoint,
        options={"room_timeout": "2s", "passthrough": "false"}, expected_logs=LATER,
    )  # fmt: skip
    writer = scribe(mount)
    proxy.only(is_write)
    proxy.set(error_probability=1.0, error_status=503)
    written = []
    error = None
    for number in range(8):
        began = time.monotonic()
        error = writer.put(f"file{number}", [str(number), 4 * MIB])
        if error is not None:
            assert time.monotonic() - began >= 1.9
            break
        written.append(number)
    assert error == "ENOSPC"
    assert 3 <= len(written) <= 6
    assert mount.status()["dirty"]["bytes"] >= len(written) * 4 * MIB
    for number in written:
        assert mount.read(f"file{number}") == digest(content(number, 4 * MIB))
    proxy.clear()
    for number in written:
        expected = content(number, 4 * MIB)
        wait_for("it goes up", lambda: stored(s3, bucket, f"file{number}") == expected)  # noqa: B023
    wait_for("they are clean", lambda: mount.status()["dirty"]["files"] == mount.status()["dirty"]["open_files"] == 1)
    assert writer.put("after", ["after", 4 * MIB]) is None
    assert mount.status()["tiers"][0]["used_bytes"] <= 24 * MIB


def test_one_file_that_the_data_plane_writes_cannot_outgrow_the_cache(
    mounting: Mounts, bucket: str, proxy: FaultProxy
) -> None:
    mount = mounting(
        f"s3://{bucket}", *ASYNC, "--cache-size", "64MiB", endpoint_url=proxy.endpoint,
        options={"room_timeout": "1s", "passthrough": "off"}, expected_logs=LATER,
    )  # fmt: skip
    proxy.only(is_write)
    proxy.set(error_probability=1.0, error_status=503)
    done = mount.run(["dd", "if=/dev/zero", f"of={mount.path}/file", "bs=1M", "count=80", "status=none"])
    assert "No space left" in done.stderr
    staged = sum(st.st_blocks * 512 for st in stats_of(mount.cache.glob("*/staging/*")).values())
    assert 56 * MIB < staged <= 64 * MIB + 65536, "beside the data, ext4 takes blocks for maps of extents"
    assert (mount.status()["fuse"]["fast_writes"] > 20) == mount.status()["dataplane"]
    mount.run(["rm", mount.path / "file"], check=True)


MAPPED = """
import mmap, os, sys
whole, full = (os.open(path, os.O_RDWR | os.O_CREAT) for path in sys.argv[1:])
os.write(whole, b"a" * (1 << 20))
mapped = mmap.mmap(whole, 1 << 20)
try:
    while True:
        os.write(full, bytes(1 << 20))
except OSError as exc:
    print(exc.strerror)
mapped[:] = b"b" * (1 << 20)
mapped.flush()
"""


@pytest.mark.skipif(ALWAYS.get("dataplane") == "off", reason="Python cannot tell such writes from others")
def test_what_is_changed_in_a_mapped_file_is_kept_where_the_cache_is_full(
    mounting: Mounts, bucket: str, proxy: FaultProxy
) -> None:
    mount = mounting(
        f"s3://{bucket}", *ASYNC, "--cache-size", "32MiB", endpoint_url=proxy.endpoint,
        options={"room_timeout": "0.5s", "passthrough": "off"}, expected_logs=LATER,
    )  # fmt: skip
    proxy.only(is_write)
    proxy.set(error_probability=1.0, error_status=503)
    done = mount.run([sys.executable, "-c", MAPPED, mount.path / "mapped", mount.path / "full"])
    assert (done.stdout, done.stderr) == ("No space left on device\n", "")
    staged = [path for path, st in stats_of(mount.cache.glob("*/staging/*")).items() if st.st_size == MIB]
    assert [path.read_bytes() for path in staged] == [b"b" * MIB]
    mount.run(["rm", mount.path / "mapped", mount.path / "full"], check=True)


def test_a_writer_that_waits_for_room_goes_on_when_there_is_some(
    mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, scribe: Scribing
) -> None:
    mount = mounting(
        f"s3://{bucket}", *ASYNC, "--cache-size", "16MiB", endpoint_url=proxy.endpoint,
        options={"room_timeout": "10m"}, expected_logs=LATER,
    )  # fmt: skip
    proxy.only(is_write)
    proxy.set(error_probability=1.0, error_status=503)
    writer = scribe(mount)
    errors: list[str | None] = []

    def write_all() -> None:
        errors.extend(writer.put(f"file{number}", [str(number), 4 * MIB]) for number in range(8))

    writing = threading.Thread(target=write_all)
    writing.start()
    wait_for("there is little room left", lambda: mount.status()["dirty"]["bytes"] >= 12 * MIB)
    assert writing.is_alive()
    proxy.clear()
    writing.join()
    assert errors == [None] * 8
    for number in range(8):
        expected = content(number, 4 * MIB)
        wait_for("it goes up", lambda: stored(s3, bucket, f"file{number}") == expected)  # noqa: B023
