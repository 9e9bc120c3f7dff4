"""What the store says of objects beside their content: when it is asked for, and when not."""

from __future__ import annotations

import http.client
import stat
from collections.abc import Callable, Mapping

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, content

FILES = 60
SIZE = 100 << 10
OLD_NS = 1_600_000_000_123_456_789


@pytest.fixture
def describe(s3: FastS3, bucket: str) -> Callable[..., None]:
    """Put an object with metadata into the bucket: ``describe(key, data, {"mode": "33188"})``."""

    def put(key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        connection = http.client.HTTPConnection(s3.endpoint.removeprefix("http://"))
        headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        connection.request("PUT", f"/{bucket}/{key}", data, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200

    return put


def said_by_s3fs(mode: int, kind: int = stat.S_IFREG) -> dict[str, str]:
    """The metadata that s3fs writes."""
    return {"mode": str(kind | mode), "uid": "0", "gid": "0", "mtime": f"{OLD_NS // 10**9}.{OLD_NS % 10**9}"}


def counts(proxy: FaultProxy) -> tuple[int, int]:
    """GETs and HEADs of objects so far."""
    of_objects = [r for r in proxy.requests if "list-type" not in r.query]
    return sum(r.method == "GET" for r in of_objects), sum(r.method == "HEAD" for r in of_objects)


@pytest.mark.parametrize("passthrough", ["true", "false"])
def test_what_was_fetched_is_asked_for_once(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, passthrough: str
) -> None:
    names = [f"file{i:03}" for i in range(FILES)]
    fill({f"d/{name}": content(name, SIZE) for name in names})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"passthrough": passthrough})
    mount.do("list", f"{mount.path}/d")
    proxy.reset_counts()
    first = mount.do("epoch", f"{mount.path}/d", names)
    assert counts(proxy) == (FILES, 0)
    assert [mount.do("epoch", f"{mount.path}/d", names) for _ in range(2)] == [first, first]
    assert counts(proxy) == (FILES, 0)


def test_a_load_brings_attributes_too(mounting: Mounts, proxy: FaultProxy, bucket: str, describe) -> None:
    names = [f"file{i:03}" for i in range(20)]
    for name in names:
        describe(f"d/{name}", content(name, SIZE), said_by_s3fs(0o640))
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("stat", f"{mount.path}/d")
    proxy.reset_counts()
    mount.cli("load", f"{mount.path}/d", check=True)
    assert counts(proxy) == (20, 0)
    found = mount.do("epoch", f"{mount.path}/d", names)
    assert found == [[stat.S_IFREG | 0o640, OLD_NS, SIZE]] * 20
    assert counts(proxy) == (20, 0)


def test_what_was_written_is_not_asked_for(mounting: Mounts, proxy: FaultProxy, bucket: str) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("os.mkdir", f"{mount.path}/d")
    for number in range(5):
        mount.do("create", f"{mount.path}/d/{number}")
    proxy.reset_counts()
    assert len(mount.do("lstats", f"{mount.path}/d")) == 5
    mount.do("epoch", f"{mount.path}/d", [str(number) for number in range(5)])
    assert counts(proxy) == (0, 0)
