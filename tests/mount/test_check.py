"""The check of a live mount: real damage, real output, and what programs read meanwhile and after."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from luxfuse.control.client import ControlClient
from tests.mount.conftest import new_bucket
from tests.support.contents import Contents
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, PATIENCE_S, Mount, Mounts, content, digest, put, wait_for

OBJECTS = Contents({f"d/{n:02}": (n, 20_000 + n) for n in range(20)} | {"big": ("big", 20 * MIB + 7)})
SIZE = f"({OBJECTS.size() / MIB:.1f} MiB)"
LOGS = ["damaged page"]


@pytest.fixture
def mount(mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None]) -> Mount:
    fill(OBJECTS)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, expected_logs=LOGS)
    mount.cli("load", mount.path, check=True)
    return mount


def cache_file(mount: Mount, name: str) -> Path:
    (found,) = json.loads(mount.cli("locate", mount.path / name, "--json", check=True).stdout)
    return Path(found["places"][0]["file"])


def flip(path: Path, offset: int) -> None:
    """Change a byte, as a disk does: the mtime stays."""
    st = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, list[str], str]:
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_damage_is_found_mended_and_fetched_again(mount: Mount) -> None:
    gets = mount.gets()
    assert outcome(mount.cli("check", mount.path)) == (0, [f"{mount.path}: 21 files checked {SIZE}, no problem"], "")
    flip(cache_file(mount, "big"), 9 * MIB + 5)
    cache_file(mount, "d/07").unlink()
    directory = cache_file(mount, "d/01").parents[2]
    stray, left = directory / "objects" / "ab" / ("ab" * 16), directory / "moving" / ("cd" * 16)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x")
    left.write_bytes(b"x")
    problems = [
        f"{mount.path}: big: page 9 damaged", f"{mount.path}: d/07: its cache file is missing",
        f"{mount.path}: {stray}: belongs to nothing", f"{mount.path}: {left}: was left by a move",
    ]  # fmt: skip
    code, lines, err = outcome(mount.cli("check", mount.path))
    assert (code, sorted(lines[:-1]), err) == (1, sorted(problems), "")
    assert lines[-1].endswith(", 4 problems")
    assert stray.exists()
    document = json.loads(mount.cli("check", mount.path, "--json").stdout)
    assert (document["mountpoint"], document["problems"], document["repair"]) == (str(mount.path), 4, False)
    assert len(document["lines"]) == 4
    code, lines, err = outcome(mount.cli("check", mount.path, "--repair"))
    assert (code, err) == (0, "")
    assert f"{problems[0]}; dropped, to be fetched again" in lines
    assert f"{problems[1]}; dropped, to be fetched again" in lines
    assert f"{problems[2]}; removed" in lines
    assert lines[-1].endswith(", 4 problems, 4 mended")
    assert not stray.exists()
    assert not left.exists()
    assert mount.gets() == gets
    for name in ("big", "d/07", "d/01"):
        assert mount.read(name) == digest(OBJECTS[name])
    assert mount.gets() == gets + 2
    assert outcome(mount.cli("check", mount.path))[0] == 0


def test_a_file_open_in_passthrough_is_left_alone(mount: Mount) -> None:
    if not mount.status()["passthrough"]:
        pytest.skip("needs FUSE passthrough")
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/big")
    path = cache_file(mount, "big")
    flip(path, 3 * MIB)
    damaged = path.read_bytes()
    code, lines, _ = outcome(mount.cli("check", mount.path, "--repair"))
    assert code == 1
    assert lines == [
        f"{mount.path}: big: page 3 damaged; not mended: it is in use; check again once it is closed",
        f"{mount.path}: 21 files checked {SIZE}, 1 problem, 0 mended",
    ]
    assert path.read_bytes() == damaged
    reader.close()
    wait_for("the last close", lambda: mount.cli("check", mount.path, "--repair").returncode == 0)
    assert mount.read("big") == digest(OBJECTS["big"])


def test_what_is_not_in_the_store_yet_is_only_told_of(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill: Callable[..., None]
) -> None:
    mount = mounting(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint)
    mount.run(["ls", mount.path], check=True)
    proxy.outage(True)
    mount.run(["sh", "-c", f"printf content > {mount.path}/new"], check=True)
    assert outcome(mount.cli("check", mount.path, "--repair"))[0] == 0
    stray = next(iter(mount.cache.glob("*/staging"))) / f"{1 << 40:016x}"
    stray.write_bytes(b"whose?")
    code, lines, _ = outcome(mount.cli("check", mount.path, "--repair"))
    assert (code, len(lines)) == (1, 2)
    assert lines[0].endswith("is a staging file of which nothing is known; the next mount sets it aside; left alone")
    assert stray.read_bytes() == b"whose?"
    stray.unlink()
    proxy.outage(False)
    mount.cli("persist", mount.path, check=True)
    assert mount.read("new") == digest(b"content")


def test_one_at_a_time_and_it_ends_with_who_asked(mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str) -> None:
    for name in ("new", *(f"many/{n:03}" for n in range(300))):
        put(s3, bucket, name, b"x")
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.cli("load", mount.path / "many", check=True)
    proxy.only(lambda request: request.method == "GET" and request.path.endswith("/new"))
    proxy.set(hold=True)
    mount.cli("load", "--background", mount.path / "new", check=True)
    wait_for("a request", lambda: mount.status()["cache"]["in_flight_bytes"])
    steps = ControlClient(mount.directory() / "control.sock", deadline_s=PATIENCE_S).check(repair=True)
    assert next(steps)["total_files"] == 300  # it lets the request go first, half a second at a time
    second = mount.cli("check", mount.path)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith(f"luxfuse: {mount.path}: a check is running already; wait until it ends; see ")
    steps.close()
    proxy.clear()
    wait_for("the end of the check", lambda: mount.cli("check", mount.path).returncode == 0)


def test_attached_under_stores_are_checked_too(mount: Mount, s3: FastS3) -> None:
    other = new_bucket(s3)
    put(s3, other, "x", content("x", 30_000))
    mount.cli("attach", f"s3://{other}", mount.path / "o", "--endpoint-url", s3.endpoint, check=True)
    mount.cli("load", mount.path / "o", check=True)
    flip(cache_file(mount, "o/x"), 77)
    flip(cache_file(mount, "d/03"), 77)
    code, lines, _ = outcome(mount.cli("check", mount.path, "--repair"))
    assert code == 0
    done = "page 0 damaged; dropped, to be fetched again"
    assert lines[:-1] == [f"{mount.path}: d/03: {done}", f"{mount.path}: o/x: {done}"]
    assert re.search(r": 22 files checked \(.*\), 2 problems, 2 mended$", lines[-1])
    assert mount.read("o/x") == digest(content("x", 30_000))


def test_wrong_paths_and_a_dead_daemon(mount: Mount, tmp_path: Path) -> None:
    for path in (tmp_path, "/nowhere"):
        done = mount.cli("check", path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"luxfuse: {path} is not in a luxfuse mount; see: luxfuse list\n"
    done = mount.cli("check")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    mount.kill()
    done = mount.cli("check", mount.path, "--repair")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has died; see" in done.stderr
    mount.cli("unmount", mount.path, check=True)
