"""The keeper outlives what its daemons and the system do, and hangs for nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from luxfuse.keeper import systemd
from tests.support.fake_systemd import FakeSystemd
from tests.support.mounted import wait_for
from tests.unit.keeper.kept import FORGET, GETATTR, Kept

EIO = 5
ENDED = re.compile(r"the daemon does not serve after \d+ s, and is ended")
HANGS = "time.sleep(1000)"
SERVES = "serve(); time.sleep(1000)"
DIES = "os._exit(3)"
HANDS_OVER = """
keeper.send("\\0".join(["next 5", sys.executable, "-I", "-S", "-c", "open({!r}, 'w')", "daemon"]).encode())
os._exit(75)
"""


def test_one_that_hangs_as_it_begins_is_ended_and_counts(tmp_path: Path) -> None:
    with closing(Kept(tmp_path, HANGS, changes="keeping.BEGIN_PATIENCE_S = 2")) as kept:
        wait_for("it gives up", lambda: kept.state.exists() and kept.state.read_text())
        assert kept.state.read_text().startswith("the daemon died 3 times in a row as it began")
        assert kept.answer() == (7, -EIO)
        assert len(ENDED.findall(kept.said())) == 3


def test_it_waits_longer_and_longer_between_daemons_that_die(tmp_path: Path) -> None:
    pauses = tmp_path / "pauses"
    changes = f"keeping.Keeper.pause = lambda _, seconds: open({str(pauses)!r}, 'a').write(f'{{seconds:.1f}} ')"
    with closing(Kept(tmp_path, DIES, most=10, changes=changes)) as kept:
        wait_for("it gives up", lambda: kept.state.exists() and kept.state.read_text())
        assert kept.begun() == 10
        assert pauses.read_text().split() == ["0.1", "0.2", "0.4", "0.8", "1.6", "3.2", "5.0", "5.0"]


def test_one_that_gets_on_is_waited_for(tmp_path: Path) -> None:
    slow = f"""
for _ in range(45):
    keeper.send(b"goes-on")
    time.sleep(0.1)
