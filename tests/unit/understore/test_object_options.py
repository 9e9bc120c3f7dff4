"""How objects are to be stored: what is read, what is refused, and what every client sends."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.errors import ConfigError, StoreError, StoreRejected, StoreUnavailable
from luxfuse.understore import whole_files
from luxfuse.understore.base import UnderStore
from luxfuse.understore.checksums import encoded
from luxfuse.understore.factory import open_driver
from luxfuse.understore.object_options import ObjectOptions, take_object_options
from tests.support.fast_s3 import FastS3, available
from tests.support.strict_s3 import Seen, StrictS3

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
MIB = 1 << 20
KEYS = {"key": "a", "secret": "b", "region": "us-east-1"}
SECRET = base64.b64encode(b"k" * 32).decode()
SSE_C = "x-amz-server-side-encryption-customer-key-md5"


@pytest.fixture(scope="module")
def front() -> Iterator[StrictS3]:
    with FastS3() as server, StrictS3(server.endpoint) as front:
        yield front


@pytest.fixture(autouse=True)
def fresh(front: StrictS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_files, "PART_BYTES", 5 * MIB)
    front.seen.clear()
    front.refuse = lambda _request: None
    front.answer_headers = lambda _request: {}


def opened(front: StrictS3, driver: str = "obstore", **options: str) -> UnderStore:
    return open_driver("s3://bucket/p", endpoint_url=front.endpoint, storage_options={**KEYS, **options}, driver=driver)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"server_side_encryption": "aes128"}, "server_side_encryption: 'aes128' is none of AES256, aws:kms, "),
        ({"server_side_encryption": "sse-c"}, "needs sse_customer_key_file"),
        ({"server_side_encryption": "AES256", "sse_customer_key": SECRET}, "sse_customer_key: contradicts"),
        ({"sse_kms_key_id": "k"}, "sse_kms_key_id: needs server_side_encryption aws:kms"),
        ({"server_side_encryption": "AES256", "sse_kms_key_id": "k"}, "sse_kms_key_id: needs"),
        ({"server_side_encryption": "aws:kms", "sse_kms_key_id": "a b"}, "sse_kms_key_id: write"),
        ({"sse_customer_key": "c2hvcnQ="}, "sse_customer_key: must be 32 bytes in base64"),
        ({"sse_customer_key": "not base64"}, "sse_customer_key: must be 32 bytes"),
        ({"sse_customer_key": SECRET, "sse_customer_key_file": "/x"}, "sse_customer_key_file: contradicts"),
        ({"sse_customer_key": SECRET, "sse_customer_key_base64": "other"}, "contradicts"),
        ({"sse_customer_key_file": "/nowhere/key"}, "sse_customer_key_file '/nowhere/key': No such file"),
        ({"sse_customer_key_file": "/dev/null"}, "is no file"),
        ({"sse_customer_key": SECRET, "endpoint_url": "http://host:1"}, "sse_customer_key: the endpoint is plain HTTP"),
        ({"sse_customer_key": SECRET, "use_ssl": "false"}, "plain HTTP"),
        ({"acl": "open"}, "acl: 'open' is none of keep, private, "),
        ({"checksum_algorithm": "md4"}, "checksum_algorithm: 'md4' is none of CRC64NVME, CRC32C, CRC32, none"),
        ({"requester_pays": "perhaps"}, "requester_pays: write true or false"),
        ({"expected_bucket_owner": "me"}, "expected_bucket_owner: 'me' is not an account of 12 digits"),
        ({"storage_class": "a b"}, "storage_class: 'a b' is not a storage class such as STANDARD_IA"),
    ],
)
def test_refused(options, text):
    with pytest.raises(ConfigError) as caught:
        take_object_options("s3", options)
    assert text in str(caught.value)
    assert SECRET not in str(caught.value)
    for driver in ("obstore", "fsspec"):
        if "expected_bucket_owner" not in options:
            with pytest.raises(ConfigError):
                open_driver("s3://b", storage_options={**KEYS, **options}, driver=driver)


def test_options_of_other_stores():
    assert take_object_options("az", {"storage_class": "cool", "anon": "true"})[0].storage_class == "Cool"
    with pytest.raises(ConfigError, match="storage_class: 'Archive' is none of Hot, Cool, Cold"):
        take_object_options("az", {"storage_class": "Archive"})
    with pytest.raises(ConfigError, match="storage option storage_class: file:// does not know it"):
        open_driver("file:///tmp", storage_options={"storage_class": "STANDARD"})


def test_customer_key_in_a_file(tmp_path: Path):
    for content in (b"k" * 32, SECRET.encode() + b"\n"):
        (tmp_path / "key").write_bytes(content)
        (tmp_path / "key").chmod(0o600)
        found = take_object_options("s3", {"sse_customer_key_file": str(tmp_path / "key")})[0]
        assert found.customer_key == b"k" * 32
        assert "kkk" not in repr(found)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="others can get at it"):
        take_object_options("s3", {"sse_customer_key_file": str(tmp_path / "key")})


def test_variables_of_obstore_hold_for_all_clients(monkeypatch):
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "k")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    found = take_object_options("s3", {})[0]
    assert found == ObjectOptions(encryption="aws:kms", kms_key_id="k", requester_pays=True)
    assert take_object_options("s3", {"server_side_encryption": "AES256"})[0].kms_key_id is None


def everything(store: UnderStore, path: Path) -> None:
    """Make every kind of request that touches an object."""
    first = store.put("x", b"data", {"mode": "1"})
    assert bytes(store.read("x", 1, 3, first.version)) == b"at"
    assert store.head("x").metadata == {"mode": "1"}
    store.put("large", b"l" * (1 * MIB), {})
    store.put("tab\there", b"odd", {})
    upload = store.begin_upload("m", {})
    tags = [store.upload_part("m", upload, 1, b"p" * (5 * MIB)), store.copy_part("m", upload, 2, "x", first.version, 0, 4)]
    made = store.complete_upload("m", upload, list(enumerate(tags, 1)))
    assert bytes(store.read("m", 5 * MIB - 1, 5 * MIB + 3, made.version)) == b"pdat"
    store.copy("x", "y", version=first.version, size=4)
    second = store.copy("x", "x", version=first.version, metadata={"mode": "2"})
    assert bytes(store.read("x", 0, 4, second.version)) == b"data"
    path.write_bytes(b"f" * (5 * MIB + 1))
    store.put_file("f", str(path), {})
    assert sum(len(page.objects) for page in store.list_all("")) == 6
    assert store.delete(["x", "y", "tab\there", "large"]) == {}
    store.delete(["m"])
    store.delete(["f"])


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_customer_key_goes_with_every_request(front, driver, tmp_path):
    store = opened(front, driver, sse_customer_key=SECRET)
    everything(store, tmp_path / "f")
    store.close()
    with_key = {request.kind for request in front.seen if SSE_C in request.headers}
    assert with_key >= {"put", "get", "head", "begin", "part", "copy-part", "complete", "copy"}
    assert not with_key & {"list", "delete", "delete-many"}
    assert not any(SECRET in str(request.path) + str(request.query) for request in front.seen)
    plain, keyed = opened(front, driver), opened(front, driver, sse_customer_key=SECRET)
    keyed.put("x", b"data", {})
    with pytest.raises(StoreError):
        plain.head("x")
    keyed.delete(["x", "f"])
    plain.close()
    keyed.close()


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_settings_hold_for_every_client(front, driver, tmp_path):
    store = opened(front, driver, storage_class="STANDARD_IA", server_side_encryption="aws:kms", sse_kms_key_id="k1",
                   acl="bucket-owner-full-control", requester_pays="true")  # fmt: skip
    everything(store, tmp_path / "f")
    store.close()
    makes = {"put", "begin", "copy"}
    assert {request.kind for request in front.seen} >= makes
    for request in front.seen:
        headers = request.headers
        assert headers["x-amz-request-payer"] == "requester"
        storage_class = "STANDARD" if request.kind == "copy" else "STANDARD_IA"  # this server says nothing of the class
        wanted = (storage_class, "aws:kms", "k1", "bucket-owner-full-control") if request.kind in makes else (None,) * 4
        assert (headers.get("x-amz-storage-class"), headers.get("x-amz-server-side-encryption"),
                headers.get("x-amz-server-side-encryption-aws-kms-key-id"), headers.get("x-amz-acl")) == wanted  # fmt: skip


def test_bucket_owner_is_checked_with_every_request(front, tmp_path):
    store = opened(front, "auto", expected_bucket_owner="123456789012")
    assert store.driver == "fsspec"  # obstore would leave it out of listings
    store.probe()
    everything(store, tmp_path / "f")
    store.close()
    for request in front.seen:
        assert request.headers["x-amz-expected-bucket-owner"] == "123456789012", request.kind
        signed = request.headers["authorization"]
        assert "x-amz-expected-bucket-owner" in signed
    with pytest.raises(ConfigError, match=r"does not know.*expected_bucket_owner"):
        opened(front, "obstore", expected_bucket_owner="123456789012")


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
@pytest.mark.parametrize("algorithm", [None, "crc32c", "none"])
def test_checksums_go_with_what_is_written(front, driver, algorithm, tmp_path):
    options = {} if algorithm is None else {"checksum_algorithm": algorithm}
    store = opened(front, driver, **options)
    everything(store, tmp_path / "f")
    store.close()
    name = f"x-amz-checksum-{algorithm or 'crc64nvme'}"
    for request in front.seen:
        sent = {n: v for n, v in request.headers.items() if n.startswith("x-amz-checksum-") and n != "x-amz-checksum-mode"}
        if algorithm == "none":
            assert not sent
        elif request.kind in ("put", "part", "delete-many"):
            assert sent == {name: encoded((algorithm or "crc64nvme").upper(), request.body)}
        elif request.kind == "begin":
            assert sent == {"x-amz-checksum-algorithm": name[15:].upper(), "x-amz-checksum-type": "FULL_OBJECT"}
        else:
            assert not sent


def needs_digest(request: Seen) -> tuple[int, str, str] | None:
    """Refuse as a bucket with Object Lock does, of a server that does not know the newer checksums."""
    if request.kind in ("put", "part", "delete-many") and "content-md5" not in request.headers:
        return 400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests"
    return None


def no_checksums(status: int, code: str, message: str):
    def refuse(request: Seen) -> tuple[int, str, str] | None:
        names = request.headers.keys() - {"x-amz-checksum-mode"}
        return (status, code, message) if any("-checksum-" in name for name in names) else None

    return refuse


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_content_md5_where_the_server_wants_that(front, driver, tmp_path):
    front.refuse = needs_digest
    store = opened(front, driver)
    everything(store, tmp_path / "f")
    refused = len([r for r in front.seen if needs_digest(r)])
    assert refused == (2 if driver == "obstore" else 1)  # each client learns it once
    store.close()


REFUSALS = [
    (501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
    (400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc64nvme' received for this API call."),
]


@pytest.mark.expected_logs("does not take CRC64NVME checksums")
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_server_without_checksums(front, driver, refusal, tmp_path, caplog):
    front.refuse = no_checksums(*refusal)
    store = opened(front, driver)
    everything(store, tmp_path / "f")
    refused = [request.kind for request in front.seen if front.refuse(request)]
    assert len(refused) == (2 if driver == "obstore" else 1)
    assert store.abilities.conditional
    assert len([record for record in caplog.records if "checksums" in record.message]) == len(refused)
    store.close()


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_checksum_that_was_asked_for_is_not_left_out(front, driver):
    front.refuse = no_checksums(*REFUSALS[1])
    store = opened(front, driver, checksum_algorithm="crc64nvme")
    with pytest.raises(StoreRejected):
        store.put("x", b"data", {})
    store.close()


@pytest.mark.expected_logs("knows no conditional writes")
@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_refused_condition_is_not_taken_for_a_refused_checksum(front, driver):
    front.refuse = lambda r: (501, "NotImplemented", "no") if "if-none-match" in r.headers else None
    store = opened(front, driver)
    store.put("x", b"data", {}, expect="")
    assert not store.abilities.conditional
    front.seen.clear()
    store.put("x", b"data", {})
    assert "x-amz-checksum-crc64nvme" in front.seen[0].headers
    store.close()


def test_damage_on_the_way_is_tried_again(front):
    store = opened(front, "fsspec")
    upload = store.begin_upload("x", {})
    front.answer_headers = lambda _request: {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}
    with pytest.raises(StoreUnavailable, match="what the store has is damaged"):
        store.upload_part("x", upload, 1, b"data")
    front.refuse = lambda _request: (400, "BadDigest", "The CRC64NVME you specified did not match")
    for request in (lambda: store.upload_part("x", upload, 1, b"data"), lambda: opened(front).put("y", b"data", {})):
        with pytest.raises(StoreUnavailable, match="BadDigest"):
            request()
    store.close()


def test_checksums():
    assert encoded("CRC64NVME", b"123456789") == base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
    assert encoded("CRC32C", b"123456789") == base64.b64encode(bytes.fromhex("e3069283")).decode()
    data = os.urandom(100_003)
    for algorithm in ("CRC64NVME", "CRC32C"):
        assert encoded(algorithm, memoryview(bytearray(data))[3:]) == encoded(algorithm, data[3:])
