"""A front of fake-gcs-server that does what Google documents, and the server behind does not.

It compares generations for copies, patches, reads and resumable uploads (of these at the start, and again at the end); a
copy has the properties of its source, or only those that the request names; and it takes writes by the XML interface, which
obstore makes: objects, copies, uploads in parts. ETags in its listings are quoted.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.front import Answer, front

if TYPE_CHECKING:
    import requests

_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)$")
_REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)$")
_UPLOAD = re.compile(r"/upload/(?:resumable/)?storage/v1/b/([^/]+)/o$")
_XML = re.compile(r"/([^/]+)/(.+)$")
_HEADERS = {"cache-control": "cacheControl", "content-disposition": "contentDisposition", "content-type": "contentType",
            "content-encoding": "contentEncoding", "content-language": "contentLanguage",
            "x-goog-storage-class": "storageClass"}  # fmt: skip
_CHANGED = Answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
_MISSING = Answer(404, b'{"error": {"code": 404, "message": "No such object"}}')
_NO_BUCKET = Answer(404, b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>no</Message></Error>")
_JSON = {"Content-Type": "application/json"}


class StrictGoogle:
    """The `check` of a front."""

    def __init__(self, upstream: str) -> None:
        self._place = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        """Held from the comparison to the end of the write."""
        self._resumable: dict[str, tuple[dict[str, Any], str, bytearray]] = {}
        """Uploads by their ids: the description of the object, the generation that it depends on, what has come."""
        self._parts: dict[str, tuple[dict[str, Any], dict[int, bytes]]] = {}
        """Uploads by the XML interface: the description of the object, and its parts."""
        self.before_writes: list[Callable[[], object]] = []
        """Each is called once: when the next write has come, and before it is looked at."""

    def check(self, request: Any) -> Answer:
        """Return the answer to a request."""
        if request.command not in ("GET", "HEAD") and self.before_writes:
            self.before_writes.pop(0)()
        url = urlsplit(request.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        wanted = query.get("ifGenerationMatch")
        with self._lock:
            if match := _REWRITE.match(url.path):
                names = [unquote(name) for name in match.groups()]
                source = query.get("ifSourceGenerationMatch")
                wrong = self._compared(names[0], names[1], source, _MISSING) or self._compared(names[2], names[3], wanted)
                return wrong or self._rewrite(*names, json.loads(request.body or b"{}"))
            if match := _OBJECT.match(url.path):
                return self._compared(unquote(match[1]), unquote(match[2]), wanted, _MISSING) or self._pass(request)
            if match := _UPLOAD.match(url.path):
                return self._upload(request, match[1], query)
            if (match := _XML.match(url.path)) and request.command in ("PUT", "POST") and match[1] != "storage":
                return self._xml(request, match[1], unquote(match[2]), query)
            if "list-type" in query:
                answer = self._pass(request)
                if answer.status == 500:
                    return _NO_BUCKET
                answer.body = re.sub(rb"<ETag>([^<]*)</ETag>", rb"<ETag>&quot;\1&quot;</ETag>", answer.body)
                return answer
            if url.path == "/token":
                token = b'{"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}'
                if "gzip" not in request.headers.get("Accept-Encoding", ""):
                    return Answer(200, token, _JSON)
                return Answer(200, gzip.compress(token), {**_JSON, "Content-Encoding": "gzip"})
        return self._pass(request)

    def _upload(self, request: Any, bucket: str, query: Mapping[str, str]) -> Answer:
        """Take care of resumable uploads: the server behind forgets conditions and properties."""
        if (upload := query.get("upload_id", "")) in self._resumable:
            about, wanted, data = self._resumable[upload]
            data += request.body
            bounds = re.match(r"bytes \d+-(\d+)/(\d+)$", request.headers["Content-Range"])
            assert bounds is not None
            if int(bounds[1]) + 1 < int(bounds[2]):
                return Answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
            return self._store(bucket, about, bytes(data), wanted)
        if query.get("uploadType") != "resumable":
            return self._pass(request)
        about, wanted, upload = json.loads(request.body), query.get("ifGenerationMatch", ""), secrets.token_hex(8)
        if wrong := self._compared(bucket, about["name"], wanted):
            return wrong
        self._resumable[upload] = (about, wanted, bytearray())
        place = f"http://{request.headers['Host']}{urlsplit(request.path).path}"
        return Answer(200, b"", {"Location": f"{place}?uploadType=resumable&upload_id={upload}"})

    def _xml(self, request: Any, bucket: str, key: str, query: Mapping[str, str]) -> Answer:
        headers = {name.lower(): value for name, value in request.headers.items()}
        wanted = headers.get("x-goog-if-generation-match", "")
        if "uploads" in query:
            upload = secrets.token_hex(8)
            self._parts[upload] = (_about(key, headers), {})
            return Answer(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                               f"</InitiateMultipartUploadResult>".encode())  # fmt: skip
        if (upload := query.get("uploadId", "")) and upload not in self._parts:
            return _MISSING
        if upload and request.command == "PUT":
            self._parts[upload][1][int(query["partNumber"])] = request.body
            return Answer(200, b"", {"ETag": f'"{query["partNumber"]}"'})
        if upload:
            about, parts = self._parts.pop(upload)
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", request.body)]
            return self._described(self._store(bucket, about, b"".join(parts[number] for number in numbers), wanted))
        if source := headers.get("x-goog-copy-source"):
            from_bucket, _, from_key = unquote(source).lstrip("/").partition("/")
            if wrong := self._compared(bucket, key, wanted):
                return wrong
            return self._described(self._rewrite(from_bucket, from_key, bucket, key, {}))
        return self._described(self._store(bucket, _about(key, headers), request.body, wanted))

    def _rewrite(self, from_bucket: str, from_key: str, bucket: str, key: str, about: dict[str, Any]) -> Answer:
        """Copy with the properties that the request names, which are then all that the copy has; else with the source's."""
        path = f"/storage/v1/b/{from_bucket}/o/{quote(from_key, safe='')}"
        found = self._ask("GET", path)
        if found.status != 200:
            return found
        item = json.loads(found.body)
        data = self._ask("GET", f"{path}?alt=media", headers={"Accept-Encoding": "gzip"}).body
        kept = (*(field for field in _HEADERS.values() if field != "storageClass"), "metadata")
        about = about or {field: item[field] for field in kept if field in item}
        answer = self._store(bucket, {**about, "name": key}, data, "")
        if answer.status == 200:
            said = {"kind": "storage#rewriteResponse", "done": True, "resource": json.loads(answer.body)}
            answer.body = json.dumps(said).encode()
        return answer

    def _store(self, bucket: str, about: Mapping[str, Any], data: bytes, wanted: str) -> Answer:
        if wrong := self._compared(bucket, about["name"], wanted):
            return wrong
        return self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart", *_multipart(about, data))

    def _described(self, answer: Answer) -> Answer:
        """Return the answer in JSON as the XML interface gives it."""
        if answer.status != 200:
            return _NO_BUCKET if answer.status == 404 else answer
        said = json.loads(answer.body)
        item = said.get("resource", said)
        tag, generation = item["etag"], item["generation"]
        body = f"<Result><ETag>&quot;{tag}&quot;</ETag></Result>".encode()
        return Answer(200, body, {"ETag": f'"{tag}"', "x-goog-generation": str(generation)})

    def _compared(self, bucket: str, key: str, wanted: str | None, missing: Answer = _CHANGED) -> Answer | None:
        """Return what is answered where an object has another generation, or there is none; 0 is that of none."""
        if not wanted:
            return None
        if not wanted.isdecimal():
            return Answer(400, b'{"error": {"code": 400, "message": "Invalid value"}}')
        answer = self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}")
        found = str(json.loads(answer.body)["generation"]) if answer.status == 200 else "0"
        return None if found == wanted else missing if found == "0" else _CHANGED

    def _pass(self, request: Any) -> Answer:
        # The server behind knows the XML interface by its own name only.
        kept = {name: value for name, value in request.headers.items() if name.lower() not in ("connection", "host")}
        return self._ask(request.command, request.path, request.body, kept)

    def _ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection(self._place, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, dict(headers or {}))
            answer = connection.getresponse()
            data = answer.read()
        dropped = ("connection", "transfer-encoding", "date", "server")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        if method != "HEAD":
            kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
        return Answer(answer.status, data, kept)


