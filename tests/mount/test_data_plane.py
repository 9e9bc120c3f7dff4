"""The data plane: what the kernel does not read and write by itself is read and written by threads without Python."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import time
from pathlib import Path

import pytest

from luxfuse.steps import DIE_AT, DIE_ONCE
from tests.mount.conftest import new_bucket
from tests.mount.test_keeper import DIED, Program
from tests.support.fast_s3 import FastS3
from tests.support.mounted import ALWAYS, MIB, Mount, Mounts, content, digest, open_paths, put, wait_for

LARGE = 24 * MIB
"""Above the size up to which files are fetched whole, so that a cold open is a copied one."""
pytestmark = pytest.mark.skipif(ALWAYS.get("dataplane") == "off", reason="the data plane is off in all mounts")
PLACES = pytest.mark.parametrize("place", ["root", "plain user"])


def copying(
    mounting: Mounts, request: pytest.FixtureRequest | None, s3: FastS3, bucket: str, place: str, **options: object
) -> Mount:
    """A mount without passthrough."""
    if place == "plain user":
        assert request is not None
        request.getfixturevalue("plain_user")
        return mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, plain_user=True, options=options)
    return mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"passthrough": "off", **options})


def drop_page_cache(mount: Mount) -> None:
    """Have the kernel forget the pages of the mount's files and of the cache's."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    assert mount.mounted


def answered(mount: Mount) -> tuple[int, int, int]:
    """Return (bytes read, reads, writes) that the data plane has answered."""
    status = mount.status()
    return status["reads"]["dataplane_bytes"], status["fuse"]["fast_reads"], status["fuse"]["fast_writes"]


@PLACES
def test_cached_files_are_read_without_python(
    mounting: Mounts, request: pytest.FixtureRequest, s3: FastS3, bucket: str, place: str
) -> None:
    files = {f"file{i}": content(("file", i), 300_000 + i) for i in range(5)}
    for name, data in files.items():
        put(s3, bucket, name, data)
    mount = copying(mounting, request, s3, bucket, place)
    for name, data in files.items():
        assert mount.read(name) == digest(data)
    drop_page_cache(mount)
    before, gets, python = answered(mount), mount.gets(), mount.status()["latency"]["fuse"].get("read", {}).get("count", 0)
    for name, data in files.items():
        assert mount.read(name) == digest(data)
    after, status = answered(mount), mount.status()
    assert status["latency"]["fuse"].get("read", {}).get("count", 0) == python
    assert after[0] - before[0] == sum(map(len, files.values()))
    assert mount.gets() == gets
    assert status["reads"]["dataplane_opens"] >= 2 * len(files)
    assert (status["passthrough"], status["dataplane"]) == (False, True)


@pytest.mark.parametrize("passthrough", ["on", "off"])
def test_a_large_file_that_stays_open_is_read_without_python_once_it_is_whole(
    mounting: Mounts, s3: FastS3, bucket: str, passthrough: str
) -> None:
    data = content("large", LARGE)
    put(s3, bucket, "large", data)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"passthrough": passthrough})
    reader, path = mount.reader(), f"{mount.path}/large"
    reader("open", "it", path)
    assert reader("all", "it") == digest(data)
    wait_for("the file is whole", lambda: mount.do("getxattr", path, "user.luxfuse.state") == "cached")
    drop_page_cache(mount)
    assert reader("pread", "it", 5 * MIB, 4096) == digest(data[5 * MIB :][:4096])  # which lends the file
    before = answered(mount)
    for offset in random.Random(5).sample(range(0, LARGE, 4096), 50):
        assert reader("pread", "it", offset, 4096) == digest(data[offset : offset + 4096])
    assert answered(mount)[0] > before[0]
    reader("map", "mapped", path)
    drop_page_cache(mount)
    assert reader("mapped", "mapped") == digest(data)
    assert answered(mount)[0] >= before[0] + LARGE - 8 * MIB
    assert mount.status()["fuse"]["errors"] == 0


def test_what_is_there_of_a_file_that_is_being_filled_is_read_without_python(
    mounting: Mounts, s3: FastS3, bucket: str
) -> None:
    page = content("page", MIB - 4)
    data = b"".join(number.to_bytes(4, "big") + page for number in range(128))
    put(s3, bucket, "large", data)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"bandwidth-limit": "1MiB"})
    reader, path = mount.reader(), f"{mount.path}/large"
    reader("open", "it", path)
    blocks = iter(range(1, 256))

    def look() -> None:
        """Read what nobody has read yet of nine pages, here and there."""
        block = next(blocks)
        for number in (3, 50, 20, 37, 11, 60, 29, 45, 7):
            offset = number * MIB + block * 4096 - 2048
            assert reader("pread", "it", offset, 4096) == digest(data[offset : offset + 4096])

    def all_by_lanes() -> bool:
        before = answered(mount)[1]
        look()
        return answered(mount)[1] == before + 9

    wait_for("the lanes answer", all_by_lanes)
    assert mount.do("getxattr", path, "user.luxfuse.state") != "cached", "whole files are lent in any case"
    (cached,) = mount.cache_files()
    os.truncate(cached, 20 * MIB)
    look()  # what somebody has cut off is no end of the file
    assert mount.status()["fuse"]["errors"] == 0


