"""WebDAV servers that write files in place, so that an answer may begin with old bytes and end with new ones."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from luxfuse.errors import StoreRejected, VersionChanged
from luxfuse.understore.factory import open_driver
from tests.support.http_server import HttpServer, answering

SIZE = 1_000


class InPlace(HttpServer):
    """One file. With ``overwrites`` it is overwritten while an answer is on its way, of which half has been sent."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.content, self.etag, self.overwrites = b"A" * SIZE, '"old"', False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: InPlace

    def do_PROPFIND(self) -> None:  # the name is the library's
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = (
            '<?xml version="1.0" encoding="utf-8"?><D:multistatus xmlns:D="DAV:"><D:response>'
            f"<D:href>{self.path}</D:href><D:propstat><D:prop><D:resourcetype/>"
            f"<D:getcontentlength>{SIZE}</D:getcontentlength><D:getetag>{self.server.etag}</D:getetag>"
            "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>"
        )
        self._send(207, body.encode())

    def do_GET(self) -> None:
        old, etag = self.server.content, self.server.etag
        if self.server.overwrites:
            self.server.content, self.server.etag = b"B" * SIZE, '"new"'
        mixed = old[: SIZE // 2] + self.server.content[SIZE // 2 :]
        self._send(206, mixed, {"ETag": etag, "Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("overwrites", [False, True])
def test_old_and_new_bytes_in_one_answer_are_noticed(overwrites: bool) -> None:
    with answering(InPlace()) as server:
        store = open_driver("webdav:///", storage_options={"base_url": server.url})
        try:
            found = store.head("x")
            server.overwrites = overwrites
            if overwrites:
                with pytest.raises(VersionChanged):
                    store.read("x", 0, found.size, found.version)
            else:
                assert bytes(store.read("x", 0, found.size, found.version)) == server.content
        finally:
            store.close()


@pytest.mark.parametrize("source", ["webdav:///", "http"])
def test_another_version_without_ranges_is_another_version(source: str) -> None:
    """As rclone answers while it does not know how long a file will be."""
    with answering(Whole()) as server:
        place = ("webdav:///", {"base_url": server.url}) if source != "http" else (server.url, {})
        store = open_driver(place[0], storage_options=place[1])
        try:
            with pytest.raises(VersionChanged):
                store.read("x", 0, SIZE, '"former"')
            with pytest.raises(StoreRejected, match="ignores Range"):
                store.read("x", 0, SIZE, '"new"')
            server.tells = False
            with pytest.raises(StoreRejected, match="ignores Range"):
                store.read("x", 0, SIZE, "1000-1700000000000000000")
        finally:
            store.close()


class Whole(HttpServer):
    """Answers with a longer file than is asked for, whatever the range."""

    def __init__(self) -> None:
        super().__init__(WholeHandler)
        self.tells = True
        """Whether it tells of which version the file is, and how long."""


class WholeHandler(BaseHTTPRequestHandler):
    server: Whole

    def do_GET(self) -> None:  # the name is the library's
        self.send_response(200)
        if self.server.tells:
            self.send_header("ETag", '"new"')
            self.send_header("Content-Length", str(2 * SIZE))
        self.end_headers()
        self.wfile.write(bytes(2 * SIZE))

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""
