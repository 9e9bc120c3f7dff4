"""The daemon is killed under programs that use the mount, and they notice nothing: its successor goes on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from luxfuse.fuse import mountpoint as mounts
from luxfuse.steps import DIE_AT, DIE_ONCE
from tests.mount.test_crash import CHANGES, MORE, NEW, OLD, bucket_files, do
from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.locks import is_locked
from tests.support.mounted import MIB, PATIENCE_S, Mount, Mounts, content, digest, parent_of, put, wait_for, waits_for_fuse
from tests.support.versions import other_version

KEEPER_MOST_KB = 15 << 10
DIED = r"level=warning logger=luxfuse.keeper event=\"the daemon died"


def waits_for_a_lock(pid: int) -> bool:
    """Whether a thread of a process waits inside the kernel to tell it to forget something."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            stack = (task / "stack").read_text()
            if "fuse_reverse_inval" in stack or "fuse_notify" in stack:
                return True
    return False


@pytest.fixture
def kept(mounting: Mounts, s3: FastS3, bucket: str) -> Mount:
    return mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED]
    )


def polls_the_device(pid: int) -> bool:
    """Whether a process has the device of any mount in an epoll set: it would be woken for every request."""
    device = os.stat("/dev/fuse").st_ino
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for line in info.read_text().splitlines():
                if line.startswith("tfd:") and f" ino:{device:x} " in line:
                    return True
    return False


class Program:
    """A Python program on a mount that waits for a line before each of its steps, and says when it has made one."""

    def __init__(self, mount: Mount, *steps: str, arguments: Sequence[str] = ()) -> None:
        text = "import errno, os, sys, hashlib, mmap\nos.chdir(sys.argv[1])\n"
        for step in steps:
            text += f"sys.stdin.readline()\n{step}\nprint('done', flush=True)\n"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", text, mount.path, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def waits_for_fuse(self) -> bool:
        return waits_for_fuse(self._process.pid)

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def await_step(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"

    def step(self) -> None:
        self.begin()
        self.await_step()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE_S) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_a_reader_that_waits_gets_its_bytes(mounting: Mounts, proxy: FaultProxy, bucket: str, fill: Any) -> None:
    data = content("waiting", 3 * MIB)
    fill({"a": data})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, keeper=True, expected_logs=[DIED])
    assert mount.do("list", str(mount.path)) == ["a"]
    proxy.only(lambda request: request.method == "GET" and "list-type" not in request.query)
    proxy.set(hold=True)
    reader = mount.reader()
    reader.send("file", f"{mount.path}/a")
    wait_for("the reader waits", reader.waits_for_fuse)
    pid = mount.pid
    mount.kill_daemon()
    proxy.clear()
    assert reader.take() == digest(data)
    wait_for("a successor", lambda: mount.serves_as_successor_of(pid))
    assert mount.status()["restarts"] == 1


def test_the_keeper_is_small_and_the_daemon_its_child(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    kept = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, forked=False, expected_logs=[DIED])
    status = Path(f"/proc/{kept.keeper_pid}/status").read_text()
    assert "luxfuse/keeper" in Path(f"/proc/{kept.keeper_pid}/cmdline").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < KEEPER_MOST_KB
    keeper = kept.keeper_pid
    open_files = len(os.listdir(f"/proc/{keeper}/fd"))
    for _ in range(3):
        kept.replaced()
    assert not polls_the_device(keeper)
    assert not polls_the_device(kept.pid)
    with select.epoll() as polling, open("/dev/fuse", "rb", buffering=0) as device:
        polling.register(device)
        assert polls_the_device(os.getpid()), "it would be seen"
    status = Path(f"/proc/{keeper}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < KEEPER_MOST_KB, "at its most"
    wait_for("none is left of a daemon that died", lambda: len(os.listdir(f"/proc/{keeper}/fd")) <= open_files)
    assert int(status.partition("Threads:")[2].split()[0]) == 1
    assert kept.unmount().returncode == 0
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())


def test_a_writer_goes_on(kept: Mount, s3: FastS3, bucket: str) -> None:
    program = Program(
        kept,
        "f = os.open('new', os.O_CREAT | os.O_WRONLY); os.write(f, b'a' * 300000)",
        "os.write(f, b'b' * 300000)",
        "os.write(f, b'c' * 300000); os.fsync(f)",
        "os.close(f)",
    )
    program.step()
    kept.replaced()
    program.step()
    kept.replaced()
    program.step()
    program.step()
    program.end()
    assert kept.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == {"new": b"a" * 300000 + b"b" * 300000 + b"c" * 300000}


@pytest.mark.parametrize("promise", ["os.close(f)", "os.fsync(f)"])
def test_what_a_successor_promises_its_own_successor_has(mounting: Mounts, s3: FastS3, bucket: str, promise: str) -> None:
    """Found by a storm (seed 513): the second daemon answered the close of what the first had got, and noted nothing."""
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "must-cache", endpoint_url=s3.endpoint, keeper=True,
        expected_logs=[DIED, "was being written when the last run ended"],
    )  # fmt: skip
    large, small = content("large", 100_000), content("small", 5_000)
    (mount.base / "large").write_bytes(large)
    (mount.base / "small").write_bytes(small)
    program = Program(
        mount,
        "files = [os.open(n, os.O_CREAT | os.O_WRONLY) for n in ('large', 'small')]\n"
        "for f, n in zip(files, ('large', 'small')): os.write(f, open(sys.argv[2] + '/' + n, 'rb').read())",
        f"for f in files: {promise}",
        arguments=[str(mount.base)],
    )
    program.step()
    mount.replaced()
    program.step()
    program.kill()
    mount.replaced()
    assert mount.read("large") == digest(large)
    assert mount.read("small") == digest(small)


