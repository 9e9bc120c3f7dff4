"""Reads of Google's storage by obstore, on the fake server that knows its XML interface. That takes no uploads by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luxfuse.errors import NotFound, StoreUnavailable, VersionChanged
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.ports import free_port
from tests.support.servers_files import Server, make_fake_gcs, serving
from tests.support.strict_google import GoogleBucket

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
