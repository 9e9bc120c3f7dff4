"""Files of S3 come by C where it can fetch them, and by obstore elsewhere; a program sees the same."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from luxfuse.understore.s3 import direct
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import ALWAYS, Mount, Mounts, content

SIZES = [1, 4096, 100_000, (1 << 20) + 1]
LARGE_PAGES, MOST_RUN_PAGES = 65, 4
FILES = {f"d/{n:02} ä+%20?&": content(str(n), SIZES[n % len(SIZES)]) for n in range(24)}

pytestmark = [
    pytest.mark.skipif(direct._gets is None, reason="built without libcurl"),
    pytest.mark.skipif(ALWAYS.get("dataplane") == "off", reason="the direct GETs are off"),
]


def clients(proxy: FaultProxy) -> set[str]:
    """The clients that got content."""
    gets = [request for request in proxy.requests if request.method == "GET" and "list-type" not in request.query]
    assert len({request.path for request in gets}) == len(FILES)
    return {"C" if (request.agent or "").startswith("luxfuse/") else "obstore" for request in gets}


def read_all(mount: Mount) -> dict[str, bytes]:
    return {key: Path(mount.path, key).read_bytes() for key in FILES}


@pytest.mark.parametrize(("options", "client"), [({}, "C"), ({"dataplane": "off"}, "obstore")], ids=["C", "obstore"])
@pytest.mark.parametrize("how", ["load", "read"])
def test_the_same_content_by_one_request_a_file(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, options: dict[str, str], client: str, how: str
) -> None:
    fill(FILES)
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options=options)
    if how == "load":
        mount.cli("load", mount.path)
        assert mount.gets() == len(FILES)
    assert mount.run(["cat", *(os.path.join(mount.path, key) for key in FILES)]).returncode == 0
    assert mount.gets() == len(FILES)
    assert clients(proxy) == {client}
    proxy.outage(True)
    assert read_all(mount) == FILES


@pytest.mark.parametrize(("options", "without"), [({}, True), ({"dataplane": "off"}, False)], ids=["C", "off"])
def test_looking_reading_and_writing_do_without_botocore(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, options: dict[str, str], without: bool
) -> None:
    fill({"d/f": b"content", "d/e/g": b""})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options=options)
    done = mount.run(["ls", "-lR", mount.path])
    assert re.findall(r"^[-d]r.* (\S+)$", done.stdout, re.MULTILINE) == ["d", "e", "f", "g"]
    assert Path(mount.path, "d/f").read_bytes() == b"content"
    work = (
        "mkdir n && head -c 40M /dev/zero >n/big && chmod 600 n/big && mv n/big n/b && rm n/b && rmdir n && echo new >d/f"
    )
    assert mount.run(["sh", "-ec", f"cd {mount.path} && {work}"]).returncode == 0
    mount.await_answers()
    assert any("partNumber" in request.query for request in proxy.requests)
    agents = {(request.agent or "").partition("/")[0] for request in proxy.requests}
    assert ("Botocore" not in agents) is without, agents
    heads = [request for request in proxy.requests if request.method == "HEAD" and request.path.endswith("/d/")]
    assert heads
    assert all((request.agent or "").startswith("luxfuse/") for request in heads) is without
    lists = [request for request in proxy.requests if "delimiter=%2F" in request.query]
    assert all((request.agent or "").startswith("luxfuse/") for request in lists) is without


def test_busy_answers_and_cut_bodies(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    fill(FILES)
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("list", f"{mount.path}/d")
    proxy.only(lambda request: request.method == "GET" and "list-type" not in request.query)
    proxy.set(error_probability=0.2, reset_probability=0.1, truncate_probability=0.1)
    mount.cli("load", mount.path)
    proxy.clear()
    assert read_all(mount) == FILES


def large() -> bytes:
    return content("large", ((LARGE_PAGES - 1) << 20) + 7)


def digest_of(mount: Mount) -> str:
    done = mount.run(["sha256sum", f"{mount.path}/big"])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


@pytest.mark.parametrize(("options", "client"), [({}, "luxfuse"), ({"dataplane": "off"}, "object_store")], ids=["C", "off"])
@pytest.mark.parametrize("how", ["load", "read"])
def test_a_large_file_comes_in_parts(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, options: dict[str, str], client: str, how: str
) -> None:
    fill({"big": large()})
    digest = hashlib.sha256(large()).hexdigest()
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options=options)
    if how == "load":
        mount.cli("load", mount.path)
        assert -(-LARGE_PAGES // MOST_RUN_PAGES) <= mount.gets() <= LARGE_PAGES
        proxy.outage(True)
    assert digest_of(mount) == digest
    parts = [request for request in proxy.requests if request.method == "GET" and request.path.endswith("/big")]
    assert {(request.agent or "").partition("/")[0] for request in parts} == {client}


def test_busy_answers_and_cut_bodies_of_parts(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    fill({"big": large()})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    assert mount.run(["ls", mount.path]).returncode == 0
    proxy.only(lambda request: request.method == "GET" and "list-type" not in request.query)
    proxy.set(error_probability=0.2, reset_probability=0.1, truncate_probability=0.1)
    assert digest_of(mount) == hashlib.sha256(large()).hexdigest()
