"""What this machine's kernel does with a file system that can be written, in passthrough and by copying."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import trio

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint
from tests.posix.calls import now_ns
from tests.support.mounted import NOBODY, REPOSITORY, plain_python, plain_user_missing
from tests.unit.fuse import small_fs

pytestmark = pytest.mark.usefixtures("requires_root", "requires_fuse")
READY_DEADLINE_S = CALL_DEADLINE_S = 120.0
MODULES = os.pathsep.join([sysconfig.get_path("platlib"), str(REPOSITORY)])


class Forked:
    """`small_fs` in a process that is forked, as that need not import all of it; has of `Popen` what `Small` needs."""

    def __init__(self, log: IO[str], *arguments: str) -> None:
        def serve() -> None:
            for fd in (1, 2):
                os.dup2(log.fileno(), fd)
            trio.run(small_fs.serve, *arguments)

        self._process = multiprocessing.get_context("fork").Process(target=serve)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> None:
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("small_fs", timeout_s or 0.0)

    def kill(self) -> None:
        self._process.kill()


class Small:
    """A mount of `small_fs`, served by a process of its own."""

    def __init__(self, *flags: str, prefix: tuple[str, ...] = (), python: str = "") -> None:
        self.base = base = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
        self.mount, self.directory, self.trace = base / "mount", base / "files", base / "trace"
        base.chmod(0o777)
        for directory in (self.mount, self.directory):
            directory.mkdir()
            directory.chmod(0o777)
        self.seen = 0
        self.log = (base / "log").open("w+")
        arguments = [str(self.mount), str(self.directory), str(self.trace), *flags]
        self.process: Forked | subprocess.Popen[bytes]
        if python:
            self.process = subprocess.Popen(
                [*prefix, python, "-m", "tests.unit.fuse.small_fs", *arguments],
                cwd=REPOSITORY,
                stdout=self.log,
                stderr=self.log,
                env={**os.environ, "PYTHONPATH": MODULES},
            )
        else:
            self.process = Forked(self.log, *arguments)
        give_up_at = time.monotonic() + READY_DEADLINE_S
        while not self.trace.exists() or not self.calls("ready"):
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                said = (base / "log").read_text()
                self.close()
                pytest.fail(f"small_fs did not start: {said}")
            time.sleep(0.02)

    def calls(self, *names: str) -> list[list[Any]]:
        """Return the calls of these names that came since the last time."""
        lines = self.trace.read_text().splitlines()
        new, self.seen = lines[self.seen :], len(lines)
        return [call for call in map(json.loads, new) if call[0] in names]

    def await_calls(self, *names: str) -> list[list[Any]]:
        """As `calls`, once the last of ``names`` was called: RELEASE is not waited for by close."""
        give_up_at = time.monotonic() + CALL_DEADLINE_S
        found: list[list[Any]] = []
        while not found or found[-1][0] != names[-1]:
            assert time.monotonic() < give_up_at, f"no call of {names[-1]}: {found}"
            found += self.calls(*names)
        return found

    def wakings(self) -> int:
        """How often threads of the process have waited, as they do for each request."""
        texts = [(task / "status").read_text() for task in Path(f"/proc/{self.process.pid}/task").iterdir()]
        return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)

    def backing(self, name: str) -> Path:
        return self.directory / str((self.mount / name).stat().st_ino)

    def close(self) -> None:
        try:
            mountpoint.unmount(str(self.mount), lazy=True, force=True)
        except MountError:
            pass
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        if mountpoint.find_mount(str(self.mount)) is None:
            shutil.rmtree(self.base)


@pytest.fixture
def fast(requires_passthrough: None) -> Iterator[Small]:
    small = Small()
    yield small
    small.close()


@pytest.fixture(params=["passthrough", "lanes", "copy"])
def small(request: pytest.FixtureRequest) -> Iterator[Small]:
    if request.param == "passthrough":
        request.getfixturevalue("requires_passthrough")
    small = Small(*([request.param] if request.param != "passthrough" else []))
    yield small
    small.close()


def as_nobody(work: Any) -> str:
    """Run ``work`` in a process of another user; returns what it returns."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(write_fd, str(work()).encode())
        except BaseException as exc:
            os.write(write_fd, repr(exc).encode())
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "r") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    """The system call inside must fail with this errno."""
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
        yield
    assert caught.value.errno == code