def test_an_open_file_keeps_its_content_though_its_mode_was_just_changed(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    (s3.bucket_path(bucket) / "a").write_bytes(content("a", 5_000))
    mount = mounting(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint, keeper=True,
                     expected_logs=[DIED])  # fmt: skip
    program = Program(mount, "f = open('a', 'rb'); f.read()", "os.chmod('a', 0o600)", "f.seek(0); assert f.read()")
    program.step()
    program.step()
    mount.replaced()
    program.step()
    program.kill()
    assert mount.read("a") == digest(content("a", 5_000))
    mount.close()
    assert bucket_files(s3.bucket_path(bucket)) == {"a": content("a", 5_000)}


def test_half_of_what_is_written_anew_is_not_promised_by_a_successor(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "must-cache", endpoint_url=s3.endpoint, keeper=True,
        expected_logs=[DIED, "was being written when the last run ended"],
    )  # fmt: skip
    program = Program(
        mount,
        "f = os.open('a', os.O_CREAT | os.O_WRONLY); os.write(f, b'closed'); os.close(f)\n"
        "f = os.open('a', os.O_TRUNC | os.O_WRONLY); os.write(f, b'half')",
        "pass  # until then it stays open",
    )
    program.step()
    mount.replaced()
    assert mount.read("a") == digest(b"half")
    mount.replaced()
    mount.kill()
    program.kill()
    assert mount.try_mount().returncode == 0
    assert mount.read("a") == digest(b"closed")
    assert [path.read_bytes() for path in mount.state.glob("recovered/*/*")] == [b"half"]


@pytest.mark.parametrize("data", [b"", b"content"], ids=["empty", "not empty"])
def test_the_end_of_a_write_is_counted_once(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, data: bytes) -> None:
    """Found by a storm (seed 512): the first daemon had counted a RELEASE, and given up the file, but not answered."""
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "through", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: "publish.begun", DIE_ONCE: str(tmp_path / "once")},
    )  # fmt: skip
    (tmp_path / "once").touch()
    assert do(mount, f'write("a", os.O_CREAT, {data!r})')
    wait_for("the daemon kills itself", lambda: not (tmp_path / "once").exists())
    wait_for("a successor", lambda: mount.serves_as_successor_of(0) and mount.status()["restarts"] == 1)
    wait_for("all is stored", lambda: mount.status()["dirty"]["files"] == 0)
    assert mount.read("a") == digest(data)
    wait_for("no staging file is left", lambda: not list(mount.cache.glob("*/staging/[0-9a-f]*")))


def test_a_writer_of_a_part_of_a_large_file_goes_on(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    data = content("large", 9 * MIB)
    put(s3, bucket, "large", data)
    mount = mounting(
        f"s3://{bucket}", "--whole-file-threshold", "1MiB", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED]
    )
    program = Program(
        mount,
        "f = os.open('large', os.O_RDWR); os.pwrite(f, b'x' * 1000, 2000000)",
        "os.pwrite(f, b'y' * 1000, 5000000); assert os.pread(f, 3, 1999999)[1:] == b'xx'",
        "os.close(f)",
    )
    program.step()
    mount.replaced()
    program.step()
    program.step()
    program.end()
    assert mount.unmount().returncode == 0
    wanted = bytearray(data)
    wanted[2000000:2001000] = b"x" * 1000
    wanted[5000000:5001000] = b"y" * 1000
    assert bucket_files(s3.bucket_path(bucket)) == {"large": bytes(wanted)}


def test_files_that_are_open_stay_what_they_are(kept: Mount, s3: FastS3, bucket: str) -> None:
    for name in ("kept", "removed", "replaced"):
        put(s3, bucket, name, content(name, 200_000))
    put(s3, bucket, "empty", b"")
    program = Program(
        kept,
        "f = {n: os.open(n, os.O_RDONLY) for n in ('kept', 'removed', 'replaced', 'empty')}\n"
        "m = mmap.mmap(f['kept'], 0, prot=mmap.PROT_READ)\n"
        "t = os.open('temporary', os.O_CREAT | os.O_RDWR); os.write(t, b'scratch'); os.unlink('temporary')\n"
        "os.unlink('removed')\n"
        "with open('fresh', 'wb') as n: n.write(b'new content')\n"
        "os.rename('fresh', 'replaced')",
        "again = os.open('kept', os.O_RDONLY)\n"
        "assert os.pread(again, 200000, 0) == os.pread(f['kept'], 200000, 0) == m[:]\n"
        "assert os.fstat(f['removed']).st_nlink == 0 and not os.path.exists('removed')\n"
        "assert len(os.pread(f['removed'], 200001, 0)) == len(os.pread(f['replaced'], 200001, 0)) == 200000\n"
        "assert open('replaced', 'rb').read() == b'new content'\n"
        "assert os.pread(f['empty'], 1, 0) == b''\n"
        "os.write(t, b' more'); assert os.pread(t, 100, 0) == b'scratch more'\n"
        "assert os.fstat(t).st_size == 12 and os.fstat(t).st_nlink == 0",
        "[os.close(n) for n in f.values()]; os.close(again); os.close(t); m.close()",
    )
    program.step()
    for _ in range(2):
        kept.replaced()
    program.step()
    program.step()
    program.end()
    wait_for("staging is empty", lambda: not list(kept.cache.glob("*/staging/[0-9a-f]*")))
    assert kept.unmount().returncode == 0
    found = bucket_files(s3.bucket_path(bucket))
    assert found == {"kept": content("kept", 200_000), "replaced": b"new content"}


def test_a_file_that_is_open_and_cut_stays_cut(kept: Mount, s3: FastS3, bucket: str) -> None:
    """The journal has what was closed last, for a power cut: a kill is none."""
    program = Program(
        kept,
        "open('small', 'wb').write(b'x' * 5000)\nf = os.open('small', os.O_WRONLY | os.O_TRUNC)",
        "assert os.fstat(f).st_size == 0; os.close(f)",
    )
    program.step()
    kept.replaced()
    program.step()
    program.end()
    assert kept.unmount().returncode == 0
    assert not bucket_files(s3.bucket_path(bucket))


