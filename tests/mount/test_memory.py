"""The daemon's memory, descriptors and threads under many readers at once, and many open files."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import MIB, Mounts, open_paths

LIMIT = 192 * MIB
READERS, FILE_BYTES = 500, MIB
HANDLES, NAMES = 10_000, 500
DESCRIPTORS = 400
THREADS = 240
"""Those of `max-requests` twice, of writes, of lanes, and a few for the disk and the journal."""
SOCKETS = 2 * 64 + 16
"""Those of `max-requests` twice, and a few for commands and the keeper."""
READ = """
import os, sys, threading
go, errors = threading.Event(), []
threading.stack_size(1 << 18)
def read(name):
    go.wait()
    try:
        with open(name, "rb", buffering=0) as file:
            size = 0
            while data := file.read(1 << 20):
                size += len(data)
        assert size == int(sys.argv[3])
    except (OSError, AssertionError) as exc:
        errors.append(f"{name}: {exc!r}")
threads = [threading.Thread(target=read, args=(f"{sys.argv[1]}/cold{i}",)) for i in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
go.set()
for thread in threads:
    thread.join()
print(len(errors), *errors[:2])
"""
HOLD = """
import os, resource, sys
count, names = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
fds = [os.open(f"{sys.argv[1]}/small{i % names}", os.O_RDONLY) for i in range(count)]
print(sum(len(os.pread(fd, 100, 0)) for fd in fds), flush=True)
sys.stdin.read()
"""


def peak_bytes(pid: int) -> int:
    """The most memory of its own that a process had, with the pages of files that it has mapped."""
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("VmHWM")) * 1024  # fmt: skip


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(path.startswith("socket:") for path in open_paths(pid))


@pytest.mark.parametrize(
    "options",
    [{}, {"passthrough": "off", "dataplane": "off", "whole_file_threshold": "0"}],
    ids=["whole files", "copied"],
)
def test_readers_and_handles_stay_inside_the_limit(
    mounting: Mounts, s3: FastS3, bucket: str, options: dict[str, str]
) -> None:
    """With fewer descriptors than files are open."""
    objects = s3.root / bucket
    for number in range(READERS):
        with (objects / f"cold{number}").open("wb") as file:
            file.truncate(FILE_BYTES)
    for number in range(NAMES):
        (objects / f"small{number}").write_bytes(b"x" * 100)
    mount = mounting(
        f"s3://{bucket}", "--memory-limit", f"{LIMIT >> 20}MiB", "--cache-size", "200MiB", endpoint_url=s3.endpoint,
        options=options,
    )  # fmt: skip
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    most = 0
    reading = [mount.python, "-c", READ, str(mount.path), str(READERS), str(FILE_BYTES)]
    with subprocess.Popen(reading, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, sockets(mount.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        assert process.stdout.read() == "0\n"
    assert 0 < most <= SOCKETS
    assert peak_bytes(mount.pid) <= LIMIT
    holding = [mount.python, "-c", HOLD, str(mount.path), str(HANDLES), str(NAMES)]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{100 * HANDLES}\n"
        assert peak_bytes(mount.pid) <= LIMIT
        assert len(os.listdir(f"/proc/{mount.pid}/fd")) < DESCRIPTORS
        assert len(os.listdir(f"/proc/{mount.pid}/task")) < THREADS
        process.communicate()