def test_a_lent_file_that_is_written_to_or_replaced_shows_the_change(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    data = content("large", LARGE)
    put(s3, bucket, "large", data)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"write-mode": "async-through"})
    reader, path = mount.reader(), f"{mount.path}/large"
    reader("open", "it", path)
    assert reader("all", "it") == digest(data)
    wait_for("the file is whole", lambda: mount.do("getxattr", path, "user.luxfuse.state") == "cached")
    drop_page_cache(mount)
    reader("pread", "it", 0, 4096)
    drop_page_cache(mount)
    reader("pread", "it", MIB, 4096)
    assert answered(mount)[1] > 0
    with (mount.path / "large").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"new" * 1000)
    changed = data[: 3 * MIB] + b"new" * 1000 + data[3 * MIB + 3000 :]
    drop_page_cache(mount)
    assert reader("all", "it") == digest(changed)
    mount.cli("persist", mount.path, check=True)
    drop_page_cache(mount)
    assert reader("all", "it") == digest(changed)
    assert mount.status()["fuse"]["errors"] == 0


@PLACES
def test_new_files_are_written_without_python(
    mounting: Mounts, request: pytest.FixtureRequest, s3: FastS3, bucket: str, place: str
) -> None:
    mount = copying(mounting, request, s3, bucket, place)
    data = content("new", 5 * MIB + 17)
    source = mount.base / "source"
    source.write_bytes(data)
    source.chmod(0o644)
    mount.run(["cp", source, mount.path / "new"], check=True)
    assert answered(mount)[2] > 0
    drop_page_cache(mount)
    assert mount.read("new") == digest(data)
    mount.cli("unmount", mount.path, check=True)
    assert (s3.root / bucket / "new").read_bytes() == data


def waiting_bytes(path: Path) -> int:
    """What of a file the file system has not begun to write to the disk: it has no place there yet (`FS_IOC_FIEMAP`)."""
    most, extent = 1000, struct.Struct("QQQ16xI12x")
    asked = bytearray(struct.pack("QQIIII", 0, 1 << 62, 0, 0, most, 0) + bytes(most * extent.size))
    with path.open("rb") as file:
        fcntl.ioctl(file, 0xC020660B, asked)
    found = struct.unpack_from("I", asked, 20)[0]
    assert found < most
    extents = list(extent.iter_unpack(asked[32 : 32 + found * extent.size]))
    return sum(length for _, _, length, flags in extents if flags & 4)


