"""The stores that the under-store contract is run on, each with a way to change it behind the driver's back."""

from __future__ import annotations

import functools
import getpass
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest

from luxfuse.understore import opening
from luxfuse.understore.azure import fsspec as azure_fsspec
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.gcs import fsspec as gcs_fsspec
from luxfuse.understore.obstore import options as obstore_options
from luxfuse.understore.s3 import arguments as s3_arguments
from luxfuse.understore.sftp import fsspec as sftp_fsspec
from tests.support import fast_s3
from tests.support.fake_store import FakeStore
from tests.support.servers_files import file_server
from tests.support.servers_store import AZURITE_ACCOUNT, AZURITE_KEY
from tests.support.strict_google import GoogleBucket, account, strict_google

SECRET = "s3cr3t/Key+Value=="
TIMEOUT_S = 60.0
WAITING = (opening, azure_fsspec, gcs_fsspec, obstore_options, s3_arguments, sftp_fsspec)
"""The modules that say how long an answer is waited for."""
# Of drivers and servers of S3, each is in the others; of those of Google fsspec is taken, as gcsfs is installed.
SLOW_TARGETS = [pytest.param(name, marks=pytest.mark.slow) for name in ("obstore-s3", "fsspec-fast", "obstore-gs")]
TARGETS = ["fake", "obstore-s3-prefix", "fsspec-s3", "obstore-fast", "obstore-az", "fsspec-az", "memory", "local",
           "http", "sftp", "ftp", "webdav", "fsspec-gs", *SLOW_TARGETS]  # fmt: skip
ON_REQUEST = [
    *(pytest.param(name, marks=pytest.mark.ceph) for name in ("obstore-ceph", "fsspec-ceph")),
    *(pytest.param(name, marks=pytest.mark.hdfs) for name in ("hdfs", "webhdfs")),
    *(pytest.param(name, marks=pytest.mark.swift) for name in ("obstore-swift", "fsspec-swift")),
]
"""Those on servers that run only when they are asked for."""


@dataclass
class Target:
    """One store under test, with a way to change it behind the driver's back."""

    name: str
    source: str
    options: dict[str, str]
    endpoint: str | None
    driver: str
    put: Callable[[str, bytes], Any]
    delete: Callable[[str], Any]
    features: frozenset[str]
    fake: FakeStore | None = None
    restart: Callable[[], None] | None = None
    """Cuts all connections to the server."""
    direct_gets: int = 0
    """Requests that may be made past obstore at once."""

    def open(self, **changes: Any) -> UnderStore:
        if self.fake is not None:
            return self.fake
        settings: dict[str, Any] = {
            "endpoint_url": self.endpoint,
            "storage_options": self.options,
            "driver": "auto" if self.name == "fsspec-gs" else self.driver,  # the same, but content comes by C
            "request_timeout_s": TIMEOUT_S,
            "direct_gets": self.direct_gets,
        }
        source = changes.pop("source", self.source)
        return open_driver(source, **{**settings, **changes})


OBJECTS = frozenset({"odd keys", "metadata", "buckets", "endpoint"})
FILES: frozenset[str] = frozenset()


@functools.cache  # making one takes 50 ms
def s3_client(url: str, key: str = "key", secret: str = SECRET) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret,
                        region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))  # fmt: skip


def s3_target(request: pytest.FixtureRequest, driver: str, prefix: str = "") -> Target:
    url = request.getfixturevalue("moto_url")
    client = s3_client(url)
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=prefix + key, Body=data, Metadata={"Mode": "33188"})

    return Target(
        f"{driver}-s3", f"s3://{bucket}/{prefix}".rstrip("/"), {"key": "key", "secret": SECRET}, url, driver, put,
        lambda key: client.delete_object(Bucket=bucket, Key=prefix + key), OBJECTS, direct_gets=8 if prefix else 0,
    )  # fmt: skip


def bucket_target(request: pytest.FixtureRequest, driver: str, name: str, fixture: str, *, signed: bool = True) -> Target:
    """A bucket on an S3 server; ``signed``: it checks how requests are signed, those past obstore among them."""
    server = request.getfixturevalue(fixture)
    client = s3_client(server.endpoint, server.access_key, server.secret_key)
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    options = {"key": server.access_key, "secret": server.secret_key}
    return Target(
        f"{driver}-{name}", f"s3://{bucket}", options, server.endpoint, driver,
        lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data, Metadata={"Mode": "33188"}),
        lambda key: client.delete_object(Bucket=bucket, Key=key),
        OBJECTS | {"newlines", "credentials"} if signed else OBJECTS - {"odd keys"}, direct_gets=8 if signed else 0,
    )  # fmt: skip


