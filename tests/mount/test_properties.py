"""Programs edit objects of others through a mount: what was set on them stays, as clients of others see it."""

from __future__ import annotations

import sys
import uuid
from typing import Any

import pytest

from tests.contract.test_properties import MIXED, WHOLE, Bucket
from tests.support.mounted import Mount, Mounts, wait_for
from tests.support.store_targets import SECRET, Target, s3_client
from tests.support.strict_s3 import StrictS3
from tests.support.writing import NEW, Scribe

OWN = {"mode", "uid", "gid", "mtime", "atime", "ctime", "xattr"}


@pytest.fixture
def bucket(moto_url: str) -> Bucket:
    name = f"b-{uuid.uuid4().hex[:12]}"
    s3_client(moto_url).create_bucket(Bucket=name)
    options = {"key": "key", "secret": SECRET}
    return Bucket(Target("", f"s3://{name}", options, moto_url, "auto", print, print, frozenset()))


def opened(mounting: Mounts, bucket: Bucket, url: str, *flags: str) -> Mount:
    options = {"storage_option": "region=us-east-1"}
    return mounting(f"s3://{bucket.name}", *flags, endpoint_url=url, options=options)


def foreign(bucket: Bucket, key: str) -> dict[str, str]:
    return {name: value for name, value in bucket.metadata(key).items() if name not in OWN}


def body(bucket: Bucket, key: str) -> bytes:
    data: bytes = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return data


FSYNCS = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(3):
        file.write(b"x")
        os.fsync(file.fileno())