def test_what_is_written_in_sequence_is_sent_to_the_disk_meanwhile(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    mount = copying(mounting, None, s3, bucket, "root", **{"write-mode": "async-through"})
    native = mount.base / "native"
    native.write_bytes(bytes(LARGE))
    if waiting_bytes(native) < LARGE // 2:
        pytest.skip("this file system does not tell what it keeps in memory, or keeps nothing there")
    with (mount.path / "new").open("wb", buffering=0) as file:
        for number in range(LARGE // MIB):
            file.write(content(number, MIB))
        [staged] = [path for path in mount.cache.glob("*/staging/*") if path.stat().st_size == LARGE]
        wait_for("the disk is written to", lambda: waiting_bytes(staged) <= 8 * MIB)
        if waiting_bytes(native) < LARGE // 2:
            pytest.skip("all files were sent to the disk meanwhile")
        os.fsync(file.fileno())
        assert waiting_bytes(staged) == 0


@PLACES
def test_switched_off_python_answers_all(
    mounting: Mounts, request: pytest.FixtureRequest, s3: FastS3, bucket: str, place: str
) -> None:
    data = content("file", MIB + 1)
    put(s3, bucket, "file", data)
    mount = copying(mounting, request, s3, bucket, place, dataplane="off")
    assert mount.read("file") == digest(data)
    drop_page_cache(mount)
    assert mount.read("file") == digest(data)
    assert answered(mount) == (0, 0, 0)
    status = mount.status()
    assert (status["dataplane"], status["reads"]["dataplane_opens"]) == (False, 0)
    assert "data plane" in mount.cli("status", mount.path, check=True).stdout


def test_damage_does_not_stay_in_the_kernel_after_it_is_mended(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    data = content("file", 300_000)
    put(s3, bucket, "file", data)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"passthrough": "off"})
    mount.expected_logs.append("damaged")
    reader, path = mount.reader(), f"{mount.path}/file"
    reader("open", "it", path)
    reader("pread", "it", 0, 4096)
    drop_page_cache(mount)
    (cached,) = mount.cache_files()
    with cached.open("r+b") as file:
        file.seek(200_000)
        file.write(b"damage" * 100)
    assert reader("all", "it") != digest(data), "as in passthrough, damage while a file is open is not noticed"
    reader("close", "it")
    assert mount.read("file") == digest(data)


def test_an_open_file_of_a_detached_volume_is_stale(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    other = new_bucket(s3)
    data = content("large", LARGE)
    put(s3, other, "large", data)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"passthrough": "off"})
    mount.cli("attach", "--endpoint-url", s3.endpoint, f"s3://{other}", mount.path / "m", check=True)
    reader, path = mount.reader(), f"{mount.path}/m/large"
    reader("open", "it", path)
    assert reader("all", "it") == digest(data)
    wait_for("the file is whole", lambda: mount.do("getxattr", path, "user.luxfuse.state") == "cached")
    for page in (5, 6):
        drop_page_cache(mount)
        reader("pread", "it", page * MIB, 4096)
    assert answered(mount)[1] > 0
    mount.cli("detach", mount.path / "m", "--force", check=True)
    drop_page_cache(mount)
    assert reader.error("pread", "it", 15 * MIB, 4096) == "ESTALE"
    reader("close", "it")
    wait_for("it is closed", lambda: not [path for path in open_paths(mount.pid) if "/objects/" in path])


def asked(mount: Mount) -> int:
    """Return how often the kernel has asked for attributes."""
    return int(mount.status()["latency"]["fuse"].get("getattr", {}).get("count", 0))


@pytest.mark.parametrize("passthrough", ["on", "off"])
def test_reads_of_a_file_that_is_open_for_long_do_not_ask_for_attributes(
    mounting: Mounts, s3: FastS3, bucket: str, passthrough: str
) -> None:
    data = content("large", LARGE)
    put(s3, bucket, "large", data)
    options = {"passthrough": passthrough, "metadata-ttl": "0.2s"}
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options=options)
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/large")
    assert reader("all", "it") == digest(data)
    time.sleep(0.3)
    before = asked(mount)
    began = time.monotonic()
    for offset in random.Random(5).sample(range(0, LARGE, 4096), 50):
        assert reader("pread", "it", offset, 4096) == digest(data[offset : offset + 4096])
    assert asked(mount) - before <= 2 + (time.monotonic() - began)


READ_AGAIN = """
def read_again(f):
    os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(f, 1 << 20, 0)
"""


def test_a_successor_reads_on_where_the_cache_file_is_gone(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    """The daemon is killed twice: after somebody has removed it; and as a written file is about to become one."""
    data = content("cached", 200_000)
    put(s3, bucket, "cached", data)
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint, keeper=True,
        options={"passthrough": "off"}, environment={DIE_AT: "publish.renamed", DIE_ONCE: str(tmp_path / "once")},
        expected_logs=[DIED, "the cache file of 'cached' is gone; fetching it again"],
    )  # fmt: skip
    (mount.base / "data").write_bytes(data)
    program = Program(
        mount,
        f"{READ_AGAIN}\ndata = open(sys.argv[2], 'rb').read()\nf = os.open('cached', os.O_RDONLY)\n"
        "assert read_again(f) == data",
        "assert read_again(f) == data, len(read_again(f))\nassert open('cached', 'rb').read() == data",
        "w = os.open('new', os.O_CREAT | os.O_WRONLY); os.write(w, data); n = os.open('new', os.O_RDONLY); os.close(w)",
        "assert read_again(n) == data, len(read_again(n))\nassert read_again(f) == data",
        arguments=[str(mount.base / "data")],
    )
    program.step()
    (cached,) = mount.cache_files()
    cached.unlink()
    mount.replaced()
    program.step()
    (tmp_path / "once").touch()
    before = mount.pid
    program.step()
    wait_for("the daemon killed itself", lambda: not (tmp_path / "once").exists())
    wait_for("a successor", lambda: mount.serves_as_successor_of(before))
    program.step()
    program.end()
    wait_for("all is stored", lambda: mount.status()["dirty"]["files"] == 0)
    assert mount.read("new") == digest(data)