def test_the_content_of_a_removed_file_goes_with_its_last_reader(kept: Mount) -> None:
    program = Program(
        kept,
        "open('a', 'wb').write(b'x' * 50000)\nf = os.open('a', os.O_RDONLY); os.unlink('a')",
        "assert os.pread(f, 50001, 0) == b'x' * 50000; os.close(f)",
    )
    program.step()
    kept.replaced()
    program.step()
    program.end()
    wait_for("staging is empty", lambda: not list(kept.cache.glob("*/staging/[0-9a-f]*")))


def test_a_large_file_that_was_removed_is_read_to_its_end(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    """Its object stays until then."""
    data = content("removed and large", 40 * MIB)
    put(s3, bucket, "large", data)
    mount = mounting(
        f"s3://{bucket}", "--whole-file-threshold", "1MiB", "--readahead", "1MiB", endpoint_url=s3.endpoint, keeper=True,
        expected_logs=[DIED],
    )  # fmt: skip
    program = Program(
        mount,
        "f = os.open('large', os.O_RDONLY); assert len(os.pread(f, 1000, 0)) == 1000; os.unlink('large')",
        "assert not os.path.exists('large')\n"
        "h = hashlib.sha256()\n"
        "for at in range(0, 40 << 20, 1 << 20): h.update(os.pread(f, 1 << 20, at))\n"
        f"assert h.hexdigest() == '{digest(data)[1]}'",
        "os.close(f)",
    )
    program.step()
    mount.replaced()
    program.step()
    assert bucket_files(s3.bucket_path(bucket)) == {"large": data}
    program.step()
    program.end()
    wait_for("the object goes", lambda: not bucket_files(s3.bucket_path(bucket)))


def test_a_listing_goes_on(kept: Mount, s3: FastS3, bucket: str) -> None:
    names = [f"{number:05}" for number in range(3000)]
    for name in names:
        put(s3, bucket, f"d/{name}", b"")
    program = Program(
        kept,
        "entries = os.scandir('d'); seen = [next(entries).name for _ in range(700)]",
        "seen += [entry.name for entry in entries]\n"
        "assert sorted(seen) == ['%05d' % n for n in range(3000)], len(seen)\n"
        "assert len(os.listdir('d')) == 3000",
    )
    program.step()
    kept.replaced()
    program.step()
    program.end()


def test_a_listing_goes_on_that_is_read_before_it_ends(
    mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str
) -> None:
    for number in range(6000):
        put(s3, bucket, f"d/{number:05}", b"")
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, keeper=True, expected_logs=[DIED])
    proxy.only(lambda request: "list-type" in request.query and "d%2F" in request.query)
    proxy.set(latency_s=2)
    program = Program(
        mount,
        "entries = os.scandir('d'); seen = [next(entries).name for _ in range(100)]",
        "seen += [entry.name for entry in entries]\n"
        "assert sorted(seen) == ['%05d' % n for n in range(6000)], (len(seen), len(set(seen)))",
    )
    program.step()
    assert mount.do("stat", f"{mount.path}/d")
    proxy.clear()
    mount.replaced()
    program.begin()
    mount.replaced()
    program.await_step()
    program.end()


def test_no_file_stays_with_the_kernel_for_ever(
    s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path, disk: Disk
) -> None:
    """The daemon dies between giving a file to the kernel and noting that."""
    put(s3, bucket, "a", content("a", 8 * MIB))
    once = tmp_path / "once"
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED], cache_dir=disk.path / "cache",
        environment={DIE_AT: "backing.opened", DIE_ONCE: str(once)},
    )  # fmt: skip
    once.touch()
    assert mount.read("a") == digest(content("a", 8 * MIB))
    wait_for("the daemon killed itself", lambda: not once.exists() and mount.status()["restarts"] == 1)
    assert "which the daemon before this one has left, is closed" in mount.log()
    mount.close_readers()
    full = os.statvfs(disk.path).f_bavail

    def freed() -> bool:
        # A close is answered before the daemon hears of it.
        assert mount.cli("free", mount.path / "a").returncode == 0
        return os.statvfs(disk.path).f_bavail - full >= (8 * MIB) // 4096

    wait_for("the room is there again", freed)


def test_an_attribute_is_made_once(s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path) -> None:
    put(s3, bucket, "a", b"content")
    once = tmp_path / "once"
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: "describe.noted", DIE_ONCE: str(once)},
    )  # fmt: skip
    assert do(mount, 'os.getxattr("a", "user.luxfuse.state")')
    once.touch()
    assert do(mount, 'os.setxattr("a", "user.k", b"v", os.XATTR_CREATE); assert os.getxattr("a", "user.k") == b"v"')
    assert not once.exists(), "the daemon killed itself"
    assert not do(mount, 'os.setxattr("a", "user.k", b"v", os.XATTR_CREATE)'), "it is there"


def test_an_attribute_is_removed_once(s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path) -> None:
    put(s3, bucket, "a", b"content")
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: "describe.noted", DIE_ONCE: str(tmp_path / "once")},
    )  # fmt: skip
    assert do(mount, 'os.setxattr("a", "user.k", b"v")')
    (tmp_path / "once").touch()
    assert do(mount, 'os.removexattr("a", "user.k"); assert os.listxattr("a") == []')
    assert not (tmp_path / "once").exists(), "the daemon killed itself"


