"""Ctrl-C and kill: whoever waits for a store that does not answer can be ended at once, and nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import itertools
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import new_bucket
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy, Request
from tests.support.mounted import MIB, Mount, content, digest, mounted, put, wait_for, waits_for_fuse

DATA = content("interrupts", 3 * MIB)
PROGRAM = Path("/bin/bash")
"""Any file that everybody may read."""
ENDS_WITHIN_S = 60
"""Beside the 120 s for which the mount waits for the store."""
FIRES_TIMERS = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
signal.siginterrupt(signal.SIGALRM, False)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
try:
    libc.access(sys.argv[1].encode(), os.F_OK)
    os._exit(ctypes.get_errno())
except KeyboardInterrupt:
    os._exit(7)
"""
"""Looks for a file while a handled signal arrives all the time, and says how that went: Python's own calls try again."""
HANDLES = """
import os, sys
try:
    os.stat(sys.argv[1])
except KeyboardInterrupt:
    sys.exit(7)
"""
"""Ends with 7 where Ctrl-C reaches its handler."""


WRITES = """
import sys, time
with open(sys.argv[1], 'wb', 0) as file:
    file.write(b'some')
    print('there', flush=True)
    time.sleep(99)
"""

_serial = itertools.count()


@pytest.fixture(scope="module")
def front(s3: FastS3) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def filled(s3: FastS3) -> str:
    return new_bucket(s3)


@pytest.fixture(scope="module", params=["keeper", "plain user"])
def made(request: pytest.FixtureRequest, front: FaultProxy, filled: str) -> Iterator[Mount]:
    plain = request.param == "plain user"
    if plain:
        request.getfixturevalue("plain_user")
    options = {"request_timeout": "120s", "negative_ttl": "0s"}
    with mounted(
        f"s3://{filled}", endpoint_url=front.endpoint, options=options, plain_user=plain, keeper=not plain
    ) as made:
        yield made


@pytest.fixture
def place(made: Mount, s3: FastS3, filled: str) -> Path:
    """A directory of the test's own with a file ``f`` and a directory ``d``, of which nothing is known but the names."""
    name = f"t{next(_serial)}"
    for key in ("f", "d/x"):
        put(s3, filled, f"{name}/{key}", DATA)
    path = made.path / name
    assert sorted(made.do("list", str(path))) == ["d", "f"]
    return path


@pytest.fixture
def mount(made: Mount, place: Path, front: FaultProxy) -> Iterator[Mount]:
    """Checks at the end that nothing is left of who was ended."""
    yield made
    front.clear()
    assert made.status()["fuse"]["errors"] == 0
    made.await_answers()
    wait_for("nothing is left to be done", lambda: made.status()["dirty"]["files"] == 0)


def one_waits_for_fuse(pid: int) -> bool:
    """Whether a process, or one that it has started, is in a mount and waits for its answer."""
    with contextlib.suppress(OSError):
        if waits_for_fuse(pid):
            return True
        return any(map(one_waits_for_fuse, map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())))
    return False


@pytest.fixture
def waiting(mount: Mount, front: FaultProxy) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command that then waits for the store, which holds requests that ``holds`` says."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: object, holds: Callable[[Request], bool] = lambda _: True) -> subprocess.Popen[bytes]:
        front.only(holds)
        front.set(hold=True)
        before = sum(map(holds, front.requests))
        process = subprocess.Popen(
            [*mount.prefix, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env=mount.environment,
        )  # fmt: skip
        started.append(process)
        # Where nothing is answered for seconds, the store is also asked whether it is there.
        wait_for("the store is asked", lambda: sum(map(holds, front.requests)) > before and one_waits_for_fuse(process.pid))
        return process

    yield start
    front.clear()
    for process in started:
        process.kill()
        process.communicate(timeout=ENDS_WITHIN_S)


def is_put(request: Request) -> bool:
    return request.method == "PUT"


CALLS: dict[str, Callable[[Path], list[object]]] = {
    "open and read": lambda place: ["cat", place / "f"],
    "lookup": lambda place: ["stat", place / "nothing"],
    "opendir": lambda place: ["ls", place / "d"],
    "create": lambda place: ["touch", place / "d" / "fresh"],
}
ENDS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])


@pytest.mark.parametrize(
    ("call", "number"),
    [
        pytest.param(call, number, id=f"{call}-{number.name}", marks=pytest.mark.slow if (nth + offset) % 2 else [])
        for nth, call in enumerate(CALLS)
        for offset, number in enumerate((signal.SIGINT, signal.SIGKILL))
    ],
)
def test_who_waits_for_the_store_ends(place: Path, waiting, call: str, number: int) -> None:
    process = waiting(*CALLS[call](place))
    process.send_signal(number)
    assert process.wait(ENDS_WITHIN_S) == -number


def test_others_who_wait_for_the_same_get_it(mount: Mount, place: Path, waiting, front: FaultProxy) -> None:
    other = mount.reader()
    process = waiting("cat", place / "f")
    other.send("file", f"{place}/f")
    process.send_signal(signal.SIGINT)
    assert process.wait(ENDS_WITHIN_S) == -signal.SIGINT
    front.clear()
    assert other.take() == digest(DATA)
    asked = [r for r in front.requests if r.method == "GET" and r.path.endswith(f"{place.name}/f")]
    assert len(asked) == len({r.range for r in asked}), "a page was fetched twice"


@ENDS
def test_what_is_being_written_goes_up_without_its_writer(
    mount: Mount, place: Path, waiting, front: FaultProxy, s3: FastS3, filled: str, number: int
) -> None:
    process = waiting("cp", PROGRAM, place / "new", holds=is_put)
    process.send_signal(number)
    assert process.wait(ENDS_WITHIN_S) == -number
    front.clear()
    stored = s3.root / filled / place.name / "new"
    wait_for("it is in the store", lambda: stored.exists() and stored.read_bytes() == PROGRAM.read_bytes())
    assert mount.read(f"{place.name}/new") == digest(PROGRAM.read_bytes())


def test_who_is_killed_before_it_closes_does_not_wait_for_the_store(
    mount: Mount, place: Path, waiting, front: FaultProxy, s3: FastS3, filled: str
) -> None:
    process = waiting(mount.python, "-c", WRITES, place / "d" / "new")
    front.clear()
    assert process.stdout.readline() == b"there\n"
    front.set(hold=True)
    process.kill()
    assert process.wait(ENDS_WITHIN_S) == -signal.SIGKILL
    front.clear()
    wait_for("it is in the store", (s3.root / filled / place.name / "d" / "new").exists)


def test_signals_that_end_nothing_do_not_show(mount: Mount, place: Path, waiting, front: FaultProxy) -> None:
    """A program on a local disk never sees EINTR for its timers, and few would bear it."""
    process = waiting(mount.python, "-c", FIRES_TIMERS, place / "nothing")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    front.clear()
    assert process.wait(ENDS_WITHIN_S) == errno.ENOENT


def test_ctrl_c_counts_after_such_a_signal_and_reaches_handlers(mount: Mount, place: Path, waiting) -> None:
    process = waiting(mount.python, "-c", FIRES_TIMERS, place / "nothing")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(ENDS_WITHIN_S) == 7
    process = waiting(mount.python, "-c", HANDLES, place / "nothing too")
    process.send_signal(signal.SIGINT)
    assert process.wait(ENDS_WITHIN_S) == 7
