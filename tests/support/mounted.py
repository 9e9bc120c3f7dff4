"""Mounts made by the command line, for tests: always cleaned up, never able to hang the test process.

`Mount` keeps everything of one mount in a directory of its own. `Reader` is a process that touches the mount on
orders (see `reader`); the test process itself never does.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from luxfuse.config import mount_id
from luxfuse.control.client import ControlClient
from luxfuse.errors import LuxError, MountError
from luxfuse.fuse import mountpoint as mounts
from tests.support import forking
from tests.support import reader as reader_program
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
"""After this a wait is taken for a hang, or something for never coming. A machine with much else to do takes 20 times as
long for everything: no deadline of a test is shorter, unless it is what the test is about."""
COMMAND_TIMEOUT_S = ORDER_TIMEOUT_S = PATIENCE_S
NOBODY = 65534
AWAY = r"cannot be reached: .*; what is cached is served, all else fails until it answers again"
"""The warning that an outage begins with."""
STILL = re.compile(r"luxfuse: [^ ]+: still (taking up|attaching|mounting)")
PROGRESS = re.compile(
    r"luxfuse: [^ ]+: (\d+ of (at least )?)?\d+ files?( checked)? \([^)]*\)"
    r"( and \d+ (deletes?|unfinished renames?))*(, .*)?\n?$"
)
"""What commands say every 5 s while they take long."""
MIB = 1 << 20


def content(seed: object, size: int) -> bytes:
    """Bytes that only this seed has; no slice of them is one of another seed's."""
    return random.Random(str(seed)).randbytes(size)


def digest(data: bytes) -> list[object]:
    """What a reader answers for these bytes."""
    return [len(data), hashlib.sha256(data).hexdigest()]


_serial = itertools.count()


def put(server: FastS3, bucket: str, key: str, data: bytes) -> None:
    """Make or replace an object at once, as a new version."""
    target = server.root / bucket / key
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = server.root / f".fresh-{next(_serial)}"
    fresh.write_bytes(data)
    fresh.replace(target)


def stats_of(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """The attributes of files that a daemon may remove meanwhile, without those that are gone."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


def wait_for(what: str, condition: Callable[[], Any], *, timeout_s: float = PATIENCE_S, pause_s: float = 0.05) -> Any:
    """Return the first true value of ``condition``; fail the test if there is none in time."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {timeout_s:g} s: {what}; last: {value!r}")
        time.sleep(pause_s)


class Hung(AssertionError):
    """A command on a mount did not come back in time."""


def free(mountpoint: str) -> None:
    """Abort and detach whatever is mounted there; nothing waits for it any more."""
    while (mount := mounts.find_mount(mountpoint)) is not None:
        with contextlib.suppress(OSError):
            mounts.abort(mount.device)
        try:
            mounts.unmount(mountpoint, lazy=True)
        except MountError:
            return


@functools.cache
def plain_python() -> str | None:
    """Return an interpreter with which user nobody can run luxfuse, None if there is none."""
    for candidate in (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")):
        if candidate is None:
            continue
        command = [*_as_nobody(), candidate, "-c", "import luxfuse.cli.main, luxfuse.daemon.main"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                command, env=_environment(True), capture_output=True, timeout=PATIENCE_S, cwd="/", check=False
            )
            if done.returncode == 0:
                return candidate
    return None


def plain_user_missing() -> str | None:
    """Why nothing can be mounted as user nobody here, or None."""
    if os.geteuid() != 0:
        return "needs root, to become another user"
    for program in ("setpriv", "fusermount3"):
        if shutil.which(program) is None:
            return f"needs {program}"
    return None if plain_python() else "no Python that user nobody may run can import luxfuse"


def _as_nobody() -> list[str]:
    # env: setpriv itself starts its program while it still has root's capabilities.
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", f"HOME={tempfile.gettempdir()}"]


def _environment(plain: bool) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LUXFUSE_", "AWS_"))}
    kept |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}
    if plain:
        known = [os.environ.get("PYTHONPATH", ""), sysconfig.get_path("platlib"), str(REPOSITORY)]
        kept["PYTHONPATH"] = os.pathsep.join(path for path in known if path)
    return kept


