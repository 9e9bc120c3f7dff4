"""Writes in C: the requests and the outcomes that botocore has, without it; and left to it where they cannot be said."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.properties import Properties
from luxfuse.understore.s3 import direct
from tests.support.direct import SECRETS
from tests.support.odd_s3 import Answer, OddS3, Seen, error

pytestmark = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")

META = {"mode": "33188", "mtime": "1700000000.5", "x-y": "a b+c=/"}
NOT_COMPARED = frozenset(
    {"user-agent", "authorization", "x-amz-date", "accept-encoding", "accept", "connection", "amz-sdk-invocation-id",
     "amz-sdk-request", "content-length", "host", "expect", "x-amz-user-agent", "transfer-encoding"}
)  # fmt: skip

Call = Callable[[UnderStore, OddS3], Any]


def begun(driver: UnderStore) -> str:
    return driver.begin_upload("d/ä b", META)


def upload_of_two(driver: UnderStore, _s3: OddS3) -> Any:
    upload = begun(driver)
    tags = [driver.upload_part("d/ä b", upload, number, bytes([number]) * 1000) for number in (1, 2)]
    return driver.complete_upload("d/ä b", upload, list(enumerate(tags, 1)), expect=ABSENT)


def part_of_another(driver: UnderStore, s3: OddS3) -> Any:
    return driver.copy_part("d/ä b", begun(driver), 1, "d/old+", s3.objects["d/old+"].etag, 2, 7)


def copy(driver: UnderStore, s3: OddS3) -> Any:
    version = s3.objects["d/old+"].etag
    return driver.copy("d/old+", "new key", version=version, metadata=META, expect=ABSENT)


def copy_over(driver: UnderStore, s3: OddS3) -> Any:
    return driver.copy("d/old+", "d/old+", version=s3.objects["d/old+"].etag, metadata=META)


CALLS: dict[str, Call] = {
    "examine": lambda driver, _s3: driver.examine("d/old+"),
    "put": lambda driver, _s3: driver.put("d/", b"", META),
    "put over": lambda driver, s3: driver.put("d//", b"x", {}, expect=s3.place("d//", b"y")),
    "copy": copy,
    "copy over": copy_over,
    "plain copy": lambda driver, _s3: driver.copy("d/old+", "new"),
    "delete": lambda driver, _s3: driver.delete(["d/old+"]),
    "delete none": lambda driver, _s3: driver.delete(["d/none"]),
    "delete many": lambda driver, _s3: driver.delete(["d/old+", "<&>", "d/\x01"]),
    "upload": upload_of_two,
    "part of another": part_of_another,
    "abort": lambda driver, _s3: driver.abort_upload("d/ä b", begun(driver)),
    "abort none": lambda driver, _s3: driver.abort_upload("d/ä b", "none/+"),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    return CALLS[request.param]


def both(call: Call, prepare: Callable[[OddS3], object] = lambda _s3: None) -> Iterator[tuple[OddS3, Any]]:
    """Make a call over C, then over botocore, each at a server of its own; yields the server, and the outcome or error."""
    for most in (4, 0):
        with OddS3() as s3:
            s3.place("d/old+", b"0123456789", mode="33060")
            prepare(s3)
            driver = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS, direct_gets=most)
            try:
                outcome = call(driver, s3)
            except StoreError as exc:
                outcome = (type(exc), str(exc), exc.code, exc.unexplained)
            driver.close()
            agents = {seen.headers["user-agent"].partition("/")[0] for seen in s3.seen}
            assert "Botocore" not in agents or not most
            yield s3, outcome


def told(seen: Seen) -> Any:
    headers = {name: value for name, value in seen.headers.items() if name not in NOT_COMPARED}
    body = seen.body.replace(b"&quot;", b'"').replace(b"<?xml version='1.0' encoding='utf-8'?>\n", b"")
    if seen.name in ("complete", "delete_many"):  # the same in other words
        body, headers = b"", {n: v for n, v in headers.items() if not n.startswith(("content-md5", "x-amz-c"))}
    return seen.name, seen.key, seen.query, headers, body


def test_requests_and_outcomes_are_those_of_botocore(call: Call) -> None:
    (in_c, outcome), (with_botocore, expected) = both(call)
    assert [told(seen) for seen in in_c.seen] == [told(seen) for seen in with_botocore.seen]
    assert outcome == expected
    assert in_c.objects.keys() == with_botocore.objects.keys()
    for seen in in_c.seen:
        assert seen.headers["x-amz-content-sha256"] == hashlib.sha256(seen.body).hexdigest()
        assert "expect" not in seen.headers


ANSWERS: dict[str, Callable[[Seen], Answer]] = {
    **{f"{status} {code}": lambda _seen, status=status, code=code: error(status, code) for status, code in (  # type: ignore[misc]
        (301, "PermanentRedirect"), (400, "InvalidArgument"), (400, "ExpiredToken"), (403, "AccessDenied"),
        (404, "NoSuchKey"), (404, "NoSuchUpload"), (404, "NoSuchBucket"), (409, "ConditionalRequestConflict"),
        (412, "PreconditionFailed"), (500, "InternalError"), (503, "SlowDown"))},
    "an error after all": lambda seen: Answer(200, error(500, "InternalError").body) if seen.name in (
        "complete", "copy", "copy_part") else error(500, "InternalError"),
    "403 page": lambda _seen: Answer(403, b"<html><p>no", {"Content-Type": "text/html"}),
    "502 page": lambda _seen: Answer(502, b"<html><p>no", {"Content-Type": "text/html"}),
    "nothing": lambda _seen: Answer(500),
}  # fmt: skip


@pytest.mark.expected_logs("the store knows no conditional writes")  # 412, though the object is as expected
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    "name", ["put", "copy", "delete", "delete_many", "begin", "part", "copy_part", "complete", "abort"]
)
def test_errors_are_those_of_botocore(name: str, answer: str) -> None:
    call = {
        "put": "put", "copy": "copy", "delete": "delete", "delete_many": "delete many", "begin": "upload", "part": "upload",
        "copy_part": "part of another", "complete": "upload", "abort": "abort",
    }[name]  # fmt: skip
    (_, outcome), (_, expected) = both(CALLS[call], lambda s3: s3.on.update({name: ANSWERS[answer]}))
    assert outcome == expected


def test_what_cannot_be_said_is_left_to_botocore() -> None:
    for metadata in ({"a": ""}, {"a": "b  c"}):
        with OddS3() as s3:
            driver = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS, direct_gets=4)
            driver.put("d/", b"", metadata)
            assert s3.seen[-1].headers["user-agent"].startswith("Botocore")
            driver.close()


def test_properties_that_others_set_go_along() -> None:
    def edit(driver: UnderStore, _s3: OddS3) -> Any:
        info = driver.head("d/old+")
        keep = Properties(info, "text/x", {"Cache-Control": "no-cache", "Content-Encoding": "gzip"}, "STANDARD_IA",
                          {"a b": "ä", "c": "d"})  # fmt: skip
        upload = driver.begin_upload("d/old+", META, keep=keep)
        return driver.put("d/x/", b"", META, keep=keep), upload

    (in_c, outcome), (with_botocore, expected) = both(edit)
    assert [told(seen) for seen in in_c.seen[-2:]] == [told(seen) for seen in with_botocore.seen[-2:]]
    assert outcome == expected


def test_a_connection_that_breaks() -> None:
    with OddS3() as s3:
        driver = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS, direct_gets=4)
    with pytest.raises(StoreUnavailable, match="BEGIN 'f': the connection"):
        driver.begin_upload("f", {})
    driver.close()


WRITES = """
import sys
from luxfuse.understore.factory import open_driver
driver = open_driver("s3://bucket", endpoint_url=sys.argv[1],
                     storage_options={"key": "k", "secret": "s"}, direct_gets=int(sys.argv[2]))
driver.put("d/", b"", {"mode": "1"})
info = driver.put("d/f", b"content", {"mode": "1"})
upload = driver.begin_upload("big", {"mode": "1"})
tags = [driver.upload_part("big", upload, 1, bytes(1 << 20)), driver.copy_part("big", upload, 2, "d/f", info.version, 0, 7)]
driver.complete_upload("big", upload, [(1, tags[0]), (2, tags[1])], expect="")
driver.copy("d/f", "d/g", version=info.version)
driver.copy("d/f", "d/f", version=info.version, metadata={"mode": "2"})
driver.delete(["d/g"]), driver.delete(["d/f", "big"])
driver.abort_upload("x", driver.begin_upload("x", {}))
print("botocore" in sys.modules)
driver.close()
"""


@pytest.mark.parametrize("most", [4, 0])
def test_to_write_imports_no_botocore(most: int) -> None:
    with OddS3() as s3:
        command = [sys.executable, "-c", WRITES, s3.endpoint, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == (f"{most == 0}\n", "")
        assert list(s3.objects) == ["d/"]
