"""S3 servers that ignore conditions or ranges, cut bodies, stall or fail: both drivers must notice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionChanged,
    WrongRegion,
)
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.http_server import HttpServer, answering

BODY = bytes(range(100))
SECRET = "s3cr3t/Key+Value=="
NO_BUCKET = b"<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>less</Message></Error>"
BAD_TOKEN = b"<Error><Code>ExpiredToken</Code><Message>old</Message></Error>"


over = threading.Event()
"""Ends the answers that are not to come."""


class Handler(BaseHTTPRequestHandler):
    """The key's name says how it is served."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        mode = self.path.partition("?")[0].rpartition("/")[2]
        errors = {"slow-down": (503, SLOW_DOWN), "broken": (500, b""), "no-bucket": (404, NO_BUCKET),
                  "expired": (400, BAD_TOKEN), "denied": (403, b""), "anonymous": (401, b""), "busy": (429, b""),
                  "teapot": (418, b""), "redirect": (301, b""), "other-range": (416, b"")}  # fmt: skip
        if mode == "stall":
            over.wait(120)
        if mode in errors:
            status, body = errors[mode]
            self.answer(status, body)
        elif mode == "ignores-range":
            self.answer(200, BODY)
        elif mode == "short":
            self.answer(206, BODY[10:15], length=10)
            self.close_connection = True
        elif mode == "wrong-range":
            self.answer(206, BODY[10:15])
        else:
            self.answer(206, BODY[10:20])

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        self.send_header("Last-Modified", "Sun, 22 Nov 2020 19:49:04 GMT")
        self.send_header("ETag", '"right"')
        if status == 206:
            self.send_header("Content-Range", f"bytes 10-{10 + len(body) - 1 if length is None else 19}/100")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with answering(HttpServer(Handler)) as server:
        yield server.url
        over.set()


@pytest.fixture(params=["obstore", "fsspec"])
def store(request: pytest.FixtureRequest, url: str) -> Iterator[UnderStore]:
    timeout_s = 3.0 if "stall" in request.node.name else 30.0
    driver = open_driver("s3://bucket", endpoint_url=url, driver=request.param, request_timeout_s=timeout_s,
                         storage_options={"key": "k", "secret": SECRET})  # fmt: skip
    yield driver
    driver.close()


def test_a_good_answer_for_comparison(store):
    assert bytes(store.read("good", 10, 20, '"right"')) == BODY[10:20]


def test_if_match_is_ignored(store):
    with pytest.raises(VersionChanged, match=r"\"right\", not \"wanted\""):
        store.read("good", 10, 20, '"wanted"')


def test_range_is_ignored(store):
    assert bytes(store.read("ignores-range", 0, 100, '"right"')) == BODY
    with pytest.raises(VersionChanged):
        store.read("ignores-range", 0, 100, '"wanted"')
    for start, end in ((10, 20), (0, 50), (50, 100)):
        with pytest.raises(StoreRejected, match="ignores Range"):
            store.read("ignores-range", start, end, '"right"')


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("slow-down", StoreUnavailable), ("broken", StoreUnavailable), ("busy", StoreUnavailable),
        ("short", StoreUnavailable), ("wrong-range", StoreUnavailable), ("stall", StoreUnavailable),
        ("no-bucket", BucketMissing), ("expired", AccessDenied), ("denied", AccessDenied),
        ("anonymous", AccessDenied), ("teapot", StoreRejected), ("redirect", WrongRegion),
        ("other-range", VersionChanged),
    ],
)  # fmt: skip
def test_failures_have_their_class_and_one_clean_line(store, url, key, error):
    with pytest.raises(StoreError) as caught:
        store.read(key, 10, 20, '"right"')
    assert type(caught.value) is error
    text = str(caught.value)
    assert key in text
    assert "\n" not in text
    assert SECRET not in text
    assert url not in text
    assert caught.value.__context__ is None or caught.value.__suppress_context__
