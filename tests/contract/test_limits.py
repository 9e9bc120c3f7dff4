"""The table of stores in docs/STORES.md against what each store does: what it cannot do is refused, or done less well."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import luxfuse
from luxfuse.errors import ReadOnlyStore, StoreRejected, VersionChanged
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from tests.support.servers_files import file_servers  # noqa: F401
from tests.support.servers_store import azurite_url, ceph_rgw, hadoop, moto_url, nginx_files, swift  # noqa: F401
from tests.support.store_targets import (  # noqa: F401
    ON_REQUEST,
    TARGETS,
    Target,
    fast_server,
    open_target,
)

PAGE = Path(luxfuse.__file__).parent / "docs/STORES.md"
WORDS = {"metadata", "conditions", "parts", "patches", "one step", "writes"}
META = {"mode": "33188"}
ROWS = {
    "s3": ("S3 and compatible", "Moto"),
    "s3-prefix": ("S3 and compatible", "Moto"),
    "fast": ("S3 and compatible", "nginx"),
    "ceph": ("S3 and compatible", "Ceph"),
    "swift": ("OpenStack Swift", "Swift"),
    "az": ("Azure Blob", "Azurite"),
    "gs": ("Google Cloud Storage", "fake-gcs-server"),
    "http": ("HTTP", "nginx"),
    "local": ("local directory", ""),
    "sftp": ("SFTP", "OpenSSH"),
    "webdav": ("WebDAV", "rclone"),
    "ftp": ("FTP", "pyftpdlib"),
    "hdfs": ("HDFS", "Hadoop 2.7.3"),
    "webhdfs": ("WebHDFS", "Hadoop 2.7.3"),
}
"""The row of the table that a target of the suite stands for, and the server that it runs on."""

UNCONDITIONAL_COPIES = {"s3", "s3-prefix", "ceph"}
"""Moto and Ceph: servers of S3 that know conditions of writes, and none of copies."""

EVERYWHERE = [getattr(name, "values", (name,))[0] for name in TARGETS]
MARKERS = {name.values[0]: name.marks[0].name for name in ON_REQUEST}


def row_of(target: str) -> tuple[str, str]:
    kind = target.partition("-")[2] if target.startswith(("obstore-", "fsspec-")) else target
    return ROWS[kind]


def table() -> dict[str, dict[str, str]]:
    """Return the cells of the table by store and column."""
    lines = [line.strip("| ") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = (re.split(r"\s*\|\s*", line) for line in lines)
    return {row[0]: dict(zip(head, row, strict=False)) for row in rows if len(row) > 3}


def cannot(target: str) -> set[str]:
    return set(filter(None, re.split(r",\s*", table()[row_of(target)[0]]["cannot"].strip("–"))))


def listed() -> list[str]:
    return [name for name in (*EVERYWHERE, *MARKERS) if name not in ("fake", "memory")]


def test_the_table_has_a_row_for_each_store_and_says_where_it_was_tested():
    rows = table()
    assert {row_of(name)[0] for name in listed()} == set(rows)
    for name in listed():
        store, server = row_of(name)
        assert server in rows[store]["tested on"], name
        if (marker := MARKERS.get(name)) is not None:
            assert f"`-m {marker}`" in rows[store]["tested on"], name
        assert cannot(name) <= WORDS


def test_each_word_is_explained():
    explained = set(re.findall(r"^- \*([a-z ]+)\*:", PAGE.read_text(), re.MULTILINE))
    assert explained == WORDS


@pytest.fixture(params=[*(name for name in TARGETS if name not in ("fake", "memory")), *ON_REQUEST])
def named(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def target(request: pytest.FixtureRequest, named: str) -> Iterator[Target]:
    yield from open_target(request, named)


def content(store: UnderStore, key: str) -> bytes:
    info = store.head(key)
    return bytes(store.read(key, 0, info.size, info.version))


@pytest.fixture
def store(target: Target) -> Iterator[UnderStore]:
    driver = target.open()
    yield driver
    driver.close()


def test_a_store_can_what_the_table_does_not_deny_it(named: str, target: Target, store: UnderStore):
    denied = cannot(named)
    if "writes" in denied:
        with pytest.raises(ReadOnlyStore):
            store.put("x", b"one", META)
        assert denied == {"writes"}
        return
    store.put("x", b"one", META)
    assert (store.head("x").metadata in (None, {})) == ("metadata" in denied)
    if "conditions" in denied:
        store.put("x", b"two", META, expect=ABSENT)  # writes all the same, as is documented
    else:
        with pytest.raises(VersionChanged):
            store.put("x", b"two", META, expect=ABSENT)
    assert content(store, "x") == (b"two" if "conditions" in denied else b"one")
    store.put("y", b"old", META)
    unconditional = "conditions" in denied or named.partition("-")[2] in UNCONDITIONAL_COPIES
    if unconditional and named != "obstore-swift":  # whose copies a client of its own makes, which looks before them
        store.copy("x", "y", expect=ABSENT)
        assert content(store, "y") == content(store, "x")
    else:
        with pytest.raises(VersionChanged):
            store.copy("x", "y", expect=ABSENT)
        assert content(store, "y") == b"old"
    if "parts" in denied:
        with pytest.raises(StoreRejected, match="multipart"):
            store.begin_upload("y", META)
        return
    upload, info = store.begin_upload("y", META), store.head("x")
    if "patches" in denied:
        with pytest.raises(StoreRejected):
            store.copy_part("y", upload, 1, "x", info.version, 0, 3)
    else:
        part = store.copy_part("y", upload, 1, "x", info.version, 0, 3)
        store.complete_upload("y", upload, [(1, part)])
        assert store.head("y").size == 3
    store.abort_upload("y", upload)


def test_others_see_the_old_content_or_the_new(named: str, target: Target, store: UnderStore):
    """Where that is not in one step, they see the beginning of the new one at worst."""
    denied = cannot(named)
    if "writes" in denied:
        pytest.skip("is not written to")
    contents = [bytes([65 + number]) * (200_000 + number) for number in range(6)]
    store.put("x", contents[0], {})
    other, seen, done = target.open(), list[bytes](), threading.Event()
    failed: list[Exception] = []

    def look() -> None:
        while not done.is_set() or not seen:
            try:
                info = other.head("x")
                seen.append(bytes(other.read("x", 0, info.size, info.version)))
            except VersionChanged:
                pass
            except Exception as exc:
                failed.append(exc)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for new in contents[1:]:
            store.put("x", new, {})
    finally:
        done.set()
        thread.join(120)
    other.close()
    if "one step" not in denied:
        assert failed == []
        assert [len(found) for found in seen if found not in contents] == []
    else:
        assert all(any(each.startswith(found) for each in contents) for found in seen)
    assert content(store, "x") == contents[-1]
