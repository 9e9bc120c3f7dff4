"""Another luxfuse goes on with a mount while programs use it; one that cannot is refused before the daemon is let go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from luxfuse import __version__
from luxfuse.estate import memory
from tests.mount.test_crash import bucket_files
from tests.mount.test_keeper import Program
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mount, Mounts, content, digest, put, wait_for
from tests.support.versions import other_version

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


def upgrade(mount: Mount, python: str) -> subprocess.CompletedProcess[str]:
    return mount.run([python, "-P", "-m", "luxfuse.cli.main", "upgrade", mount.path], timeout_s=100)


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
    proxy.set(latency_s=20)
    reader = kept.reader()
    reader.send("file", f"{kept.path}/slow")
    wait_for("the reader waits", reader.waits_for_fuse)
    keeper, daemon = kept.keeper_pid, kept.pid
    done = upgrade(kept, other_version(tmp_path, "9.8.7", {}))
    assert done.returncode == 0, done.stderr
    assert f"luxfuse 9.8.7 serves (pid {kept.pid}), where luxfuse {__version__} did" in done.stderr
    out, _ = busy.communicate("\n", timeout=60)
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
        f"luxfuse 9.8.7 did not begin to serve, and luxfuse {__version__} goes on",
    ),
}
"""What the other luxfuse is like, by file and its change, and what the command says."""


def test_what_cannot_go_on_is_refused_and_the_daemon_stays(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, "a", b"content")
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True,
        expected_logs=["the daemon died .exit code 3.", "the one before is started"],
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
        if what != "dies as it goes on":
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
