"""Our own S3 client over both transports: copies and files in parts, headers that a copy keeps, where requests go."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from luxfuse.errors import NotFound, StoreError, StoreRejected, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT, ObjectInfo
from luxfuse.understore import whole_files
from luxfuse.understore.opening import open_fsspec
from luxfuse.understore.properties import Properties
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


@pytest.fixture(params=["botocore", "s3fs"])
def impatient(server: FastS3, request: pytest.FixtureRequest) -> Iterator[S3Client]:
    """A client that waits half a second for what it reads, and 20 s for writes."""
    options = {"key": "a", "secret": "b", "config_kwargs": '{"read_timeout": 0.5}'}
    client = open_client(request.param, options, server.endpoint, 20.0)
    yield client
    server.set(latency_ms=0)
    client.close()


def test_writes_may_take_longer_than_reads(impatient, server):
    upload = impatient.begin_upload("slow", {})
    part = (1, impatient.upload_part("slow", upload, 1, b"data"))
    version = impatient.put("x", b"data", {}).version
    server.set(latency_ms=1000)
    assert impatient.complete_upload("slow", upload, [part]).version
    impatient.copy("x", "y", keep=Properties(ObjectInfo("x", 4, version, 0)))
    impatient.delete(["y"])
    for read in (
        lambda: impatient.head("x"),
        lambda: impatient.read("x", 0, 4, version),
        lambda: next(impatient.list_directory("")),
        impatient.probe,
    ):
        with pytest.raises(StoreUnavailable):
            read()
    server.set(latency_ms=0)
    assert bytes(impatient.read("x", 0, 4, version)) == b"data"


@pytest.mark.parametrize("transport", ["botocore", "s3fs"])
def test_server_that_takes_no_more_of_a_body(transport):
    """The upload fails, and the next one is made as if nothing had been."""
    taken = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)

        def serve() -> None:
            with listening.accept()[0] as stuck:
                stuck.recv(1000)
                taken.wait(120)
            with listening.accept()[0] as good:
                found = b""
                while b"\r\n\r\n" not in found:
                    found += good.recv(1000)
                good.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n')

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        client = open_client(transport, {"key": "a", "secret": "b", "checksum_algorithm": "none"}, endpoint, 1.0)
        try:
            with pytest.raises(StoreUnavailable):
                client.upload_part("x", "1", 1, bytes(16 * MIB))
            taken.set()
            assert client.upload_part("x", "1", 1, b"") == '"1"'
        finally:
            taken.set()
            client.close()
            thread.join(30)


def test_parameters_that_the_library_does_not_know_are_refused(server, monkeypatch):
    """s3fs would leave them out, and write without the condition."""
    client = open_client("s3fs", {"key": "a", "secret": "b"}, server.endpoint)
    meta = client._requests._transport._fs.s3.meta
    members = meta.service_model.operation_model("PutObject").input_shape.members
    monkeypatch.delitem(members, "IfNoneMatch")
    with pytest.raises(StoreRejected):
        client.put("x", b"data", {}, expect=ABSENT)
    client.close()
