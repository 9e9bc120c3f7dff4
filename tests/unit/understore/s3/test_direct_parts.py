"""Parts of large objects in C: the same bytes and checksums as elsewhere, and left to obstore wherever something is odd."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any
from unittest.mock import ANY

import pytest

from luxfuse.cache.disk import checksum
from luxfuse.core.vain import VAIN_MOST
from luxfuse.errors import NotFound, StoreUnavailable, VersionChanged
from luxfuse.types import PAGE_BYTES
from luxfuse.understore.factory import open_driver, release_memory
from luxfuse.understore.gets.client import AS_USUAL
from luxfuse.understore.s3 import direct
from luxfuse.understore.s3.direct import DirectGets
from luxfuse.understore.small_files import WantedFile
from tests.support.direct import SECRETS, check_signature, headers_of, opened
from tests.support.odd_gets import MODIFIED_S, OddGets, body_of
from tests.support.odd_s3 import OddS3

pytestmark = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")

SIZE = (2 << 20) + 1000


@pytest.fixture
def server() -> Iterator[OddGets]:
    with OddGets() as odd:
        yield odd


def read(gets: DirectGets, kind: str, start: int, end: int, number: int = 7, size: int = SIZE) -> Any:
    return gets.read(f"{kind}-{number}-{size}", start, end, f'"v{number}"')


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, SIZE), (1 << 20, 2 << 20), (1 << 20, SIZE), (5, 1_500_000), (SIZE - 1, SIZE)]
)
def test_a_part_comes_with_its_checksums_and_its_description(server: OddGets, start: int, end: int) -> None:
    gets = opened("s3://bucket/some/prefix", f"http://{server.host}", SECRETS)
    info, data = read(gets, "meta", start, end)
    expected = body_of(7, SIZE)[start:end]
    assert data == expected
    assert data.readonly
    sums = tuple(checksum(expected[at : at + PAGE_BYTES]) for at in range(0, len(expected), PAGE_BYTES))
    assert data.obj.checksums == sums
    assert memoryview(data).cast("B").obj.checksums == sums
    assert (info.key, info.size, info.version, info.mtime_ns) == (f"meta-7-{SIZE}", SIZE, '"v7"', MODIFIED_S * 10**9)
    assert info.metadata == {"mode": "33188", "me": "you"}
    assert headers_of(server.heads[0])["range"] == f"bytes={start}-{end - 1}"


def test_it_is_signed_as_botocore_signs_it(server: OddGets, monkeypatch: pytest.MonkeyPatch) -> None:
    gets = opened("s3://bucket", f"http://{server.host}/base", {**SECRETS, "region": "eu-west-9", "token": "t/+="})
    read(gets, "good", 1000, 2000)
    check_signature(server.heads[0], server.host, "t/+=", monkeypatch)


@pytest.mark.parametrize(
    "kind",
    ["whole", "less", "chunked", "noetag", "weak", "other", "heads", "giant", "moved", "missing", "shifted", "two-lengths",
     "no-length", "no-date", "empty", "foreign", "garbage"],
)  # fmt: skip
def test_odd_answers_are_left_to_obstore(server: OddGets, kind: str) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    assert read(gets, kind, 100, 200_000) is None
    assert read(gets, "good", 100, 200_000) is not None
    assert not any("127.0.0.1:1" in head for head in server.heads), "the redirect was followed"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("slow", "503"), ("short", "connection broke"), ("cut", "connection broke"), ("silent", "connection broke")],
)
def test_failures_that_are_tried_again_are_told(server: OddGets, kind: str, said: str) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    with pytest.raises(StoreUnavailable, match=said):
        read(gets, kind, 0, SIZE)


def test_a_server_whose_answers_are_of_no_use_is_not_asked_twice_for_ever(server: OddGets) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    for number in range(VAIN_MOST - 1):
        assert read(gets, "whole", 0, 1000, number) is None
        assert read(gets, "missing", 0, 1000) is None  # which says nothing about other parts
    assert read(gets, "good", 0, 1000) is not None
    for number in range(VAIN_MOST):
        assert read(gets, "whole", 0, 1000, number) is None
    asked = len(server.heads)
    assert read(gets, "good", 0, 1000) is None
    assert len(server.heads) == asked


def test_one_odd_object_of_many_parts_leaves_the_others_here(server: OddGets) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    for part in range(VAIN_MOST + 2):
        assert read(gets, "weak", 1000 * part, 1000 * part + 1000) is None
    assert len(server.heads) == VAIN_MOST, "and is not asked twice for ever"
    assert read(gets, "good", 0, 1000) is not None


def test_a_small_file_that_was_left_to_obstore_is_not_tried_here_again(server: OddGets) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    odd, good = (WantedFile(f"{kind}-7-3000", '"v7"', 3000, None, False) for kind in ("chunked", "good"))
    assert gets.fetch([odd, good], bytearray(1))[0] == AS_USUAL._replace(seconds=ANY)
    assert read(gets, "chunked", 0, 3000, size=3000) is None
    assert len(server.heads) == 2
    assert read(gets, "chunked", 0, 3000, size=3000) is None
    assert read(gets, "good", 0, 3000, size=3000) is not None
    assert len(server.heads) == 4, "only once, and only what was left"


@pytest.mark.parametrize("key", ["a//b", "/a", "a/", "a/..", "a\nb"])
def test_odd_keys_versions_and_sizes_are_not_asked_for(server: OddGets, key: str) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    assert gets.read(key, 0, 10, '"v"') is None
    assert gets.read("a", 0, 10, "v") is None
    assert gets.read("a", 5, 5, '"v"') is None
    assert gets.read("a", 0, (8 << 20) + 1, '"v"') is None
    assert not server.heads


def test_memory_is_used_again_but_not_while_somebody_reads_it(server: OddGets) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    _, held = read(gets, "good", 0, 2 << 20)
    part = held[1000:2000]
    del held
    _, other = read(gets, "good", 0, 2 << 20, number=8)
    assert (part, other[:1000]) == (body_of(7, 2000)[1000:], body_of(8, 1000))
    del other
    before = faults()
    _, again = read(gets, "good", 0, 2 << 20, number=9)
    taken = faults() - before
    assert again == body_of(9, 2 << 20)
    assert taken < 256, "it came as fresh pages"
    del again
    release_memory()
    before = faults()
    read(gets, "good", 0, 2 << 20)
    assert faults() - before >= 512 or faults() - before < 64, "neither given back nor in huge pages"
    assert part == body_of(7, 2000)[1000:]


def test_the_driver_reads_in_c_and_leaves_the_rest_to_obstore() -> None:
    with OddS3() as s3:
        body = bytes(range(256)) * 8192
        etag = s3.place("d/f", body, mode="33188")
        driver = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS, direct_gets=4)
        plain = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS)
        told: list[Any] = []
        data = driver.read("d/f", 1 << 20, 2 << 20, etag, on_described=told.append)
        assert plain.read("d/f", 1 << 20, 2 << 20, etag, on_described=told.append) == data == body[1 << 20 :]
        assert told[0] == told[1]
        assert isinstance(data, memoryview)
        assert data.obj.checksums == (checksum(body[1 << 20 :]),)  # type: ignore[attr-defined]
        with pytest.raises(VersionChanged):
            driver.read("d/f", 0, 100, '"other"')
        with pytest.raises(NotFound):
            driver.read("d/none", 0, 100, etag)
        driver.close()
        plain.close()
