"""Another luxfuse goes on with a mount while programs use it; one that cannot is refused before the daemon is let go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from luxfuse import PACKAGE, __version__
from luxfuse.estate import memory
from luxfuse.keeper.keeping import UPGRADED_PATIENCE_S
from luxfuse.steps import DIE_AT, DIE_ONCE
from tests.mount.test_crash import bucket_files
from tests.mount.test_keeper import Program
from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import PATIENCE_S, Mount, Mounts, content, digest, put, wait_for
from tests.support.versions import other_version

Changes = Mapping[str, tuple[str, str]]
BUSY = """
import os, select, sys
os.chdir(sys.argv[1])
log = open("log", "ab", buffering=0)
for number in range(10_000_000):
    log.write(b"%07d" % number)
    name = f"d{number % 4}"
    with open("made", "wb") as file:
        file.write(b"%d" % number)
    os.rename("made", name)
    assert open(name, "rb").read() == b"%d" % number
    os.mkdir("directory")
    assert sorted(os.listdir("directory")) == []
    os.rmdir("directory")
    os.unlink(name)
    if number == 20:
        print("busy", flush=True)
    if select.select([0], [], [], 0)[0]:
        print(number + 1, flush=True)
        break
"""
"""Changes names and content all the while, until it may read something."""


def upgrade(mount: Mount, python: str, *, hung: bool = False) -> subprocess.CompletedProcess[str]:
    """``hung``: a disk is to be found so, as a busy one may be for a while, too: "try again" is what is said then."""
    for _ in range(20):
        done = mount.run([python, "-P", "-m", "luxfuse.cli.main", "upgrade", mount.path])
        if hung or "does not answer within" not in done.stderr:
            break
    return done


def test_programs_notice_nothing(mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """One that waits for the store for longer than the daemon does gets its answer from the next daemon."""
    data = content("large", 300_000)
    for name in ("large", "slow"):
        put(s3, bucket, name, data)
    kept = mounting(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint, keeper=True)
    open_files = Program(
        kept,
        "f = os.open('large', os.O_RDONLY); assert os.pread(f, 1, 0); entries = os.scandir('.'); next(entries)\n"
        "w = os.open('written', os.O_CREAT | os.O_RDWR); os.write(w, b'a' * 300000); os.mkdir('here'); os.chdir('here')",
        "assert hashlib.sha256(os.pread(f, 300001, 0)).hexdigest() == sys.argv[2]\n"
        "os.write(w, b'b' * 300000); os.close(w); os.close(f); list(entries); open('x', 'w').write('x')",
        arguments=[str(digest(data)[1])],
    )
    open_files.step()
    command = [sys.executable, "-I", "-S", "-c", BUSY, kept.path]
    busy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert busy.stdout is not None
    assert busy.stdout.readline() == "busy\n"
    proxy.only(lambda request: request.method == "GET" and request.path.endswith("/slow"))
    proxy.set(hold=True)
    reader = kept.reader()
    reader.send("file", f"{kept.path}/slow")
    wait_for("the reader waits", reader.waits_for_fuse)
    keeper, daemon = kept.keeper_pid, kept.pid
    done = upgrade(kept, other_version(tmp_path, "9.8.7", {}))
    assert done.returncode == 0, done.stderr
    assert f"luxfuse 9.8.7 serves (pid {kept.pid}), where luxfuse {__version__} did" in done.stderr
    out, _ = busy.communicate("\n", timeout=PATIENCE_S)
    assert busy.returncode == 0
    open_files.step()
    open_files.end()
    proxy.clear()
    assert reader.take() == digest(data)
    kept.close_readers()
    status = kept.status()
    assert (kept.pid != daemon, kept.keeper_pid, status["version"], status["restarts"]) == (True, keeper, "9.8.7", 0)
    assert str(tmp_path) in Path(f"/proc/{keeper}/cmdline").read_text(), "the keeper is that of the other luxfuse, too"
    assert "some requests go to it unanswered" in kept.log()
    kept.replaced()  # which the other keeper sees to
    kept.expected_logs.append("the daemon died")
    assert kept.status()["version"] == "9.8.7"
    assert kept.unmount().returncode == 0
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())
    found = bucket_files(s3.bucket_path(bucket))
    assert found.pop("log") == b"".join(b"%07d" % number for number in range(int(out)))
    assert found == {"large": data, "slow": data, "written": b"a" * 300000 + b"b" * 300000, "here/x": b"x"}


CANNOT = {
    "another format in memory": (
        {"estate/memory.py": (f"FORMAT = {memory.FORMAT}\n", "FORMAT = 77\n")},
        f"the memory of the daemon that runs has format {memory.FORMAT}, luxfuse 9.8.7 knows 77",
    ),
    "dies as it is imported": (
        {"daemon/main.py": ("import gc\n", "import gc, no_such_module\n")},
        "ends as it starts, with exit code 1: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "dies as it goes on": (
        {"daemon/main.py": ("    limits.raise_file_limit()\n", "    os._exit(3)\n")},
        f"does not serve, and luxfuse {__version__} of {PACKAGE} goes on",
    ),
    "dies soon after it went on": (
        {
            "daemon/main.py": (
                "            self._early.replay()\n",
                "            import threading\n            threading.Timer(0.3, os._exit, (4,)).start()\n",
            )
        },
        f"does not serve, and luxfuse {__version__} of {PACKAGE} goes on",
    ),
    "hangs as it goes on": (
        {
            "daemon/main.py": ("    limits.raise_file_limit()\n", "    time.sleep(1000)\n"),
            "keeper/keeping.py": (f"UPGRADED_PATIENCE_S = {UPGRADED_PATIENCE_S}\n", "UPGRADED_PATIENCE_S = 3\n"),
        },
        f"does not serve, and luxfuse {__version__} of {PACKAGE} goes on",
    ),
}
"""What the other luxfuse is like, by file and its change, and what the command says."""


def test_what_cannot_go_on_is_refused_and_the_daemon_stays(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, "a", b"content")
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True,
        expected_logs=["the daemon died .exit code [34]|signal 9.", "the one before is started", "after 3 s, and is ended"],
    )  # fmt: skip
    program = Program(
        mount,
        "f = os.open('a', os.O_RDONLY); w = os.open('w', os.O_CREAT | os.O_WRONLY)",
        *["assert os.pread(f, 100, 0) == b'content'; os.write(w, b'x')"] * len(CANNOT),
        "os.close(w)",
    )
    program.step()
    daemon = mount.pid
    for number, (what, (changes, text)) in enumerate(CANNOT.items()):
        done = upgrade(mount, other_version(tmp_path / str(number), "9.8.7", changes))
        assert done.returncode == 1, what
        assert text in done.stderr, what
        assert len(done.stderr.splitlines()) == 1, done.stderr
        program.step()
        if "as it goes on" not in what and "after" not in what:
            assert "stays as it is" in done.stderr
            assert mount.pid == daemon, what
    assert mount.status()["version"] == __version__
    program.step()
    program.end()
    assert mount.read("w") == digest(b"x" * len(CANNOT))


def test_a_mount_without_a_keeper_is_not_upgraded(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=False)
    daemon = mount.pid
    done = upgrade(mount, sys.executable)
    assert (done.returncode, mount.pid) == (1, daemon)
    assert "has no keeper" in done.stderr


def upgraded(
    mounting: Mounts, source: str, directory: Path, s3: FastS3, *flags: str, changes: Changes, **also: Any
) -> Mount:
    """A mount of a luxfuse with other files, as users start it."""
    mount = mounting.make(source, *flags, endpoint_url=s3.endpoint, forked=False, **also)
    mount.python = other_version(directory / "old", "9.8.6", changes)
    return mount.mount()


def test_a_mistake_while_it_leaves_lets_it_go_on(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """Requests are not read any more then, and are read again."""
    put(s3, bucket, "a", b"content")
    changes = {"fuse/session.py": ("        return self._at_rest()\n", "        return bool(1 / 0)\n")}
    mount = upgraded(mounting, f"s3://{bucket}", tmp_path, s3, changes=changes, expected_logs=["the daemon cannot leave"])
    daemon = mount.pid
    done = upgrade(mount, sys.executable)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "a mistake in luxfuse (ZeroDivisionError) keeps the daemon from leaving; see its log" in done.stderr
    assert "it stays as it is" in done.stderr
    assert mount.read("a") == digest(b"content")
    assert mount.pid == daemon


def test_one_that_cannot_go_on_either_has_a_successor(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "a", b"content")
    changes = {
        "fuse/session.py": ("        return self._at_rest()\n", "        self.go_on = None\n        return bool(1 / 0)\n")
    }
    mount = upgraded(
        mounting, f"s3://{bucket}", tmp_path, s3, changes=changes,
        expected_logs=["the daemon cannot go on after it was to leave", "the daemon died .exit code 1."],
    )  # fmt: skip
    done = upgrade(mount, sys.executable)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"luxfuse {__version__} of {PACKAGE} does not serve, and luxfuse 9.8.6 of {tmp_path}" in done.stderr
    assert mount.read("a") == digest(b"content")


def test_one_that_hangs_while_it_leaves_is_killed(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "a", b"content")
    changes = {
        "fuse/session.py": ("        return self._at_rest()\n", "        __import__('time').sleep(1000)\n"),
        "daemon/upgrading.py": ("\nLEAVE_S = 30.0\n", "\nLEAVE_S = 1.0\n"),
    }
    mount = upgraded(
        mounting, f"s3://{bucket}", tmp_path, s3, changes=changes, expected_logs=["the daemon died .signal 9."]
    )  # fmt: skip
    daemon = mount.pid
    done = upgrade(mount, sys.executable)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "does not serve, and luxfuse 9.8.6 of" in done.stderr
    assert mount.read("a") == digest(b"content")
    assert mount.pid != daemon


def test_a_disk_that_hangs_keeps_it_where_it_is(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, disk: Disk
) -> None:
    """A process ends only once none of its threads waits for a disk."""
    for name in "ab":
        put(s3, bucket, name, b"content")
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, cache_dir=disk.path / "cache", keeper=True)
    assert mount.read("a") == digest(b"content")
    daemon, reader = mount.pid, mount.reader()
    with disk.frozen():
        reader.send("file", f"{mount.path}/b")
        wait_for("a thread waits for the disk", lambda: waits_for_a_disk(daemon))
        done = upgrade(mount, sys.executable, hung=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "a disk of the state or the cache does not answer within" in done.stderr
        assert "it stays as it is" in done.stderr
        assert mount.read("a") == digest(b"content")
    assert reader.take() == digest(b"content")
    assert mount.pid == daemon
    done = upgrade(mount, sys.executable)
    assert done.returncode == 0, done.stderr
    assert mount.read("b") == digest(b"content")
    assert mount.unmount().returncode == 0, "before its disk goes"


def waits_for_a_disk(pid: int) -> bool:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if "State:\tD" in (task / "status").read_text():
                return True
    return False


def test_what_is_noted_cannot_be_written(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """The thread that writes it waits for longer than it is waited for."""
    for name in "ab":
        put(s3, bucket, name, b"content")
    hung, text = tmp_path / "hung", "            self._growth.ahead(self._env)\n"
    changes = {
        "index/store.py": (text, f"            while Path({str(hung)!r}).exists(): __import__('time').sleep(0.05)\n{text}"),
        "daemon/upgrading.py": ("FLUSH_S = 10.0\n", "FLUSH_S = 1.0\n"),
    }
    mount = upgraded(mounting, f"s3://{bucket}", tmp_path, s3, changes=changes)
    daemon = mount.pid
    hung.touch()
    assert mount.read("a") == digest(b"content"), "the index is to have it"
    done = upgrade(mount, sys.executable, hung=True)
    hung.unlink()
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "a disk of the state or the cache does not answer within 1 s; try again; it stays as it is" in done.stderr
    assert mount.read("b") == digest(b"content")
    assert mount.pid == daemon
    done = upgrade(mount, sys.executable)
    assert done.returncode == 0, done.stderr


def tried_slowly(directory: Path, wait: Path, trying: Path) -> str:
    """Another luxfuse, which is tried for as long as there is a file; another file says that it has begun."""
    wait.touch()
    text = "    why = refusal("
    slow = f"    import pathlib, time\n    pathlib.Path({str(trying)!r}).touch()\n"
    slow += f"    while pathlib.Path({str(wait)!r}).exists(): time.sleep(0.05)\n"
    return other_version(directory, "9.8.7", {"daemon/trial.py": (text, slow + text)})


def test_the_keeper_dies_while_the_other_luxfuse_is_tried(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    """Nobody would go on where the daemon leaves."""
    put(s3, bucket, "a", b"content")
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True)
    daemon, wait, trying = mount.pid, tmp_path / "wait", tmp_path / "trying"
    other = tried_slowly(tmp_path / "other", wait, trying)
    with ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(upgrade, mount, other)
        wait_for("it is tried", trying.exists)
        os.kill(mount.keeper_pid, signal.SIGKILL)
        wait_for("it is dead", lambda: not mount.status()["keeper"])
        wait.unlink()
        done = upgrading.result()
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "has no keeper" in done.stderr
    assert "it stays as it is" in done.stderr
    assert mount.read("a") == digest(b"content")
    assert mount.pid == daemon


def test_told_to_end_while_the_other_luxfuse_is_tried(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True)
    wait, trying = tmp_path / "wait", tmp_path / "trying"
    other = tried_slowly(tmp_path / "other", wait, trying)
    keeper = mount.keeper_pid
    with ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(upgrade, mount, other)
        wait_for("it is tried", trying.exists)
        for _ in range(2):
            os.kill(keeper, signal.SIGTERM)
        wait_for("it is unmounted", lambda: not mount.mounted)
        wait.unlink()
        done = upgrading.result()
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())
    assert not list(mount.state.glob("mounts/*/mount.json"))


def test_an_environment_that_leads_to_the_old_one_is_noticed(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, "a", b"content")
    old = {"PYTHONPATH": str(tmp_path / "old" / "tree")}
    mount = upgraded(mounting, f"s3://{bucket}", tmp_path, s3, changes={}, environment=old)
    del mount.environment["PYTHONPATH"]
    daemon = mount.pid
    done = upgrade(mount, other_version(tmp_path / "other", "9.8.7", {}))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert (
        f"the environment of the mount (PYTHONPATH?) leads to luxfuse 9.8.6 in {tmp_path}/old/tree/luxfuse, not to that in "
        f"{tmp_path}/other/tree/luxfuse" in done.stderr
    )
    assert mount.read("a") == digest(b"content")
    assert mount.pid == daemon


@pytest.mark.parametrize("step", ["upgrade.rested", "upgrade.told"])
def test_one_that_is_killed_while_it_leaves_has_a_successor(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, step: str
) -> None:
    put(s3, bucket, "a", b"content")
    once = tmp_path / "once"
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, forked=False, environment={DIE_AT: step, DIE_ONCE: str(once)},
        expected_logs=["the daemon died .signal 9."],
    )  # fmt: skip
    program = Program(mount, "f = os.open('a', os.O_RDONLY)", "assert os.pread(f, 100, 0) == b'content'; os.close(f)")
    program.step()
    once.touch()
    other = other_version(tmp_path / "other", "9.8.7", {})
    done = upgrade(mount, other)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"does not serve, and luxfuse {__version__} of {PACKAGE} goes on" in done.stderr
    assert not once.exists()
    done = upgrade(mount, other)
    assert done.returncode == 0, done.stderr
    assert mount.status()["version"] == "9.8.7"
    program.step()
    program.end()
