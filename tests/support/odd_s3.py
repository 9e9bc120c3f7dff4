"""A small S3 in memory that can be as odd as servers are: each oddity is an attribute, and `on` answers for it.

Path style, no signatures. It knows objects with metadata, ranges, conditions, listings, copies, multipart uploads with
copied parts and lists of parts, and bulk deletes.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any
from xml.sax.saxutils import escape

from tests.support.http_server import HttpServer

KEPT = ("content-type", "cache-control", "content-encoding", "content-disposition", "content-language")


@dataclass(frozen=True)
class Answer:
    """What is sent; `lost` does everything and then closes the connection without a word."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False


def error(status: int, code: str, message: str = "no", **more: str) -> Answer:
    """An error as S3 says it."""
    rest = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in more.items())
    return Answer(status, f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{rest}</Error>".encode())


@dataclass
class Seen:
    """One request as it came. ``name``: the API's name of it."""

    name: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Stored:
    body: bytes
    etag: str
    headers: dict[str, str]


@dataclass
class Upload:
    key: str
    headers: dict[str, str]
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


class OddS3:
    """Use as a context manager. ``on``: name of a request -> what may answer instead (None: as usual)."""

    access_key, secret_key, region = "test", "test-secret", "us-east-1"

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.seen: list[Seen] = []
        self.on: dict[str, Callable[[Seen], Answer | None]] = {}
        self.after: dict[str, Callable[[Seen, Answer], Answer]] = {}
        """May change an answer when the request has had its effect."""
        self.ignores_copy_conditions = False
        self.ignores_write_conditions = False
        self.new_etag_on_copy = False
        """Whether a copy has another ETag than its source, as where ETags are of time."""
        self._serial = itertools.count(1)
        self._lock = threading.RLock()
        self._server: Any = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> OddS3:
        handler = type("Handler", (_Handler,), {"s3": self})
        self._server = HttpServer(handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def place(self, key: str, body: bytes, **metadata: str) -> str:
        """Make an object behind luxfuse's back; returns its ETag."""
        with self._lock:
            headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
            return self._store(key, body, headers).etag

    def names(self) -> list[str]:
        """The names of the requests that came."""
        return [seen.name for seen in self.seen]

    def count(self, name: str) -> int:
        return self.names().count(name)

    # -- requests

    def answer(self, seen: Seen) -> Answer:
        with self._lock:
            self.seen.append(seen)
        if (hook := self.on.get(seen.name)) is not None and (answer := hook(seen)) is not None:
            return answer
        with self._lock:
            answer = getattr(self, f"_{seen.name}")(seen)
        if (after := self.after.get(seen.name)) is not None:
            answer = after(seen, answer)
        return answer

    def _store(self, key: str, body: bytes, headers: Mapping[str, str], *, fresh: bool = False) -> Stored:
        serial = next(self._serial)
        digest = hashlib.md5(body + (str(serial).encode() if fresh else b"")).hexdigest()
        kept = {name: value for name, value in headers.items() if name in KEPT or name.startswith("x-amz-meta-")}
        stored = self.objects[key] = Stored(body, f'"{digest}"', kept)
        return stored

    def _refused(self, seen: Seen) -> Answer | None:
        if self.ignores_write_conditions:
            return None
        found = self.objects.get(seen.key)
        if seen.headers.get("if-none-match") == "*" and found is not None:
            return error(412, "PreconditionFailed")
        wanted = seen.headers.get("if-match")
        if wanted and found is None:
            return error(404, "NoSuchKey")
        if wanted and found is not None and wanted != found.etag:
            return error(412, "PreconditionFailed")
        return None

    def _source(self, seen: Seen) -> Stored | Answer:
        path = urllib.parse.unquote(seen.headers["x-amz-copy-source"]).lstrip("/")
        found = self.objects.get(path.partition("/")[2])
        if found is None:
            return error(404, "NoSuchKey")
        wanted = seen.headers.get("x-amz-copy-source-if-match")
        if wanted and wanted != found.etag and not self.ignores_copy_conditions:
            return error(412, "PreconditionFailed")
        return found

    def _head(self, seen: Seen) -> Answer:
        answer = self._get(seen)
        if answer.status >= 400:
            return Answer(answer.status)
        return Answer(answer.status, answer.body, answer.headers)

    def _get(self, seen: Seen) -> Answer:
        found = self.objects.get(seen.key)
        if found is None:
            return error(404, "NoSuchKey")
        if (wanted := seen.headers.get("if-match")) and wanted != found.etag:
            return error(412, "PreconditionFailed")
        headers = {**found.headers, "ETag": found.etag, "Accept-Ranges": "bytes"}
        if (span := re.fullmatch(r"bytes=(\d+)-(\d*)", seen.headers.get("range", ""))) and found.body:
            start, end = int(span[1]), int(span[2] or len(found.body) - 1)
            if start >= len(found.body):
                return error(416, "InvalidRange")
            body = found.body[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(found.body)}"
            return Answer(206, body, headers)
        return Answer(200, found.body, headers)

    def _list(self, seen: Seen) -> Answer:
        prefix, delimiter = seen.query.get("prefix", ""), seen.query.get("delimiter", "")
        contents, prefixes = [], set()
        for key, stored in sorted(self.objects.items()):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                prefixes.add(prefix + head + delimiter)
                continue
            contents.append(
                f"<Contents><Key>{_coded(key, seen)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.body)}</Size></Contents>"
            )
        common = "".join(f"<CommonPrefixes><Prefix>{_coded(p, seen)}</Prefix></CommonPrefixes>" for p in sorted(prefixes))
        coding = f"<EncodingType>{seen.query['encoding-type']}</EncodingType>" if "encoding-type" in seen.query else ""
        count = len(contents) + len(prefixes)
        return _xml("ListBucketResult", f"{coding}<KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
                    + "".join(contents) + common)  # fmt: skip

    def _put(self, seen: Seen) -> Answer:
        if (refused := self._refused(seen)) is not None:
            return refused
        return Answer(200, headers={"ETag": self._store(seen.key, seen.body, seen.headers).etag})

    def _copy(self, seen: Seen) -> Answer:
        source = self._source(seen)
        if isinstance(source, Answer):
            return source
        if (refused := self._refused(seen)) is not None:
            return refused
        headers = seen.headers if seen.headers.get("x-amz-metadata-directive") == "REPLACE" else source.headers
        etag = self._store(seen.key, source.body, headers, fresh=self.new_etag_on_copy).etag
        return _xml("CopyObjectResult", f"<ETag>{escape(etag)}</ETag><LastModified>2024-01-01T00:00:00.000Z</LastModified>")

    def _delete(self, seen: Seen) -> Answer:
        if (wanted := seen.headers.get("if-match")) and (found := self.objects.get(seen.key)) and found.etag != wanted:
            return error(412, "PreconditionFailed")
        self.objects.pop(seen.key, None)
        return Answer(204)

    def _delete_many(self, seen: Seen) -> Answer:
        for key in re.findall("<Key>(.*?)</Key>", seen.body.decode()):
            self.objects.pop(key, None)
        return _xml("DeleteResult", "")

    def _begin(self, seen: Seen) -> Answer:
        upload = f"upload-{next(self._serial)}"
        self.uploads[upload] = Upload(seen.key, seen.headers)
        return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")

    def _part(self, seen: Seen) -> Answer:
        return self._add_part(seen, seen.body, lambda tag: Answer(200, headers={"ETag": tag}))

    def _copy_part(self, seen: Seen) -> Answer:
        source = self._source(seen)
        if isinstance(source, Answer):
            return source
        start, end = map(int, re.findall(r"\d+", seen.headers["x-amz-copy-source-range"]))
        return self._add_part(
            seen, source.body[start : end + 1], lambda tag: _xml("CopyPartResult", f"<ETag>{escape(tag)}</ETag>")
        )

    def _add_part(self, seen: Seen, body: bytes, told: Callable[[str], Answer]) -> Answer:
        upload = self.uploads.get(seen.query["uploadId"])
        if upload is None:
            return error(404, "NoSuchUpload")
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        upload.parts[int(seen.query["partNumber"])] = (tag, body)
        return told(tag)

    def _complete(self, seen: Seen) -> Answer:
        upload = self.uploads.get(seen.query["uploadId"])
        if upload is None:
            return error(404, "NoSuchUpload")
        if (refused := self._refused(seen)) is not None:
            return refused
        bodies = []
        for each in re.findall("<Part>(.*?)</Part>", seen.body.decode(), re.S):
            number = int(re.findall("<PartNumber>(.*?)</PartNumber>", each)[0])
            tag = re.findall("<ETag>(.*?)</ETag>", each)[0].replace("&quot;", '"')
            if number not in upload.parts or upload.parts[number][0].strip('"') != tag.strip('"'):
                return error(400, "InvalidPart")
            bodies.append(upload.parts[number][1])
        del self.uploads[seen.query["uploadId"]]
        etag = self._store(seen.key, b"".join(bodies), upload.headers, fresh=True).etag
        return _xml("CompleteMultipartUploadResult", f"<ETag>{escape(etag)}</ETag>")

    def _abort(self, seen: Seen) -> Answer:
        found = self.uploads.pop(seen.query["uploadId"], None)
        return Answer(204) if found is not None else error(404, "NoSuchUpload")

    def _list_parts(self, seen: Seen) -> Answer:
        upload = self.uploads.get(seen.query["uploadId"])
        if upload is None:
            return error(404, "NoSuchUpload")
        return _xml("ListPartsResult", "<IsTruncated>false</IsTruncated>" + "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag><Size>{len(body)}</Size></Part>"
            for number, (tag, body) in sorted(upload.parts.items())))  # fmt: skip


def _coded(key: str, seen: Seen) -> str:
    return urllib.parse.quote(key) if seen.query.get("encoding-type") == "url" else escape(key)


def _xml(name: str, inner: str) -> Answer:
    return Answer(200, f'<?xml version="1.0"?><{name}>{inner}</{name}>'.encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: OddS3

    def serve(self) -> None:
        path, _, query = self.path.partition("?")
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        parsed = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        seen = Seen(_name_of(self.command, key, parsed, headers), bucket, key, parsed, headers, body)
        answer = self.s3.answer(seen)
        if answer.lost:
            self.close_connection = True
            return
        self.send_response(answer.status)
        given = {name.lower() for name in answer.headers}
        if "last-modified" not in given:
            self.send_header("Last-Modified", formatdate(1_704_067_200, usegmt=True))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204 and "content-length" not in given:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def log_message(self, *arguments: object) -> None:
        pass


def _name_of(method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    copy = "x-amz-copy-source" in headers
    if method == "PUT":
        return ("copy_part" if copy else "part") if "partNumber" in query else "copy" if copy else "put"
    if method == "POST":
        return "delete_many" if "delete" in query else "begin" if "uploads" in query else "complete"
    if method == "DELETE":
        return "abort" if "uploadId" in query else "delete"
    if method == "GET" and "uploadId" in query:
        return "list_parts"
    return "head" if method == "HEAD" else "get" if key else "list"
