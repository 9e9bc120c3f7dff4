"""The fast S3 server against boto3's idea of S3."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import fast_s3

boto3 = pytest.importorskip("boto3")
pytestmark = pytest.mark.skipif(fast_s3.available() is not None, reason=str(fast_s3.available()))

KEYS = ["a b+c%41?x=é&<\">'", "deep/a/b/c", "dir-z", "dir/x", "dir/y", "dir0", "mark/", "mark/q"]
PART = 5 << 20


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
        pages = client.get_paginator(version).paginate(Bucket="bucket", PaginationConfig={"PageSize": page}, **arguments)
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
                                                     Body=bytes([n]) * PART)["ETag"]} for n in (1, 2)
    ]  # fmt: skip
    client.complete_multipart_upload(Bucket="bucket", Key="multi", UploadId=upload, MultipartUpload={"Parts": parts})
    client.copy_object(Bucket="bucket", Key="copy", CopySource={"Bucket": "bucket", "Key": "multi"})
    answer = client.get_object(Bucket="bucket", Key="copy")
    assert answer["Body"].read() == b"\1" * PART + b"\2" * PART
    assert answer["Metadata"] == {"k": "v"}
    client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "multi"}, {"Key": "copy"}]})
    assert code(client, "head_object", Key="multi") == "404"


def test_conditions_on_writes(client: Any) -> None:
    put = {"Key": "cond/x", "Body": b"new"}
    assert code(client, "put_object", IfMatch='"none"', **put) == "NoSuchKey"
    etag = client.put_object(Bucket="bucket", IfNoneMatch="*", **put)["ETag"]
    assert code(client, "put_object", IfNoneMatch="*", **put) == "PreconditionFailed"
    assert code(client, "put_object", IfMatch='"other"', **put) == "PreconditionFailed"
    new = client.put_object(Bucket="bucket", IfMatch=etag, **put)["ETag"]
    assert new != etag
    upload = client.create_multipart_upload(Bucket="bucket", Key="cond/x")["UploadId"]
    part = client.upload_part(Bucket="bucket", Key="cond/x", UploadId=upload, PartNumber=1, Body=b"part")["ETag"]
    complete = {"Key": "cond/x", "UploadId": upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part}]}}
    assert code(client, "complete_multipart_upload", IfMatch=etag, **complete) == "PreconditionFailed"
    client.complete_multipart_upload(Bucket="bucket", IfMatch=new, **complete)
    assert client.get_object(Bucket="bucket", Key="cond/x")["Body"].read() == b"part"
    assert code(client, "complete_multipart_upload", **complete) == "NoSuchUpload"


def test_one_of_many_conditional_writes_wins(client: Any) -> None:
    def put(number: int) -> bool:
        try:
            client.put_object(Bucket="bucket", Key="race/x", Body=b"%d" % number, IfNoneMatch="*")
        except client.exceptions.ClientError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(40))) == 1


def test_copies(client: Any) -> None:
    client.put_object(Bucket="bucket", Key="from+ é/", Body=b"", Metadata={"a": "1"})
    client.put_object(Bucket="bucket", Key="from+ é/x", Body=b"0123456789" * 10**6, Metadata={"a": "1"})
    source = {"Bucket": "bucket", "Key": "from+ é/x"}
    etag = client.head_object(**source)["ETag"]
    copy = {"Key": "to", "CopySource": source, "CopySourceIfMatch": '"other"'}
    assert code(client, "copy_object", **copy) == "PreconditionFailed"
    assert code(client, "copy_object", Key="from+ é/x", CopySource=source) == "InvalidRequest"
    assert code(client, "copy_object", Key="to", CopySource={**source, "Key": "none"}) == "NoSuchKey"
    copied = client.copy_object(CopySource=source, CopySourceIfMatch=etag, MetadataDirective="REPLACE",
                                Metadata={"b": "2"}, **source)["CopyObjectResult"]  # fmt: skip
    found = client.get_object(**source)
    assert (found["ETag"], found["Metadata"]) == (copied["ETag"], {"b": "2"})
    assert found["ETag"] != etag
    assert found["Body"].read() == b"0123456789" * 10**6
    client.copy_object(Bucket="bucket", Key="marker/", CopySource={**source, "Key": "from+ é/"})
    assert client.head_object(Bucket="bucket", Key="marker/")["Metadata"] == {"a": "1"}
    upload = client.create_multipart_upload(Bucket="bucket", Key="to")["UploadId"]
    part = {"Bucket": "bucket", "Key": "to", "UploadId": upload, "CopySource": source}
    one = client.upload_part_copy(PartNumber=1, CopySourceRange="bytes=3-6000002", CopySourceIfMatch=found["ETag"],
                                  **part)["CopyPartResult"]  # fmt: skip
    two = client.upload_part_copy(PartNumber=2, CopySourceRange="bytes=1-2", **part)["CopyPartResult"]
    parts = [{"PartNumber": 1, "ETag": one["ETag"]}, {"PartNumber": 2, "ETag": two["ETag"]}]
    client.complete_multipart_upload(Bucket="bucket", Key="to", UploadId=upload, MultipartUpload={"Parts": parts})
    assert client.get_object(Bucket="bucket", Key="to")["Body"].read() == b"3456789012" * 600_000 + b"12"


def test_open_uploads(server: fast_s3.FastS3, client: Any) -> None:
    begin = {"Bucket": "bucket", "Key": "open/x&y"}
    upload = client.create_multipart_upload(**begin)["UploadId"]
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket", Prefix="other/")
    (found,) = client.list_multipart_uploads(Bucket="bucket", Prefix="open/")["Uploads"]
    assert (found["Key"], found["UploadId"]) == ("open/x&y", upload)
    small = [client.upload_part(**begin, UploadId=upload, PartNumber=n, Body=b"small")["ETag"] for n in (1, 2)]
    parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(small, 1)]
    complete = {"Key": begin["Key"], "UploadId": upload}
    assert code(client, "complete_multipart_upload", MultipartUpload={"Parts": parts}, **complete) == "EntityTooSmall"
    parts[0]["ETag"] = '"other"'
    assert code(client, "complete_multipart_upload", MultipartUpload={"Parts": parts}, **complete) == "InvalidPart"
    client.abort_multipart_upload(**begin, UploadId=upload)
    assert code(client, "abort_multipart_upload", **complete) == "NoSuchUpload"
    assert code(client, "upload_part", **complete, PartNumber=1, Body=b"x") == "NoSuchUpload"
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket", Prefix="open/")
    assert not (server.bucket_path() / "open").exists()


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
