"""What is Google's own, by both drivers; obstore, by the XML interface, is used where gcsfs is not installed.

What it reads, it reads from the fake server as it is; the rest is behind a front. The whole contract runs on that, too, by
gcsfs each time, by obstore with `-m slow`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.errors import NotFound, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.gcs import fsspec as gcs_module
from tests.support.ports import free_port
from tests.support.servers_files import Server, make_fake_gcs, serving
from tests.support.strict_google import GoogleBucket, account, strict_google

OPTIONS = {"token": "anon"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(make_fake_gcs(tmp_path_factory.mktemp("gcs"))) as server:
        yield server


@pytest.fixture
def bucket(server: Server) -> Iterator[GoogleBucket]:
    bucket = GoogleBucket(server.url)
    yield bucket
    bucket.close()


@pytest.fixture
def store(server: Server, bucket: GoogleBucket) -> Iterator[UnderStore]:
    driver = open_driver(f"gs://{bucket.name}", endpoint_url=server.url, storage_options=OPTIONS, driver="obstore")
    yield driver
    driver.close()


def test_one_level_is_listed(bucket: GoogleBucket, store: UnderStore):
    for key in ("top", "d/x", "d/y/z", "dd/v"):
        bucket.put(key, key.encode())
    store.probe()
    found = {}
    for prefix in ("", "d/", "d/y/"):
        pages = list(store.list_directory(prefix))
        objects = sorted((info.key, info.size) for page in pages for info in page.objects)
        found[prefix] = (objects, sorted(name for page in pages for name in page.prefixes))
    assert found == {"": ([("top", 3)], ["d/", "dd/"]), "d/": ([("d/x", 3)], ["d/y/"]), "d/y/": ([("d/y/z", 5)], [])}
    assert list(store.list_directory("none/")) == []


def test_ranges_of_one_version_are_read(bucket: GoogleBucket, store: UnderStore):
    bucket.put("sp ace/é%2F+", b"0123456789")
    info = store.head("sp ace/é%2F+")
    assert info.size == 10
    assert info.mtime_ns > 10**18
    for start, end in ((0, 1), (0, 10), (9, 10), (3, 7)):
        assert bytes(store.read(info.key, start, end, info.version)) == b"0123456789"[start:end]
    bucket.put("sp ace/é%2F+", b"new content")
    with pytest.raises(VersionChanged):
        store.read(info.key, 0, 4, info.version)


def test_what_is_not_there(store: UnderStore):
    with pytest.raises(NotFound):
        store.head("none")
    with pytest.raises(NotFound):
        store.read("none", 0, 1, '"v"')
    assert not store.has_prefix("none/")


def test_nobody_answers(bucket: GoogleBucket):
    url = f"http://127.0.0.1:{free_port()}"
    store = open_driver(f"gs://{bucket.name}", endpoint_url=url, storage_options=OPTIONS, driver="obstore")
    with pytest.raises(StoreUnavailable):
        store.head("x")
    store.close()


def test_writes_depend_on_what_is_there(server: Server, tmp_path: Path):
    """Generations are compared, which are asked for with the ETag."""
    with strict_google(server.url) as (url, google):
        bucket = GoogleBucket(url)
        options = {"token": account(tmp_path, url)}
        store = open_driver(f"gs://{bucket.name}", endpoint_url=url, storage_options=options, driver="obstore")
        assert store.abilities.conditional
        first = store.put("x", b"one", {"mode": "1"}, expect=ABSENT)
        with pytest.raises(VersionChanged):
            store.put("x", b"two", {}, expect=ABSENT)
        second = store.put("x", b"two!", {"mode": "2"}, expect=first.version)
        assert (bucket.get("x"), bucket.describe("x")["metadata"]) == (b"two!", {"mode": "2"})
        with pytest.raises(VersionChanged):
            store.put("x", b"three", {}, expect=first.version)
        google.before_writes.append(lambda: bucket.put("x", b"of another"))  # after the look, before the write
        with pytest.raises(VersionChanged):
            store.put("x", b"four", {}, expect=second.version)
        assert bucket.get("x") == b"of another"
        bucket.delete("x")
        with pytest.raises(VersionChanged):
            store.put("x", b"five", {}, expect=second.version)
        store.close()
        bucket.close()


def test_a_large_file_does_not_replace_what_came_meanwhile(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The generation of its beginning is compared again at the end of an upload in pieces."""
    monkeypatch.setattr(gcs_module, "WHOLE_BYTES", 256 << 10)
    (tmp_path / "f").write_bytes(bytes(600 << 10))
    with strict_google(server.url) as (url, google):
        bucket = GoogleBucket(url)
        store = open_driver(f"gs://{bucket.name}", endpoint_url=url, storage_options=OPTIONS)
        assert store.driver == "fsspec"
        first = store.put("x", b"one", {})
        google.before_writes += [int, int, lambda: bucket.put("x", b"of another")]
        with pytest.raises(VersionChanged):
            store.put_file("x", str(tmp_path / "f"), {}, expect=first.version)
        assert bucket.get("x") == b"of another"
        with pytest.raises(VersionChanged):
            store.put_file("x", str(tmp_path / "f"), {}, expect='"etag"')
        store.put_file("x", str(tmp_path / "f"), {}, expect=store.head("x").version)
        assert bucket.get("x") == bytes(600 << 10)
        store.close()
        bucket.close()


def test_what_is_stored_compressed_is_read_as_it_is_stored(bucket: GoogleBucket, store: UnderStore):
    data = gzip.compress(bytes(range(256)) * 40)
    bucket.put("x", data, contentEncoding="gzip")
    info = store.head("x")
    assert info.size == len(data)
    for start, end in ((0, len(data)), (3, 7)):
        assert bytes(store.read("x", start, end, info.version)) == data[start:end]
