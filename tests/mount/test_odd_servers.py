"""Real mounts of a server that ignores conditions of copies, gives each copy another ETag, or refuses for good."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mounted import MIB, Mounts, content, digest, wait_for
from tests.support.odd_s3 import OddS3, error


@pytest.fixture
def server() -> Iterator[OddS3]:
    with OddS3() as server:
        yield server


def test_attributes_and_replaced_objects(mounting: Mounts, server: OddS3) -> None:
    server.ignores_copy_conditions = server.new_etag_on_copy = True
    small, old, new = content("small", 1000), content("old", 20 * MIB), content("new", 24 * MIB)
    server.place("small", small)
    server.place("large", old)
    mount = mounting("s3://bucket", endpoint_url=server.endpoint)
    assert mount.read("small") == digest(small)
    for mode in ("600", "640"):
        mount.run(["chmod", mode, str(mount.path / "small")], check=True)
        assert mount.run(["stat", "-c", "%a", str(mount.path / "small")]).stdout.strip() == mode
        assert mount.read("small") == digest(small)
    assert (mount.status()["dirty"]["failures"], mount.status()["dirty"]["failing"]) == (0, 0)
    assert mount.run(["head", "-c", "1", str(mount.path / "large")]).returncode == 0
    server.place("large", new)
    assert mount.read("large") == digest(new)


def test_an_upload_that_fails_for_good(mounting: Mounts, server: OddS3) -> None:
    mount = mounting(
        "s3://bucket", "--write-mode", "async-through", endpoint_url=server.endpoint,
        expected_logs=["cannot be brought to the under-store yet"],
    )  # fmt: skip
    server.on["complete"] = lambda _seen: error(400, "TooOdd", "Not today")
    mount.run(["dd", "if=/dev/zero", f"of={mount.path}/large", "bs=1M", "count=40", "status=none"], check=True)
    wait_for("it is tried again", lambda: server.count("complete") >= 2)
    assert server.count("part") == 5
    said = mount.cli("persist", mount.path)
    assert said.returncode == 1
    assert "400 Bad Request (TooOdd: Not today)" in said.stderr
    assert "TooOdd: Not today" in mount.status()["dirty"]["error"]
    del server.on["complete"]
    mount.cli("persist", mount.path, check=True)
    assert server.count("part") == 5
    assert server.objects["large"].body == bytes(40 * MIB)
