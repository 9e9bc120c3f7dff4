"""Our own S3 client over both transports: copies and files in parts, headers that a copy keeps, where requests go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from luxfuse.errors import NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT
from luxfuse.understore import whole_files
from luxfuse.understore.opening import open_fsspec
from luxfuse.understore.s3 import client as s3_client
from luxfuse.understore.s3.arguments import s3_arguments
from luxfuse.understore.s3.botocore import BotocoreTransport
from luxfuse.understore.s3.client import S3Client
from tests.support.fake_store import FakeStore
from tests.support.fast_s3 import FastS3, available

boto3 = pytest.importorskip("boto3")
pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[FastS3]:
    with FastS3() as server:
        yield server


def open_client(transport: str, options: dict[str, str], endpoint: str | None, timeout_s: float = 10.0) -> S3Client:
    if transport == "s3fs":
        found = open_fsspec("s3://bucket/pre/", endpoint_url=endpoint, storage_options=options, request_timeout_s=timeout_s)
        assert isinstance(found, S3Client)
        return found
    return S3Client("bucket", "pre/", partial(BotocoreTransport, s3_arguments("bucket", options, endpoint, timeout_s)))


@pytest.fixture(params=["botocore", "s3fs"])
def client(server: FastS3, request: pytest.FixtureRequest) -> Iterator[S3Client]:
    client = open_client(request.param, {"key": "a", "secret": "b"}, server.endpoint)
    yield client
    client.delete([info.key for page in client.list_all("") for info in page.objects])
    client.close()


@pytest.fixture
def plain(server: FastS3) -> Iterator[object]:
    it = boto3.client("s3", endpoint_url=server.endpoint, aws_access_key_id="a", aws_secret_access_key="b",
                      region_name="us-east-1")  # fmt: skip
    yield it
    it.close()


def test_large_objects_are_copied_in_parts(client, server, plain, monkeypatch):
    monkeypatch.setattr(s3_client, "SINGLE_COPY_BYTES", 6 * MIB)
    monkeypatch.setattr(s3_client, "COPIED_PART_BYTES", 5 * MIB)
    body = os.urandom(12 * MIB + 7)
    first = client.put("x", body, {"mode": "33188"})
    requests = server.counters().get("posts", 0)
    copied = client.copy("x", "y", version=first.version, expect=ABSENT)
    assert server.counters()["posts"] == requests + 2
    assert (copied.size, copied.metadata) == (len(body), {"mode": "33188"})
    found = plain.get_object(Bucket="bucket", Key="pre/y")
    assert found["Body"].read() == body
    assert found["ETag"] == copied.version
    changed = client.copy("y", "y", metadata={"mode": "1"}, version=copied.version)
    found = plain.get_object(Bucket="bucket", Key="pre/y")
    assert (found["ETag"], found["Metadata"]) == (changed.version, {"mode": "1"})
    assert found["Body"].read() == body
    with pytest.raises(VersionChanged):
        client.copy("x", "y", expect=ABSENT)
    assert "Uploads" not in plain.list_multipart_uploads(Bucket="bucket")


def test_new_metadata_keeps_the_headers(client, plain):
    headers = {"CacheControl": "no-cache", "ContentEncoding": "gzip", "ContentType": "text/x-own"}
    plain.put_object(Bucket="bucket", Key="pre/x", Body=b"data", Metadata={"old": "1"}, **headers)
    client.copy("x", "x", metadata={"new": "2"})
    found = plain.head_object(Bucket="bucket", Key="pre/x")
    assert {name: found[name] for name in headers} == headers
    assert found["Metadata"] == {"new": "2"}


def test_copies_cost_two_requests_once_the_server_is_known(client, server):
    version = client.put("x", b"data", {}).version
    client.copy("x", "y", version=version, size=4)
    server.counters(reset=True)
    client.copy("x", "z", version=version, size=4)
    assert server.counters()["requests"] <= 3  # and the reading of the counters
    kept = client.examine("x", whole=False)
    server.counters(reset=True)
    client.copy("x", "z", version=version, keep=kept)
    assert server.counters()["requests"] <= 2


def test_file_in_parts(client, plain, tmp_path: Path):
    body = os.urandom(40 * MIB)
    (tmp_path / "f").write_bytes(body)
    info = client.put_file("f", str(tmp_path / "f"), {"mode": "1"}, expect=ABSENT)
    found = plain.get_object(Bucket="bucket", Key="pre/f")
    assert (found["ETag"], found["Metadata"]) == (info.version, {"mode": "1"})
    assert found["Body"].read() == body


def test_failed_file_is_aborted(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(whole_files, "PART_BYTES", 1000)
    (tmp_path / "f").write_bytes(b"x" * 10_500)
    for kind in ("upload_part", "complete_upload", "begin_upload"):
        fake = FakeStore()
        fake.fail_next(kind=kind)
        with pytest.raises(StoreUnavailable):
            whole_files.put_in_parts(fake, "f", str(tmp_path / "f"), {}, None)
        assert (fake.uploads, fake.objects) == ({}, {})
    fake = FakeStore()
    fake.fail_next(kind="upload_part")
    fake.fail_next(kind="abort_upload", error=lambda: NotFound("other"))
    with pytest.raises(StoreUnavailable):
        whole_files.put_in_parts(fake, "f", str(tmp_path / "f"), {}, None)
    fake = FakeStore()
    whole_files.put_in_parts(fake, "f", str(tmp_path / "f"), {}, None)
    assert fake.objects["f"][0] == b"x" * 10_500
    assert fake.counts["upload_part"] == 11


def test_file_that_gets_shorter(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"short")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    with pytest.raises(StoreUnavailable, match="shorter"):
        whole_files.read_exactly(fd, 0, 10, "f")
    assert whole_files.read_exactly(fd, 1, 4, "f") == b"hor"
    os.close(fd)


@pytest.mark.parametrize("transport", ["botocore", "s3fs"])
@pytest.mark.parametrize(("options", "endpoint", "url"), [
    ({}, "http://host:9000", "http://host:9000/bucket/pre/x"),
    ({}, "http://bucket.host:9000", "http://bucket.host:9000/pre/x"),
    ({"region": "eu-west-1"}, None, "https://bucket.s3.eu-west-1.amazonaws.com/pre/x"),
    ({"region": "eu-west-1", "use_ssl": "false"}, None, "http://bucket.s3.eu-west-1.amazonaws.com/pre/x"),
])  # fmt: skip
def test_where_requests_go(transport, options, endpoint, url, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    client = open_client(transport, {"key": "a", "secret": "b", **options}, endpoint, 1.0)
    seen = []

    def stop(request, **_):
        seen.append(request.url)
        raise ConnectionError

    own = client._requests._transport
    inner = own._client if transport == "botocore" else own._fs.s3
    inner.meta.events.register_first("before-send.s3", stop)
    with pytest.raises(StoreError):
        client.put("x", b"data", {})
    assert seen == [url]
    client.close()
