"""The fast S3 server against boto3's idea of S3."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import fast_s3

boto3 = pytest.importorskip("boto3")
pytestmark = pytest.mark.skipif(fast_s3.available() is not None, reason=str(fast_s3.available()))

KEYS = ["a b+c%41?x=é&<\">'", "deep/a/b/c", "dir-z", "dir/x", "dir/y", "dir0", "mark/", "mark/q"]


@pytest.fixture(scope="module")
def server() -> Iterator[fast_s3.FastS3]:
    with fast_s3.FastS3() as it:
        yield it


@pytest.fixture(scope="module")
def client(server: fast_s3.FastS3) -> Iterator[Any]:
    config = boto3.session.Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
    it = boto3.client(
        "s3", endpoint_url=server.endpoint, aws_access_key_id="a", aws_secret_access_key="b",
        region_name="us-east-1", config=config,
    )  # fmt: skip
    for key in KEYS:
        it.put_object(Bucket="bucket", Key=key, Body=key.encode(), Metadata={"m": "1"})
    yield it
    it.close()


def code(client: Any, operation: str, **arguments: Any) -> str:
    with pytest.raises(client.exceptions.ClientError) as caught:
        getattr(client, operation)(Bucket=arguments.pop("Bucket", "bucket"), **arguments)
    return caught.value.response["Error"]["Code"]


@pytest.mark.parametrize("key", KEYS)
def test_object_comes_back(client: Any, key: str) -> None:
    answer = client.get_object(Bucket="bucket", Key=key)
    assert answer["Body"].read() == key.encode()
    assert answer["Metadata"] == {"m": "1"}
    assert client.head_object(Bucket="bucket", Key=key)["ETag"] == answer["ETag"]


@pytest.mark.parametrize("page", [1, 3, 1000])
@pytest.mark.parametrize("version", ["list_objects", "list_objects_v2"])
def test_listing_in_pages(client: Any, version: str, page: int) -> None:
    def listed(**arguments: str) -> list[str]:
        pages = client.get_paginator(version).paginate(
            Bucket="bucket", PaginationConfig={"PageSize": page}, **arguments)
        return [e.get("Key", e.get("Prefix")) for p in pages
                for e in p.get("Contents", []) + p.get("CommonPrefixes", [])]  # fmt: skip

    assert listed() == sorted(KEYS)
    assert sorted(listed(Delimiter="/")) == sorted([KEYS[0], "deep/", "dir-z", "dir/", "dir0", "mark/"])
    assert listed(Delimiter="/", Prefix="mark/") == ["mark/", "mark/q"]
    assert sorted(listed(Delimiter="/", Prefix="dir")) == ["dir-z", "dir/", "dir0"]


def test_start_after(client: Any) -> None:
    answer = client.list_objects_v2(Bucket="bucket", StartAfter="dir/x")
    assert [e["Key"] for e in answer["Contents"]] == ["dir/y", "dir0", "mark/", "mark/q"]


def test_range_and_conditions(client: Any) -> None:
    etag = client.head_object(Bucket="bucket", Key="dir/x")["ETag"]
    answer = client.get_object(Bucket="bucket", Key="dir/x", IfMatch=etag, Range="bytes=1-2")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert answer["ContentRange"] == "bytes 1-2/5"
    assert answer["Body"].read() == b"ir"
    assert code(client, "get_object", Key="dir/x", IfMatch='"no"') == "PreconditionFailed"
    assert code(client, "get_object", Key="dir/x", IfNoneMatch=etag) == "304"
    assert code(client, "put_object", Key="dir/x", IfNoneMatch="*") == "PreconditionFailed"


def test_missing(client: Any) -> None:
    assert code(client, "get_object", Key="none") == "NoSuchKey"
    assert code(client, "get_object", Bucket="none", Key="none") == "NoSuchBucket"
    assert code(client, "head_object", Key="dir") == "404"


def test_etag_changes_with_content_of_equal_size(server: fast_s3.FastS3, client: Any) -> None:
    tags = {client.put_object(Bucket="bucket", Key="new/etag", Body=b"%d" % i)["ETag"] for i in range(5)}
    assert len(tags) == 5
    client.delete_object(Bucket="bucket", Key="new/etag")
    assert not (server.bucket_path() / "new").exists()


def test_multipart_and_copy(client: Any) -> None:
    upload = client.create_multipart_upload(Bucket="bucket", Key="multi", Metadata={"k": "v"})["UploadId"]
    parts = [
        {"PartNumber": n, "ETag": client.upload_part(Bucket="bucket", Key="multi", UploadId=upload, PartNumber=n,
                                                     Body=bytes([n]) * 1_000_000)["ETag"]} for n in (1, 2)
    ]  # fmt: skip
    client.complete_multipart_upload(Bucket="bucket", Key="multi", UploadId=upload, MultipartUpload={"Parts": parts})
    client.copy_object(Bucket="bucket", Key="copy", CopySource={"Bucket": "bucket", "Key": "multi"})
    answer = client.get_object(Bucket="bucket", Key="copy")
    assert answer["Body"].read() == b"\1" * 1_000_000 + b"\2" * 1_000_000
    assert answer["Metadata"] == {"k": "v"}
    client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "multi"}, {"Key": "copy"}]})
    assert code(client, "head_object", Key="multi") == "404"


def test_listing_notices_files_written_behind_the_server(server: fast_s3.FastS3, client: Any) -> None:
    directory = server.bucket_path() / "behind"
    directory.mkdir()
    for n in range(20):
        (directory / f"{n:02}").touch()
        assert client.list_objects_v2(Bucket="bucket", Prefix="behind/")["KeyCount"] == n + 1


def test_injection(server: fast_s3.FastS3, client: Any) -> None:
    try:
        server.set(error_rate=1.0)
        assert code(client, "get_object", Key="dir/x") == "SlowDown"
        server.set(error_rate=0, latency_ms=1)
        client.head_object(Bucket="bucket", Key="dir/x")
    finally:
        server.set(error_rate=0, latency_ms=0)
    assert server.counters()["injected_errors"] == 1
