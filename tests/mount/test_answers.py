"""Look-ups of names that luxfuse knows and the kernel does not are answered without Python, and never with what was."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, Mount, Mounts, put, wait_for

PLACES = pytest.mark.parametrize("place", ["root", "plain user"])
FILES = 200
STEPS = 25


@pytest.fixture
def make(mounting: Mounts, s3: FastS3, bucket: str, request: pytest.FixtureRequest):
    def mount_it(*flags: str, place: str = "root", **options: object) -> Mount:
        if place == "plain user":
            request.getfixturevalue("plain_user")
        return mounting(
            f"s3://{bucket}", *flags, endpoint_url=s3.endpoint, plain_user=place != "root",
            options={"dataplane": "on", "attributes": "listing", **options},
        )  # fmt: skip

    return mount_it


def forget(mount: Mount) -> None:
    """Have the kernel forget the names of a mount that nobody uses, which it does at a remount."""
    subprocess.run(["mount", "-i", "-o", "remount", mount.path], check=True, timeout=PATIENCE_S)


def lookups(mount: Mount) -> tuple[int, int]:
    """Return how many look-ups the lanes have answered, and how many Python."""
    status = mount.status()
    return status["fuse"]["fast_lookups"], status["latency"]["fuse"].get("lookup", {}).get("count", 0)


@PLACES
def test_names_that_the_kernel_forgot_are_looked_up_without_python(make, s3: FastS3, bucket: str, fill, place: str) -> None:
    fill({f"d/file{i:03}": b"x" * i for i in range(FILES)})
    mount = make(place=place)
    names = mount.do("list", f"{mount.path}/d")
    assert len(names) == FILES
    expected = {name: mount.do("stat", f"{mount.path}/d/{name}") for name in names}
    forget(mount)
    shuffled = random.Random(1).sample(names, FILES)
    for name in shuffled:
        assert mount.do("stat", f"{mount.path}/d/{name}") == expected[name]
    lanes, python = lookups(mount)
    assert python < FILES / 2, "names were offered along with those that were asked for"
    assert lanes > FILES / 2
    forget(mount)
    for name in shuffled:
        assert mount.do("stat", f"{mount.path}/d/{name}") == expected[name]
    assert lookups(mount) == (lanes + FILES + 1, python), "and the directory"


def test_with_the_data_plane_off_python_answers(make, fill) -> None:
    fill({"d/file": b"x"})
    mount = make(dataplane="off")
    for _ in range(3):
        assert mount.do("list", f"{mount.path}/d") == ["file"]
        assert mount.do("stat", f"{mount.path}/d/file")["size"] == 1
        forget(mount)
    assert lookups(mount)[0] == mount.status()["fuse"]["fast_getattrs"] == 0


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
def test_a_change_is_seen_at_once(make, fill, mode: str) -> None:
    """Random changes by another process, each looked at after the kernel forgot all names."""
    fill({f"d/{i}": b"x" * i for i in range(8)})
    mount = make(**{"write-mode": mode})
    rng, root = random.Random(mode), f"{mount.path}/d"
    sizes = {str(i): i for i in range(8)}
    mount.do("list", root)
    other = mount.reader()
    for step in range(STEPS):
        forget(mount)
        for name in sizes:
            mount.do("stat", f"{root}/{name}")
        name, free = rng.choice(list(sizes)), f"new{step}"
        modes: dict[str, int] = {}  # this server keeps none for long
        match rng.randrange(5):
            case 0:
                other("os.chmod", f"{root}/{name}", 0o600 + step % 8)
                modes[name] = 0o600 + step % 8
            case 1 if len(sizes) > 4:
                other("os.unlink", f"{root}/{name}")
                del sizes[name]
            case 2:
                other("os.rename", f"{root}/{name}", f"{root}/{free}")
                sizes[free] = sizes.pop(name)
            case 3:
                other("os.truncate", f"{root}/{name}", 100 + step)
                sizes[name] = 100 + step
            case _:
                other("os.mknod", f"{root}/{free}", 0o100644)
                sizes[free] = 0
                modes[free] = 0o644
        forget(mount)
        assert sorted(mount.do("list", root)) == sorted(sizes)
        for each, size in sizes.items():
            stat = mount.do("stat", f"{root}/{each}")
            assert stat["size"] == size, (step, each)
            assert each not in modes or stat["mode"] & 0o7777 == modes[each], (step, each)
        if name not in sizes:
            assert mount.error("stat", f"{root}/{name}") == "ENOENT"
    assert lookups(mount)[0] > STEPS


def test_a_change_in_the_bucket_is_seen_within_the_time_to_live(make, s3: FastS3, bucket: str, fill) -> None:
    fill({"d/file": b"old"})
    mount = make("--metadata-ttl", "1s", "--negative-ttl", "1s")
    path = f"{mount.path}/d/file"

    def size() -> int:
        forget(mount)
        return int(mount.do("stat", path)["size"])

    mount.do("list", f"{mount.path}/d")
    assert size() == size() == 3
    for length in (10, 20):
        before = lookups(mount)[0]
        wait_for("the lanes answer", lambda before=before: size() and lookups(mount)[0] > before)
        put(s3, bucket, "d/file", b"n" * length)
        wait_for("the new size", lambda length=length: size() == length)


def test_the_attributes_of_a_directory_in_which_files_are_made_are_told_without_python(make, fill) -> None:
    fill({"d/sub/file": b"x"})
    mount = make(**{"write-mode": "async-through"})
    root = f"{mount.path}/d/sub"
    mount.do("list", root)
    changed_ns = 0
    before = mount.status()["fuse"]["fast_getattrs"]
    for number in range(10):
        time.sleep(0.01)  # times are those of the kernel's ticks
        mount.do("os.mkdir", f"{root}/{number}")
        now_ns = mount.do("stat", root)["mtime_ns"]
        assert now_ns > changed_ns
        changed_ns = now_ns
    assert mount.status()["fuse"]["fast_getattrs"] - before >= 5


@PLACES
def test_names_that_are_free_are_looked_up_without_python(make, s3: FastS3, bucket: str, place: str) -> None:
    """Python is asked once, as it knows all names of the directory. What is made, removed or moved is there, or not."""
    # Nothing goes to the store: while that is slow, on a busy machine, Python says what is missing.
    mount = make("--write-mode", "must-cache", "--negative-ttl", "10m", place=place)
    directory = f"{mount.path}/made"
    mount.run(["mkdir", directory], check=True)
    lanes, python = lookups(mount)
    script = f"for i in $(seq {FILES}); do echo $i > {directory}/file$i || exit 1; done"
    mount.run(["sh", "-c", script], check=True)
    lanes, python = (now - before for now, before in zip(lookups(mount), (lanes, python), strict=True))
    assert python <= 5
    assert lanes >= FILES - 5
    script = (
        f"cd {directory} && test ! -e none && mv file1 none && test ! -e file1 && test -e none && rm none file2 && "
        "test ! -e none && test ! -e file2 && mkdir file2 && test -d file2 && ln -s file3 link && test -L link"
    )
    mount.run(["sh", "-c", script], check=True)
    assert len(mount.do("list", directory)) == FILES
