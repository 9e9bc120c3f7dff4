"""S3 servers that ignore conditions of copies, give copies another ETag, or answer what nobody expects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luxfuse.errors import VersionChanged
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.odd_s3 import OddS3


@pytest.fixture
def server() -> Iterator[OddS3]:
    with OddS3() as server:
        yield server


@pytest.fixture(params=["obstore", "fsspec"])
def store(request: pytest.FixtureRequest, server: OddS3) -> Iterator[UnderStore]:
    driver = open_driver("s3://bucket", endpoint_url=server.endpoint, driver=request.param, request_timeout_s=2.0,
                         storage_options={"key": "k", "secret": "s"})  # fmt: skip
    yield driver
    driver.close()


@pytest.mark.parametrize("ignores", [False, True])
def test_a_copy_onto_itself_is_made_once_and_its_version_is_ours(store, server, ignores):
    server.ignores_copy_conditions, server.new_etag_on_copy = ignores, True
    version = server.place("x", b"data")
    for mode in ("1", "2"):
        done = store.copy("x", "x", version=version, metadata={"mode": mode}, size=4)
        assert done.version == server.objects["x"].etag != version
        version = done.version
    assert server.objects["x"].headers["x-amz-meta-mode"] == "2"
    with pytest.raises(VersionChanged):
        store.copy("x", "x", version='"other"', metadata={"mode": "3"}, size=4)
    with pytest.raises(VersionChanged):
        store.copy("x", "y", version='"other"', size=4)
    assert "y" not in server.objects
    assert server.objects["x"].etag == version
