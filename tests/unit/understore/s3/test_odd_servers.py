"""S3 servers that ignore conditions of copies, give copies another ETag, or answer what nobody expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from luxfuse.errors import NoStore, NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.s3 import direct
from tests.support.odd_s3 import Answer, OddS3, error


@pytest.fixture
def server() -> Iterator[OddS3]:
    with OddS3() as server:
        yield server


@pytest.fixture(params=["obstore", "fsspec", "C"])
def store(request: pytest.FixtureRequest, server: OddS3) -> Iterator[UnderStore]:
    in_c = request.param == "C"
    if in_c and direct._gets is None:
        pytest.skip("built without libcurl")
    driver = open_driver("s3://bucket", endpoint_url=server.endpoint, driver="obstore" if in_c else request.param,
                         request_timeout_s=30.0, direct_gets=8 if in_c else 0,
                         storage_options={"key": "k", "secret": "s"})  # fmt: skip
    yield driver
    driver.close()


@pytest.mark.parametrize("ignores", [False, True])
def test_a_copy_onto_itself_is_made_once_and_its_version_is_ours(store, server, ignores):
    server.ignores_copy_conditions, server.new_etag_on_copy = ignores, True
    version = server.place("x", b"data")
    for mode in ("1", "2"):
        done = store.copy("x", "x", version=version, metadata={"mode": mode}, size=4)
        assert done.version == server.objects["x"].etag != version
        version = done.version
    assert server.objects["x"].headers["x-amz-meta-mode"] == "2"
    with pytest.raises(VersionChanged):
        store.copy("x", "x", version='"other"', metadata={"mode": "3"}, size=4)
    with pytest.raises(VersionChanged):
        store.copy("x", "y", version='"other"', size=4)
    assert "y" not in server.objects
    assert server.objects["x"].etag == version


HTML = {"Content-Type": "text/html; charset=UTF-8"}


def test_an_answer_is_judged_by_what_it_says_and_not_by_its_type(store, server):
    """Swift's to a delete of many is right, and has the type of a page; a page can have no type at all."""
    for key in "abc":
        server.place(key, b"data")
    server.after["delete_many"] = lambda _seen, answer: dataclasses.replace(answer, headers=HTML)
    assert store.delete(["a", "b"]) == {}
    assert list(server.objects) == ["c"]
    server.on["delete_many"] = lambda _seen: Answer(200, b"<html><body><p>Log in</p></body></html>")
    with pytest.raises(NoStore, match="something other than a store"):
        store.delete(["c", "d"])


@pytest.mark.parametrize("changed", [False, True])
def test_a_server_that_refuses_every_condition_of_an_upload_is_found_out(store, server, expected_logs, changed):
    """Swift asks it of objects of its own. Where the object is another one indeed, that is a change like any other."""
    expected_logs.append("no conditional writes")
    refuse = lambda seen: error(412, "PreconditionFailed") if {"if-match", "if-none-match"} & seen.headers.keys() else None  # noqa: E731
    server.on["complete"] = refuse
    version = server.place("x", b"old")
    for key, expect in (("new", ABSENT), ("x", '"another"' if changed else version)):
        upload = store.begin_upload(key, {})
        parts = [(1, store.upload_part(key, upload, 1, b"data"))]
        if changed:
            server.place("new", b"theirs")
            with pytest.raises(VersionChanged):
                store.complete_upload(key, upload, parts, expect=expect)
        else:
            store.complete_upload(key, upload, parts, expect=expect)
            assert server.objects[key].body == b"data"
    assert store.abilities.conditional is changed


def test_a_server_that_refuses_what_is_as_expected_is_found_out(store, server, expected_logs):
    """Ceph 16 compares no versions when it puts: it refuses If-Match with each of them."""
    expected_logs.append("no conditional writes")
    server.on["put"] = lambda seen: error(412, "PreconditionFailed") if "if-match" in seen.headers else None
    version = server.place("x", b"old")
    with pytest.raises(VersionChanged):
        store.put("x", b"new", {}, expect='"another"')
    assert store.abilities.conditional
    assert store.put("x", b"new", {}, expect=version).version == server.objects["x"].etag != version
    assert not store.abilities.conditional
    assert server.objects["x"].body == b"new"


def test_a_conflict_with_others_is_no_server_that_refuses_what_is_as_expected(store, server):
    server.on["put"] = lambda seen: error(409, "OperationAborted") if "if-match" in seen.headers else None
    version = server.place("x", b"old")
    with pytest.raises(StoreError):
        store.put("x", b"new", {}, expect=version)
    assert store.abilities.conditional
    assert server.objects["x"].body == b"old"


def test_an_upload_that_is_gone_at_ceph_is_gone(store, server):
    server.on["complete"] = lambda _seen: error(500, "InternalError", "This multipart completion is already in progress")
    upload = store.begin_upload("x", {})
    parts = [(1, store.upload_part("x", upload, 1, b"data"))]
    with pytest.raises(StoreUnavailable):
        store.complete_upload("x", upload, parts)  # it is there: another one may be completing it
    server.on["list_parts"] = lambda _seen: error(404, "NoSuchKey")
    with pytest.raises(NotFound):
        store.complete_upload("x", upload, parts)
