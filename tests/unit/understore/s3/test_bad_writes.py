"""S3 servers that refuse writes, know no conditions, fail for some keys only or take bodies slowly."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest

from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    NotFound,
    QuotaExceeded,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TooLarge,
    VersionChanged,
)
from luxfuse.types import ABSENT
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.http_server import HttpServer, answering

SECRET = "s3cr3t/Key+Value=="
ANSWERS = {
    "slow-down": (503, "SlowDown"), "broken": (500, "InternalError"), "denied": (403, "AccessDenied"),
    "quota": (403, "QuotaExceeded"), "minio-quota": (400, "XMinioAdminBucketQuotaExceeded"),
    "full": (507, "InsufficientStorage"), "no-bucket": (404, "NoSuchBucket"), "busy": (409, "OperationAborted"),
    "conflict": (409, "ConditionalRequestConflict"), "changed": (412, "PreconditionFailed"),
    "gone": (404, "NoSuchKey"), "large": (400, "EntityTooLarge"), "closed": (404, "NoSuchUpload"),
}  # fmt: skip
COMPLETES_NOTHING = {"forgotten": "NoSuchUpload", "lists-no-parts": "NoSuchKey"}
"""How these say which parts of an upload there are."""
CLASSES = [
    ("slow-down", StoreUnavailable), ("broken", StoreUnavailable), ("denied", AccessDenied), ("quota", QuotaExceeded),
    ("minio-quota", QuotaExceeded), ("full", StoreFull), ("no-bucket", BucketMissing), ("busy", StoreUnavailable),
    ("conflict", StoreUnavailable), ("large", TooLarge),
]  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """The key's name says how it is served."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def serve(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        mode = self.path.partition("?")[0].rpartition("/")[2]
        if mode == "slowly":
            while length > 0:
                length -= len(self.rfile.read(min(length, 256 << 10)))
                time.sleep(0.05)
        body = self.rfile.read(length)
        self.seen.append((f"{self.command} {self.path}", {k.lower(): v for k, v in self.headers.items()}))
        conditional = "If-Match" in self.headers or "If-None-Match" in self.headers
        if mode == "hangs":
            time.sleep(4)
        if mode in COMPLETES_NOTHING:
            self.answer(*((404, COMPLETES_NOTHING[mode]) if self.command == "GET" else ANSWERS["broken"]))
        elif mode in ANSWERS:
            self.answer(*ANSWERS[mode])
        elif mode == "unconditional" and conditional:
            self.answer(501, "NotImplemented")
        elif "delete" in self.path:
            self.delete(body.decode())
        else:
            self.answer(200, "", '"right"')

    do_PUT = do_POST = do_DELETE = do_GET = do_HEAD = serve

    def delete(self, body: str) -> None:
        keys = re.findall("<Key>(.*?)</Key>", body)
        self.answer(200, "", body="<DeleteResult>" + "".join(
            f"<Error><Key>{key}</Key><Code>{ANSWERS[key][1]}</Code><Message>no</Message></Error>"
            for key in keys if key in ANSWERS) + "</DeleteResult>")  # fmt: skip

    def answer(self, status: int, code: str, etag: str = "", body: str = "") -> None:
        data = (f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>" if code else body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Sun, 22 Nov 2020 19:49:04 GMT")
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with answering(HttpServer(Handler)) as server:
        yield server.url


@pytest.fixture(params=["obstore", "fsspec"])
def store(request: pytest.FixtureRequest, url: str) -> Iterator[UnderStore]:
    timeout_s = 2.0 if request.node.originalname in ("test_slow_line_is_no_failure", "test_server_that_hangs") else 30.0
    driver = open_driver("s3://bucket", endpoint_url=url, driver=request.param, request_timeout_s=timeout_s,
                         storage_options={"key": "k", "secret": SECRET})  # fmt: skip
    Handler.seen.clear()
    yield driver
    driver.close()


def assert_clean(error: StoreError, url: str) -> None:
    assert "\n" not in str(error)
    assert SECRET not in str(error)
    assert url not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