class Reader:
    """A process that reads a mount; see `reader`. Orders may be sent to several before the answers are taken."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._process = subprocess.Popen(
            [*mount.prefix, mount.python, "-I", "-S", "-c", reader_program.PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=mount.environment,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def send(self, verb: str, *arguments: object) -> None:
        """Give an order without waiting for its answer."""
        self._orders.write(json.dumps([verb, *arguments]).encode() + b"\n")
        self._orders.flush()

    def waits_for_fuse(self) -> bool:
        """Whether the order under way has reached a mount and waits for its answer."""
        return waits_for_fuse(self.pid)

    def answered(self) -> bool:
        """Whether the answer to the order under way is there."""
        return b"\n" in self._buffer or bool(select.select([self._answers], [], [], 0)[0])

    def take(self, timeout_s: float = ORDER_TIMEOUT_S) -> Any:
        """Return the answer to the order given first. Raises OSError as the process met it."""
        give_up_at = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = give_up_at - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                free(str(self._mount.path))
                raise Hung(f"a reader got no answer within {timeout_s:g} s")
            chunk = os.read(self._answers.fileno(), 1 << 16)
            if not chunk:
                raise AssertionError(f"a reader died: {self._process.wait(PATIENCE_S)}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["value"]

    def __call__(self, verb: str, *arguments: object, timeout_s: float = ORDER_TIMEOUT_S) -> Any:
        """Give an order and return its answer."""
        self.send(verb, *arguments)
        return self.take(timeout_s)

    def error(self, verb: str, *arguments: object, timeout_s: float = ORDER_TIMEOUT_S) -> str | None:
        """Return the name of the error that the order meets, None if it succeeds."""
        try:
            self(verb, *arguments, timeout_s=timeout_s)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        return None

    def close(self) -> None:
        """End the process; its open files are closed."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                free(str(self._mount.path))
                self._process.wait(PATIENCE_S)
        self._answers.close()


ALWAYS = dict(option.split("=", 1) for option in os.environ.get("TEST_MOUNT_OPTIONS", "").split(",") if option)
"""Options of all mounts, as in ``TEST_MOUNT_OPTIONS=dataplane=off``."""


