"""The kernel insists that all opens of an inode have one mode. No order of opens and closes may show as EIO."""

from __future__ import annotations

import itertools
import os
import random
import threading
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import MIB, Mount, Mounts, content, digest, put, stats_of, wait_for

LARGE = 24 * MIB
"""Above the size up to which files are fetched whole, so that a cold open is a copied one."""


@pytest.fixture
def data(fill) -> bytes:
    whole = content("modes", LARGE)
    fill({"large": whole})
    return whole


def evict_everything(mount: Mount, fill) -> None:
    """Read as much as fits into the cache, so that whatever can go goes."""
    before = mount.status()["cache"]["evictions"]
    fill({f"evicting{i}": content(("evicting", i), 8 * MIB) for i in range(5)})
    mount.cli("refresh", mount.path, check=True)
    for i in range(5):
        assert mount.read(f"evicting{i}") == digest(content(("evicting", i), 8 * MIB))
    assert mount.status()["cache"]["evictions"] > before


def staging_files(mount: Mount) -> int:
    """How many staging files have something in them; spare ones are empty."""
    return sum(st.st_size > 0 for st in stats_of(mount.cache.glob("*/staging/*")).values())


def opens(mount: Mount) -> tuple[int, int]:
    """Return how many opens were copied by Python, and how many were not."""
    reads = mount.status()["reads"]
    return reads["copied_opens"], reads["passthrough_opens"] + reads["dataplane_opens"]


ORDERS = list(itertools.permutations(("first", "second", "mapped")))
IN_EVERY_RUN = [ORDERS[0], ORDERS[3], ORDERS[4]]  # each is once the first and once the last


@pytest.mark.parametrize(
    "order",
    [pytest.param(order, id="-".join(order), marks=[] if order in IN_EVERY_RUN else pytest.mark.slow) for order in ORDERS],
)
def test_opens_across_the_change_of_mode(
    mounting: Mounts, s3: FastS3, bucket: str, data: bytes, order: tuple[str, ...]
) -> None:
    """Opened cold (copied), filled, opened again while the first lives, closed in every order."""
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    reader, path = mount.reader(), f"{mount.path}/large"
    reader("open", "first", path)
    assert reader("all", "first") == digest(data)
    wait_for("the file is whole", lambda: mount.do("getxattr", path, "user.luxfuse.state") == "cached")
    reader("open", "second", path)
    assert opens(mount) == (2, 0)  # while a copied open lives, none may be in passthrough
    assert reader("all", "second") == digest(data)
    reader("map", "mapped", path)
    open_ones = ["first", "second", "mapped"]
    for name in order:
        reader("unmap" if name == "mapped" else "close", name)
        open_ones.remove(name)
        for other in open_ones:
            verb, arguments = ("mapped", ()) if other == "mapped" else ("all", ())
            assert reader(verb, other, *arguments) == digest(data)
        assert reader("file", path) == digest(data)
    assert reader("file", path) == digest(data)
    if (status := mount.status())["passthrough"] or status["dataplane"]:
        wait_for("passthrough", lambda: mount.read("large") == digest(data) and opens(mount)[1] > 0)
    assert mount.status()["fuse"]["errors"] == 0


def test_passthrough_stays_while_it_is_open(mounting: Mounts, s3: FastS3, bucket: str, data: bytes, fill) -> None:
    """A file in use is neither evicted nor touched, and every further open joins its mode."""
    mount = mounting(f"s3://{bucket}", "--cache-size", "32MiB", "--eviction-policy", "lru", endpoint_url=s3.endpoint)
    reader, path = mount.reader(), f"{mount.path}/large"
    assert reader("file", path) == digest(data)
    wait_for("the file is whole", lambda: mount.do("getxattr", path, "user.luxfuse.state") == "cached")
    reader("open", "it", path)
    reader("map", "map", path)
    if (status := mount.status())["passthrough"] or status["dataplane"]:
        assert opens(mount)[1] >= 1
    fill({f"filler{i}": content(("filler", i), 3 * MIB) for i in range(8)})
    for i in range(8):
        assert mount.read(f"filler{i}") == digest(content(("filler", i), 3 * MIB))
    assert mount.status()["cache"]["evictions"] > 0
    assert reader("all", "it") == digest(data)
    assert reader("mapped", "map") == digest(data)
    reader("open", "another", path)
    assert reader("all", "another") == digest(data)
    assert mount.disk_bytes() <= 33 * MIB
    for name in ("it", "another"):
        reader("close", name)
    reader("unmap", "map")
    evict_everything(mount, fill)
    assert reader("file", path) == digest(data)
    assert mount.status()["fuse"]["errors"] == 0