@pytest.mark.parametrize(("key", "error"), CLASSES)
def test_failures_have_their_class_and_one_clean_line(store, url, key, error):
    requests = [lambda: store.put(key, b"data", {}), lambda: store.put(key, b"data", {}, expect=ABSENT),
                lambda: store.put(key, b"data", {}, expect='"old"'), lambda: store.begin_upload(key, {}),
                lambda: store.upload_part(key, "upload", 1, b"x" * (1 << 20)), lambda: store.copy("x", key, size=1),
                lambda: store.complete_upload(key, "upload", [(1, '"part"')])]  # fmt: skip
    for number, request in enumerate(requests):
        with pytest.raises(StoreError) as caught:
            request()
        assert type(caught.value) is error, number
        assert key in str(caught.value)
        assert_clean(caught.value, url)


def test_conditions(store):
    for request in (lambda: store.put("changed", b"data", {}, expect='"old"'),
                    lambda: store.put("changed", b"data", {}, expect=ABSENT),
                    lambda: store.put("gone", b"data", {}, expect='"old"'),
                    lambda: store.complete_upload("gone", "upload", [(1, '"part"')], expect='"old"'),
                    lambda: store.copy("changed", "changed", version='"old"', size=1)):  # fmt: skip
        with pytest.raises(VersionChanged):
            request()
    for expect in (None, ABSENT, '"old"'):
        with pytest.raises(NotFound):
            store.complete_upload("closed", "upload", [(1, '"part"')], expect=expect)


def test_only_an_upload_that_the_server_says_is_gone_is_gone(store):
    """All of it would be sent again: a server that cannot list parts says nothing of the sort."""
    with pytest.raises(NotFound):
        store.complete_upload("forgotten", "upload", [(1, '"part"')])
    with pytest.raises(StoreUnavailable, match="500 Internal Server Error"):
        store.complete_upload("lists-no-parts", "upload", [(1, '"part"')])


def test_server_without_conditions(store, caplog, expected_logs):
    expected_logs.append("conditional writes")
    assert store.abilities.conditional
    for _ in range(2):
        assert store.put("unconditional", b"data", {"a": "b"}, expect='"old"').version == '"right"'
    assert not store.abilities.conditional
    assert store.put("unconditional", b"data", {}, expect=ABSENT).version == '"right"'
    conditions = ["if-match" in headers or "if-none-match" in headers for _, headers in Handler.seen]
    assert conditions == [True, True, False, False, False]  # the second without a checksum: that might be what it lacks
    assert len([record for record in caplog.records if "conditional writes" in record.message]) == 1


def test_some_keys_of_many_are_not_deleted(store):
    failures = store.delete(["a", "denied", "slow-down", "b", "gone", "broken"])
    assert {key: type(error) for key, error in failures.items()} == {
        "denied": AccessDenied, "slow-down": StoreUnavailable, "broken": StoreUnavailable}  # fmt: skip
    assert failures["slow-down"].retryable
    assert not failures["denied"].retryable
    (request,) = Handler.seen
    assert "content-md5" in request[1]  # older servers insist


def test_single_deletes(store):
    assert store.delete(["fine"]) == {}
    assert store.delete(["gone"]) == {}
    with pytest.raises(AccessDenied):
        store.delete(["denied"])


def test_what_is_sent(store):
    store.put("page.html", b"data", {"mode": "33188"})
    store.put("d/", b"", {})
    (page, directory) = Handler.seen
    assert page[0].startswith("PUT /bucket/page.html")
    assert page[1]["content-type"] == "text/html"
    assert page[1]["x-amz-meta-mode"] == "33188"
    assert directory[0].startswith("PUT /bucket/d/")
    assert directory[1]["content-type"] == "application/x-directory"
    assert not any("expect" in headers or "x-amz-sdk-checksum-algorithm" in headers for _, headers in Handler.seen)


def test_slow_line_is_no_failure(store):
    """The whole body takes longer than the time-out of two seconds, each slice of it less."""
    with ThreadPoolExecutor() as pool:
        part = pool.submit(store.upload_part, "slowly", "upload", 1, memoryview(bytes(16 << 20)))
        assert store.put("slowly", bytes(16 << 20), {}).version == '"right"'
        assert part.result() == '"right"'


def test_server_that_hangs(store):
    requests = (lambda: store.put("hangs", b"data", {}), lambda: store.upload_part("hangs", "u", 1, b"data"),
                lambda: store.complete_upload("hangs", "u", [(1, '"part"')]))  # fmt: skip
    with ThreadPoolExecutor() as pool:
        for answer in [pool.submit(request) for request in requests]:
            with pytest.raises(StoreUnavailable):
                answer.result()