serve()
open({str(tmp_path / "served")!r}, "w").close()
time.sleep(1000)
"""
    with closing(Kept(tmp_path, slow, changes="keeping.BEGIN_PATIENCE_S = 4")) as kept:
        wait_for("it serves", (tmp_path / "served").exists)
        assert kept.begun() == 1
        assert "is ended" not in kept.said()


STUCK = """
serve()
for _ in range(3):
    keeper.send(b"stuck %d" % (time.monotonic_ns() // 1_000_000 - {ago_ms}))
keeper.send(b"goes-on")
time.sleep(1000)
"""


def test_one_that_says_it_is_stuck_is_ended_but_not_again_and_again(tmp_path: Path) -> None:
    """Its successor goes on; when three were ended, the fourth is left as it is."""
    with closing(Kept(tmp_path, STUCK.format(ago_ms=0), most=10)) as kept:
        wait_for("one is left", lambda: "is left as it is" in kept.said())
        assert kept.begun() == 4
        said = kept.said()
        assert said.count("the daemon is stuck, and is ended") == 3
        assert said.count("the daemon died (signal 9) and is started again") == 3
        assert said.count("is left as it is; look at what it waits for") == 1
        assert not kept.state.read_text(), "it has not given up"
        assert kept.process.poll() is None


@pytest.mark.parametrize(
    ("program", "served"),
    [
        pytest.param(STUCK.format(ago_ms=60_000), True, id="it said so long ago"),
        pytest.param(STUCK.replace("serve()", "").format(ago_ms=0), False, id="it does not serve yet"),
    ],
)
def test_one_that_may_go_on_is_not_ended(tmp_path: Path, program: str, served: bool) -> None:
    progress = f"open({str(tmp_path / 'heard')!r}, 'w').close()"
    changes = f"keeping.Keeper.wait_on = lambda _: {progress}"
    with closing(Kept(tmp_path, program, served=served, changes=changes)) as kept:
        wait_for("the keeper has heard all", (tmp_path / "heard").exists)
        assert (kept.begun(), kept.said()) == (1, "")


def test_without_a_descriptor_systemd_is_not_told_and_that_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENFILE, "no descriptors")

    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setattr(systemd._socket, "socket", refuse)
    systemd.notify("WATCHDOG=1")


def test_one_that_was_upgraded_and_hangs_makes_room_for_the_one_before(tmp_path: Path) -> None:
    with closing(Kept(tmp_path, HANGS, former=SERVES, changes="keeping.UPGRADED_PATIENCE_S = 1")) as kept:
        wait_for("the one before", lambda: kept.begun("former"))
        assert kept.begun("former") == len(ENDED.findall(kept.said())) == 1
        assert "it was upgraded, and does not serve: the one before is started" in kept.said()


def test_one_that_serves_is_waited_for(tmp_path: Path) -> None:
    with closing(Kept(tmp_path, SERVES, changes="keeping.BEGIN_PATIENCE_S = 4")) as kept:
        wait_for("one begins", kept.begun)
        with pytest.raises(subprocess.TimeoutExpired):
            kept.wait(4.5)
        assert (kept.begun(), kept.said()) == (1, "")


def test_a_first_daemon_that_does_not_end_as_it_was_told_is_ended(tmp_path: Path) -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(NOTES, 'a').write('deaf\\n'); time.sleep(1000)"
    with closing(Kept(tmp_path, program, served=False, changes="keeping.TOLD_PATIENCE_S = 1")) as kept:
        wait_for("it is deaf", lambda: kept.begun() == 2)
        kept.process.send_signal(signal.SIGTERM)
        kept.process.send_signal(signal.SIGTERM)
        assert kept.wait() == 1


def test_given_up_it_tells_systemd_that_it_lives_and_why(tmp_path: Path) -> None:
    with closing(FakeSystemd(tmp_path)) as systemd:
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with closing(Kept(tmp_path, DIES, most=2, foreground=True, environment=told)) as kept:
            died = "the daemon died 2 times in a row as it began, at last by exit code 3"
            systemd.hear(f"STATUS=all requests get EIO: {died}; see the log")
            for _ in range(5):
                systemd.hear("WATCHDOG=1", timeout_s=60)
            assert kept.answer() == (7, -EIO)
            assert kept.process.poll() is None


def test_while_daemons_die_systemd_hears_that_it_lives(tmp_path: Path) -> None:
    with closing(FakeSystemd(tmp_path)) as systemd:
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000000"}
        with closing(Kept(tmp_path, DIES, most=4, foreground=True, environment=told)):
            for _ in range(4):
                systemd.hear("WATCHDOG=1", timeout_s=60)


def test_a_request_that_is_given_up_as_it_is_read_is_no_error(tmp_path: Path) -> None:
    """The kernel then says ENOENT; and nobody waits for an answer to some."""
    changes = """
fails, read = [errno.ENOENT, errno.EINTR], os.read
def reads(*arguments):
    if fails and os.path.exists(keeping.sys.argv[keeping.sys.argv.index("-1") + 1]):
        read(*arguments)
        raise OSError(fails.pop(), "")
    return read(*arguments)
device.os.read = reads
"""
    with closing(Kept(tmp_path, DIES, most=1, changes=changes)) as kept:
        wait_for("it gives up", lambda: kept.state.exists() and kept.state.read_text())
        kept.send(GETATTR, 5)
        kept.send(GETATTR, 6)
        kept.send(FORGET, 8)
        assert kept.answer(GETATTR, 9) == (9, -EIO)


def test_where_nothing_can_be_refused_it_ends_and_says_why(tmp_path: Path) -> None:
    """As on a kernel that does not send requests again."""
    changes = """
write = os.write
def writes(fd, data):
    if data == device.RESEND:
        raise OSError(errno.EINVAL, "no such notice")
    return write(fd, data)
device.os.write = writes
"""
    with closing(Kept(tmp_path, DIES, most=1, changes=changes)) as kept:
        assert kept.wait() == 1
        assert "requests cannot be refused ([Errno 22] no such notice): the mount is taken away" in kept.said()


def test_without_descriptors_or_processes_daemons_are_tried_again(tmp_path: Path) -> None:
    changes = """
import _socket
fails, pair, fork = [1, 2, 3], _socket.socketpair, os.fork
def socketpair(*arguments):
    if len(fails) > 1:
        raise OSError(errno.EMFILE, "no descriptors")
    return pair(*arguments)
def forks():
    if fails and fails.pop():
        raise OSError(errno.EAGAIN, "no processes")
    return fork()
link._socket.socketpair, starting.os.fork = socketpair, forks
pauses = keeping.Keeper.pause
def pause(self, seconds):
    if fails:
        fails.pop()
    pauses(self, seconds)
keeping.Keeper.pause = pause
"""
    with closing(Kept(tmp_path, SERVES, most=10, changes=changes)) as kept:
        wait_for("one begins", kept.begun)
        assert "no daemon can be started: " in kept.said()
        assert "Traceback" not in kept.said()
        assert kept.process.poll() is None


def test_what_a_daemon_says_never_ends_it(tmp_path: Path) -> None:
    program = """
for text in b"witness x", b"next", b"next 5", b"next x\\0y", b"next 0\\0", b"notify", b"drop x", b"hold x", b"\\xff", b"x":
    keeper.send(text)
serve()
time.sleep(1000)
"""
    with closing(Kept(tmp_path, program)) as kept:
        for number in (1, 2):
            wait_for("one begins", lambda: kept.begun() == number)  # noqa: B023 (it is called here)
            for child in Path(f"/proc/{kept.process.pid}/task/{kept.process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        assert kept.process.poll() is None
        assert "Traceback" not in kept.said()


def test_where_processes_cannot_be_waited_for_by_descriptor(tmp_path: Path) -> None:
    """As some sandboxes have it: what a daemon says is heard all the same."""
    changes = "def refuse(*_):\n    raise OSError(errno.EPERM, 'no')\nprocess.os.pidfd_open = refuse"
    with closing(Kept(tmp_path, HANDS_OVER.format(str(tmp_path / "next")), changes=changes)) as kept:
        assert kept.wait() == 0
        assert (tmp_path / "next").exists(), "the other keeper has begun"


def test_where_another_keeper_has_the_mount_it_ends_with_a_line(tmp_path: Path) -> None:
    with (tmp_path / "keeper").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with closing(Kept(tmp_path, SERVES, changes="keeping.LOCK_PATIENCE_S = 0.1")) as kept:
            assert kept.wait() == 1
            assert kept.begun() == 0
            (line,) = kept.said().splitlines()
            assert "another keeper has the mount still" in line


def test_without_its_file_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "keeper").mkdir()
    with closing(Kept(tmp_path, SERVES)) as kept:
        wait_for("one begins", kept.begun)
        assert "Is a directory; commands will not know that the mount has a keeper" in kept.said()


def test_it_takes_no_descriptors_for_daemons_that_die(tmp_path: Path) -> None:
    with closing(
        Kept(tmp_path, "serve(); time.sleep(0.05); os._exit(3)", most=1000, changes="keeping.PAUSE_MOST_S = 0")
    ) as kept:
        wait_for("some have died", lambda: kept.begun() > 3)
        before = descriptors(kept.process.pid)
        wait_for("more have died", lambda: kept.begun() > 15)
        assert descriptors(kept.process.pid) <= before + 2, "but for those that belong to the one that runs"


def descriptors(pid: int) -> int:
    return min(len(os.listdir(f"/proc/{pid}/fd")) for _ in range(20))


def test_systemd_keeps_what_a_daemon_has_left_until_that_says_so(tmp_path: Path) -> None:
    """Whatever it is called by; another one in its place, too."""
    name = f"{tmp_path}/cache: 100% ä/lock"
    program = f"""
import array
def hold(what):
    fd = os.open({str(tmp_path)!r} + "/" + what, os.O_RDWR | os.O_CREAT)
    keeper.sendmsg([b"hold " + os.fsencode({name!r})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
hold("first"); hold("second"); serve()
keeper.send(b"notify STATUS=1")
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
keeper.send(b"drop " + os.fsencode({name!r})); keeper.send(b"notify STATUS=2")
time.sleep(1000)
"""
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with closing(FakeSystemd(tmp_path)) as told, closing(Kept(tmp_path, program, foreground=True, environment=environment)):
        told.hear("STATUS=1")
        kept = set(told.store) - set(systemd.NAMES)
        assert [systemd._named(each) for each in kept] == [name]
        assert os.path.samestat(os.fstat(told.store[kept.pop()]), (tmp_path / "second").stat())
        (tmp_path / "go").touch()
        told.hear("STATUS=2")
        assert sorted(told.store) == sorted(systemd.NAMES)


def test_names_that_systemd_would_not_take_it_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with closing(FakeSystemd(tmp_path)) as told:
        fd = os.open(tmp_path, os.O_RDONLY)
        for name in ("/" + "ö" * 200, "/short"):
            systemd.hold(name, fd)
            systemd.drop(name)
        systemd.hold("/" + "o" * 200, fd)
        os.close(fd)
        told.hear_the_rest()
        assert [systemd._named(each) for each in told.store] == ["/" + "o" * 200]


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "not all of it"])
def test_what_systemd_has_kept_is_taken_as_a_whole_or_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """What is locked is free at once, though systemd may let go later."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    names = [*systemd.NAMES[: 3 if whole else 2], systemd._known_as("/a:b") or "", "of-somebody-else"]
    first = 200
    for number, name in enumerate(names, first):
        assert os.dup2(lock if name.startswith(systemd.HELD) else 1, number) == number
    monkeypatch.setattr(systemd, "_FIRST_FD", first)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", str(len(names)))
    monkeypatch.setenv("LISTEN_FDNAMES", ":".join(names))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    held = systemd.take()
    other = os.open(tmp_path / "lock", os.O_RDWR)
    if whole:
        assert held is not None
        assert held.lasting == {"/a:b": first + 3}
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        systemd.give_back(held)
    else:
        assert held is None
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for fd in (lock, other, first + len(names) - 1):
        os.close(fd)