def az_target(request: pytest.FixtureRequest, driver: str) -> Target:
    from azure.storage.blob import BlobServiceClient

    url = request.getfixturevalue("azurite_url")
    service = BlobServiceClient(url, credential=AZURITE_KEY)
    request.addfinalizer(service.close)
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    container = service.create_container(bucket)
    # Azurite resolves ".." as a URL does.
    return Target(
        f"{driver}-az", f"az://{bucket}", {"account_name": AZURITE_ACCOUNT, "account_key": AZURITE_KEY}, url, driver,
        lambda key, data: container.upload_blob(key, data, overwrite=True, metadata={"Mode": "33188"}),
        container.delete_blob, OBJECTS | {"newlines", "no dots", "credentials"}, direct_gets=8,
    )  # fmt: skip


def directory_target(name: str, source: str, directory: Path) -> Target:
    def put(key: str, data: bytes) -> None:
        path = directory / key
        if key.endswith("/"):
            path.mkdir(parents=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".tmp-{uuid.uuid4().hex}"
        temporary.write_bytes(data)
        temporary.rename(path)

    return Target(name, source, {}, None, "auto", put, lambda key: (directory / key).unlink(), FILES)


def served_target(request: pytest.FixtureRequest, protocol: str) -> Target:
    """A directory of its own on a server of the protocol."""
    server = file_server(request, protocol)
    directory = server.directory / uuid.uuid4().hex
    directory.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(directory))
    target = directory_target(protocol, f"{server.url.rstrip('/')}/{directory.name}", directory)
    if protocol == "webdav":
        target.source = f"webdav:///{directory.name}"
        target.put, target.delete = dav_client(f"{server.options['base_url']}/{directory.name}", request)
    target.options = server.options
    target.restart = server.restart
    return target


def dav_client(url: str, request: pytest.FixtureRequest) -> tuple[Callable[[str, bytes], Any], Callable[[str], Any]]:
    """Put and delete by plain HTTP: the server remembers what is in its directories."""
    import httpx

    client = httpx.Client()
    request.addfinalizer(client.close)
    client.request("MKCOL", url)

    def put(key: str, data: bytes) -> None:
        parents = key.split("/")[:-1]
        if not key.endswith("/") and client.put(f"{url}/{quote(key)}", content=data).status_code in (201, 204):
            return
        for depth in range(1, len(parents) + 1):
            client.request("MKCOL", f"{url}/{quote('/'.join(parents[:depth]))}")
        if not key.endswith("/"):
            client.put(f"{url}/{quote(key)}", content=data).raise_for_status()

    return put, lambda key: client.delete(f"{url}/{quote(key)}").raise_for_status()


def names_for(target: Target, keys: list[str]) -> list[str]:
    """Leave out of ``keys`` those that the server of a target takes for others.

    The data node decodes names twice, as it has a newer Netty than Hadoop 2.7 was built with.
    """
    wrong = {"webhdfs": "%+"}.get(target.name, "")
    return [key for key in keys if not set(wrong) & set(key)]