def test_eviction_between_opens(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    """The file comes before the others in the listing: what follows the last one would be fetched ahead again."""
    small = content("small", 2 * MIB)
    fill({"a-small": small})
    mount = mounting(f"s3://{bucket}", "--cache-size", "20MiB", "--eviction-policy", "lru", endpoint_url=s3.endpoint)
    for _ in range(3):
        reader = mount.reader()
        reader("open", "it", f"{mount.path}/a-small")
        assert reader("all", "it") == digest(small)
        reader("close", "it")
        evict_everything(mount, fill)
        assert mount.do("getxattr", f"{mount.path}/a-small", "user.luxfuse.cached_bytes") == "0"
    assert mount.read("a-small") == digest(small)


def test_replaced_while_in_passthrough(mounting: Mounts, s3: FastS3, bucket: str, fill) -> None:
    """The old version's handles, the new one's, and eviction of both, all at once."""
    versions = [content(("replaced", i), 4 * MIB) for i in range(5)]
    mount_flags = ("--cache-size", "20MiB", "--eviction-policy", "lru", "--metadata-ttl", "200ms", "--negative-ttl", "0s")
    fill({"file": versions[0]})
    mount = mounting(f"s3://{bucket}", *mount_flags, endpoint_url=s3.endpoint)
    reader, path = mount.reader(), f"{mount.path}/file"
    for i, version in enumerate(versions):
        fill({"file": version})
        wait_for("the new version", lambda version=version: mount.read("file") == digest(version))
        reader("open", str(i), path)
        for j in range(max(0, i - 2), i + 1):
            assert reader("all", str(j)) == digest(versions[j])
        if i >= 2:
            reader("close", str(i - 2))
    evict_everything(mount, fill)
    for i in (3, 4):
        assert reader("all", str(i)) == digest(versions[i])
    assert mount.status()["fuse"]["errors"] == 0


def test_many_openers_while_a_file_becomes_whole(mounting: Mounts, s3: FastS3, bucket: str, data: bytes) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    readers = [mount.reader() for _ in range(6)]
    for _ in range(4):
        for i, reader in enumerate(readers):
            reader.send("file", f"{mount.path}/large", MIB >> (i % 4))
        for reader in readers:
            assert reader.take() == digest(data)
    assert mount.status()["fuse"]["errors"] == 0


@pytest.mark.parametrize("passthrough", ["true", "false"], ids=["passthrough", "copying"])
def test_stress(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, passthrough: str, record_property) -> None:
    """Processes that open, read, map and close at random, over a set larger than the cache, while the bucket changes."""
    seed = int(os.environ.get("LUXFUSE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    print(f"seed: LUXFUSE_TEST_SEED={seed}")
    record_property("seed", seed)
    rng = random.Random(seed)
    seconds = 2.5
    sizes = {f"fixed{i}": rng.choice((100_000, MIB, 3 * MIB + 1, 20 * MIB)) for i in range(8)}
    sizes |= {f"changing{i}": rng.choice((50_000, 2 * MIB + 9, 18 * MIB)) for i in range(4)}
    versions: dict[str, list[bytes]] = {}
    files: dict[str, tuple[int, str]] = {}
    for name, size in sizes.items():
        versions[name] = [content((seed, name, v), size) for v in range(3 if name.startswith("changing") else 1)]
        put(s3, bucket, name, versions[name][0])
        (tmp_path / name).write_bytes(b"".join(versions[name]))
        files[name] = (size, str(tmp_path / name))
    mount = mounting(
        f"s3://{bucket}", "--cache-size", "48MiB", "--metadata-ttl", "300ms", endpoint_url=s3.endpoint,
        options={"passthrough": passthrough},
    )  # fmt: skip
    readers = [mount.reader() for _ in range(4)]
    for i, reader in enumerate(readers):
        reader.send("stress", str(mount.path), files, seconds, seed + i, 11)
    stop = threading.Event()

    def disturb() -> None:
        changes = random.Random(seed)
        while not stop.wait(0.1):
            name = f"changing{changes.randrange(4)}"
            put(s3, bucket, name, changes.choice(versions[name]))
            if changes.random() < 0.1:
                mount.cli("refresh", mount.path)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        results = [reader.take() for reader in readers]
    finally:
        stop.set()
        disturber.join()
    print(results)
    for result in results:
        assert result["problems"] == [], f"seed {seed}"
        assert result["opens"] > 0
        assert result["reads"] > 0
    status = mount.status()
    assert status["fuse"]["errors"] == 0
    assert status["cache"]["checksum_failures"] == 0
    assert mount.disk_bytes() <= 48 * MIB


@pytest.mark.parametrize("passthrough", ["true", "false"], ids=["passthrough", "copying"])
@pytest.mark.parametrize("replaced", [False, True], ids=["unlinked", "replaced"])
def test_what_is_not_uploaded_is_read_after_it_lost_its_name(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, passthrough: str, replaced: bool
) -> None:
    """The staging file, which is all there is of it, stays for its readers, and goes with the last."""
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "must-cache", endpoint_url=s3.endpoint, options={"passthrough": passthrough}
    )
    data, path = content("nameless", 3 * MIB + 5), f"{mount.path}/file"
    (tmp_path / "file").write_bytes(data)
    for name in ("file", "other") if replaced else ("file",):
        mount.run(["cp", tmp_path / "file", mount.path / name], check=True)
    reader = mount.reader()
    reader("open", "it", path)
    if replaced:
        reader("os.rename", f"{mount.path}/other", path)
    else:
        reader("os.unlink", path)
    assert reader("fstat", "it") == [len(data), 0]
    assert reader("all", "it") == digest(data)
    kept = 2 if replaced else 1
    assert staging_files(mount) == kept
    reader("close", "it")
    wait_for("the content is gone", lambda: staging_files(mount) == kept - 1)
