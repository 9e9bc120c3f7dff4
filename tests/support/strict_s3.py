"""A front of an S3 server that records requests, and insists on what S3 insists on and Moto does not.

It remembers which customer's key objects and uploads were made with (SSE-C), compares checksums with bodies and sends them
back, and refuses what a test tells it to.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import http.server
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from luxfuse.understore.checksums import encoded

Refusal = tuple[int, str, str]
_KEY_MD5 = "x-amz-server-side-encryption-customer-key-md5"
_SOURCE_MD5 = "x-amz-copy-source-server-side-encryption-customer-key-md5"
_NOT_PASSED_ON = ("host", "connection", "content-length", "transfer-encoding", "expect")
_ALGORITHMS = ("CRC64NVME", "CRC32C", "CRC32")
_UPLOAD_ID = re.compile(rb"<UploadId>([^<]+)</UploadId>")


@dataclasses.dataclass(frozen=True)
class Seen:
    """One request; header names are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """The name of the operation, where tests ask for it."""
        copy = "x-amz-copy-source" in self.headers
        if self.method == "PUT":
            if "acl" in self.query or "tagging" in self.query:
                return "put-acl" if "acl" in self.query else "put-tagging"
            return ("copy-part" if copy else "part") if "uploadId" in self.query else "copy" if copy else "put"
        if self.method == "POST":
            return "begin" if "uploads" in self.query else "delete-many" if "delete" in self.query else "complete"
        if self.method == "GET":
            return next((name for name in ("acl", "tagging", "ownershipControls") if name in self.query),
                        "list" if "list-type" in self.query else "get")  # fmt: skip
        return self.method.lower()


class StrictS3:
    """Use as a context manager; ``endpoint`` is what clients talk to."""

    def __init__(self, upstream: str) -> None:
        parts = urllib.parse.urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.seen: list[Seen] = []
        self.refuse: Callable[[Seen], Refusal | None] = lambda _request: None
        self.answer_headers: Callable[[Seen], dict[str, str]] = lambda _request: {}
        """Added to the answers, or replacing what is there."""
        self._keys: dict[str, str] = {}
        self._uploads: dict[str, str] = {}
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def _any(self) -> None:
                front._serve(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StrictS3:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kinds(self) -> list[str]:
        """Return the requests since the last call, but listings."""
        found = [request.kind for request in self.seen if request.kind != "list"]
        self.seen.clear()
        return found

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(int(headers.get("content-length") or 0)) if "chunked" not in headers.get(
            "transfer-encoding", "") else _chunks(handler.rfile)  # fmt: skip
        pairs = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        request = Seen(handler.command, urllib.parse.unquote(path), pairs, headers, body)
        self.seen.append(request)
        refusal = self.refuse(request) or _damaged(request) or self._wrong_key(request)
        if refusal is not None:
            status, code, message = refusal
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            _answer(handler, status, {"Content-Type": "application/xml"}, text)
            return
        connection = http.client.HTTPConnection(*self._upstream, timeout=120)
        kept = {n: v for n, v in headers.items() if n not in _NOT_PASSED_ON}
        connection.request(handler.command, handler.path, body, {**kept, "content-length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        if answer.status < 300:
            self._note_key(request, content)
        if request.kind in ("put", "part"):
            found |= {n: v for n, v in headers.items() if n.startswith("x-amz-checksum-")}
        for name in ("transfer-encoding", "connection", "date", "server"):
            found.pop(name, None)
        _answer(handler, answer.status, {**found, **self.answer_headers(request)}, content)

    def _note_key(self, request: Seen, content: bytes) -> None:
        key = request.headers.get(_KEY_MD5, "")
        if request.kind == "begin" and (upload := _UPLOAD_ID.search(content)):
            self._uploads[upload[1].decode()] = key
        elif request.kind in ("put", "copy"):
            self._keys[request.path] = key
        elif request.kind == "complete":
            self._keys[request.path] = self._uploads.get(request.query["uploadId"], "")

    def _wrong_key(self, request: Seen) -> Refusal | None:
        given = request.headers.get(_KEY_MD5, "")
        wrong = (400, "InvalidRequest", "The object was stored using a form of Server Side Encryption.")
        if request.kind in ("get", "head") and given != self._keys.get(request.path, given):
            return wrong
        if request.kind in ("part", "copy-part") and given != self._uploads.get(request.query["uploadId"], given):
            return wrong
        if source := request.headers.get("x-amz-copy-source"):
            path = "/" + urllib.parse.unquote(source).lstrip("/")
            if request.headers.get(_SOURCE_MD5, "") != self._keys.get(path, ""):
                return wrong
        return None


def _damaged(request: Seen) -> Refusal | None:
    for algorithm in _ALGORITHMS:
        found = request.headers.get(f"x-amz-checksum-{algorithm.lower()}")
        if found is not None and found != encoded(algorithm, request.body):
            return 400, "BadDigest", f"The {algorithm} you specified did not match the calculated checksum."
    md5 = request.headers.get("content-md5")
    if md5 is not None and md5 != base64.b64encode(hashlib.md5(request.body, usedforsecurity=False).digest()).decode():
        return 400, "BadDigest", "The Content-MD5 you specified did not match what we received."
    return None


def _chunks(stream: Any) -> bytes:
    pieces = []
    while size := int(stream.readline().split(b";")[0], 16):
        pieces.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(pieces)


def _answer(handler: http.server.BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], content: bytes) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        if name != "content-length" or handler.command == "HEAD":
            handler.send_header(name, value)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)
