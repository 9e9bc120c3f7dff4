"""Writes with obstore alone, as for Google, and for Azure where adlfs is not installed."""

from __future__ import annotations

from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from luxfuse.errors import NotFound, StoreRejected, VersionChanged
from luxfuse.types import ABSENT
from luxfuse.understore.obstore.writes import PATIENT_FROM_BYTES, ObstoreWrites


@pytest.fixture(params=["gs", "az"])
def writes(request: pytest.FixtureRequest) -> ObstoreWrites:
    store = MemoryStore()
    return ObstoreWrites(store, lambda patient, checksums: store, request.param)


def read(writes: ObstoreWrites, key: str) -> tuple[bytes, dict[str, str]]:
    found = obstore.get(writes._store, key)
    return bytes(found.bytes()), {str(name): value for name, value in found.attributes.items()}


@pytest.mark.parametrize("size", [0, 5, PATIENT_FROM_BYTES + 1])
def test_put(writes, size):
    info = writes.put("d/x.txt", memoryview(bytes(size)), {"mode": "1"})
    assert read(writes, "d/x.txt") == (bytes(size), {"mode": "1", "Content-Type": "text/plain"})
    assert (info.size, info.metadata) == (size, {"mode": "1"})
    assert info.version == obstore.head(writes._store, "d/x.txt")["e_tag"]


def test_conditions_are_what_the_abilities_say(writes):
    first = writes.put("x", b"one", {})
    if not writes.abilities.conditional:
        writes.put("x", b"two", {}, expect=ABSENT)
        return
    for expect in (ABSENT, '"other"'):
        with pytest.raises(VersionChanged):
            writes.put("x", b"two", {}, expect=expect)
    second = writes.put("x", b"two", {}, expect=first.version)
    with pytest.raises(VersionChanged):
        writes.put_file("x", __file__, {}, expect=first.version)
    with pytest.raises(VersionChanged):
        writes.copy("x", "x", metadata={}, expect=first.version)
    writes.put_file("x", __file__, {}, expect=second.version)


def test_put_file(writes, tmp_path: Path):
    body = bytes(range(256)) * (80 << 10)
    (tmp_path / "f").write_bytes(body)
    info = writes.put_file("f", str(tmp_path / "f"), {"mode": "1"})
    assert (info.size, read(writes, "f")[0] == body) == (len(body), True)


def test_copy(writes):
    first = writes.put("x.txt", b"data" * 1000, {"mode": "1"})
    writes.copy("x.txt", "y", version=first.version)
    assert read(writes, "y")[0] == b"data" * 1000
    with pytest.raises(VersionChanged):
        writes.copy("x.txt", "z", version='"other"')
    with pytest.raises(NotFound):
        writes.copy("none", "z")
    changed = writes.copy("x.txt", "x.txt", metadata={"mode": "2"})
    assert read(writes, "x.txt") == (b"data" * 1000, {"mode": "2", "Content-Type": "text/plain"})
    assert changed.version == obstore.head(writes._store, "x.txt")["e_tag"]


def test_listing_and_deletes(writes):
    for number in range(30):
        writes.put(f"d/{number % 3}/{number:02}", b"x" * (number % 2), {})
    keys = sorted(info.key for page in writes.list_all("d/") for info in page.objects)
    assert keys == sorted(f"d/{number % 3}/{number:02}" for number in range(30))
    assert writes.delete([*keys[1:], "none"]) == {}
    assert writes.delete(["none"]) == {}
    assert [info.key for page in writes.list_all("") for info in page.objects] == keys[:1]
    assert writes.delete([]) == {}


def test_no_multipart(writes):
    with pytest.raises(StoreRejected):
        writes.begin_upload("x", {})