"""
EDITS: dict[str, tuple[str, bytes]] = {
    "append": ("echo more >> x.txt", b"datamore\n"),
    "overwrite": ("echo new > x.txt", b"new\n"),
    "truncate": ("truncate -s 2 x.txt", b"da"),
    "in place": ("printf XX | dd of=x.txt bs=1 seek=1 conv=notrunc status=none", b"dXXa"),
    "chmod": ("chmod 600 x.txt", b"data"),
    "touch": ("touch -d @1000000000 x.txt", b"data"),
    "setfattr": ("python3 -c 'import os; os.setxattr(\"x.txt\", \"user.a\", b\"b\")'", b"data"),
    "move": ("mv x.txt y && mv y x.txt", b"data"),
    "move the directory": ("mkdir d && mv x.txt d/ && mv d e && mv e/x.txt .", b"data"),
    "exchange": ("echo other > y && python3 -c 'import ctypes; assert not ctypes.CDLL(None).renameat2(-100, b\"x.txt\", "
                 "-100, b\"y\", 2)' && mv y x.txt", b"data"),
    "edit, then move": ("echo more >> x.txt && mv x.txt y && chmod 600 y && mv y x.txt", b"datamore\n"),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["cache-through", "async-through"])
def test_edits_keep_what_others_set(mounting: Mounts, bucket: Bucket, moto_url: str, mode: str) -> None:
    for name in EDITS:
        bucket.put(f"{name}/x.txt")
    mount = opened(mounting, bucket, moto_url, "--write-mode", mode)
    for name, (command, _) in EDITS.items():
        done = mount.run(["sh", "-ec", f"cd '{mount.path}/{name}' && {command}"])
        assert done.returncode == 0, done.stderr
    mount.unmount()
    for name, (_, content) in EDITS.items():
        key = f"{name}/x.txt"
        assert (name, body(bucket, key)) == (name, content)
        assert (name, bucket.described(key)) == (name, WHOLE)
        assert (name, foreign(bucket, key)) == (name, {"theirs": MIXED["theirs"]})


def test_another_file_does_not_inherit(mounting: Mounts, bucket: Bucket, moto_url: str) -> None:
    for name in ("replaced", "removed", "sed"):
        bucket.put(f"{name}/x.txt", b"data\n")
    mount = opened(mounting, bucket, moto_url)
    done = mount.run(["sh", "-ec", f"cd '{mount.path}'; echo new > replaced/y; mv replaced/y replaced/x.txt;"
                      "rm removed/x.txt; echo new > removed/x.txt; sed -i s/data/new/ sed/x.txt"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("replaced", "removed", "sed"):
        key = f"{name}/x.txt"
        found = bucket.described(key)
        assert (body(bucket, key), found["public"], foreign(bucket, key)) == (b"new\n", [], {})
        # Moto leaves the tags of what a copy replaces.
        assert found["tags"] == {} or name != "removed"
        assert found["ContentType"] == "text/plain"


def test_requests_of_an_edit(mounting: Mounts, bucket: Bucket, moto_url: str) -> None:
    """A look at what is replaced costs a HEAD, tags one request, ACLs one where the bucket has any."""
    rules = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    bucket.client.put_bucket_ownership_controls(Bucket=bucket.name, OwnershipControls=rules)
    bucket.put("plain", **dict.fromkeys(("Tagging", "ACL")))
    bucket.put("tagged", ACL=None)
    with StrictS3(moto_url) as front:
        mount = opened(mounting, bucket, front.endpoint)
        for key, more in (("plain", ["ownershipControls"]), ("tagged", ["tagging"])):
            mount.run(["ls", "-l", mount.path])
            mount.await_answers()  # since the first was changed, objects are known to carry attributes
            front.kinds()
            mount.run([sys.executable, "-c", f"open('{mount.path}/{key}', 'w').write('new')"], check=True)
            assert sorted(front.kinds()) == sorted(["head", *more, "put"])
        front.kinds()
        mount.run([sys.executable, "-c", FSYNCS, f"{mount.path}/new"], check=True)
        assert front.kinds() == ["put", "put", "put"]  # what is made here has nothing of others
        mount.close()


def test_edit_survives_a_crash(mounting: Mounts, bucket: Bucket, moto_url: str) -> None:
    bucket.put("x.txt")
    bucket.put("y.txt")
    with StrictS3(moto_url) as front:
        mount = opened(mounting, bucket, front.endpoint, "--write-mode", "async-through")
        front.refuse = lambda r: (503, "SlowDown", "later") if r.kind in ("put", "copy") else None
        done = mount.run(["sh", "-ec", f"cd {mount.path}; echo more >> x.txt; echo own > z; mv z y.txt; sync x.txt y.txt"])
        assert done.returncode == 0, done.stderr
        mount.kill()
        front.refuse = lambda _request: None
        mount.unmount()
        assert mount.try_mount().returncode == 0
        wait_for("both to be stored", lambda: body(bucket, "x.txt") == b"datamore\n" and body(bucket, "y.txt") == b"own\n")
        mount.close()
    assert bucket.described("x.txt") == WHOLE
    assert foreign(bucket, "x.txt") == {"theirs": MIXED["theirs"]}
    assert (bucket.described("y.txt")["tags"], foreign(bucket, "y.txt")) == ({}, {})


def test_large_file_that_goes_up_early(mounting: Mounts, bucket: Bucket, moto_url: str) -> None:
    bucket.put("x.txt")
    mount = opened(mounting, bucket, moto_url)
    mount.run(["dd", "if=/dev/zero", f"of={mount.path}/x.txt", "bs=1M", "count=48", "status=none"])
    assert bucket.client.head_object(Bucket=bucket.name, Key="x.txt")["ContentLength"] == 48 << 20
    assert bucket.described("x.txt") == WHOLE
    assert foreign(bucket, "x.txt") == {"theirs": MIXED["theirs"]}


def test_large_file_that_goes_up_early_has_the_time_of_its_upload(mounting: Mounts, bucket: Bucket, moto_url: str) -> None:
    mount = opened(mounting, bucket, moto_url)
    writer = Scribe(mount)
    writer("open", "f", f"{mount.path}/x", NEW)
    writer("write", "f", ["early", 48 << 20])
    wait_for("it goes up", lambda: bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads"))
    writer("close", "f")
    writer.end()
    assert "mode" in bucket.metadata("x")
    assert "mtime" not in bucket.metadata("x")


def test_object_lock(mounting: Mounts, bucket: Bucket, moto_url: str) -> None:
    """A bucket that insists on checksums takes files, large ones, and removals of many."""

    def refuse(request: Any) -> tuple[int, str, str] | None:
        names = request.headers.keys()
        if request.kind in ("put", "part", "delete-many") and not any(
            name == "content-md5" or name.startswith("x-amz-checksum-") for name in names
        ):
            return 400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required"
        return None

    with StrictS3(moto_url) as front:
        front.refuse = refuse
        mount = opened(mounting, bucket, front.endpoint)
        mount.run(["sh", "-ec", f"cd {mount.path}; mkdir d; for i in 1 2 3; do echo $i > d/$i; done; rm -r d;"
                   "dd if=/dev/zero of=large bs=1M count=20 status=none; cmp -n 20971520 large /dev/zero"])  # fmt: skip
        mount.close()
        assert not [request for request in front.seen if refuse(request)]
    assert [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]] == ["large"]
