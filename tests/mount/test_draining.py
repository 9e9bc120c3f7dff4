"""What becomes of what was written: persist, unmounting in every way, and what the next mount finds."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from luxfuse.fuse import mountpoint
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, PATIENCE_S, PROGRESS, Mount, Mounts, content, digest, is_running, wait_for
from tests.support.servers_store import FileServer

ASYNC = ("--write-mode", "async-through")
MANY = 40
WRITES_AND_WAITS = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, b"x" * 100_000)
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture
def mount(mounting: Mounts, proxy: FaultProxy, bucket: str) -> Mount:
    """A bucket behind the proxy, mounted async-through; the log may complain of the store."""
    return mounting(
        f"s3://{bucket}",
        *ASYNC,
        endpoint_url=proxy.endpoint,
        expected_logs=["cannot be brought to the under-store yet", "cannot be removed yet", "was being written when"],
    )


@pytest.fixture
def objects(s3: FastS3, bucket: str) -> Path:
    """The objects of the bucket, as files."""
    return s3.root / bucket


def refuse(proxy: FaultProxy) -> None:
    """Let every write fail at once, for good."""
    proxy.only(lambda request: request.method in ("PUT", "POST", "DELETE"))
    proxy.set(error_probability=1.0, error_status=403)


def write(mount: Mount, files: dict[str, bytes]) -> None:
    """Write and close files through the mount."""
    for name, data in files.items():
        source = mount.base / "data"
        source.write_bytes(data)
        mount.run(["cp", source, mount.path / name], check=True)


def write_many(mount: Mount, directory: str = "many", count: int = MANY) -> None:
    script = f'mkdir -p "$1" && for i in $(seq {count}); do echo "$2 $i" > "$1/$i"; done'
    mount.run(["bash", "-c", script, "bash", mount.path / directory, "text"], check=True)


def stored(objects: Path, directory: str = "many") -> int:
    """How many objects there are below a directory that are no marker."""
    try:
        return sum(1 for name in os.listdir(objects / directory) if name.isdigit())
    except FileNotFoundError:
        return 0


def starting(mount: Mount, *arguments: object, **settings: object) -> subprocess.Popen[str]:
    """Start a command of luxfuse."""
    command = [mount.python, "-P", "-m", "luxfuse.cli.main", *map(str, arguments)]
    settings.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen(command, env=mount.environment, cwd="/", text=True, **settings)  # type: ignore[call-overload,no-any-return]


class TestPersist:
    def test_waits_until_it_is_there(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        proxy.set(latency_s=0.1)
        write_many(mount)
        done = mount.cli("persist", mount.path / "many")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert stored(objects) == MANY
        assert mount.status()["dirty"]["files"] == 0

    def test_takes_only_what_is_there_or_below(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        write(mount, {"ab": b"other"})
        write_many(mount, "a", 3)
        mount.run(["ln", "-s", "a", mount.path / "link"], check=True)
        proxy.only(lambda request: request.path.endswith("/ab"))
        proxy.set(error_probability=1.0, error_status=403)
        assert mount.cli("persist", mount.path / "a", mount.path / "link").returncode == 0
        assert stored(objects, "a") == 3
        assert (objects / "link.rclonelink").exists()
        assert not (objects / "ab").exists()

    def test_says_what_failed_and_why(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        write(mount, {"gone": b"gone"})
        assert mount.cli("persist", mount.path).returncode == 0
        refuse(proxy)
        write(mount, {"bad": b"bad"})
        mount.run(["rm", mount.path / "gone"], check=True)
        done = mount.cli("persist", mount.path / "bad", mount.path / "gone", mount.path / "never")
        assert done.returncode == 1
        lines = sorted(done.stderr.splitlines())
        assert len(lines) == 3, lines
        expected = [("bad: ", "403"), ("gone: ", "403"), ("never: there is no such file",)]
        for line, words in zip(lines, expected, strict=True):
            assert line.startswith(f"luxfuse: persist: {mount.path}: ")
            assert all(word in line for word in words), line
        proxy.clear()
        assert mount.cli("persist", mount.path).returncode == 0
        assert (objects / "bad").read_bytes() == b"bad"
        assert not (objects / "gone").exists()

    def test_what_is_open_for_writing_is_told_and_the_rest_goes(self, mount: Mount, objects: Path) -> None:
        writer = mount.reader()
        writer("open", "it", f"{mount.path}/open", os.O_CREAT | os.O_WRONLY)
        write(mount, {"closed": b"closed"})
        done = mount.cli("persist", mount.path)
        assert done.returncode == 1
        assert done.stderr == f"luxfuse: persist: {mount.path}: open: is open for writing\n"
        assert (objects / "closed").read_bytes() == b"closed"
        writer("close", "it")
        assert mount.cli("persist", mount.path).returncode == 0
        assert (objects / "open").read_bytes() == b""

    def test_local_only(self, mounting: Mounts, s3: FastS3, bucket: str, objects: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules.toml"
        rules.write_text('[[path]]\npattern = "*.tmp"\nwrite_mode = "must-cache"\n')
        mount = mounting(f"s3://{bucket}", "--config", str(rules), *ASYNC, endpoint_url=s3.endpoint)
        write(mount, {"a.tmp": b"here", "b": b"there"})
        assert mount.status()["dirty"]["local_only"] == 1
        done = mount.cli("persist", mount.path)
        assert (done.returncode, done.stderr) == (0, f"luxfuse: persist: {mount.path}: a.tmp: local only (must-cache)\n")
        done = mount.cli("persist", mount.path / "a.tmp")
        assert done.returncode == 1
        assert "a.tmp: is local only (must-cache)" in done.stderr
        assert os.listdir(objects) == ["b"]
        assert "1 file local only" in mount.cli("status", mount.path).stdout
        mount.remount()
        assert mount.read("a.tmp") == digest(b"here")


class TestUnmounting:
    def test_drains_first(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        proxy.set(latency_s=0.2)
        write_many(mount, count=100)
        write(mount, {"large": content("large", 5 * MIB)})
        pid = mount.pid
        done = mount.unmount()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not is_running(pid)
        assert stored(objects) == 100
        assert (objects / "large").read_bytes() == content("large", 5 * MIB)
        mount.mount()  # finds nothing to tell of

    def test_busy_goes_on_serving(self, mount: Mount, objects: Path) -> None:
        write_many(mount)
        reader = mount.reader()
        reader("open", "it", f"{mount.path}/many/1")
        done = mount.cli("unmount", mount.path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"pid {reader.pid}" in done.stderr
        wait_for("the daemon to see that the command is gone", lambda: mount.status()["state"] == "serving")
        write(mount, {"later": b"later"})
        reader("close", "it")
        assert mount.unmount().returncode == 0
        assert (objects / "later").read_bytes() == b"later"

    def test_interrupted_leaves_it_as_it_was(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        refuse(proxy)
        write_many(mount)
        with starting(mount, "unmount", mount.path) as command:
            wait_for("it drains", lambda: mount.status()["state"] == "draining")
            command.send_signal(signal.SIGINT)
            _, err = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == 1
        said = [line for line in err.splitlines() if not PROGRESS.match(line)]
        assert said == [f"luxfuse: interrupted: {mount.path} stays mounted, and goes on as before"]
        wait_for("it does not drain any more", lambda: mount.status()["state"] == "degraded")
        write(mount, {"more": b"more"})
        proxy.clear()
        assert mount.unmount().returncode == 0
        assert stored(objects) == MANY
        assert (objects / "more").exists()

    def test_a_killed_command_leaves_it_as_it_was(self, mount: Mount, proxy: FaultProxy) -> None:
        refuse(proxy)
        write_many(mount, count=3)
        with starting(mount, "unmount", mount.path) as command:
            wait_for("it drains", lambda: mount.status()["state"] == "draining")
            command.kill()
        wait_for("it does not drain any more", lambda: mount.status()["state"] == "degraded")
        proxy.clear()

    def test_gives_up_where_nothing_moves(self, mount: Mount, proxy: FaultProxy) -> None:
        refuse(proxy)
        write_many(mount, count=3)
        program = "import sys; from luxfuse.cli import main, unmount; unmount.STALLED_S = 2; sys.exit(main.main())"
        done = mount.run([mount.python, "-P", "-c", program, "unmount", mount.path])
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        for word in ("files", "403", "without progress for 2 s", f"luxfuse unmount --force {mount.path}"):
            assert word in done.stderr
        assert mount.mounted
        proxy.clear()

    def test_a_bar_on_a_terminal(self, mount: Mount, proxy: FaultProxy) -> None:
        refuse(proxy)
        write_many(mount, count=10)
        ours, theirs = pty.openpty()
        try:
            with starting(mount, "unmount", mount.path, stdin=theirs, stderr=theirs, stdout=theirs) as command:
                os.close(theirs)
                shown = b""
                while b"files (" not in shown and select.select([ours], [], [], PATIENCE_S)[0]:
                    shown += os.read(ours, 65536)
                proxy.clear()
                while select.select([ours], [], [], PATIENCE_S)[0]:
                    try:
                        shown += os.read(ours, 65536)
                    except OSError:
                        break
            assert command.returncode == 0, shown
        finally:
            os.close(ours)
        assert "11 files (" in shown.decode()
        assert "━" in shown.decode()

    def test_force_keeps_all_for_the_next_mount(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        write(mount, {"gone": b"gone", "changed": b"before"})
        assert mount.cli("persist", mount.path).returncode == 0
        refuse(proxy)
        write_many(mount, count=20)
        write(mount, {"changed": content("changed", MIB + 1)})
        mount.run(["rm", mount.path / "gone"], check=True)
        pid = mount.pid
        done = mount.unmount("--force")
        assert done.returncode == 0
        assert done.stderr.count("\n") == 1, done.stderr
        for word in ("22 changed files (1.0 MiB)", "1 delete", str(mount.cache), "next mount"):
            assert word in done.stderr
        assert not is_running(pid)
        assert not mount.mounted
        proxy.clear()
        done = mount.try_mount()
        assert done.returncode == 0
        assert done.stderr.count("\n") == 1, done.stderr
        assert "the last run left 22 changed files" in done.stderr
        assert "1 delete" in done.stderr
        assert mount.error("stat", f"{mount.path}/gone") == "ENOENT"
        assert mount.read("changed") == digest(content("changed", MIB + 1))
        assert mount.unmount().returncode == 0
        assert stored(objects) == 20
        assert (objects / "changed").read_bytes() == content("changed", MIB + 1)
        assert not (objects / "gone").exists()

    def test_lazy_drains_in_the_background(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        proxy.only(lambda request: request.method == "PUT")
        proxy.set(hold=True)
        writer = mount.reader()
        writer("open", "it", f"{mount.path}/open", os.O_CREAT | os.O_WRONLY)
        write_many(mount)
        pid = mount.pid
        assert mount.cli("unmount", "--lazy", mount.path).returncode == 0
        assert not mount.mounted
        assert mount.status()["state"] == "draining"
        writer("close", "it")
        proxy.clear()
        wait_for("the daemon has ended", lambda: not is_running(pid))
        assert stored(objects) == MANY
        if not (objects / "open").exists():
            # The kernel forgets that it was closed where a busy daemon has not read that before the mount is gone.
            assert mount.try_mount().returncode == 0
            assert mount.unmount().returncode == 0
        assert (objects / "open").exists()

    def test_plain_umount_drains(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        refuse(proxy)
        write_many(mount)
        pid = mount.pid
        mount.run(["umount", mount.path], check=True)
        wait_for("the daemon has seen it", lambda: mount.status()["state"] == "draining")
        assert "still brings changes" in mount.try_mount().stderr
        proxy.clear()
        wait_for("the daemon has ended", lambda: not is_running(pid))
        assert stored(objects) == MANY

    def test_sigterm_while_the_store_is_down(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        refuse(proxy)
        write_many(mount)
        mount.kill_daemon(signal.SIGTERM)
        assert not mount.mounted
        proxy.clear()
        done = mount.try_mount()
        assert "changed files" in done.stderr
        assert mount.unmount().returncode == 0
        assert stored(objects) == MANY

    def test_a_dead_daemons_mount(self, mount: Mount, proxy: FaultProxy) -> None:
        refuse(proxy)
        write_many(mount, count=3)
        mount.kill()
        done = mount.unmount()
        assert done.returncode == 0
        assert "changed files" in done.stderr
        assert "next mount" in done.stderr
        proxy.clear()


class TestNextMount:
    def test_after_kill_closed_goes_up_and_unclosed_is_kept_aside(
        self, mount: Mount, proxy: FaultProxy, objects: Path
    ) -> None:
        refuse(proxy)
        with subprocess.Popen(
            [mount.python, "-c", WRITES_AND_WAITS, f"{mount.path}/half"], stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            write_many(mount, count=5)  # what was noted before these are closed is in the journal by then
            write(mount, {"large": content("kill", 3 * MIB)})
            mount.kill()
            proxy.clear()
            mountpoint.unmount(str(mount.path), lazy=True)
            process.kill()
        mount.close_readers()
        done = mount.try_mount()
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        recovered = next((mount.state / "recovered").iterdir())
        assert "7 changed files, going to the under-store now; and 1 unclosed file, kept in " in done.stderr
        assert str(recovered) in done.stderr
        (kept,) = recovered.iterdir()
        assert kept.name.startswith("half")
        assert kept.read_bytes() == b"x" * 100_000
        status = mount.status()
        assert status["recovered"] == {"files": 1, "path": str(recovered)}
        assert str(recovered) in mount.cli("status", mount.path).stdout
        assert mount.error("stat", f"{mount.path}/half") == "ENOENT"
        assert mount.unmount().returncode == 0
        assert stored(objects) == 5
        assert (objects / "large").read_bytes() == content("kill", 3 * MIB)
        assert not (objects / "half").exists()

    def test_what_was_lost_with_the_cache_directory_is_told(self, mount: Mount, proxy: FaultProxy) -> None:
        mount.expected_logs.append("is not in the cache directory any more")
        refuse(proxy)
        write(mount, {"large": content("lost", MIB)})
        mount.unmount("--force")
        shutil.rmtree(mount.cache)
        proxy.clear()
        done = mount.try_mount()
        assert done.returncode == 0
        assert "1 changed file that cannot be found in the cache directory any more, and lost" in done.stderr

    def test_changes_with_another_cache_directory_are_told_of(self, mount: Mount, proxy: FaultProxy) -> None:
        refuse(proxy)
        write_many(mount, count=3)
        mount.unmount("--force")
        proxy.clear()
        cache, mount.flags[1] = mount.flags[1], str(mount.base / "another")
        done = mount.try_mount()
        assert done.returncode == 0
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"another cache directory, {cache}" in done.stderr
        assert "4 changed files" in done.stderr
        assert mount.unmount().returncode == 0
        mount.flags[1] = cache
        assert "4 changed files" in mount.try_mount().stderr
        assert mount.cli("persist", mount.path).returncode == 0

    def test_an_unfinished_rename_and_no_store(self, mount: Mount, proxy: FaultProxy, objects: Path) -> None:
        write_many(mount, "old", 100)
        assert mount.cli("persist", mount.path).returncode == 0
        # Once one is there the others are held: more than are copied at once.
        proxy.only(lambda request: request.method == "PUT" and stored(objects, "new") > 0)
        proxy.set(hold=True)
        with subprocess.Popen(["mv", mount.path / "old", mount.path / "new"], stderr=subprocess.DEVNULL):
            wait_for("it has begun", lambda: stored(objects, "new") > 0)
            mount.kill()
            mountpoint.unmount(str(mount.path), lazy=True)
        proxy.clear()
        refuse(proxy)
        mount.expected_logs.append("cannot be finished yet, and its names")
        done = mount.try_mount()
        assert done.returncode == 0, done.stderr
        assert "1 rename that cannot be finished yet, so that their names wait" in done.stderr
        wait_for("it was tried", lambda: "403" in (mount.status()["dirty"]["error"] or ""))
        assert mount.error("list", f"{mount.path}/new") == "EACCES"
        assert mount.status()["dirty"]["renames"] == 1
        write(mount, {"beside": b"1"})
        proxy.clear()
        assert mount.unmount().returncode == 0
        assert (objects / "beside").exists()
        assert stored(objects, "new") == 100
        assert stored(objects, "old") == 0


class TestStatus:
    def test_numbers(self, mount: Mount, proxy: FaultProxy) -> None:
        write(mount, {"gone": b"gone"})
        assert mount.cli("persist", mount.path).returncode == 0
        refuse(proxy)
        began = time.monotonic()
        write(mount, {"one": b"1" * 1000, "two": b"2" * 2000})
        mount.run(["rm", mount.path / "gone"], check=True)
        writer = mount.reader()
        writer("open", "it", f"{mount.path}/three", os.O_CREAT | os.O_WRONLY)

        def failing() -> dict[str, object] | None:
            status = mount.status()
            return status if status["dirty"]["failing"] == 3 else None

        status = wait_for("all failed", failing)
        dirty = status["dirty"]
        assert {name: dirty[name] for name in ("files", "bytes", "open_files", "deletes", "local_only")} == {
            "files": 3,
            "bytes": 3000,
            "open_files": 1,
            "deletes": 1,
            "local_only": 0,
        }
        assert 0 < dirty["oldest_s"] < time.monotonic() - began
        assert dirty["failures"] >= 3
        assert "403" in dirty["error"]
        assert status["state"] == "degraded"
        assert any("3 changes cannot be brought to the under-store yet" in reason for reason in status["degraded_reasons"])
        shown = mount.cli("status", mount.path).stdout
        for words in ("degraded", "3 files (2.9 KiB, 1 of them open)", "1 delete", "403", "luxfuse persist"):
            assert words in shown
        metrics = mount.cli("metrics", mount.path).stdout
        for line in ("luxfuse_dirty_files 3.0", "luxfuse_dirty_deletes 1.0", "luxfuse_dirty_failing 3.0"):
            assert line in metrics
        writer("close", "it")
        proxy.clear()
        assert mount.cli("persist", mount.path).returncode == 0
        status = mount.status()
        assert status["state"] == "serving"
        assert (status["dirty"]["files"], status["dirty"]["deletes"], status["dirty"]["error"]) == (0, 0, None)


def test_a_store_that_cannot_be_written(mounting: Mounts, nginx_files: FileServer) -> None:
    (nginx_files.directory / "file").write_bytes(b"read")
    mount = mounting.make(nginx_files.url)
    done = mount.try_mount()
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "mounted as with --read-only" in done.stderr
    assert mount.read("file") == digest(b"read")
    assert mount.error("create", f"{mount.path}/new") == "EROFS"
    assert mount.unmount().returncode == 0
    mount.mount("--read-only")
