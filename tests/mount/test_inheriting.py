"""Of several mounts of one source and cache directory, a successor goes on with just what its own mount had."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.mount.test_crash import bucket_files
from tests.mount.test_keeper import DIED, Program
from tests.mount.test_systemd import kill_all, service
from tests.support.fake_systemd import FakeSystemd
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.locks import is_locked
from tests.support.mounted import Mount, Mounts, content, digest, put, wait_for
from tests.support.versions import other_version

X, Y = content("x", 200_000), content("y", 200_000)
WRITES = "open('{0}', 'wb').write(b'{0}' * 50000)"
READS = """
assert os.stat('x').st_ino == os.fstat(f).st_ino == number and number != os.stat('y').st_ino
for x in (open('x', 'rb').read(), os.pread(f, 200001, 0)):
    assert hashlib.sha256(x).hexdigest() == sys.argv[2]
assert open('two', 'rb').read() == b'two' * 50000 and sorted(os.listdir('.')) == ['two', 'x', 'y']
"""


class Pair:
    """Two mounts with one state and one cache directory, whose second has a program. Nothing is uploaded before `upload`.

    What the first has written, and not uploaded, is left in its directories, which are free then, and come first.
    """

    def __init__(self, mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str) -> None:
        self._proxy = proxy
        self.objects = s3.bucket_path(bucket)
        put(s3, bucket, "x", X)
        put(s3, bucket, "y", Y)
        proxy.only(lambda request: request.method == "PUT")
        proxy.set(error_probability=1.0)
        flags = f"s3://{bucket}", "--write-mode", "async-through"
        self.one = mounting(*flags, endpoint_url=proxy.endpoint, keeper=True, expected_logs=[DIED])
        self.two = mounting(*flags, endpoint_url=proxy.endpoint, keeper=True, expected_logs=[DIED], beside=self.one)
        for mount, names in ((self.one, "xy"), (self.two, "yx")):  # their indexes give the numbers of inodes in this order
            for name in names:
                mount.read(name)
        writer = Program(self.one, WRITES.format("one"))
        writer.step()
        writer.end()
        begin = f"{WRITES.format('two')}; f = os.open('x', os.O_RDONLY); number = os.fstat(f).st_ino"
        self.program = Program(self.two, begin, READS, READS, arguments=[str(digest(X)[1])])
        self.program.step()
        assert self.one.unmount("--force").returncode == 0
        wait_for("the first directory is free", lambda: self.locked() == [False, True])

    def locked(self) -> list[bool]:
        return [is_locked(slot / "lock") for slot in sorted(self.one.cache.iterdir())]

    def upload(self) -> None:
        """All that was written comes to the store, each by the mount that it was written in."""
        self._proxy.clear()
        assert self.two.unmount().returncode == 0
        assert bucket_files(self.objects) == {"x": X, "y": Y, "two": b"two" * 50000}
        done = self.one.cli("mount", self.one.source, self.one.path, *self.one.flags, check=True)
        assert "the last run left 1 changed file" in done.stderr
        assert self.one.unmount().returncode == 0
        assert bucket_files(self.objects) == {"x": X, "y": Y, "two": b"two" * 50000, "one": b"one" * 50000}


@pytest.fixture
def pair(mounting: Mounts, proxy: FaultProxy, s3: FastS3, bucket: str) -> Pair:
    return Pair(mounting, proxy, s3, bucket)


def test_after_a_kill_and_an_upgrade(pair: Pair) -> None:
    pair.two.replaced()
    assert pair.locked() == [False, True]
    pair.program.step()
    before = pair.two.pid
    command = [sys.executable, "-P", "-m", "luxfuse.cli.main", "upgrade", pair.two.path]
    pair.two.run(command, check=True)
    assert pair.two.serves_as_successor_of(before)
    assert pair.locked() == [False, True]
    pair.program.step()
    pair.program.end()
    pair.upload()


def slots_in_use(mount: Mount) -> list[bool]:
    return [is_locked(slot / "lock") for slot in sorted(mount.cache.iterdir())]


def test_attached(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    """What is attached by two mounts; and what a successor attaches has to be there, as what its predecessor attached."""
    (s3.root / f"{bucket}-more").mkdir()
    for name, data in (("x", X), ("y", Y)):
        put(s3, f"{bucket}-more", name, data)
    flags = f"s3://{bucket}", "--write-mode", "must-cache"
    one = mounting(*flags, endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED])
    two = mounting(*flags, endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED], beside=one)
    for mount, names in ((one, "xy"), (two, "yx")):
        mount.cli("attach", f"s3://{bucket}-more", mount.path / "more", "--endpoint-url", s3.endpoint, check=True)
        for name in names:
            mount.read(f"more/{name}")
    begin = f"os.chdir('more'); {WRITES.format('two')}; f = os.open('x', os.O_RDONLY); number = os.fstat(f).st_ino"
    program = Program(two, begin, READS, arguments=[str(digest(X)[1])])
    program.step()
    assert one.unmount().returncode == 0
    in_use = slots_in_use(one)
    assert in_use in ([False, False, True, True], [False, True, False, True]), "the second slot of each source"
    two.replaced()
    assert slots_in_use(one) == in_use
    program.step()
    program.end()
    done = two.cli("attach", f"s3://{bucket}-missing", two.path / "missing", "--endpoint-url", s3.endpoint)
    assert (done.returncode, "create the bucket or correct its name" in done.stderr) == (1, True), done.stderr
    two.cli("detach", two.path / "more", check=True)
    assert sorted(slots_in_use(one)) == [False, False, False, True]
    assert two.unmount().returncode == 0


def test_an_index_that_begins_anew_gives_no_number_again(mounting: Mounts, s3: FastS3, bucket: str) -> None:
    """The kernel goes by the numbers that the one before gave."""
    put(s3, bucket, "x", X)
    put(s3, bucket, "y", Y)
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED, "is damaged", "is open"])
    assert mount.read("x") == digest(X)
    program = Program(
        mount,
        "x = os.stat('x').st_ino; d = os.open('.', os.O_RDONLY)",
        "assert os.path.getsize('y') and x not in (os.stat(name).st_ino for name in os.listdir('.'))\n"
        "assert hashlib.sha256(open('x', 'rb').read()).hexdigest() == sys.argv[2]",
        arguments=[str(digest(X)[1])],
    )
    program.step()
    for _ in range(2):
        (index,) = (path for path in mount.state.glob("index/*") if not path.name.endswith(".damaged"))
        (index / "damaged").touch()
        mount.replaced()
    program.step()
    program.end()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_a_service_of_which_all_is_killed(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path, kept: bool) -> None:
    """systemd keeps the locks, so nobody takes the directories in between; else another mount has, and that is seen."""
    put(s3, bucket, "a", b"content")
    flags = f"s3://{bucket}", "--write-mode", "must-cache"
    mount = mounting.make(*flags, endpoint_url=s3.endpoint, expected_logs=["was being written when the last run ended"])
    changes = {"cli/launch.py": ("MOST_DEATHS = 10\n", "MOST_DEATHS = 1\n")}
    mount.python = other_version(tmp_path / "impatient", "9.8.6", changes)
    other = mounting.make(*flags, endpoint_url=s3.endpoint, beside=mount, expected_logs=mount.expected_logs)
    steps = "w = os.open('w', os.O_CREAT | os.O_RDWR); os.write(w, b'a')", "os.write(w, b'b'); os.close(w)"
    with closing(FakeSystemd(tmp_path, most=512 if kept else 3)) as systemd, (tmp_path / "err").open("wb") as err:
        main = systemd.start(service(mount), mount.environment, err)
        try:
            systemd.hear("READY=1")
            program = Program(mount, *steps)
            program.step()
            kill_all(main, mount.pid)
            other.cli("mount", other.source, other.path, *other.flags, check=True)
            assert slots_in_use(mount) == ([True, True] if kept else [True])
            assert other.unmount().returncode == 0
            main = systemd.start(service(mount), mount.environment, err)
            if kept:
                systemd.hear("READY=1")
                program.step()
                program.end()
                assert mount.do("list", str(mount.path)) == ["a", "w"]
                assert slots_in_use(mount) == [True, False]
            else:
                died = "the daemon died 1 times in a row as it began, at last by exit code 1; see the log"
                systemd.hear(f"STATUS=all requests get EIO: {died}")
                assert "has been used by another mount since, so what programs have open" in (tmp_path / "err").read_text()
                assert mount.error("stat", f"{mount.path}/unknown") == "EIO"
                program.kill()
            mount.close_readers()
            main.send_signal(signal.SIGTERM)
            assert main.wait(120) == (0 if kept else 1)
            assert slots_in_use(mount)[0] is False
        finally:
            main.kill()
            main.wait(120)