def hdfs_target(request: pytest.FixtureRequest, protocol: str) -> Target:
    """A directory of its own, which WebHDFS changes by plain HTTP."""
    import requests

    server = request.getfixturevalue("hadoop")
    directory = f"/{uuid.uuid4().hex}"
    session = requests.Session()
    session.params = {"user.name": getpass.getuser()}
    request.addfinalizer(session.close)

    def ask(method: str, key: str, operation: str) -> str:
        url = f"http{server.web_url.removeprefix('webhdfs')}/webhdfs/v1{directory}/{quote(key)}?op={operation}"
        answer = session.request(method, url, allow_redirects=False, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.headers.get("Location", "")

    def put(key: str, data: bytes) -> None:
        if key.endswith("/"):
            ask("PUT", key, "MKDIRS")
        else:
            name = uuid.uuid4().hex  # a plain one, as the data node decodes twice; see `names_for`
            session.put(ask("PUT", name, "CREATE"), data=data, timeout=TIMEOUT_S).raise_for_status()
            if "/" in key:
                ask("PUT", key.rpartition("/")[0], "MKDIRS")
            ask("PUT", name, f"RENAME&renameoptions=OVERWRITE&destination={quote(f'{directory}/{key}')}")

    put("/", b"")
    url = server.url if protocol == "hdfs" else server.web_url
    return Target(protocol, url + directory, {}, None, "auto", put, lambda key: ask("DELETE", key, "DELETE"), FILES)


def gs_target(request: pytest.FixtureRequest, driver: str) -> Iterator[Target]:
    """A bucket that also others write, by Google's JSON interface."""
    server = file_server(request, "gcs")
    with strict_google(server.url) as (url, _):
        bucket = GoogleBucket(url)

        def put(key: str, data: bytes) -> None:
            bucket.put(key, data, metadata={"mode": "33188"})

        features = OBJECTS | {"newlines"} if driver == "fsspec" else OBJECTS - {"odd keys"}
        options = server.options if driver == "fsspec" else {"token": account(request.getfixturevalue("tmp_path"), url)}
        yield Target(
            f"{driver}-gs", f"gs://{bucket.name}", options, url, driver, put, bucket.delete, features, direct_gets=8
        )
        bucket.close()


def memory_target() -> Target:
    import fsspec

    memory = fsspec.filesystem("memory")
    root = f"/b-{uuid.uuid4().hex[:12]}"
    memory.makedirs(root)
    return Target("memory", f"memory:/{root}", {}, None, "auto",
                  lambda key, data: memory.makedirs(f"{root}/{key}") if key.endswith("/")
                  else memory.pipe_file(f"{root}/{key}", data),
                  lambda key: memory.rm_file(f"{root}/{key}"), FILES)  # fmt: skip


@pytest.fixture(scope="session")
def fast_server() -> Iterator[fast_s3.FastS3]:
    """The fast S3 server of the tests."""
    if reason := fast_s3.available():
        pytest.skip(reason)
    with fast_s3.FastS3() as server:
        yield server


def open_target(request: pytest.FixtureRequest, name: str) -> Iterator[Target]:
    """Yield the target ``name`` of `TARGETS` or `ON_REQUEST`, with a bucket or directory of its own.

    Its drivers wait for answers as long as for requests: on a busy machine a server may be silent for more than the ten
    seconds after which they try again otherwise, and a driver makes one attempt.
    """
    with ExitStack() as stack:
        for module in WAITING:
            stack.enter_context(mock.patch.object(module, "READ_TIMEOUT_S", TIMEOUT_S))
        yield from _opened(request, name)


def _opened(request: pytest.FixtureRequest, name: str) -> Iterator[Target]:
    tmp_path: Path = request.getfixturevalue("tmp_path")
    driver, _, rest = name.partition("-")
    if name == "fake":
        fake = FakeStore()
        yield Target("fake", "", {}, None, "", fake.place, fake.remove, frozenset({"odd keys"}), fake)
    elif rest.startswith("s3"):
        yield s3_target(request, driver, "pre fix/deep/" if rest.endswith("prefix") else "")
    elif rest == "fast":
        yield bucket_target(request, driver, rest, "fast_server", signed=False)
    elif rest == "ceph":
        request.getfixturevalue("expected_logs").append("the store knows no conditional writes")
        yield bucket_target(request, driver, rest, "ceph_rgw")
    elif rest == "swift":
        request.getfixturevalue("expected_logs").append("the store knows no conditional writes")
        yield bucket_target(request, driver, rest, "swift")
    elif rest == "az":
        yield az_target(request, driver)
    elif name == "memory":
        yield memory_target()
    elif rest == "gs":
        yield from gs_target(request, driver)
    elif name in ("hdfs", "webhdfs"):
        yield hdfs_target(request, name)
    elif name in ("sftp", "ftp", "webdav"):
        yield served_target(request, name)
    elif name == "local":
        yield directory_target("local", f"file://{tmp_path}", tmp_path)
    else:
        server = request.getfixturevalue("nginx_files")
        directory = server.directory / uuid.uuid4().hex
        directory.mkdir()
        yield directory_target("http", f"{server.url}/{directory.name}", directory)
        shutil.rmtree(directory)