def _about(key: str, headers: Mapping[str, str]) -> dict[str, Any]:
    own = {name.removeprefix("x-goog-meta-"): value for name, value in headers.items() if name.startswith("x-goog-meta-")}
    named = {field: headers[name] for name, field in _HEADERS.items() if name in headers}
    return {"name": key, "metadata": own, **named}


def _multipart(about: Mapping[str, Any], data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body, and its headers, of an upload in one request."""
    mark = secrets.token_hex(8)
    head = f"--{mark}\r\nContent-Type: application/json\r\n\r\n{json.dumps(about)}\r\n"
    head += f"--{mark}\r\nContent-Type: {about.get('contentType', 'application/octet-stream')}\r\n\r\n"
    body = head.encode() + data + f"\r\n--{mark}--\r\n".encode()
    return body, {"Content-Type": f"multipart/related; boundary={mark}"}


class GoogleBucket:
    """A bucket as others write it by Google's JSON interface."""

    def __init__(self, url: str, name: str = "") -> None:
        """Make a bucket, or take the one of a name."""
        import requests

        self.name, self._url, self._session = name or f"b-{secrets.token_hex(6)}", url, requests.Session()
        if not name:
            self._ask("POST", "storage/v1/b?project=p", json={"name": self.name})

    def put(self, key: str, data: bytes, **properties: Any) -> None:
        """Write an object, with properties by the names of Google."""
        body, headers = _multipart({"name": key, **properties}, data)
        self._ask("POST", f"upload/storage/v1/b/{self.name}/o?uploadType=multipart", data=body, headers=headers)

    def describe(self, key: str) -> dict[str, Any]:
        """Return the object as Google describes it."""
        found: dict[str, Any] = self._ask("GET", self._path(key)).json()
        return found

    def get(self, key: str) -> bytes:
        """Return the content as it is stored."""
        answer = self._ask("GET", f"{self._path(key)}?alt=media", headers={"Accept-Encoding": "gzip"}, stream=True)
        content: bytes = answer.raw.read(decode_content=False)
        return content

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._ask("DELETE", self._path(key))

    def close(self) -> None:
        """End the connections."""
        self._session.close()

    def _path(self, key: str) -> str:
        return f"storage/v1/b/{self.name}/o/{quote(key, safe='')}"

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response:
        answer = self._session.request(method, f"{self._url}/{path}", timeout=120, **more)
        answer.raise_for_status()
        return answer


def account(directory: Path, url: str) -> str:
    """Write the key file of an account, whose tokens come from the front at ``url``; returns its path."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "account.json"
    path.write_text(json.dumps({
        "type": "service_account", "project_id": "p", "client_email": "me@p.iam.gserviceaccount.com", "private_key_id": "1",
        "private_key": key.decode(), "token_uri": f"{url}/token",
    }))  # fmt: skip
    return str(path)


@contextlib.contextmanager
def strict_google(upstream: str) -> Iterator[tuple[str, StrictGoogle]]:
    """Serve what fake-gcs-server has at the URL ``upstream``; yields the URL of the front, and what makes it strict."""
    server = StrictGoogle(upstream)
    with front(upstream, server.check) as url:
        yield url, server
