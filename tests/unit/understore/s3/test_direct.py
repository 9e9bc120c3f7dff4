"""Small objects in C: signed as S3 wants it, kept as Python keeps them, and left to obstore wherever something is odd."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from luxfuse.cache import disk
from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.understore.factory import open_driver
from luxfuse.understore.gets.client import AS_USUAL
from luxfuse.understore.locations import parse_location
from luxfuse.understore.object_options import take_object_options
from luxfuse.understore.s3 import direct
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.direct import DirectGets, refusal
from luxfuse.understore.small_files import Answer, SmallFiles, WantedFile
from tests.support.direct import SECRETS, check_signature, headers_of, opened
from tests.support.front import certificate_authority, front
from tests.support.odd_gets import MODIFIED_S, OddGets, body_of
from tests.support.odd_s3 import OddS3

pytestmark = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")

SOURCE = "s3://bucket/some/prefix"


@pytest.fixture
def server() -> Iterator[OddGets]:
    with OddGets() as odd:
        yield odd


def wanted(
    kind: str, number: int = 7, size: int = 3000, path: Path | None = None, *, stay_open: bool = False
) -> WantedFile:
    return WantedFile(f"{kind}-{number}-{size}", f'"v{number}"', size, str(path) if path else None, stay_open)


def fetch(gets: DirectGets, *files: WantedFile) -> list[Answer]:
    return gets.fetch(files, bytearray(1))


@pytest.mark.parametrize("odd", [("key", '"v"', 0, None, False), ("\udc80", '"v"', 100, None, False)])
def test_a_file_that_cannot_be_asked_for_closes_nothing(server: OddGets, odd: tuple[Any, ...]) -> None:
    pool = opened(SOURCE, f"http://{server.host}", SECRETS)._pool
    kept = os.dup(0)
    try:
        with pytest.raises(ValueError, match=r"no size|surrogates"):
            pool.fetch([wanted("plain"), odd, wanted("plain")], None, bytearray(1))
        assert os.path.sameopenfile(0, kept)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize("size", [1, 4096, 1 << 20, (1 << 20) + 1, 2 << 20])
def test_a_file_is_kept_as_python_keeps_it(server: OddGets, tmp_path: Path, size: int) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    directory = CacheDirectory(tmp_path / "cache", "source")
    oid, other = bytes(16), bytes([1]) * 16
    path = directory.file_of(oid)
    path.parent.mkdir()
    path.write_bytes(bytes(3 << 20))  # left by a crash
    path.chmod(0o600)
    (answer,) = fetch(gets, wanted("meta", 7, size, path, stay_open=True))
    file = answer.arrived
    assert file is not None
    pages = range((size + disk.PAGE_BYTES - 1) // disk.PAGE_BYTES)
    data = memoryview(body_of(7, size))
    stored = disk.store_run(directory, other, size, pages, data, create=True, keep_open=False)
    assert (file.data, file.checksums, file.errno) == (data, stored.checksums, 0)
    assert path.read_bytes() == directory.file_of(other).read_bytes()
    st = os.fstat(file.fd)
    assert (file.stamp, file.file_number, file.opened) == (st.st_mtime_ns, st.st_ino, True)
    assert st.st_mode & 0o7777 == directory.file_of(other).stat().st_mode & 0o7777
    assert not os.get_inheritable(file.fd)
    os.close(file.fd)
    info = file.info
    assert (info.key, info.size, info.version, info.mtime_ns) == (f"meta-7-{size}", size, '"v7"', MODIFIED_S * 10**9)
    assert info.metadata == {"mode": "33188", "me": "you"}
    assert answer.seconds is not None
    directory.close()


def test_the_description_is_that_of_obstore() -> None:
    with OddS3() as s3:
        etag = s3.place("d/f", b"content", mode="33188", **{"x-y": "Z z"})
        driver = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS, direct_gets=4)
        assert cast(SmallFiles, driver).fetches_small
        told: list[Any] = []
        data = driver.read("d/f", 0, 7, etag, on_described=told.append)
        (answer,) = cast(SmallFiles, driver).fetch_small([WantedFile("d/f", etag, 7, None, False)], bytearray(1))
        assert answer.arrived is not None
        assert (answer.arrived.data, answer.arrived.info) == (bytes(data), told[0])
        driver.close()


def test_a_cache_directory_whose_name_is_no_text_is_left_to_obstore(server: OddGets, tmp_path: Path) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    odd, plain = fetch(gets, wanted("good", path=tmp_path / "\udcff" / "f"), wanted("good", path=tmp_path / "ä"))
    assert (odd.arrived, odd.error) == (None, None)
    assert plain.arrived is not None


def test_a_disk_that_fails_is_told_and_leaves_no_file(server: OddGets, tmp_path: Path) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    (tmp_path / "file").touch()
    missing, no_directory = tmp_path / "a" / "b" / "f", tmp_path / "file" / "f"
    answers = fetch(gets, *(wanted("good", path=path) for path in (missing, no_directory)))
    for answer, number in zip(answers, (errno.ENOENT, errno.ENOTDIR), strict=True):
        assert answer.arrived is not None
        assert (answer.arrived.errno, answer.arrived.opened, answer.arrived.fd) == (number, False, -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_told_and_its_file_left_to_the_caller(server: OddGets, tmp_path: Path) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True, timeout=10)
    try:
        (answer,) = fetch(gets, wanted("good", size=1 << 20, path=tmp_path / "f"))
        assert answer.arrived is not None
        assert (answer.arrived.errno, answer.arrived.opened, answer.arrived.fd) == (errno.ENOSPC, True, -1)
        assert list(tmp_path.iterdir()) == [tmp_path / "f"], "it may be another attempt's by now"
    finally:
        subprocess.run(["umount", tmp_path], check=True, timeout=10)


@pytest.mark.parametrize(
    "kind",
    ["less", "chunked", "noetag", "weak", "other", "heads", "giant", "moved", "other-region", "missing", "part",
     "two-lengths", "no-length", "no-date", "empty", "foreign", "garbage"],
)  # fmt: skip
def test_odd_answers_are_left_to_obstore(server: OddGets, tmp_path: Path, kind: str) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    path = tmp_path / "f"
    odd, good = fetch(gets, wanted(kind, path=path), wanted("good"))
    assert (odd.arrived, odd.error) == (None, None)
    assert odd.seconds is not None
    assert good.arrived is not None
    assert not path.exists()
    assert not any("127.0.0.1:1" in head for head in server.heads), "the redirect was followed"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("slow", "503"), ("short", "connection broke"), ("cut", "connection broke"), ("silent", "connection broke")],
)
def test_failures_that_are_tried_again_are_told(server: OddGets, tmp_path: Path, kind: str, said: str) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    path = tmp_path / "f"
    (answer,) = fetch(gets, wanted(kind, path=path))
    assert isinstance(answer.error, StoreUnavailable)
    assert said in str(answer.error)
    assert not path.exists()


def test_an_endpoint_that_is_gone() -> None:
    with OddGets() as server:
        gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    (answer,) = fetch(gets, wanted("good"))
    assert isinstance(answer.error, StoreUnavailable)


def test_nothing_is_asked_or_written_for_nobody(server: OddGets, tmp_path: Path) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    answers = gets.fetch([wanted("good", path=tmp_path / "f")] * 3, bytearray([1]))
    assert all(isinstance(answer.error, StoreError) and answer.seconds is None for answer in answers)
    assert not server.heads
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("version", ["", "v7", 'W/"v7"', '"v 7"', '"v7"\r\nEvil: "', '"ä"', '"' + "v" * 300 + '"'])
@pytest.mark.parametrize("key", ["a//b", "/a", "a/", "./a", "a/..", "a\nb"])
def test_odd_keys_and_versions_are_not_asked_for(server: OddGets, key: str, version: str) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    for odd in (wanted("good")._replace(key=key), wanted("good")._replace(version=version)):
        assert fetch(gets, odd) == [AS_USUAL]
    assert fetch(gets, wanted("good", size=0), wanted("good", size=(2 << 20) + 1)) == [AS_USUAL, AS_USUAL]
    assert not server.heads


@pytest.mark.parametrize("key", ["a b+c&d=e?f#g%20h~i'(j)*!k@:,;$", "ä/ö/日本", '-._~/[]{}|\\^`"<>', "%2e%2E/x", "\x7e"])
@pytest.mark.parametrize("token", [None, "token/+=" * 40])
def test_requests_are_signed_as_botocore_signs_them(
    server: OddGets, monkeypatch: pytest.MonkeyPatch, key: str, token: str | None
) -> None:
    options = {**SECRETS, "region": "eu-west-9", **({"token": token} if token else {})}
    gets = opened(SOURCE, f"http://{server.host}/base", options)
    key += "/good-7-3000"
    (answer,) = fetch(gets, wanted("good")._replace(key=key))
    assert answer.arrived is not None
    (head,) = server.heads
    assert headers_of(head)["range"] == "bytes=0-2999"
    check_signature(head, server.host, token, monkeypatch)


def test_without_credentials_nothing_is_signed(server: OddGets) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", {"anon": "true"})
    (answer,) = fetch(gets, wanted("good"))
    assert answer.arrived is not None
    assert "amz" not in server.heads[0].lower()
    assert "authorization" not in server.heads[0].lower()


def test_only_the_named_authority_is_believed(tmp_path: Path) -> None:
    right, other = (certificate_authority(tmp_path, name) for name in ("right", "other"))
    with OddS3() as s3, front(s3.endpoint, certificate=right.server) as url:
        files = [WantedFile("f", s3.place("f", b"content"), 7, None, False)]
        (believed,) = fetch(opened("s3://bucket", url, {**SECRETS, "verify": right.bundle}), *files)
        assert believed.arrived is not None
        before = len(s3.seen)
        for options in ({"verify": other.bundle}, {}):
            assert fetch(opened("s3://bucket", url, {**SECRETS, **options}), *files)[0][1:] == (None, None)
        assert len(s3.seen) == before, "asked before the certificate was checked"


@pytest.mark.parametrize(
    ("options", "endpoint", "variable"),
    [
        ({"sse_customer_key": "A" * 43 + "="}, "https://h", None),
        ({"requester_pays": "true"}, "https://h", None),
        ({"verify": "false"}, "https://h", None),
        ({"proxy_url": "http://proxy:1"}, "https://h", None),
        ({"unsigned_payload": "true"}, "https://h", None),
        ({"s3_express": "true"}, "https://h", None),
        ({"config_kwargs": "{}"}, "https://h", None),
        ({}, "https://user:word@h", None),
        ({}, "https://h/p%20q", None),
        ({}, "https://h", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
        ({}, "https://h", "HTTPS_PROXY"),
    ],
)
def test_it_is_not_used_with_settings_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], endpoint: str, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "http://proxy:1")
    options = {**SECRETS, **options}
    location = parse_location("s3://bucket")
    objects = take_object_options("s3", options, endpoint)[0]
    assert refusal(location, options, objects, S3Access("bucket", options, endpoint)) is not None


def test_it_is_not_used_with_directory_buckets() -> None:
    """They are reached at another address, signed otherwise, and do not list in order."""
    access, objects = S3Access("bucket", SECRETS, "https://h"), take_object_options("s3", SECRETS, "https://h")[0]
    assert refusal(parse_location("s3://bucket"), SECRETS, objects, access) is None
    assert refusal(parse_location("s3://bucket--use1-az4--x-s3"), SECRETS, objects, access) is not None


@pytest.mark.parametrize(
    ("options", "endpoint", "url"),
    [
        ({"region": "eu-west-1"}, None, "https://s3.eu-west-1.amazonaws.com/bucket"),
        ({"region": "r", "virtual_hosted_style_request": "true"}, None, "https://bucket.s3.r.amazonaws.com"),
        ({}, "http://h:9000/", "http://h:9000/bucket"),
        ({"virtual_hosted_style_request": "true"}, "https://bucket.h", "https://bucket.h"),
    ],
)
def test_addresses(options: dict[str, str], endpoint: str | None, url: str) -> None:
    options = {**SECRETS, **options}
    assert direct._url("bucket", options, S3Access("bucket", options, endpoint)) == url
