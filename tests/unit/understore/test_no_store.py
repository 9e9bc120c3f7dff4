"""Servers that are no store, and answer each request with a page and 200: nothing that they say is an empty bucket."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from luxfuse.configuration.building import build
from luxfuse.errors import MountError, NoStore, StoreError
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.retrying import Store
from luxfuse.volume import store_opening
from tests.support.http_server import HttpServer, answering
from tests.support.odd_s3 import Answer, OddS3

XHTML = b"<html><head><title>Log in</title></head><body><p>Hello</p></body></html>"
PAGES = {
    "xhtml": XHTML,
    "html": b"<!DOCTYPE html>\n<html><head><meta charset=utf-8><title>x</title></head><body>Hi<br></body></html>",
    "nothing": b"",
    "json": b"{}",
    "text": b"hello",
}
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    f"{family}-{driver}": (f"{family}://bucket", driver, options)
    for family, options in {
        "s3": {"key": "k", "secret": "s"},
        "gs": {"token": "anon"},
        "az": {"account_name": "a", "account_key": "a2V5"},
    }.items()
    for driver in ("obstore", "fsspec")
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    page = b""
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        page = self.page  # another one may be set before this one is sent
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with answering(HttpServer(Handler)) as server:
        yield server.url


def opened(kind: str, url: str) -> UnderStore:
    source, driver, options = KINDS[kind]
    return open_driver(source, endpoint_url=url, driver=driver, request_timeout_s=10.0, storage_options=options)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, url: str) -> Iterator[UnderStore]:
    driver = opened(request.param, url)
    yield driver
    driver.close()


def test_a_page_is_no_listing(store: UnderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Callable[[], Any]] = [
        store.probe,
        lambda: list(store.list_directory("")),
        lambda: list(store.list_directory("d/")),
        lambda: list(store.list_all("")),
        lambda: list(store.list_all("d/")),
    ]
    for page, request in itertools.product(PAGES, requests):
        monkeypatch.setattr(Handler, "page", PAGES[page])
        with pytest.raises(StoreError) as caught:
            request()
        if page != "nothing":  # of which Azure's library says only that it cannot read it
            assert isinstance(caught.value, NoStore), (page, caught.value)
            assert "check the endpoint URL" in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["s3-obstore", "s3-fsspec"])
def test_a_page_says_nothing_of_objects(kind: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "page", XHTML)
    store = opened(kind, url)
    for request in (lambda: store.head("a"), lambda: store.put("a", b"content", {})):
        with pytest.raises(StoreError) as caught:
            request()
        assert caught.value.retryable
    store.close()


@pytest.mark.parametrize("kind", ["s3-obstore", "s3-fsspec"])
@pytest.mark.parametrize("keys", [["a"], ["a", "b"]])
def test_a_page_deletes_nothing(kind: str, url: str, monkeypatch: pytest.MonkeyPatch, keys: list[str]) -> None:
    monkeypatch.setattr(Handler, "page", XHTML)
    store = opened(kind, url)
    with pytest.raises(NoStore):
        store.delete(keys)
    store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_page_is_not_mounted(kind: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "page", XHTML)
    monkeypatch.setattr(Handler, "requests", 0)
    store = Store(opened(kind, url), request_timeout_s=30, max_requests=4, rng=random.Random(1))
    settings = build({"source": KINDS[kind][0], "mountpoint": "/mnt", "endpoint_url": url}, environ={})
    with pytest.raises(MountError, match=r"something other than a store answers.*check the endpoint URL"):
        await store_opening.prove(store, settings)
    assert Handler.requests <= 2
    store.close()


@pytest.mark.parametrize("kind", ["s3-obstore", "s3-fsspec"])
@pytest.mark.parametrize("denied", [False, True])
def test_an_empty_bucket_is_one(kind: str, denied: bool) -> None:
    with OddS3() as server:
        if denied:  # to list may be allowed where to read is not
            server.on["head"] = lambda _seen: Answer(403)
        store = opened(kind, server.endpoint)
        store.probe()
        assert [page for page in store.list_directory("") if page.objects or page.prefixes] == []
        assert list(store.list_directory("d/")) == []
        assert list(store.list_all("")) == []
        heads = [seen.key for seen in server.seen if seen.name == "head"]
        assert all(key.startswith(".luxfuse-probe-") for key in heads)
        assert len(set(heads)) == len(heads)
        server.place("d/x", b"data")
        count = server.count("head")
        store.probe()
        assert list(store.list_directory("")) != []
        assert list(store.list_directory("d/")) != []
        assert server.count("head") == count
        store.close()
