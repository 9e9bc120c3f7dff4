"""What is asked of the store: each page once, however many readers wait; ahead where that pays, never for nothing."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, Mounts, content, digest, wait_for


def fetched(proxy: FaultProxy, key: str) -> list[tuple[int, int]]:
    """The byte ranges [start, end) asked of one object, sorted."""
    found = []
    for request in proxy.requests:
        if request.method == "GET" and request.path.endswith(f"/{key}") and "list-type" not in request.query:
            assert request.range is not None, "a GET without a range"
            first, last = request.range.removeprefix("bytes=").split("-")
            found.append((int(first), int(last) + 1))
    return sorted(found)


def assert_each_byte_once(proxy: FaultProxy, key: str, size: int) -> None:
    ranges = fetched(proxy, key)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    for (_, end), (start, _) in itertools.pairwise(ranges):
        assert end == start, f"{key}, between {start} and {end}: asked {'twice' if start < end else 'never'}; {ranges}"


SIZES = {"one-page": 100_000, "fetched-whole": 5 * MIB + 3, "streamed": 40 * MIB}
STORES = {"near": (0.0, "true"), "far": (0.05, "true"), "copying": (0.0, "false")}
IN_EVERY_RUN = {("near", size) for size in SIZES} | {("far", "streamed"), ("copying", "streamed")}


@pytest.mark.parametrize(
    ("latency_s", "passthrough", "size"),
    [
        pytest.param(
            *STORES[at], SIZES[size], id=f"{at}-{size}", marks=() if (at, size) in IN_EVERY_RUN else pytest.mark.slow
        )
        for at, size in itertools.product(STORES, SIZES)
    ],
)
def test_concurrent_readers_of_a_cold_file(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, latency_s: float, passthrough: str, size: int
) -> None:
    data = content("once", size)
    fill({"file": data})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"passthrough": passthrough})
    readers = [mount.reader() for _ in range(8)]
    for reader in readers:
        reader("stat", str(mount.path))
    proxy.set(latency_s=latency_s)
    for i, reader in enumerate(readers):
        reader.send("file", f"{mount.path}/file", (64 << 10) << (i % 5))
    assert [reader.take() for reader in readers] == [digest(data)] * len(readers)
    wait_for("all of it is cached", lambda: mount.status()["tiers"][0]["used_bytes"] >= size)
    assert_each_byte_once(proxy, "file", size)
    for reader in readers:
        assert reader("file", f"{mount.path}/file") == digest(data)
    assert_each_byte_once(proxy, "file", size)
    assert mount.status()["reads"]["understore_bytes"] == size


def test_random_reads_fetch_no_more_than_they_touch(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    size = 64 * MIB
    data = content("random", size)
    fill({"file": data})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/file")
    # Far apart, so that neither the kernel nor we may take it for a stream; few, so that the rest is not filled in.
    offsets = [41 * MIB + 5, 3 * MIB + 77, 60 * MIB, 22 * MIB + 4095]
    for offset in offsets:
        assert reader("pread", "it", offset, 4096) == digest(data[offset : offset + 4096])
    asked = sum(end - start for start, end in fetched(proxy, "file"))
    assert asked <= len(offsets) * 2 * MIB, fetched(proxy, "file")


FILES = 60


@pytest.fixture
def names(fill) -> list[str]:
    made = {f"dir/file{i:03}": content(i, 50_000) for i in range(FILES)}
    fill(made)
    return [name.removeprefix("dir/") for name in made]


def test_files_opened_in_listing_order_are_fetched_ahead(
    mounting: Mounts, proxy: FaultProxy, bucket: str, names: list[str]
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    listed = mount.do("list", f"{mount.path}/dir")
    assert listed == names
    expected = [digest(content(i, 50_000)) for i in range(FILES)]
    assert mount.do("file_order", f"{mount.path}/dir", names[:20]) == expected[:20]
    wait_for("files beyond are fetched", lambda: mount.status()["understore"]["gets"] > 25)
    assert mount.status()["cache"]["files_ahead"] > 10
    assert mount.do("file_order", f"{mount.path}/dir", names[20:]) == expected[20:]
    for name in names:
        assert_each_byte_once(proxy, f"dir/{name}", 50_000)
    assert mount.gets() == FILES


def test_latency_hides_behind_files_ahead(mounting: Mounts, proxy: FaultProxy, bucket: str, names: list[str]) -> None:
    """Each file costs a request of 100 ms; in listing order many are under way at once."""
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("list", f"{mount.path}/dir")
    proxy.set(latency_s=0.1)
    assert len(mount.do("file_order", f"{mount.path}/dir", names)) == FILES
    assert proxy.most_delayed >= 4


def test_files_opened_in_random_order_waste_nothing(
    mounting: Mounts, proxy: FaultProxy, bucket: str, names: list[str]
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("list", f"{mount.path}/dir")
    order = names[::2]
    random.Random(5).shuffle(order)
    mount.do("file_order", f"{mount.path}/dir", order)
    asked = {r.path.rpartition("/")[2] for r in proxy.requests if r.method == "GET" and "list-type" not in r.query}
    # Two neighbours may follow each other by chance; an order is not believed for that.
    assert asked == set(order)
    assert mount.gets() == len(order)
    assert mount.status()["cache"]["files_ahead"] == 0


def test_warm_after_restart_without_asking(mounting: Mounts, proxy: FaultProxy, bucket: str, names: list[str]) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    first = mount.do("file_order", f"{mount.path}/dir", names)
    mount.remount()
    proxy.reset_counts()
    assert mount.do("file_order", f"{mount.path}/dir", names) == first
    assert not [r for r in proxy.requests if r.method == "GET" and "list-type" not in r.query]
    assert mount.status()["reads"]["passthrough_opens"] == FILES


def test_no_cache_mode_keeps_nothing(mounting: Mounts, proxy: FaultProxy, bucket: str, names: list[str]) -> None:
    mount = mounting(f"s3://{bucket}", "--read-mode", "no-cache", endpoint_url=proxy.endpoint)
    expected = [digest(content(i, 50_000)) for i in range(FILES)]
    assert mount.do("file_order", f"{mount.path}/dir", names) == expected
    assert mount.cache_files() == []
    assert mount.status()["passthrough"] is False
