"""Mounts of a bucket on Ceph's S3 gateway, which checks signatures. Run with -m ceph."""

from __future__ import annotations

import itertools
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.support.ceph_rgw import CephRgw
from tests.support.contents import Contents
from tests.support.mounted import MIB, Mount, Mounts, digest, wait_for

pytestmark = pytest.mark.ceph

FILES = Contents({
    "top": ("ceph top", MIB + 3),
    "a directory/with space": ("ceph space", 5000),
    "a directory/deeper/ünïcödé": ("ceph unicode", 3),
    "a directory/a+b&c=d;e%20f#g?h'i\"j": ("ceph signs", 70_001),
    "a directory/empty": ("", 0),
    "large": ("ceph large", 18 * MIB + 5),
})  # fmt: skip
TREE = sorted([*FILES, "a directory", "a directory/deeper"])

_serial = itertools.count()


@pytest.fixture
def client(ceph_rgw: CephRgw) -> Any:
    return boto3.client(
        "s3", endpoint_url=ceph_rgw.endpoint, aws_access_key_id=ceph_rgw.access_key,
        aws_secret_access_key=ceph_rgw.secret_key, region_name=ceph_rgw.region,
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip


@pytest.fixture
def bucket(client: Any) -> str:
    """A bucket with all files."""
    name = f"bucket-{next(_serial)}"
    client.create_bucket(Bucket=name)
    for key, data in FILES.items():
        client.put_object(Bucket=name, Key=key, Body=data)
    return name


def unmounted(mounting: Mounts, server: CephRgw, bucket: str, *flags: str, **credentials: str) -> Mount:
    environment = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key, **credentials}
    return mounting.make(f"s3://{bucket}", *flags, endpoint_url=server.endpoint, environment=environment)


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_bytes(mounting: Mounts, ceph_rgw: CephRgw, client: Any, bucket: str, driver: str) -> None:
    mount = unmounted(mounting, ceph_rgw, bucket, "--driver", driver, "--metadata-ttl", "500ms").mount()
    assert mount.do("tree", str(mount.path)) == TREE
    for _ in range(2):
        for name, data in FILES.items():
            assert mount.read(name) == digest(data), name
    assert mount.error("stat", f"{mount.path}/no such file") == "ENOENT"
    assert mount.status()["driver"] == driver
    assert mount.status()["understore"]["errors"] == 0
    client.put_object(Bucket=bucket, Key="top", Body=b"changed")
    wait_for("the change", lambda: mount.read("top") == digest(b"changed"))
    client.delete_object(Bucket=bucket, Key="large")
    wait_for("it is gone", lambda: mount.error("stat", f"{mount.path}/large") == "ENOENT")
    gets = mount.gets()
    mount.remount()
    assert mount.read("a directory/with space") == digest(FILES["a directory/with space"])
    assert gets > 0
    assert mount.gets() == 0


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(mounting: Mounts, ceph_rgw: CephRgw, bucket: str, driver: str, name: str) -> None:
    mount = unmounted(mounting, ceph_rgw, bucket, "--driver", driver, **{name: "WRONG0123456789WRONG"})
    done = mount.try_mount()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("luxfuse: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in (f"s3://{bucket}", "403", name):
        assert word in done.stderr
    for secret in (ceph_rgw.secret_key, ceph_rgw.access_key, "WRONG0123456789WRONG"):
        assert secret not in done.stderr
    assert not mount.mounted
    mount.expected_logs.append("")  # what the log says of a mount that never was is not looked at