def test_attached_stores_go_on(kept: Mount, s3: FastS3, bucket: str) -> None:
    """Their inodes and handles have the numbers that they had."""
    (s3.root / f"{bucket}-more").mkdir()
    for name in ("read", "large"):
        put(s3, f"{bucket}-more", name, content(name, 200_000))
    put(s3, bucket, "d/own", b"own")
    attached = kept.cli(
        "attach",
        f"s3://{bucket}-more",
        kept.path / "d" / "more",
        "--endpoint-url",
        s3.endpoint,
        "--write-mode",
        "async-through",
    )
    assert attached.returncode == 0, attached.stderr
    program = Program(
        kept,
        "os.chdir('d/more')\n"
        "f = os.open('read', os.O_RDONLY); w = os.open('written', os.O_CREAT | os.O_WRONLY); os.write(w, b'a' * 100000)\n"
        "number = os.fstat(f).st_ino; os.mkdir('made')",
        "os.write(w, b'b' * 100000); os.close(w)\n"
        "assert os.fstat(f).st_ino == os.stat('read').st_ino == number and len(os.pread(f, 200001, 0)) == 200000\n"
        "assert sorted(os.listdir('.')) == ['large', 'made', 'read', 'written']\n"
        "os.rename('written', 'made/written'); assert open('../own').read() == 'own'",
        "os.close(f)",
    )
    program.step()
    kept.replaced()
    program.step()
    kept.replaced()
    program.step()
    program.end()
    assert kept.unmount().returncode == 0
    found = bucket_files(s3.bucket_path(f"{bucket}-more"))
    assert found["made/written"] == b"a" * 100000 + b"b" * 100000
    assert sorted(found) == ["large", "made/written", "read"]


def test_settings_that_were_changed_stay_changed(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """A cache directory that is on its way out goes on being read, and leaves when nobody does."""
    put(s3, bucket, "a", content("a", 200_000))
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint, expected_logs=[DIED])
    fast, slow = f"{tmp_path}/fast", f"{tmp_path}/slow"
    file = tmp_path / "mount.toml"
    file.write_text(f'cache_dir = ["{slow}", "{fast},tier=mem,size=50MiB"]\n')
    mount.flags = ["--config", str(file), "--endpoint-url", s3.endpoint]
    mount.mount()
    program = Program(
        mount,
        "f = os.open('a', os.O_RDONLY); m = mmap.mmap(f, 0, prot=mmap.PROT_READ); assert len(m[:]) == 200000",
        "assert os.pread(f, 200000, 0) == m[:] and open('a', 'rb').read() == m[:]",
        "m.close(); os.close(f)",
    )
    program.step()
    assert [tier["name"] for tier in mount.status()["tiers"] if tier["used_bytes"] >= 200_000] == ["mem"]
    file.write_text(f'cache_dir = ["{slow}"]\nnegative_ttl = "77s"\nlog_level = "warning"\n')
    assert mount.cli("reload", mount.path, check=True).stdout.endswith("changed: cache_dir, negative_ttl, log_level\n")
    mount.replaced()
    program.step()
    wait_for(
        "it goes over",
        lambda: [tier["state"] for tier in mount.status()["tiers"] if tier["path"].startswith(fast)] == ["draining"],
    )
    program.step()
    program.end()
    wait_for("it has left", lambda: [tier["name"] for tier in mount.status()["tiers"]] == ["ssd"])
    mount.replaced()
    assert mount.cli("reload", mount.path, check=True).stdout.endswith("nothing has changed\n")
    assert mount.log().count('event="serving') == 1, "successors keep to what is to be logged"


def test_where_programs_are_stays(kept: Mount, s3: FastS3, bucket: str) -> None:
    """Numbers of inodes that no disk has yet are not forgotten."""
    put(s3, bucket, "d/e/file", b"content")
    program = Program(
        kept,
        "os.chdir('d/e'); number = os.stat('file').st_ino; os.mkdir('made'); made = os.stat('made').st_ino",
        "assert os.stat('file').st_ino == number and os.stat('made').st_ino == made\n"
        "assert sorted(os.listdir('.')) == ['file', 'made'] and open('file').read() == 'content'",
    )
    program.begin()
    program.await_step()
    kept.kill_daemon()
    program.step()
    program.end()


STEPS = [
    ("async-through", "create", "begin.noted"),
    ("cache-through", "create", "push.stored"),
    ("cache-through", "large", "upload.parts"),
    ("async-through", "inside", "publish.renamed"),
    ("async-through", "unlink", "remove.committed"),
    ("async-through", "replace", "move.committed"),
    ("cache-through", "directory", "move-directory.copied-one"),
    ("async-through", "mkdir", "make.noted"),
    ("async-through", "rmdir", "remove.committed"),
]
MORE_STEPS = [
    ("async-through", "create", "promise.committed"),
    ("cache-through", "inside", "begin.adopted"),
    ("async-through", "unlink", "remove.held"),
    ("async-through", "unlink", "remove.local"),
    ("cache-through", "unlink", "remove.stored"),
    ("async-through", "directory", "move-directory.names-committed"),
    ("async-through", "replace", "move.deleted"),
    ("cache-through", "rename", "move.copied"),
    ("cache-through", "mkdir", "make.stored"),
    ("async-through", "symlink", "make.noted"),
    ("async-through", "rmdir", "remove.held"),
    ("async-through", "rmdir", "remove.local"),
    ("async-through", "rmdir", "remove.noted"),
    ("cache-through", "rmdir", "remove.stored"),
]
BEFORE = {
    "rmdir": 'os.mkdir("d0"); write("d0/file", os.O_CREAT, b"x"); os.rename("d0", "e"); os.unlink("e/file")',
}


def with_slow(each_time: Sequence[tuple[str, ...]], slow: Sequence[tuple[str, ...]]) -> list[Any]:
    """Parameters of a test, of which some are for the slow tests."""
    return [*each_time, *(pytest.param(*values, marks=pytest.mark.slow) for values in slow)]


