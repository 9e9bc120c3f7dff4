"""Test programs and databases on a mount: their own verification, then the same content in the bucket and after it.

The programs of everyday work are in test_program_work.py.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mounts
from tests.support.programs import Stage

Staging = Callable[[str], Stage]


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where a program is missing."""
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def staging(mounting: Mounts, s3: FastS3, bucket: str, tmp_path: Path) -> Staging:
    """Makes a stage: ``staging("async-through")``."""
    return lambda mode: Stage(mounting, s3, bucket, mode, tmp_path)


# -- fio

FIO_JOBS = {
    "random": ["--rw=randwrite", "--bssplit=512/20:4k/50:20k/30", "--ioengine=psync", "--fsync=200"],
    "sequential": ["--rw=write", "--bs=64k", "--ioengine=psync", "--end_fsync=1"],
    "mapped": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
}


@needs("fio")
@pytest.mark.parametrize("mode", ["async-through", "copying"])
def test_fio_reads_back_what_it_wrote(staging: Staging, mode: str) -> None:
    stage = staging(mode)

    def fio(name: str, *options: str) -> None:
        stage.run(
            ["fio", f"--name={name}", f"--directory={stage.path}", "--size=6m", "--numjobs=2", "--verify=crc32c",
             "--verify_fatal=1", "--verify_state_save=0", *FIO_JOBS[name], *options], where=stage.scratch,
        )  # fmt: skip

    for name in FIO_JOBS:
        fio(name, "--do_verify=1")
    assert len(stage.tree()) == 2 * len(FIO_JOBS)
    stage.compare_again()
    for name in FIO_JOBS:
        fio(name, "--verify_only")


# -- stress-ng

STRESSORS = {
    "names": "access chdir chmod chown dentry dir dirdeep dirmany filename mknod rename symlink touch utime xattr",
    "files": "dup fallocate fcntl file-ioctl fpunch fsize fstat hdd inode-flags open seek",
    "sharing": "fiemap flock iomix lease locka lockf lockofd mmap msync readahead sendfile splice sync-file",
}
STRESS_LIMITS = {
    "--chdir-dirs": 200, "--dentries": 200, "--dirdeep-inodes": 500, "--dir-dirs": 500, "--fallocate-bytes": "8m",
    "--hdd-bytes": "8m", "--seek-size": "8m", "--iomix-bytes": "8m", "--sync-file-bytes": "8m", "--mmap-bytes": "4m",
    "--msync-bytes": "4m", "--readahead-bytes": "8m",
}  # fmt: skip


@needs("stress-ng")
@pytest.mark.parametrize(
    ("mode", "group"),
    [*(("async-through", group) for group in STRESSORS), ("copying", "sharing")],
)
def test_stress_ng_finds_nothing_wrong(staging: Staging, mode: str, group: str) -> None:
    stage = staging(mode)
    stressors = [word for name in STRESSORS[group].split() for word in (f"--{name}", "1")]
    limits = [str(word) for pair in STRESS_LIMITS.items() for word in pair]
    stage.run(
        ["stress-ng", "--temp-path", stage.path, "--verify", "--timeout", "2", "--oomable", "--mmap-file", *stressors,
         *limits],
        where=Path("/"),
    )  # fmt: skip
    assert stage.tree() == {}
    stage.compare_again()


# -- dbench


@needs("dbench")
def test_dbench_completes(staging: Staging) -> None:
    stage = staging("async-through")
    out = stage.run(["dbench", "-D", stage.path, "-t", "2", "--skip-cleanup", "3"], where=stage.scratch)
    assert "Throughput" in out
    # Its processes start without a barrier where the machine has no semaphore left.
    assert "fail" not in out.lower().replace("failed 0", "").replace("failed to create barrier semaphore", "")
    assert any("sha256" in entry for entry in stage.tree().values())
    stage.compare_again()


# -- sqlite3

SQLITE = """
import hashlib, os, sqlite3, subprocess, sys
verb, path, journal, *rest = sys.argv[1:]

def connect():
    db = sqlite3.connect(path, timeout=240, isolation_level=None)
    assert db.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
    db.execute("pragma synchronous=full")
    return db

def blob(worker, i):
    return hashlib.sha256(f"{worker}/{i}".encode()).digest() * (1 + i * 7 % 90)

def work(worker, count):
    db = connect()
    for i in range(count):
        db.execute("begin immediate")
        db.execute("insert into rows values (?, ?, ?)", (worker, i, blob(worker, i)))
        db.execute("update total set n = n + 1")
        db.execute("commit")
        if i % 5 == 0:
            db.execute("begin immediate")
            db.execute("delete from rows")
            db.execute("rollback")

def crash():
    # Pages that do not fit into the cache are written before the transaction ends, which it never does.
    db = connect()
    db.execute("pragma cache_size=3")
    db.execute("begin immediate")
    db.execute("update rows set data = zeroblob(length(data) + 900)")
    db.execute("delete from total")
    os._exit(0)

def check(workers, count):
    db = connect()
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert db.execute("select n from total").fetchall() == [(workers * count,)]
    rows = db.execute("select worker, i, data from rows order by worker, i").fetchall()
    assert rows == [(w, i, blob(w, i)) for w in range(workers) for i in range(count)]
    db.close()

if verb == "work":
    work(*map(int, rest))
elif verb == "crash":
    crash()
elif verb == "check":
    check(*map(int, rest))
else:
    workers, count = map(int, rest)
    db = connect()
    db.execute("create table rows (worker integer, i integer, data blob, primary key (worker, i))")
    db.execute("create table total (n integer)")
    db.execute("insert into total values (0)")
    db.close()
    me = [sys.executable, "-I", "-S", "-c", sys.orig_argv[4]]
    running = [subprocess.Popen([*me, "work", path, journal, str(w), str(count)]) for w in range(workers)]
    assert [p.wait() for p in running] == [0] * workers
    subprocess.run([*me, "crash", path, journal], check=True)
    check(workers, count)
"""


@pytest.mark.parametrize(
    ("mode", "journal"),
    [
        ("async-through", "wal"),
        ("cache-through", "truncate"),
        ("copying", "delete"),
        *(
            pytest.param(mode, journal, marks=pytest.mark.slow)
            for mode, journal in (
                ("async-through", "truncate"),
                ("async-through", "delete"),
                ("cache-through", "delete"),
                ("copying", "wal"),
            )
        ),
    ],
)
def test_sqlite_keeps_its_integrity(staging: Staging, mode: str, journal: str) -> None:
    """Several processes write at once, one dies in its transaction; all that was committed is there, nothing else."""
    stage = staging(mode)
    workers, count = (2, 12) if mode == "cache-through" else (4, 40)

    def sqlite(verb: str, root: Path) -> None:
        command = [sys.executable, "-I", "-S", "-c", SQLITE, verb, str(root / "test.db"), journal]
        stage.run([*command, str(workers), str(count)], where=root)

    stage.both(lambda root: sqlite("all", root))
    if shutil.which("sqlite3"):
        dumps = [stage.run(["sqlite3", "test.db", "select worker, i, hex(data) from rows order by 1, 2"], where=root)
                 for root in (stage.local, stage.path)]  # fmt: skip
        assert dumps[0] == dumps[1]
    stage.compare_again()
    sqlite("check", stage.path)
