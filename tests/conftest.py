"""Safety nets for every test: no unexpected warnings in the log, nothing left mounted or running."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import hypothesis
import pytest

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint

HERE = Path(__file__).parent
MOUNT_TESTS = HERE / "mount"

# The same examples each time, as a failure shall be of what was changed; none fails by how long it, or making it, takes.
hypothesis.settings.register_profile(
    "luxfuse", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=os.environ.get("LUXFUSE_SEED") != "new",
)  # fmt: skip
hypothesis.settings.load_profile("luxfuse")

# posix/ comes first because it forks for each test, which takes the longer the more memory a process has by then.
TAKES_LONG = ("posix", "mount", "contract", "model", "crash", "simulation")


def _place(item: pytest.Item) -> int:
    """Where the directory of a test stands in `TAKES_LONG`, or behind it."""
    directory = item.path.relative_to(HERE).parts[0]
    return TAKES_LONG.index(directory) if directory in TAKES_LONG else len(TAKES_LONG)


ON_REQUEST = {"ceph": "a Ceph RGW", "hdfs": "Hadoop", "swift": "OpenStack Swift"}
"""Servers that nothing installs for the tests, by marker."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put files that take long first, so that no process is alone with one at the end; skip what -m has to ask for."""
    items.sort(key=_place)
    for marker, needed in ON_REQUEST.items():
        if marker not in config.getoption("markexpr"):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(f"needs {needed}; run with -m {marker}"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where several processes run everything, let each compile its share of the files first, and all do not compile all.

    pytest rewrites the assertions of what is imported, and keeps the result: 16 s of processor time for each process.
    """
    share, count = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count == 1 or [Path(argument).resolve() for argument in session.config.args] != [HERE]:
        return
    files = sorted(path for path in HERE.rglob("test_*.py") if (path.parent / "__init__.py").exists())
    for path in files[int(share) :: count]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # the collection says what is wrong with it
            importlib.import_module(".".join(path.relative_to(HERE.parent).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Let collections of garbage, here and in what is forked, leave out a quarter of a million objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[_CALL_PASSED] = report.passed
    # What is expected, maybe hundreds of times, would hide what has failed.
    patterns = [pattern for marker in item.iter_markers("expected_logs") for pattern in marker.args]
    if patterns:
        report.sections = [
            (title, _without(patterns, text) if title.startswith("Captured log") else text)
            for title, text in report.sections
        ]
    return report


def _without(patterns: list[str], text: str) -> str:
    kept = [line for line in text.splitlines() if not any(re.search(pattern, line) for pattern in patterns)]
    return "\n".join(kept)


CERTIFICATES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables of a machine with certificate authorities of its own: they are checked, 30 ms, whenever a store is opened."""

_CALL_PASSED = pytest.StashKey[bool]()
_RUN = pytest.StashKey[tuple[str, str | None]]()


@pytest.fixture(scope="session", autouse=True)
def _descriptions_read_once() -> Iterator[None]:
    """Let the botocore clients of a test process share what they read of S3: 50 ms for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture
def expected_logs() -> list[str]:
    """Regular expressions of warnings and errors that the test provokes; append to it, or use the marker."""
    return []


@pytest.fixture(autouse=True)
def _no_unexpected_logs(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, expected_logs) -> Iterator:
    """Fail a test that logged a luxfuse, trio, asyncio or pyfuse3 record at WARNING or above."""
    yield
    patterns = list(expected_logs)
    for marker in request.node.iter_markers("expected_logs"):
        patterns += marker.args
    unexpected = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.levelno >= logging.WARNING
        and record.name.split(".")[0] in ("luxfuse", "trio", "asyncio", "pyfuse3")
        and not any(re.search(pattern, record.getMessage()) for pattern in patterns)
    ]
    if unexpected and request.node.stash.get(_CALL_PASSED, True):
        pytest.fail("unexpected log records:\n" + "\n".join(unexpected), pytrace=False)


def _luxfuse_mounts() -> dict[str, mountpoint.MountInfo]:
    return {mount.mountpoint: mount for mount in mountpoint.read_mounts() if mount.fstype == mountpoint.FSTYPE}


def _content(path: str) -> bytes:
    """A small file, without what `open` does besides: it is called for each process, twice for each test of a mount."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def _daemons() -> set[int]:
    """Pids of luxfuse processes that descend from this test run, told by the temporary directory that it sets."""
    mark = f"TMPDIR={os.environ['TMPDIR']}".encode()
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if b"luxfuse" in _content(f"/proc/{name}/cmdline") and mark in _content(f"/proc/{name}/environ").split(b"\0"):
                found.add(int(name))
        except OSError:
            continue
    return found


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expected_logs(*patterns): log messages at WARNING or above that may appear")
    config.addinivalue_line("markers", "remounts: replaces daemons of its module's fixture, which ends them")
    # A temporary directory of its own tells what this run leaves behind from the work of others.
    directory = tempfile.mkdtemp(prefix="luxfuse-tests-")
    Path(directory).chmod(0o1777)
    config.stash[_RUN] = (directory, os.environ.get("TMPDIR"))
    os.environ["TMPDIR"] = tempfile.tempdir = directory
    for name in CERTIFICATES:
        os.environ.pop(name, None)
    # Or every daemon and command would compile luxfuse anew: 0.2 s of processor time each.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_unconfigure(config: pytest.Config) -> None:
    directory, before = config.stash[_RUN]
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    # Never delete through a mount.
    if not any(mountpoint.is_inside(mount.mountpoint, directory) for mount in mountpoint.read_mounts()):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test in tests/mount: no new mount, luxfuse process or directory of a mount."""
    if MOUNT_TESTS not in request.path.parents:
        yield
        return
    mounts_before, daemons_before, directories_before = set(_luxfuse_mounts()), _daemons(), _temporary_directories()
    # Set up first, so torn down last: after the fixtures that unmount.
    yield
    if request.node.get_closest_marker("remounts") is not None:
        return  # what is there now is for the fixture to end
    left = _free_mounts(mounts_before) + _end_daemons(daemons_before)
    for path in _temporary_directories() - directories_before:
        shutil.rmtree(path, ignore_errors=True)
        left.append(f"directory {path}")
    if left:
        pytest.fail("left behind: " + ", ".join(left), pytrace=False)


def _temporary_directories() -> set[Path]:
    root = Path(tempfile.gettempdir())
    return {path for pattern in ("luxfuse*", "mounted-*") for path in root.glob(pattern)}


def _free_mounts(before: set[str]) -> list[str]:
    left = []
    for path, mount in _luxfuse_mounts().items():
        if path in before or not mountpoint.is_inside(path, tempfile.gettempdir()):
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


def _end_daemons(before: set[int]) -> list[str]:
    give_up_at = time.monotonic() + 60
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