MADE: Mapping[str, tuple[str, Mapping[str, bytes | None]]] = {
    "mkdir": ('os.mkdir("made"); write("made/x", os.O_CREAT | os.O_EXCL, b"x")', {"made/x": b"x"}),
    "rmdir": ('assert os.listdir("e") == []; os.rmdir("e")', {"e": None}),
    "symlink": ('os.symlink("a", "link"); assert os.readlink("link") == "a"', {"link.rclonelink": b"a"}),
}


@pytest.mark.parametrize(("mode", "change", "step"), with_slow(STEPS, MORE_STEPS), ids=lambda value: value)
def test_a_change_is_made_once(
    s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path, mode: str, change: str, step: str
) -> None:
    before: dict[str, bytes | None] = {"a": OLD, "b": NEW, "d/1": MORE, "d/2": OLD}
    for key, data in before.items():
        put(s3, bucket, key, data or b"")
    if step.startswith("begin"):
        mounting.expected_logs += ["was being written when the last run ended", "the cache file of 'a' is gone"]
    mount = mounting(
        f"s3://{bucket}", "--write-mode", mode, endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: step, DIE_ONCE: str(tmp_path / "once")},
    )  # fmt: skip
    assert do(mount, 'write("done", os.O_CREAT, *blocks("done", 70_000)); open("a", "rb").read()')
    assert do(mount, BEFORE.get(change, ""))
    if change in BEFORE:  # a directory that the store has nothing of is not removed there
        wait_for("all is stored", lambda: mount.status()["dirty"]["files"] == 0)
    program, after = {**CHANGES, **MADE}[change]
    (tmp_path / "once").touch()
    assert do(mount, program)
    wait_for("the daemon kills itself", lambda: not (tmp_path / "once").exists())
    wait_for("a successor", lambda: mount.serves_as_successor_of(0) and mount.status()["restarts"] == 1)
    state = {**before, **after, "done": content("done", 70_000)}
    for key, data in state.items():
        assert (mount.path / key.removesuffix(".rclonelink")).exists() == (data is not None), key
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == {key: data for key, data in state.items() if data is not None}
    assert not list(mount.cache.glob("*/staging/[0-9a-f]*"))
    if not step.startswith("begin"):
        assert not list(mount.state.glob("recovered/*/*"))


EXCHANGE = """
import ctypes
first, second = {!r}, {!r}
numbers, file = [os.stat(n).st_ino for n in (first, second)], os.open("a", os.O_RDONLY)
if ctypes.CDLL(None, use_errno=True).renameat2(-100, first.encode(), -100, second.encode(), 2):
    raise OSError(ctypes.get_errno(), "renameat2")
assert [os.stat(n).st_ino for n in (second, first)] == numbers
assert len(os.pread(file, 5001, 0)) == 5000 and os.fstat(file).st_nlink == 1
"""
EXCHANGED = [
    ("a", "b", "exchange.copied"),
    ("d", "e", "exchange.named"),
    ("a", "d", "exchange.moved-names"),
]
MORE_EXCHANGED = [
    ("a", "b", "exchange.moved"),
    ("a", "b", "exchange.moved-names"),
    ("a", "b", "exchange.named"),
    ("d", "e", "exchange.copied"),
]


@pytest.mark.parametrize(("first", "second", "step"), with_slow(EXCHANGED, MORE_EXCHANGED), ids=lambda value: value)
def test_an_exchange_is_made_once(
    s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path, first: str, second: str, step: str
) -> None:
    before = {"a": OLD, "b": NEW, "d/1": MORE, "e/2": NEW}
    for key, data in before.items():
        put(s3, bucket, key, data)
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: step, DIE_ONCE: str(tmp_path / "once")},
    )  # fmt: skip
    assert do(mount, 'assert all(open(n, "rb").read() for n in ("a", "b", "d/1", "e/2"))')
    (tmp_path / "once").touch()
    assert do(mount, EXCHANGE.format(first, second))
    assert not (tmp_path / "once").exists(), "the daemon killed itself"
    other = {first: second, second: first}
    after = {"/".join([other.get(top, top), *rest]): before["/".join([top, *rest])]
             for top, *rest in (key.split("/") for key in before)}  # fmt: skip
    for key, data in after.items():
        assert mount.read(key) == digest(data), key
    assert mount.unmount().returncode == 0
    found = bucket_files(s3.bucket_path(bucket))
    assert {key: data for key, data in found.items() if not key.endswith("/")} == after


@pytest.mark.parametrize("how", ["away", "refused"])
def test_a_rename_is_finished_once_the_store_is_back(
    mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str, tmp_path: Path, how: str
) -> None:
    """The successor neither dies of it nor keeps anything waiting but the two names, and these no longer than promised."""
    put(s3, bucket, "a", OLD)
    put(s3, bucket, "beside", OLD)
    once = tmp_path / "once"
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint, keeper=True,
        environment={DIE_AT: "move.committed", DIE_ONCE: str(once)},
        expected_logs=[DIED, "cannot be finished yet", "the store", "AccessDenied"],
    )  # fmt: skip
    assert do(mount, 'open("a", "rb").read()')
    assert do(
        mount, 'assert os.listdir(".") == ["a", "beside"] and not os.path.exists("b") and open("beside", "rb").read()'
    )
    if how == "away":
        proxy.outage(True)
    else:
        proxy.set(error_probability=1.0, error_status=403)
    failing = "try: os.rename('a', 'b')\nexcept OSError as exc: assert exc.errno in (errno.EIO, errno.EACCES)\n"
    failing += "else: raise SystemExit(1)"
    moved = "assert open('b', 'rb').read(1) and not os.path.exists('a')"
    program = Program(mount, failing, "assert open('beside', 'rb').read(1)", moved)
    once.touch()
    with mount.impatient():
        program.step()
        program.step()
    log = mount.directory() / "daemon.log"
    assert "cannot be finished yet" in log.read_text()
    waiting = mount.pid
    proxy.recover()
    wait_for("it is finished", lambda: mount.status()["dirty"]["renames"] == 0)
    # The kernel is told to forget what it knows of the names a moment later.
    wait_for("it is shown", lambda: [mount.error("stat", f"{mount.path}/{name}") for name in "ab"] == ["ENOENT", None])
    program.step()
    program.end()
    assert mount.pid == waiting, "no daemon died of it"
    assert mount.status()["restarts"] == 1
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == {"b": OLD, "beside": OLD}


