"""Directories that a program reads while they are listed, on a real mount; the server is held back, not timed."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.mounted import PATIENCE_S, Mount, Mounts

COUNT = 5_500
SCAN = """
import os, sys
seen = 0
with os.scandir(sys.argv[1]) as entries:
    while True:
        try:
            entry = next(entries, None)
        except OSError as exc:
            print("error", exc.errno, flush=True)
            break
        if entry is None:
            print("end", flush=True)
            break
        print(entry.name, flush=True)
"""


def fill(s3: FastS3, bucket: str) -> set[str]:
    directory = s3.root / bucket / "large"
    directory.mkdir()
    names = {f"f{number:05}" for number in range(COUNT)}
    for name in names:
        (directory / name).touch()
    return names


def is_later_page(request: Request) -> bool:
    return "list-type" in request.query and ("continuation-token" in request.query or "start-after" in request.query)


def scan(mount: Mount) -> subprocess.Popen[str]:
    command = ["timeout", f"{2 * PATIENCE_S:g}", sys.executable, "-c", SCAN, str(mount.path / "large")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lists(proxy: FaultProxy) -> int:
    return sum("delimiter" in request.query for request in proxy.requests)


def test_the_first_names_are_seen_before_the_second_page(
    mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str
) -> None:
    names = fill(s3, bucket)
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("stat", str(mount.path / "large"))
    proxy.only(is_later_page)
    proxy.set(hold=True)
    before = lists(proxy)
    program = scan(mount)
    assert program.stdout is not None
    first = [program.stdout.readline().strip() for _ in range(1000)]
    assert sum(is_later_page(request) for request in proxy.requests) <= 1, "no later page was answered"
    missing = str(mount.path / "large" / "nothing")
    assert not os.path.exists(missing)
    (s3.root / bucket / "large" / "late").touch()
    assert mount.do("stat", str(mount.path / "large" / "late")), "what was not listed is asked for"
    proxy.clear()
    with program:
        *rest, end = program.stdout.read().split()
    assert program.returncode == 0
    assert end == "end"
    assert len(first + rest) == len(set(first + rest))
    assert names <= {*first, *rest} <= names | {"late"}
    assert lists(proxy) - before <= 9
    seen = lists(proxy)
    assert set(mount.do("list", str(mount.path / "large"))) >= names
    assert lists(proxy) == seen


def test_an_error_comes_behind_the_names_that_came(mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str) -> None:
    names = fill(s3, bucket)
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("stat", str(mount.path / "large"))
    proxy.only(is_later_page)
    proxy.set(error_probability=1.0, error_status=403)
    with scan(mount) as program:
        out = program.communicate(timeout=PATIENCE_S)[0].splitlines()
    assert out[-1].startswith("error ")
    assert len(out) - 1 == 1000
    assert set(out[:-1]) <= names
    proxy.clear()
    assert set(mount.do("list", str(mount.path / "large"))) == names
