"""S3 servers that ignore conditions of copies, give copies another ETag, or answer what nobody expects."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import pytest

from luxfuse.core.vain import LONGEST_PAUSE_S, PAUSE_S
from luxfuse.errors import NoStore, NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.s3 import direct
from tests.support.odd_s3 import Answer, OddS3, Seen, error


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the clock on by so many seconds."""
    real, ahead_s = time.monotonic, 0.0

    def move(seconds: float) -> None:
        nonlocal ahead_s
        ahead_s += seconds

    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead_s)
    return move


def write(store: UnderStore, name: str, body: bytes, expect: str) -> None:
    if name == "put":
        store.put("x", body, {}, expect=expect)
        return
    upload = store.begin_upload("x", {})
    store.complete_upload("x", upload, [(1, store.upload_part("x", upload, 1, body))], expect=expect)


@pytest.mark.expected_logs("no conditional writes")
@pytest.mark.parametrize("name", ["put", "complete"])
def test_conditions_that_were_refused_are_made_again_after_a_while(store, server, clock, caplog, name):
    """What answered may have been something in between, or the server had an old answer: others are overwritten unseen."""
    caplog.set_level("INFO", logger="luxfuse")
    for pause_s in (PAUSE_S, 2 * PAUSE_S):
        server.on[name] = lambda seen: error(412, "PreconditionFailed") if "if-match" in seen.headers else None
        write(store, name, b"new", server.place("x", b"old"))
        del server.on[name]
        clock(pause_s - PAUSE_S)
        assert not store.abilities.conditional
        clock(PAUSE_S)
        assert store.abilities.conditional
        with pytest.raises(VersionChanged):
            write(store, name, b"lost", '"another"')
        assert server.objects["x"].body == b"new"
    told = [record.levelname for record in caplog.records if "conditional writes" in record.message]
    assert told == ["WARNING", "INFO"]


@pytest.mark.expected_logs("no conditional writes")
@pytest.mark.parametrize("name", ["put", "complete"])
def test_the_next_pause_is_a_short_one_once_a_condition_was_met(store, server, clock, name):
    for _ in range(3):
        server.on[name] = lambda seen: error(412, "PreconditionFailed") if "if-match" in seen.headers else None
        write(store, name, b"new", server.place("x", b"old"))
        assert not store.abilities.conditional
        del server.on[name]
        clock(PAUSE_S)
        assert store.abilities.conditional
        write(store, name, b"newer", server.objects["x"].etag)


@pytest.mark.expected_logs("no conditional writes")
def test_a_server_that_says_that_it_has_no_conditions_is_not_asked_for_them_again(store, server, clock):
    server.on["put"] = lambda seen: error(501, "NotImplemented") if "if-match" in seen.headers else None
    store.put("x", b"new", {}, expect=server.place("x", b"old"))
    clock(LONGEST_PAUSE_S)
    assert not store.abilities.conditional


@pytest.mark.expected_logs("no conditional writes")
def test_versions_of_parts_that_a_copy_refused_are_compared_again_after_a_while(store, server, clock):
    """Swift's S3 layer refuses them always."""
    version = server.place("x", b"data")
    server.objects["x"] = dataclasses.replace(server.objects["x"], etag=f'{version[:-1]}-2"')
    version = server.objects["x"].etag
    conditions: list[bool] = []

    def refuse(seen: Seen) -> Answer | None:
        conditions.append("x-amz-copy-source-if-match" in seen.headers)
        return error(412, "PreconditionFailed") if conditions[-1] else None

    server.on["copy"] = refuse
    for _ in range(2):
        store.copy("x", "y", version=version, size=4)
        assert conditions[-1] is False
        conditions.clear()
    store.copy("x", "y", version=version, size=4)
    assert conditions == [False]
    clock(PAUSE_S)
    conditions.clear()
    for _ in range(2):  # one that is compared makes the next pause a short one again
        server.on["copy"] = lambda seen: conditions.append("x-amz-copy-source-if-match" in seen.headers)
        store.copy("x", "y", version=version, size=4)
        assert conditions == [True]
        server.on["copy"] = refuse
        store.copy("x", "y", version=version, size=4)
        clock(PAUSE_S)
        conditions.clear()


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