def test_a_daemon_that_keeps_dying_is_given_up(kept: Mount, s3: FastS3, bucket: str) -> None:
    put(s3, bucket, "a", b"content")
    kept.expected_logs += ["all requests get EIO"]
    assert kept.do("list", str(kept.path)) == ["a"]
    keeper, said = kept.keeper_pid, kept.directory() / "keeper"
    while not said.read_text():
        for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
            try:
                os.kill(int(child), signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
    assert kept.error("stat", f"{kept.path}/unknown") == "EIO"
    assert "10 times in a row" in said.read_text()
    shown = kept.cli("status", kept.path)
    assert "10 times in a row" in shown.stdout + shown.stderr
    assert not any(is_locked(lock) for lock in kept.cache.glob("*/lock"))  # nobody goes on: another mount may
    done = kept.cli("mount", kept.source, kept.path, *kept.flags)
    assert done.returncode == 0, done.stderr
    assert "taken away" in done.stderr
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())
    assert kept.read("a") == digest(b"content")


def test_daemons_that_fail_in_good_order_are_given_up_too(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    """Commands know of the mount all the while."""
    put(s3, bucket, "a", b"content")
    mount = mounting.make(
        f"s3://{bucket}",
        endpoint_url=s3.endpoint,
        forked=False,
        expected_logs=[DIED, "all requests get EIO", "nothing can be taken"],
    )
    take = "    if estate.inherited:\n"
    mount.python = other_version(
        tmp_path / "failing", "9.8.6",
        {"daemon/succession.py": (take, f"{take}        raise OSError(5, 'nothing can be taken over')\n"),
         "cli/launch.py": ("MOST_DEATHS = 10\n", "MOST_DEATHS = 3\n")},
    )  # fmt: skip
    mount.mount()
    keeper = mount.keeper_pid
    mount.kill_daemon()
    assert mount.error("stat", f"{mount.path}/unknown") == "EIO"
    shown = mount.cli("status", mount.path)
    assert "3 times in a row" in shown.stdout + shown.stderr
    done = mount.try_mount()
    assert done.returncode == 0, done.stderr
    assert "taken away" in done.stderr
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())
    mount.close_readers()
    assert mount.read("a") == digest(b"content")


RELOADS = "        with trio.open_signal_receiver(signal.SIGHUP) as signals:\n            async for _ in signals:\n"
FAILS_AT_SIGHUP = {"daemon/main.py": (RELOADS, f"{RELOADS}                1 / 0\n")}
"""A change of luxfuse with which a daemon fails when it is to reload its settings."""


