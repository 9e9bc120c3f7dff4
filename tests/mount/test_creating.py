"""What it takes to make small files: requests of the kernel, and requests to the store."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from luxfuse.control.client import ControlClient
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.mounted import ALWAYS, Mount, Mounts, content

FILES = 60
WITHOUT_LANES = ALWAYS.get("dataplane") == "off"
MAKE = """
import os, sys
directory, made = sys.argv[1], os.open(sys.argv[2], os.O_RDONLY)
for number, size in enumerate(map(int, sys.argv[3:])):
    data = os.read(made, size)
    fd = os.open(f"{directory}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.write(fd, data)
    os.close(fd)
"""


@pytest.fixture
def make(tmp_path: Any) -> Callable[[Mount, list[bytes]], None]:
    """Make files "d/0", "d/1", ... with these contents, each by open, write and close."""

    def made(mount: Mount, contents: list[bytes]) -> None:
        (tmp_path / "contents").write_bytes(b"".join(contents))
        command = [sys.executable, "-I", "-S", "-c", MAKE, f"{mount.path}/d", str(tmp_path / "contents")]
        done = mount.run([*command, *(str(len(each)) for each in contents)])
        assert done.returncode == 0, done.stderr

    return made


def contents(count: int = FILES) -> list[bytes]:
    sizes = itertools.cycle([10_000, 0, 1, 4096, 70_000])
    return [content(number, next(sizes)) for number in range(count)]


class Told:
    """The requests of the kernel of which a mount tells, by operation and name."""

    def __init__(self, mount: Mount) -> None:
        self._batches = ControlClient(mount.directory() / "control.sock", 60.0).trace("d", None)
        self.counts: Counter[str] = Counter()
        self.by_lanes: Counter[str] = Counter()
        self._more()

    def _more(self) -> set[tuple[str, str]]:
        batch = next(self._batches)
        assert not batch["dropped"]
        for event in batch["events"]:
            self.counts[event["op"]] += 1
            self.by_lanes[event["op"]] += event.get("way") == "dataplane"
        return {(event["op"], event["path"]) for event in batch["events"]}

    def until(self, operation: str, path: str) -> None:
        while (operation, path) not in self._more():
            pass
        self._batches.close()


def test_a_new_file_takes_six_requests_of_the_kernel(
    mounting: Mounts, s3: FastS3, bucket: str, make: Callable[[Mount, list[bytes]], None]
) -> None:
    options = {"write_mode": "async-through", "metadata_ttl": "1h"}
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options=options)
    mount.do("os.mkdir", f"{mount.path}/d")
    told, before = Told(mount), mount.status()["fuse"]["requests"]
    made = contents()
    make(mount, made)
    told.until("flush", f"d/{FILES - 1}")
    requests = mount.status()["fuse"]["requests"] - before
    # The content goes to the staging file past us. The directory's attributes are asked for as it has changed.
    assert told.counts.keys() == {"lookup", "create", "flush", "getattr"}
    assert told.counts["create"] == told.counts["flush"] == told.counts["lookup"] == FILES
    assert told.counts["getattr"] <= FILES + 1
    if not WITHOUT_LANES:
        assert told.by_lanes["lookup"] >= FILES // 2  # all names of a new directory are known to them
    # Besides a RELEASE each, and before the first write a question for `security.capability`, of which nobody is told: it
    # is answered in C. What else comes is of before and after.
    assert requests <= 5 * FILES + sum(map(bool, made)) + 15, told.counts


def test_small_files_are_stored_by_one_request_each(
    mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, make: Callable[[Mount, list[bytes]], None]
) -> None:
    made = contents()
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"write_mode": "async-through"})
    mount.do("os.mkdir", f"{mount.path}/d")
    make(mount, made)
    status = mount.status()
    mount.unmount()
    puts = [request for request in proxy.requests if is_put(request)]
    assert [(s3.root / bucket / f"d/{n}").read_bytes() for n in range(FILES)] == made
    assert sorted(request.path for request in puts) == sorted(f"/{bucket}/d/{n}" for n in range(FILES)), status
    mount.mount()
    assert [mount.do("stat", f"{mount.path}/d/{n}")["mode"] & 0o777 for n in range(3)] == [0o640] * 3


def is_put(request: Request) -> bool:
    return request.method == "PUT" and not request.path.endswith("/")


def test_small_files_are_stored_whatever_becomes_of_the_requests(
    mounting: Mounts, s3: FastS3, bucket: str, proxy: FaultProxy, make: Callable[[Mount, list[bytes]], None]
) -> None:
    made = contents()
    mount = mounting(
        f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"write_mode": "async-through"},
        expected_logs=["cannot be brought to the under-store yet"],
    )  # fmt: skip
    mount.do("os.mkdir", f"{mount.path}/d")
    proxy.only(is_put)
    proxy.set(error_probability=0.2, reset_probability=0.1, truncate_probability=0.1)
    make(mount, made)
    mount.unmount()
    assert [(s3.root / bucket / f"d/{n}").read_bytes() for n in range(FILES)] == made
    injected = proxy.injected()
    assert injected["error"]
    assert injected["reset"]
