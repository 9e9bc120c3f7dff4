"""WebHDFS: what the driver makes of answers that Hadoop's own servers give seldom, or only HttpFS and proxies give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from luxfuse.errors import (
    AccessDenied,
    NoStore,
    NotFound,
    QuotaExceeded,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.http_server import HttpServer, answering

ROOT = "/webhdfs/v1"
TIME_MS = 1_700_000_000_123


class HttpFs(HttpServer):
    """Files in memory, served as HttpFS does: it sends on to itself, and renames over nothing."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.files: dict[str, bytes] = {}
        self.times: dict[str, int] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.fail: dict[str, tuple[int, bytes]] = {}
        """Answers to operations, in place of the usual ones."""
        self.stuck: bytes | None = None
        """The content of files that cannot be renamed."""
        self.silent: bytes | None = None
        """The content of a file that is renamed once, while a gateway says that no answer came in time."""

    @property
    def source(self) -> str:
        return f"webhdfs://127.0.0.1:{self.server_port}/top"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpFs

    def do_GET(self) -> None:  # the name is the library's
        self._answer()

    do_PUT = do_DELETE = do_GET

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).removeprefix(ROOT), {k: v[0] for k, v in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((query["op"], path, query))
        if (odd := self.server.fail.get(query["op"])) is not None:
            self._send(*odd)
            return
        files = self.server.files
        match query["op"]:
            case "CREATE" if "data" not in query:
                self._send(307, b"", f"http://127.0.0.1:{self.server.server_port}{self.path}&data=true")
            case "CREATE":
                files[path] = body
                self._send(201)
            case "RENAME":
                moved = query["destination"] not in files and files[path] != self.server.stuck
                if moved:
                    files[query["destination"]] = files.pop(path)
                    self.server.times[query["destination"]] = self.server.times.pop(path, TIME_MS)
                if moved and files[query["destination"]] == self.server.silent:
                    self.server.silent = None
                    self._send(504)
                else:
                    self._json({"boolean": moved})
            case "SETTIMES":
                self.server.times[path] = int(query["modificationtime"])
                self._send(200)
            case "DELETE":
                self._json({"boolean": files.pop(path, None) is not None})
            case "OPEN":
                start = int(query["offset"])
                self._send(200, files[path][start : start + int(query["length"])])
            case "GETFILESTATUS" if path in files or path in ("/", "/top"):
                self._json({"FileStatus": self._status(path)})
            case "LISTSTATUS":
                found = [self._status(each) | {"pathSuffix": each.rpartition("/")[2]} for each in sorted(files)]
                self._json({"FileStatuses": {"FileStatus": found}})
            case _:
                self._send(404, exception("FileNotFoundException"))

    def _status(self, path: str) -> dict[str, Any]:
        content = self.server.files.get(path)
        kind = "DIRECTORY" if content is None else "FILE"
        mtime_ms = self.server.times.get(path, TIME_MS)
        return {"type": kind, "length": len(content or b""), "modificationTime": mtime_ms, "accessTime": 0,
                "permission": "644"}  # fmt: skip

    def _json(self, found: Any) -> None:
        self._send(200, json.dumps(found).encode())

    def _send(self, status: int, body: bytes = b"", location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)


def exception(name: str, message: str = "at /secret/path") -> bytes:
    told = {"exception": name, "javaClassName": f"org.apache.hadoop.{name}", "message": message}
    return json.dumps({"RemoteException": told}).encode()


@pytest.fixture
def server() -> Iterator[HttpFs]:
    with answering(HttpFs()) as server:
        yield server


@pytest.fixture
def store(server: HttpFs) -> Iterator[UnderStore]:
    driver = open_driver(server.source, storage_options={"user": "me"}, request_timeout_s=30)
    yield driver
    driver.close()


def test_over_a_file_where_renames_do_not_go_over_one(server: HttpFs, store: UnderStore):
    first = store.put("x", b"one", {})
    second = store.put("x", b"two", {})
    assert server.files == {"/top/x": b"two"}
    assert first.version != second.version, "of the same size and time"
    assert bytes(store.read("x", 1, 3, store.head("x").version)) == b"wo"
    assert all(query["user.name"] == "me" for _, _, query in server.asked)


def test_what_could_not_be_renamed_is_removed(server: HttpFs, store: UnderStore):
    server.fail["RENAME"] = 200, b'{"boolean":false}'
    with pytest.raises(StoreUnavailable, match="did not do RENAME"):
        store.put("x", b"one", {})
    assert server.files == {}


def test_what_cannot_be_renamed_leaves_the_file_that_is_there(server: HttpFs, store: UnderStore):
    store.put("x", b"old", {})
    server.stuck = b"new"
    with pytest.raises(StoreUnavailable, match="did not do RENAME"):
        store.put("x", b"new", {})
    assert server.files == {"/top/x": b"old"}


@pytest.mark.parametrize("silent", [b"old", b"new"])
def test_a_step_that_is_made_but_not_answered_leaves_a_file_there(server: HttpFs, store: UnderStore, silent: bytes):
    store.put("x", b"old", {})
    server.silent = silent
    with pytest.raises(StoreUnavailable):
        store.put("x", b"new", {})
    assert server.files["/top/x"] == silent


def test_nowhere_to_send_the_content(server: HttpFs, store: UnderStore):
    server.files["/top/x"] = b"old"
    server.fail["CREATE"] = 307, b""
    with pytest.raises(StoreError):
        store.put("x", b"new", {})
    assert server.files == {"/top/x": b"old"}


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("FileNotFoundException", 404, NotFound),
        ("AccessControlException", 403, AccessDenied),
        ("SecretManager$InvalidToken", 403, AccessDenied),
        ("NSQuotaExceededException", 403, QuotaExceeded),
        ("SafeModeException", 403, StoreUnavailable),
        ("StandbyException", 403, StoreUnavailable),
        ("InvalidPathException", 400, StoreRejected),
        ("FSLimitException$PathComponentTooLongException", 403, StoreRejected),
        ("SomethingNewException", 500, StoreUnavailable),
    ],
)
def test_exceptions_of_java(server: HttpFs, store: UnderStore, name: str, status: int, kind: type[StoreError]):
    server.fail = dict.fromkeys(("GETFILESTATUS", "OPEN", "DELETE"), (status, exception(name)))
    for request in (lambda: store.head("x"), lambda: store.read("x", 0, 1, "v")):
        with pytest.raises(StoreError) as caught:
            request()
        assert type(caught.value) is kind
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "kind"), [(401, AccessDenied), (403, AccessDenied), (503, StoreUnavailable)])
def test_refusals_of_a_gateway(server: HttpFs, store: UnderStore, status: int, kind: type[StoreError]):
    server.fail["GETFILESTATUS"] = status, b"<html>no</html>"
    with pytest.raises(kind):
        store.head("x")


@pytest.mark.parametrize("page", [b"<html>welcome</html>", b"[]", b'{"other": 1}', b'{"FileStatuses": 7}'])
def test_a_web_page_is_no_store(server: HttpFs, store: UnderStore, page: bytes):
    server.fail["LISTSTATUS"] = 200, page
    with pytest.raises(NoStore):
        store.probe()