def test_nobody_takes_the_cache_directory_of_a_daemon_that_fails(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    """It unwinds as at a good end, but its successor goes on with all that it had."""
    put(s3, bucket, "a", b"content")
    mount = mounting.make(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, forked=False,
        expected_logs=[DIED, "the daemon ends", "ZeroDivisionError"],
    )  # fmt: skip
    mount.python = other_version(tmp_path / "failing", "9.8.6", FAILS_AT_SIGHUP)
    mount.mount()
    assert mount.read("a") == digest(b"content")
    (lock,) = mount.cache.glob("*/lock")
    (journal,) = (mount.state / "journal").iterdir()
    before = mount.pid
    os.kill(before, signal.SIGHUP)

    def serves() -> bool:
        assert is_locked(lock)
        assert is_locked(journal)
        return mount.serves_as_successor_of(before)

    wait_for("another one serves", serves, pause_s=0.002)
    assert mount.read("a") == digest(b"content")


def test_one_that_is_stuck_is_ended_and_its_successor_answers(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill: Any, tmp_path: Path
) -> None:
    """After ten times as many looks a second as there are otherwise."""
    data = content("waiting", 3 * MIB)
    fill({"a": data})
    mount = mounting.make(
        f"s3://{bucket}", endpoint_url=proxy.endpoint, keeper=True, forked=False,
        expected_logs=[DIED, "the event loop has not turned", "the event loop is stuck", "the daemon is stuck"],
    )  # fmt: skip
    mount.python = other_version(
        tmp_path / "stuck", "9.8.6",
        {"daemon/main.py": (RELOADS, f"{RELOADS}                time.sleep(100000)\n"),
         "fuse/watchdog.py": ("\nCHECK_S = 1.0\n", "\nCHECK_S = 0.1\n")},
    )  # fmt: skip
    mount.mount()
    assert mount.do("list", str(mount.path)) == ["a"]
    proxy.only(lambda request: request.method == "GET" and "list-type" not in request.query)
    proxy.set(hold=True)
    reader = mount.reader()
    reader.send("file", f"{mount.path}/a")
    wait_for("the reader waits", reader.waits_for_fuse)
    before = mount.pid
    os.kill(before, signal.SIGHUP)
    wait_for("it is stuck", lambda: "the event loop has not turned" in mount.log())
    later = mount.reader()
    later.send("file", f"{mount.path}/a")
    wait_for("its successor serves", lambda: mount.serves_as_successor_of(before))
    proxy.clear()
    assert reader.take() == later.take() == digest(data)
    log = mount.log()
    assert "it is in luxfuse.daemon.main._reload_on_hangup:" in log
    assert "while the event loop does not turn: " in log
    assert log.count("the daemon is stuck, and is ended") == mount.status()["restarts"] == 1


def test_without_a_keeper_a_daemon_that_fails_leaves_no_mount(
    mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    put(s3, bucket, "a", b"content")
    mount = mounting.make(
        f"s3://{bucket}", endpoint_url=s3.endpoint, forked=False, expected_logs=["the daemon ends", "ZeroDivisionError"]
    )
    mount.python = other_version(tmp_path / "failing", "9.8.6", FAILS_AT_SIGHUP)
    mount.mount()
    assert mount.read("a") == digest(b"content")
    keeper, daemon = mount.keeper_pid, mount.pid
    os.kill(keeper, signal.SIGKILL)
    wait_for("it is dead", lambda: not mount.status()["keeper"])
    os.kill(daemon, signal.SIGHUP)
    wait_for("it is taken away", lambda: not mount.mounted)
    wait_for("it ends", lambda: not Path(f"/proc/{daemon}").exists())
    assert mount.mount().mounted


def test_a_daemon_that_cannot_end_has_a_successor(
    mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str, tmp_path: Path
) -> None:
    """One of its threads waits inside the kernel for a directory that a program has locked, which waits for an answer."""
    put(s3, bucket, "d/a", OLD)
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "cache-through", endpoint_url=proxy.endpoint, keeper=True, expected_logs=[DIED]
    )
    assert do(mount, 'assert os.listdir("d") == ["a"] and open("d/a", "rb").read()')
    proxy.only(lambda request: request.method == "PUT")
    proxy.set(latency_s=60)
    program = Program(mount, "os.mkdir('d/made')")
    program.begin()
    wait_for("it waits for the store", program.waits_for_fuse)
    put(s3, bucket, "d/a", NEW)
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(mount.cli, "refresh", mount.path / "d")
        dead, keeper = mount.pid, mount.keeper_pid
        wait_for("the kernel is told to forget", lambda: waits_for_a_lock(dead))
        proxy.clear()
        os.kill(dead, signal.SIGKILL)
        wait_for("a successor", lambda: mount.serves_as_successor_of(dead))
        program.await_step()
        program.end()
        refreshed.result()
    wait_for("it ends, and the keeper has noticed", lambda: not Path(f"/proc/{dead}").exists())
    assert (mount.keeper_pid, mount.status()["restarts"]) == (keeper, 1)
    assert mount.read("d/a") == digest(NEW)
    assert len(list(mount.cache.iterdir())) == 1, "it goes on in the same cache directory"


def test_the_mount_of_a_plain_user_goes_with_its_daemon(
    mounting: Mounts, plain_user: None, s3: FastS3, bucket: str
) -> None:
    put(s3, bucket, "a", b"content")
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, plain_user=True, expected_logs=["the daemon died .* mount again"]
    )
    assert mount.read("a") == digest(b"content")
    status = mount.status()
    assert (status["keeper"], status["keeper_reason"]) == (False, "only mounts of root have one")
    mount.kill_daemon()
    wait_for("it is taken away", lambda: not mount.mounted)
    assert mount.error("file", f"{mount.path}/a") == "ENOENT"
    assert mount.mount().read("a") == digest(b"content")


OLD_KERNEL = ["setarch", "--uname-2.6"]
"""A command in front of one that is to see a kernel of before 6.9."""


@pytest.fixture
def guarded(mounting: Mounts, s3: FastS3, bucket: str) -> Mount:
    """A mount of root on a kernel that does not send requests again, by what it says."""
    put(s3, bucket, "a", b"content")
    mount = mounting.make(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint, forked=False,
        expected_logs=["the daemon died .* mount again"],
    )  # fmt: skip
    mount.prefix = OLD_KERNEL
    return mount.mount()


def test_on_an_older_kernel_the_mount_of_root_goes_with_its_daemon(guarded: Mount, s3: FastS3, bucket: str) -> None:
    status = guarded.status()
    assert status["keeper"] is False
    assert "does not send requests again; 6.9 and later do" in status["keeper_reason"]
    program = Program(
        guarded,
        "f = os.open('a', os.O_RDONLY); open('closed', 'w').write('x')",
        "try: open('a').read()\nexcept OSError as exc: assert exc.errno == errno.ENOTCONN, exc\nelse: raise SystemExit(1)",
    )
    program.step()
    guard = parent_of(guarded.pid)
    guarded.kill_daemon()
    wait_for("it is taken away", lambda: not guarded.mounted)
    wait_for("the guard ends", lambda: not Path(f"/proc/{guard}").exists())
    program.step()
    program.end()
    assert guarded.try_mount().returncode == 0
    assert guarded.read("a") == digest(b"content")
    assert guarded.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == {"a": b"content", "closed": b"x"}


def test_the_guard_passes_signals_on(guarded: Mount) -> None:
    guard = parent_of(guarded.pid)
    os.kill(guard, signal.SIGTERM)
    wait_for("it is unmounted", lambda: not guarded.mounted)
    wait_for("the guard ends", lambda: not Path(f"/proc/{guard}").exists())
    assert not list(guarded.state.glob("mounts/*/mount.json"))


def test_where_the_guard_is_dead_the_next_mount_clears(guarded: Mount) -> None:
    os.kill(parent_of(guarded.pid), signal.SIGKILL)
    assert guarded.read("a") == digest(b"content")
    guarded.kill_daemon()
    assert guarded.mounted
    done = guarded.try_mount()
    assert done.returncode == 0, done.stderr
    assert "taken away" in done.stderr
    guarded.close_readers()
    assert guarded.read("a") == digest(b"content")