def becomes_free(path: Path) -> bool:
    """As `can_lease`, soon: the kernel lets go of a backing file some microseconds after it has sent RELEASE."""
    give_up_at = time.monotonic() + CALL_DEADLINE_S
    while not can_lease(path):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.001)
    return True


def can_lease(path: Path) -> bool:
    """Whether nobody has the file open for writing, or mapped so."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_create_answers_with_all_attributes(small: Small) -> None:
    fd = os.open(small.mount / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    small.calls()
    seen, backing = os.fstat(fd), small.backing("a").stat()
    asked = [inode for _, inode in small.calls("getattr") if inode != 1]
    assert asked == [], "the answer to CREATE holds them for a minute"
    for name in ("mode", "size", "uid", "gid", "mtime_ns", "atime_ns", "ctime_ns", "blocks", "nlink"):
        assert getattr(seen, f"st_{name}") == getattr(backing, f"st_{name}"), name
    assert seen.st_blksize == 4096
    os.close(fd)
    with pytest.raises(FileExistsError):
        os.open(small.mount / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    as_other = as_nobody(lambda: os.close(os.open(small.mount / "b", os.O_CREAT | os.O_WRONLY, 0o666)))
    assert as_other == "None"
    assert (small.mount / "b").stat().st_uid == NOBODY


def test_a_backing_registered_for_reading_is_written_through(fast: Small) -> None:
    fd = os.open(fast.mount / "a", os.O_CREAT | os.O_RDWR, 0o644)
    assert os.pwrite(fd, b"0123456789", 5) == 10
    assert fast.backing("a").read_bytes() == bytes(5) + b"0123456789"
    assert os.fstat(fd).st_size == 15
    assert os.pread(fd, 4, 5) == b"0123"
    assert fast.calls("write") == []
    again = os.open(fast.mount / "a", os.O_WRONLY | os.O_APPEND)
    os.write(again, b"tail")
    assert fast.backing("a").read_bytes().endswith(b"9tail")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(again, 1)
    os.close(fd)
    os.close(again)


def test_writing_handles_are_asked_about_and_reading_ones_are_not(fast: Small) -> None:
    (fast.mount / "a").touch()
    ref = [fast.await_calls("release")[0][1][0], None]
    fd = os.open(fast.mount / "a", os.O_RDWR)
    copy = os.dup(fd)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(copy)
    os.close(fd)
    kinds = ("open", "flush", "fsync", "release")
    assert fast.await_calls(*kinds)[1:] == [
        ["fsync", ref, False], ["fsync", ref, True], ["flush", ref], ["flush", ref], ["release", ref]
    ]  # fmt: skip
    (fast.mount / "a").read_bytes()
    with (fast.mount / "a").open("ab"):
        pass
    assert [call[0] for call in fast.await_calls(*kinds)] == ["open", "flush", "release"], "reading asked nothing"


def test_the_backing_tells_of_live_writers(fast: Small) -> None:
    (fast.mount / "a").write_bytes(bytes(4096))
    fast.await_calls("release")
    backing = fast.backing("a")
    assert becomes_free(backing), "it is registered, for reading"
    with (fast.mount / "a").open("rb"):
        assert can_lease(backing), "and open for reading"
        with (fast.mount / "a").open("r+b"):
            assert not can_lease(backing)
    fast.await_calls("release")
    assert becomes_free(backing)


def test_a_mapping_outlives_the_release_and_counts_as_a_writer(fast: Small) -> None:
    (fast.mount / "a").write_bytes(bytes(4096))
    fast.await_calls("release")
    backing = fast.backing("a")
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "at = libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0)); os.close(fd)\n"
        "print('mapped', flush=True); sys.stdin.readline()\n"
        "ctypes.memmove(at, b'late', 4); print('written', flush=True); sys.stdin.readline()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, fast.mount / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "mapped\n"
        fast.await_calls("release")
        time.sleep(0.1)  # what is let go of after RELEASE is gone by then
        assert not can_lease(backing)
        print(file=child.stdin, flush=True)
        assert child.stdout.readline() == "written\n"
        assert backing.read_bytes()[:4] == b"late"
    assert becomes_free(backing)
    assert fast.calls("flush", "release") == [], "nothing is said when the mapping goes"


def test_writes_in_passthrough_ask_nothing(fast: Small) -> None:
    fd = os.open(fast.mount / "a", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(fd, bytes(4096))
    fast.calls()
    before = fast.wakings()
    for _ in range(2_000):
        os.pwrite(fd, b"x", 0)
    assert fast.wakings() - before < 200, "the C lane answers some questions, which nothing tells of but its waking up"
    assert fast.calls("getxattr", "getattr", "write", "setattr") == []
    os.close(fd)


@pytest.mark.parametrize("way", ["write", "truncate", "open"])
def test_strangers_take_set_id_bits_away(small: Small, way: str) -> None:
    path = small.mount / "a"
    path.write_bytes(b"abc")
    for mode, after in ((0o6777, 0o777), (0o6767, 0o2767)):
        path.chmod(mode)
        with path.open("r+b") as f:
            f.write(b"root")
        assert stat.S_IMODE(path.stat().st_mode) == mode, "root may keep them"

        def work() -> int:
            fd = os.open(path, os.O_WRONLY | (os.O_TRUNC if way == "open" else 0))
            if way == "write":
                os.write(fd, b"x")
            elif way == "truncate":
                os.ftruncate(fd, 1)
            os.close(fd)
            return stat.S_IMODE(path.stat().st_mode)

        assert as_nobody(work) == str(after)


def test_set_id_bits_go_with_the_owner(small: Small) -> None:
    path = small.mount / "a"
    path.touch()
    path.chmod(0o6755)
    os.chown(path, 1, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert (path.stat().st_uid, path.stat().st_gid) == (1, 1)


def test_changes_of_attributes(small: Small) -> None:
    path = small.mount / "a"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    path.chmod(0o4711)
    assert path.stat().st_mode == stat.S_IFREG | 0o4711
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    small.calls()
    before_ns = now_ns()
    os.utime(path)
    ((_, _, changes, ref),) = small.calls("setattr")
    assert before_ns <= changes["mtime_ns"] <= time.time_ns(), "now has become a time"
    assert before_ns <= changes["atime_ns"] <= time.time_ns()
    assert ref is None
    with path.open("r+b") as f:
        f.truncate(2)
        ((_, _, changes, ref),) = small.calls("setattr")
    assert changes["size"] == 2
    assert ref is not None


def test_fallocate(small: Small) -> None:
    with (small.mount / "a").open("w+b") as f:
        os.posix_fallocate(f.fileno(), 0, 10_000)
        assert os.fstat(f.fileno()).st_size == 10_000
        (call,) = small.calls("fallocate")
        assert call[2:] == [0, 0, 10_000]
        with pytest.raises(OSError, match="not supported"):
            punch_hole(f.fileno(), 0, 4096)
        assert len(small.calls("fallocate")) == 1, "a refusal is not for ever"


def punch_hole(fd: int, offset: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_names(small: Small) -> None:
    (small.mount / "a").write_bytes(b"a")
    os.symlink("a", small.mount / "link")
    assert os.readlink(small.mount / "link") == "a"
    os.mkfifo(small.mount / "fifo", 0o600)
    assert stat.S_ISFIFO((small.mount / "fifo").stat().st_mode)
    os.mknod(small.mount / "device", stat.S_IFCHR | 0o600, os.makedev(5, 300))
    assert (small.mount / "device").stat().st_rdev == os.makedev(5, 300)
    os.rename(small.mount / "a", small.mount / "b")
    assert (small.mount / "link").is_symlink()
    assert not (small.mount / "a").exists()
    assert (small.mount / "b").read_bytes() == b"a"
    os.unlink(small.mount / "b")
    with pytest.raises(PermissionError):
        os.link(small.mount / "fifo", small.mount / "hard")
    assert len(small.calls("link")) == 1
    directory = os.open(small.mount, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert len(small.calls("fsyncdir")) == 1


def test_extended_attributes(small: Small) -> None:
    path = small.mount / "a"
    path.touch()
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b""
    os.removexattr(path, "user.a")
    for call in (lambda: os.removexattr(path, "user.a"), lambda: os.setxattr(path, "user.a", b"", os.XATTR_REPLACE)):
        with refused(errno.ENODATA):
            call()
    with refused(errno.ENODATA):
        os.getxattr(path, "security.capability")
    assert "security.capability" not in small.trace.read_text(), "the lane says so"


def test_attributes_that_were_invalidated_are_asked_for(small: Small) -> None:
    path = small.mount / "a"
    path.write_bytes(b"a")
    path.chmod(0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    small.backing("a").chmod(0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "the kernel believes them for a minute"
    os.setxattr(path, "user.mode", b"641")
    assert stat.S_IMODE(path.stat().st_mode) == 0o641


def test_a_shared_mapping(small: Small) -> None:
    with (small.mount / "a").open("w+b") as f:
        f.truncate(10_000)
        with mmap.mmap(f.fileno(), 10_000) as mapped:
            mapped[5000:5004] = b"data"
            mapped.flush()
    assert (small.mount / "a").read_bytes()[5000:5004] == b"data"
    assert small.backing("a").read_bytes()[5000:5004] == b"data"


def test_what_the_kernel_falls_back_to(small: Small) -> None:
    """Requests that pyfuse3 has no handlers for are refused for good, and the kernel or the program does without."""
    path = small.mount / "a"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as f:
        assert os.lseek(f.fileno(), 5, os.SEEK_DATA) == 5
        assert os.lseek(f.fileno(), 5, os.SEEK_HOLE) == 10_000
        with refused(errno.ENOTTY):
            fcntl.ioctl(f.fileno(), 0x80086601, bytes(8))
        f.seek(0)
        with (small.mount / "b").open("wb") as target:
            assert os.copy_file_range(f.fileno(), target.fileno(), 10_000) == 10_000
        fcntl.flock(f.fileno(), fcntl.LOCK_EX)
        fcntl.lockf(f.fileno(), fcntl.LOCK_EX)
    assert (small.mount / "b").read_bytes() == bytes(10_000)
    with refused(errno.EOPNOTSUPP):
        os.open(small.mount, os.O_TMPFILE | os.O_RDWR)


def test_a_read_only_mount() -> None:
    small = Small("ro")
    try:
        assert "ro" in next(m for m in mountpoint.read_mounts() if m.mountpoint == str(small.mount)).options
        with pytest.raises(OSError, match="Read-only file system"):
            (small.mount / "a").touch()
        subprocess.run(["mount", "-o", "remount,rw", small.mount], check=False, timeout=20, capture_output=True)
        with pytest.raises(OSError, match="Read-only file system"):
            (small.mount / "a").touch()
        assert small.calls("create", "mknod") == []
    finally:
        small.close()


@pytest.fixture
def plain_user() -> Iterator[None]:
    """User nobody can mount: skip where not, and give /dev/fuse its usual mode where a bare machine withholds it."""
    if reason := plain_user_missing():
        pytest.skip(reason)
    device = Path("/dev/fuse")
    before = stat.S_IMODE(device.stat().st_mode)
    device.chmod(before | 0o666)
    yield
    device.chmod(before)


def test_a_plain_user(plain_user: None) -> None:
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    small = Small(prefix=prefix, python=str(plain_python()))
    path = small.mount / "a"

    def work() -> object:
        with path.open("w+b") as f:
            f.write(b"0123456789")
            f.flush()
            os.posix_fallocate(f.fileno(), 0, 100)
            assert os.fstat(f.fileno()).st_size == 100
        path.chmod(0o640)
        return path.read_bytes().rstrip(b"\0"), oct(path.stat().st_mode)

    try:
        assert as_nobody(work) == "(b'0123456789', '0o100640')"
        assert small.calls("fallocate")[0][2:] == [0, 0, 100]
    finally:
        small.close()
