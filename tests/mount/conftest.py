"""Servers for the mount tests, and mounts that clean up after themselves."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import fast_s3, forking
from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, plain_user_missing, put
from tests.support.servers_files import file_servers
from tests.support.servers_store import ceph_rgw, hadoop, moto_url, nginx_files

__all__ = ["ceph_rgw", "file_servers", "hadoop", "moto_url", "nginx_files"]

_serial = itertools.count()


@pytest.fixture(autouse=True)
def _requires(requires_root: None, requires_fuse: None) -> None:
    """Everything here mounts as root, or from root as another user."""


@pytest.fixture(scope="session", autouse=True)
def _forker() -> None:
    """Before a test could be held to leave it behind."""
    forking.start()


@pytest.fixture(scope="session")
def s3() -> Iterator[FastS3]:
    """A fast S3 server for all tests; each takes a bucket of its own."""
    if reason := fast_s3.available():
        pytest.skip(reason)
    with FastS3(buckets=()) as server:
        yield server


def new_bucket(server: FastS3) -> str:
    """Make an empty bucket and return its name."""
    name = f"bucket-{next(_serial)}"
    (server.root / name).mkdir(parents=True)
    return name


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs /dev/shm")
    # Named before `mounting` in a test: it is removed after the mount has ended.
    path = Path(tempfile.mkdtemp(prefix="luxfuse-tier-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def bucket(s3: FastS3) -> str:
    """An empty bucket on the fast server."""
    return new_bucket(s3)


@pytest.fixture
def fill(s3: FastS3, bucket: str) -> Callable[..., None]:
    """Put objects into the bucket: ``fill({"key": b"..."})``."""

    def put_all(objects: dict[str, bytes]) -> None:
        for key, data in objects.items():
            put(s3, bucket, key, data)

    return put_all


@pytest.fixture
def proxy(s3: FastS3) -> Iterator[FaultProxy]:
    """A fault-injecting proxy in front of the fast server, which also counts requests."""
    with FaultProxy(s3.endpoint) as front:
        yield front


OUTLIVE_MOUNTS = ("disk", "proxy", "server")
"""Fixtures that a test may ask for behind `mounting`, and that go after its mounts all the same: they would be missed."""


@pytest.fixture
def mounting(request: pytest.FixtureRequest) -> Iterator[Mounts]:
    """Makes mounts: ``mounting(source, ...)``."""
    outlive = {name: request.getfixturevalue(name) for name in OUTLIVE_MOUNTS if name in request.fixturenames}
    mounts = Mounts()
    try:
        yield mounts
    finally:
        if isinstance(proxy := outlive.get("proxy"), FaultProxy):  # let them bring what is dirty to the store, and end
            proxy.recover()
        mounts.close()


@pytest.fixture(scope="session")
def plain_user() -> Iterator[None]:
    """User nobody can mount: skip where not, and give /dev/fuse its usual mode where a bare machine withholds it."""
    if reason := plain_user_missing():
        pytest.skip(reason)
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    if mode & 0o006 != 0o006:
        device.chmod(0o666)
    yield
    if stat.S_IMODE(device.stat().st_mode) != mode:
        device.chmod(mode)


@pytest.fixture
def disk() -> Iterator[Disk]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4 (package e2fsprogs)")
    with tempfile.TemporaryDirectory() as base, Disk(Path(base)).attached() as made:
        yield made