KINDS = {"kept": {"keeper": True}, "guarded": {}, "of a plain user": {"plain_user": True}}
"""Mounts, by what goes on, or takes them away, where their daemon dies."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["fails", "is killed"])
def test_a_daemon_that_never_served_leaves_no_mount(
    request: pytest.FixtureRequest, mounting: Mounts, s3: FastS3, bucket: str, kind: str, how: str
) -> None:
    """It had mounted already."""
    put(s3, bucket, "a", b"content")
    if kind == "of a plain user":
        request.getfixturevalue("plain_user")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = ["--http", f"127.0.0.1:{taken.getsockname()[1]}"] if how == "fails" else []
        mount = mounting.make(
            f"s3://{bucket}", endpoint_url=s3.endpoint, forked=False,
            expected_logs=["the daemon died .signal 9.(, and its mount is taken away| before it served)"],
            environment={DIE_AT: "session.mounted"} if how == "is killed" else {}, **KINDS[kind],
        )  # fmt: skip
        if kind == "guarded":
            mount.prefix = OLD_KERNEL
        done = mount.try_mount(*flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert ("Address already in use" if how == "fails" else "the daemon ended before it was ready") in done.stderr
    assert not mount.mounted
    mount.environment.pop(DIE_AT, None)
    assert mount.mount().read("a") == digest(b"content")


def test_in_the_foreground_a_daemon_that_never_served_leaves_no_mount(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint, environment={DIE_AT: "session.mounted"})
    command = [mount.python, "-P", "-m", "luxfuse.cli.main", "mount", mount.source, mount.path, *mount.flags]
    assert mount.run([*command, "--foreground"]).returncode == 1
    assert not mount.mounted


def test_in_the_foreground(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """The command becomes the keeper, and talks to systemd."""
    put(s3, bucket, "a", b"content")
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint, expected_logs=[DIED])
    command = [mount.python, "-P", "-m", "luxfuse.cli.main", "mount", mount.source, mount.path, *mount.flags]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, (tmp_path / "err").open("wb") as err:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        environment = {**mount.environment, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen(
            [*command, "--foreground"], env=environment, stdin=subprocess.DEVNULL, stderr=err, cwd="/"
        )
        try:
            while not systemd.recv(200).startswith(b"READY=1\n"):
                pass
            assert (mount.status()["keeper_pid"], mount.read("a")) == (process.pid, digest(b"content"))
            mount.replaced()
            assert mount.read("a") == digest(b"content")
            mount.close_readers()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
            assert not mount.mounted
        finally:
            process.kill()
    said = (tmp_path / "err").read_text()
    assert "the daemon died (signal 9)" in said
    assert "unmounting on SIGTERM" in said


def test_the_keeper_dies(kept: Mount, s3: FastS3, bucket: str) -> None:
    put(s3, bucket, "a", b"content")
    os.kill(kept.keeper_pid, signal.SIGKILL)
    assert kept.read("a") == digest(b"content")
    kept.kill_daemon()
    assert kept.error("file", f"{kept.path}/a") == "ENOTCONN"
    assert mounts.find_mount(str(kept.path)) is not None
    done = kept.cli("mount", kept.source, kept.path, *kept.flags)
    assert done.returncode == 0, done.stderr
    assert "taken away" in done.stderr
    assert kept.read("a") == digest(b"content")


def test_the_keeper_of_a_line_in_fstab_dies(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> None:
    """Nobody starts it again; mount(8), as for any line, clears what is dead and takes everything up."""
    put(s3, bucket, "a", b"content")
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
    options = f"_netdev,cache_dir={mount.cache},endpoint_url={s3.endpoint},write_mode=async-through"
    (tmp_path / "fstab").write_text(f"{mount.source} {mount.path} fuse.luxfuse {options} 0 0\n")
    helper = [mount.python, "-P", "-m", "luxfuse.cli.main", mount.source, mount.path, "-o", options]
    mount.run(helper, check=True)
    assert do(mount, 'write("closed", os.O_CREAT, b"x")')
    os.kill(mount.keeper_pid, signal.SIGKILL)
    wait_for("it says so", lambda: "it has died" in str(mount.status()["keeper_reason"]))
    assert mount.read("a") == digest(b"content")
    mount.kill_daemon()
    assert mount.error("file", f"{mount.path}/a") == "ENOTCONN"
    mount.close_readers()
    mount.run(["mount", "-a", "-T", tmp_path / "fstab"], check=True)  # it sees a mount, and runs nothing
    assert mount.error("file", f"{mount.path}/a") == "ENOTCONN"
    mount.close_readers()
    done = mount.run(helper, check=True)
    assert "taken away" in done.stderr
    assert mount.read("a") == digest(b"content")
    assert mount.status()["keeper"] is True
    assert mount.unmount().returncode == 0
    assert bucket_files(s3.bucket_path(bucket)) == {"a": b"content", "closed": b"x"}


def test_signals_are_passed_on(kept: Mount) -> None:
    keeper = kept.keeper_pid
    os.kill(keeper, signal.SIGTERM)
    wait_for("it is unmounted", lambda: not kept.mounted)
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())
    assert not list(kept.state.glob("mounts/*/mount.json")), json.dumps("the record is removed")


@pytest.mark.parametrize("also", ["it ends", "it dies, too"])
def test_told_to_end_while_the_daemon_is_dead(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, also: str) -> None:
    """As systemd may: the successor ends the mount, or the keeper takes it away. No dead mount stays."""
    once = tmp_path / "once"
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: "recover.committed", DIE_ONCE: str(once)},
    )  # fmt: skip
    put(s3, bucket, "a", OLD)
    assert mount.read("a") == digest(OLD)
    keeper = mount.keeper_pid
    if also == "it dies, too":
        once.touch()
    os.kill(keeper, signal.SIGSTOP)
    mount.kill_daemon()
    os.kill(keeper, signal.SIGTERM)
    os.kill(keeper, signal.SIGCONT)
    wait_for("the keeper ends", lambda: not Path(f"/proc/{keeper}").exists())
    assert not mount.mounted
    assert not once.exists()
    if also == "it ends":
        assert not list(mount.state.glob("mounts/*/mount.json"))