class Mount:
    """One mountpoint with its state and cache directories. `mount`, `unmount` and `kill` it as often as needed."""

    def __init__(
        self,
        source: str,
        *flags: str,
        endpoint_url: str | None = None,
        options: Mapping[str, object] | None = None,
        plain_user: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        expected_logs: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        forked: bool = True,
        keeper: bool | None = None,
        beside: Mount | None = None,
    ) -> None:
        """``forked``: commands and the daemon are forked, which is faster, where that can be.

        ``keeper``: whether a daemon that dies has a successor, where it is not as users have it. ``beside``: a mount of
        which this one shares the state and cache directories.
        """
        self.source = source
        self.base = Path(tempfile.mkdtemp(prefix="mounted-"))
        self.path = self.base / "mnt"
        self.state = beside.state if beside is not None else self.base / "state"
        cache = beside.cache if beside is not None else cache_dir
        self.cache = Path(cache) if cache is not None else self.base / "cache"
        self.expected_logs = list(expected_logs)
        self.flags = ["--cache-dir", str(self.cache), *flags]
        self._endpoint_url = endpoint_url
        if endpoint_url is not None:
            self.flags += ["--endpoint-url", endpoint_url]
        options = {**ALWAYS, **(options or {})}
        if options:
            self.flags += ["-o", ",".join(f"{name}={value}" for name, value in options.items())]
        self._forked = forked and not plain_user
        self._network: str | None = None
        self.plain_user = plain_user
        self.prefix = _as_nobody() if plain_user else []
        self.python = plain_python() or "" if plain_user else sys.executable
        kept = {"LUXFUSE_STATE_DIR": str(self.state)}
        self.environment = _environment(plain_user) | kept | dict(environment or {})
        self._patience = self.base / "patience"
        self.environment["TEST_PATIENCE"] = str(self._patience)
        if keeper is not None:
            self.environment["LUXFUSE_KEEPER"] = "on" if keeper else "off"
        self.path.mkdir()
        if plain_user:
            for each in (self.base, self.path):
                os.chown(each, NOBODY, NOBODY)
        self._readers: list[Reader] = []
        self._pids: set[int] = set()
        self._reader: Reader | None = None

    def enter(self, network: str) -> None:
        """Run commands and the daemon in the network namespace at this path from now on."""
        assert not self.plain_user
        self._network = network
        self.prefix = ["nsenter", f"--net={network}"]

    # -- commands

    def run(self, command: Sequence[str | os.PathLike[str]], *, timeout_s: float = COMMAND_TIMEOUT_S,
            check: bool = False) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command as the user of the mount; a hung one frees the mount and raises `Hung`.

        What ones of luxfuse say of their progress is left out: the machine may be slow.
        """
        process = subprocess.Popen(
            [*self.prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="surrogateescape", cwd="/", env=self.environment,
        )  # fmt: skip
        return self._end_of(process, timeout_s, check)

    def _end_of(
        self, process: subprocess.Popen[str] | forking.Command, timeout_s: float, check: bool
    ) -> subprocess.CompletedProcess[str]:
        command = process.args
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            free(str(self.path))
            process.kill()
            out, err = process.communicate(timeout=PATIENCE_S)
            raise Hung(f"{command} did not end within {timeout_s:g} s: {out} {err}") from None
        done = subprocess.CompletedProcess(process.args, process.returncode, out, _without(PROGRESS, err))
        if check:
            assert done.returncode == 0, f"{command}: exit {done.returncode}: {done.stderr}\n{self.log()}"
        return done

    def cli(self, *arguments: str | os.PathLike[str], timeout_s: float = COMMAND_TIMEOUT_S,
            check: bool = False) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a luxfuse command."""
        if self._forked:
            return self._end_of(forking.Command(arguments, self.environment, self._network), timeout_s, check)
        return self._start(*arguments, timeout_s=timeout_s, check=check)

    def _start(self, *arguments: str | os.PathLike[str], timeout_s: float,
               check: bool = False) -> subprocess.CompletedProcess[str]:  # fmt: skip
        command = [self.python, "-P", "-m", "luxfuse.cli.main", *arguments]
        return self.run(command, timeout_s=timeout_s, check=check)

    def try_mount(
        self, *flags: str, timeout_s: float = COMMAND_TIMEOUT_S, forked: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``luxfuse mount``. What that says every 5 s while it takes long is left out: the machine may be slow."""
        return self._mounted_by(self.cli if forked else self._start, *flags, timeout_s=timeout_s)

    def _mounted_by(self, run: Callable[..., subprocess.CompletedProcess[str]], *flags: str,
                    timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:  # fmt: skip
        done = run("mount", self.source, self.path, *self.flags, *flags, timeout_s=timeout_s)
        done.stderr = _without(STILL, done.stderr)
        if done.returncode == 0:
            self._pids |= {self.pid, *self._keeper()}
        return done

    def _keeper(self) -> list[int]:
        """The process that goes on if the daemon dies, if there is one; also where the daemon says nothing."""
        try:
            parent = parent_of(self.pid)
        except OSError:
            return []
        return [parent] if str(self.directory() / "keeper") in open_paths(parent) else []

    def mount(self, *flags: str) -> Mount:
        """Mount; returns itself."""
        done = self._mounted_by(self.cli, *flags)
        assert done.returncode == 0, f"mounting failed: {done.stderr}\n{self.log()}"
        assert done.stderr == "", f"{done.stderr}\n{self.log()}"
        return self

    def unmount(self, *flags: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Close the readers and run ``luxfuse unmount``."""
        self.close_readers()
        return self.cli("unmount", self.path, *flags, timeout_s=timeout_s)

    def remount(self, *flags: str) -> Mount:
        """Unmount cleanly and mount again."""
        done = self.unmount()
        assert done.returncode == 0, done.stderr
        return self.mount(*flags)

    # -- observation

    def directory(self) -> Path:
        """The state directory of the mount itself."""
        own = self.state / "mounts" / mount_id(str(self.path))
        return own if own.is_dir() else next(iter((self.state / "mounts").iterdir()))

    @property
    def pid(self) -> int:
        """The daemon's process."""
        pid: int = json.loads((self.directory() / "mount.json").read_text())["pid"]
        return pid

    @property
    def mounted(self) -> bool:
        """Whether the kernel has it."""
        return mounts.find_mount(str(self.path)) is not None

    @property
    def keeper_pid(self) -> int:
        """The keeper's process. Raises TypeError where there is none."""
        return int(self.status()["keeper_pid"])

    def replaced(self, number: int = signal.SIGKILL) -> None:
        """Kill the daemon, and wait until its successor serves."""
        before = self.pid
        self.kill_daemon(number)
        wait_for("a successor", lambda: self.serves_as_successor_of(before))

    def serves_as_successor_of(self, before: int) -> bool:
        """Whether a daemon other than process ``before`` serves."""
        with contextlib.suppress(OSError, LuxError, ValueError, KeyError):
            return self.pid != before and bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        """What ``luxfuse status --json`` shows, asked of the control socket directly, which is faster."""
        document: dict[str, Any] = ControlClient(self.directory() / "control.sock", deadline_s=PATIENCE_S).status()
        return document

    @contextlib.contextmanager
    def impatient(self, timeout_s: float = 0.5) -> Iterator[None]:
        """Have the daemon, a forked one, give up requests so soon for the block, in which they are to fail."""
        assert self._forked
        self._patience.symlink_to(str(timeout_s))
        try:
            yield
        finally:
            self._patience.unlink()

    def gets(self) -> int:
        """GET requests so far, by the daemon's own count."""
        return int(self.status()["understore"]["gets"])

    def await_answers(self) -> None:
        """Wait until nothing is asked of the store: attributes, too, are asked for behind what a program does."""
        wait_for("nothing is asked of the store", lambda: self.status()["understore"]["in_flight"] == 0)

    def log(self) -> str:
        """The daemon's log so far."""
        return "".join(log.read_text(errors="replace") for log in self.state.glob("mounts/*/daemon.log*"))

    def unexpected_logs(self) -> list[str]:
        """Lines of the log at WARNING and above, or of no log at all, that no expected pattern matches."""
        quiet = re.compile(r"^timestamp=\S+ level=(debug|info) ")
        expected = [*self.expected_logs, *([AWAY] if self._endpoint_url in FaultProxy.troubled else [])]
        return [
            line for line in self.log().splitlines()
            if line and not quiet.match(line) and not any(re.search(p, line) for p in expected)
        ]  # fmt: skip

    def cache_files(self) -> list[Path]:
        """The files of cached objects."""
        return sorted(p for p in self.cache.glob("*/objects/??/*") if p.is_file())

    def disk_bytes(self) -> int:
        """Bytes that cached objects take on disk now."""
        total = 0
        for path in self.cache.glob("*/objects/??/*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
        return total

    # -- readers

    def reader(self) -> Reader:
        """Return a new process that reads the mount."""
        fresh = Reader(self)
        self._readers.append(fresh)
        return fresh

    def do(self, verb: str, *arguments: object, timeout_s: float = ORDER_TIMEOUT_S) -> Any:
        """Let a reader that is kept for this do something."""
        return self._kept()(verb, *arguments, timeout_s=timeout_s)

    def error(self, verb: str, *arguments: object, timeout_s: float = ORDER_TIMEOUT_S) -> str | None:
        """Return the error that `do` would meet."""
        return self._kept().error(verb, *arguments, timeout_s=timeout_s)

    def _kept(self) -> Reader:
        if self._reader is None:
            self._reader = self.reader()
        return self._reader

    def read(self, name: str) -> Any:
        """Digest of a file read whole."""
        return self.do("file", f"{self.path}/{name}")

    def close_readers(self) -> None:
        """End all readers."""
        while self._readers:
            self._readers.pop().close()
        self._reader = None

    # -- the end

    def kill(self) -> None:
        """Kill the daemon, and its keeper, so that nobody goes on."""
        for keeper in self._keeper():
            os.kill(keeper, signal.SIGKILL)
        self.kill_daemon()

    def kill_daemon(self, number: int = signal.SIGKILL, *, wait: bool = True) -> None:
        """Send the daemon a signal; wait for its end. If it died of that, its keeper starts another one."""
        pid = self.pid
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, number)
            if wait:
                assert select.select([descriptor], [], [], PATIENCE_S)[0], (
                    f"the daemon (pid {pid}) outlives signal {number}"
                )
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Leave nothing behind, whatever state it is in, and check the log."""
        try:
            self.close_readers()
            if self.mounted:
                # As the command does, without the time that it takes to start.
                with contextlib.suppress(LuxError, OSError, StopIteration):
                    ControlClient(self.directory() / "control.sock", deadline_s=PATIENCE_S).unmount()
        finally:
            free(str(self.path))
            self.close_readers()
            self._end_daemons()
            unexpected = self.unexpected_logs()
            shutil.rmtree(self.base, ignore_errors=True)
        if unexpected:
            pytest.fail("unexpected log lines of the daemon:\n" + "\n".join(unexpected[:20]), pytrace=False)

    def _end_daemons(self) -> None:
        with contextlib.suppress(OSError, StopIteration, ValueError, KeyError):
            self._pids.add(self.pid)
        for pid in self._pids:
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if not _is_daemon(pid):
                    continue
                for number, patience_s in ((signal.SIGTERM, 3), (signal.SIGKILL, 30)):
                    if select.select([descriptor], [], [], patience_s)[0]:
                        break
                    signal.pidfd_send_signal(descriptor, number)
                select.select([descriptor], [], [], PATIENCE_S)
            finally:
                os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether the process runs; one that ended but that nobody has waited for yet does not."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])


def waits_for_fuse(pid: int) -> bool:
    """Whether a process is in a mount and waits for its answer."""
    return "fuse" in Path("/proc", str(pid), "stack").read_text()


def _without(lines: re.Pattern[str], text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not lines.match(line))


def open_paths(pid: int) -> list[str]:
    """What a process has open; nothing, if it has ended."""
    found = []
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it has been closed
                found.append(os.readlink(each))
    return found


def _is_daemon(pid: int) -> bool:
    try:
        return b"luxfuse.daemon" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False


@contextlib.contextmanager
def mounted(source: str, *flags: str, **settings: Any) -> Iterator[Mount]:
    """A `Mount` that is mounted, for a block."""
    mount = Mount(source, *flags, **settings)
    try:
        yield mount.mount()
    finally:
        mount.close()


class Mounts:
    """Makes mounts for one test, and closes them all at its end."""

    def __init__(self) -> None:
        self._made: list[Mount] = []
        self.expected_logs: list[str] = []

    def make(self, source: str, *flags: str, **settings: Any) -> Mount:
        """A mount that is not mounted yet."""
        made = Mount(source, *flags, **settings)
        self._made.append(made)
        return made

    def __call__(self, source: str, *flags: str, **settings: Any) -> Mount:
        """A mount that is mounted."""
        return self.make(source, *flags, **settings).mount()

    def close(self) -> None:
        """Close all, even if one of them fails."""
        with contextlib.ExitStack() as stack:
            for made in self._made:
                made.expected_logs += self.expected_logs
                stack.callback(made.close)
