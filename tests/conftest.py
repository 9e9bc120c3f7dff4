"""Safety nets for every test: no unexpected warnings in the log, nothing left mounted or running."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint

MOUNT_TESTS = Path(__file__).parent / "mount"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[_CALL_PASSED] = report.passed
    return report


_CALL_PASSED = pytest.StashKey[bool]()


@pytest.fixture
def expected_logs() -> list[str]:
    """Regular expressions of warnings and errors that the test provokes; append to it, or use the marker."""
    return []


@pytest.fixture(autouse=True)
def _no_unexpected_logs(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, expected_logs) -> Iterator:
    """Fail a test that logged a luxfuse, hypercorn, starlette or trio record at WARNING or above."""
    yield
    patterns = list(expected_logs)
    for marker in request.node.iter_markers("expected_logs"):
        patterns += marker.args
    unexpected = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.WARNING
        and record.name.split(".")[0] in ("luxfuse", "hypercorn", "starlette", "trio", "asyncio", "pyfuse3")
        and not any(re.search(pattern, record.getMessage()) for pattern in patterns)
    ]
    if unexpected and request.node.stash.get(_CALL_PASSED, True):
        pytest.fail("unexpected log records:\n" + "\n".join(unexpected), pytrace=False)


def _luxfuse_mounts() -> dict[str, mountpoint.MountInfo]:
    return {mount.mountpoint: mount for mount in mountpoint.read_mounts() if mount.fstype == mountpoint.FSTYPE}


def _daemons() -> set[int]:
    """Pids of luxfuse daemons that descend from this test run, told by the variable that the run sets."""
    mark = f"LUXFUSE_TEST_RUN={os.environ['LUXFUSE_TEST_RUN']}".encode()
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            command = Path("/proc", name, "cmdline").read_bytes()
            if b"luxfuse" in command and mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                found.add(int(name))
        except OSError:
            continue
    return found


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expected_logs(*patterns): log messages at WARNING or above that may appear")
    os.environ.setdefault("LUXFUSE_TEST_RUN", f"{os.getpid()}-{time.time_ns()}")


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test in tests/mount: no new mount, daemon or luxfuse directory in the temporary directory."""
    if MOUNT_TESTS not in request.path.parents:
        yield
        return
    mounts_before, daemons_before, directories_before = set(_luxfuse_mounts()), _daemons(), _temporary_directories()
    # Set up first, so torn down last: after the fixtures that unmount.
    yield
    left = _free_mounts(mounts_before) + _end_daemons(daemons_before)
    for path in _temporary_directories() - directories_before:
        shutil.rmtree(path, ignore_errors=True)
        left.append(f"directory {path}")
    if left:
        pytest.fail("left behind: " + ", ".join(left), pytrace=False)


def _temporary_directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("luxfuse*"))


def _free_mounts(before: set[str]) -> list[str]:
    left = []
    # A test may have restricted itself to one process's mounts; others' mounts in parallel runs are theirs.
    for path, mount in _luxfuse_mounts().items():
        if path in before or not _ours(path):
            continue
        left.append(f"mount {path}")
        try:
            mountpoint.abort(mount.device)
        except OSError:
            pass
        try:
            mountpoint.unmount(path, lazy=True)
        except MountError as exc:
            left.append(str(exc))
    return left


def _ours(path: str) -> bool:
    root = _base_temp[0] if _base_temp else tempfile.gettempdir()
    return mountpoint.is_inside(path, root)


_base_temp: list[str] = []


@pytest.fixture(autouse=True, scope="session")
def _remember_base_temp(tmp_path_factory: pytest.TempPathFactory) -> None:
    _base_temp.append(str(tmp_path_factory.getbasetemp()))


def _end_daemons(before: set[int]) -> list[str]:
    give_up_at = time.monotonic() + 3
    while (running := _daemons() - before) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    for pid in running:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return [f"process {pid}" for pid in running]


def _skip_unless(condition: Callable[[], bool], reason: str) -> None:
    if not condition():
        pytest.skip(reason)


@pytest.fixture
def requires_root() -> None:
    """Skip unless root: mount(2) and passthrough need it."""
    _skip_unless(lambda: os.geteuid() == 0, "needs root")


@pytest.fixture
def requires_fuse() -> None:
    """Skip unless this machine can mount FUSE file systems."""
    _skip_unless(lambda: os.access("/dev/fuse", os.R_OK | os.W_OK), "needs a usable /dev/fuse")
    if os.geteuid() != 0:
        _skip_unless(lambda: shutil.which("fusermount3") is not None, "needs fusermount3 (package fuse3)")


@pytest.fixture
def requires_passthrough(requires_root: None, requires_fuse: None) -> None:
    """Skip unless the kernel may have FUSE passthrough."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    _skip_unless(lambda: release >= (6, 9), f"needs Linux 6.9 for FUSE passthrough, this is {os.uname().release}")
