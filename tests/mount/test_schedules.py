"""Programs that tell the mount which files they open next: real processes on a real mount of a cache that is too small."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import new_bucket
from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, Mount, Mounts, content, digest, put, wait_for

FILES, FILE_BYTES = 240, 60_000

Program = Callable[[str], "subprocess.Popen[str]"]

HEAD = """
import hashlib, json, multiprocessing, os, random, sys, time
from luxfuse.training import ScheduledSampler, in_order, teller, told
teller.DEADLINE_S = 120  # on a busy machine a daemon may take long to answer
root = sys.argv[1]
paths = sorted(os.path.join(d, n) for d, _, names in os.walk(root) for n in names)
def read(path):
    with open(path, "rb") as f:
        data = f.read()
    return os.path.relpath(path, root), [len(data), hashlib.sha256(data).hexdigest()]
"""

ITERATED = """
for seed in range(2):
    random.Random(seed).shuffle(paths)
    print(json.dumps(dict(read(path) for path in in_order(paths))), flush=True)
    sys.stdin.readline()
"""

TOLD = """
order = list(range(len(paths)))
random.Random(3).shuffle(order)
with told(paths, order), multiprocessing.get_context("fork").Pool(4) as pool:
    print(json.dumps(dict(pool.map(read, [paths[i] for i in order], chunksize=4))), flush=True)
"""

LOADED = """
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
class Files(Dataset):
    def __len__(self):
        return len(paths)
    def __getitem__(self, i):
        return read(paths[i])
if __name__ == "__main__":
    data = Files()
    for rank in (0, 1):
        sampler = ScheduledSampler(DistributedSampler(data, 2, rank), paths)
        loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=2, persistent_workers=True, collate_fn=dict)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            print(json.dumps({k: v for batch in loader for k, v in batch.items()}), flush=True)
"""

LEFT = """
walk = in_order(paths)
read(next(walk))
child = os.fork()
if child == 0:
    time.sleep(600)  # it has all descriptors of its parent
    os._exit(0)
print(child, flush=True)
if sys.stdin.readline().strip() == "close":
    walk.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def mount(s3: FastS3) -> Iterator[Mount]:
    """A mount with a cache for a third of what is in the bucket."""
    bucket = new_bucket(s3)
    for name, data in files().items():
        put(s3, bucket, name, data)
    mounts = Mounts()
    try:
        yield mounts(f"s3://{bucket}", "--cache-size", str(FILES * FILE_BYTES // 3), endpoint_url=s3.endpoint)
    finally:
        mounts.close()


def files() -> dict[str, bytes]:
    return {f"class{n % 5}/image{n:03}.bin": content(n, FILE_BYTES) for n in range(FILES)}


@pytest.fixture
def program(mount: Mount) -> Iterator[Program]:
    """Starts a program on the mount, with the mount's environment."""
    started: list[subprocess.Popen[str]] = []

    def start_one(text: str) -> subprocess.Popen[str]:
        started.append(start(mount, text))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def start(mount: Mount, text: str) -> subprocess.Popen[str]:
    """Start a program on a mount, with the mount's environment."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HEAD + text, mount.path], stdin=subprocess.PIPE, text=True, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=mount.environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines_of(process: subprocess.Popen[str], count: int) -> list[dict[str, list[object]]]:
    out, err = process.communicate("\n" * count, timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, ""), err
    return [json.loads(line) for line in out.splitlines()]


def test_what_is_told_is_there_when_it_is_opened(mount: Mount, program: Program) -> None:
    expected = {name: digest(data) for name, data in files().items()}
    for text, count in ((ITERATED, 2), (TOLD, 1)):
        before = mount.status()
        assert lines_of(program(text), count) == [expected] * count
        after = mount.status()
        fetched = after["cache"]["scheduled_files"] - before["cache"]["scheduled_files"]
        gets = after["understore"]["gets"] - before["understore"]["gets"]
        # How many is the processors' affair: a program that does nothing with what it reads overtakes.
        assert fetched > 0, "without being told none would be"
        assert gets <= count * FILES, "nothing is evicted before it is opened"
        promptly = sum(after["fuse"][way] - before["fuse"][way] for way in ("fast_opens", "waited_opens"))
        assert promptly > fetched / 2, "the lanes answer the opens"
        ways = ("passthrough_opens", "dataplane_opens", "copied_opens")
        assert sum(after["reads"][way] - before["reads"][way] for way in ways) == count * FILES, "each is counted once"
        wait_for("the end of the schedule", lambda: mount.status()["cache"]["schedules"] == 0)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (the extra luxfuse[torch])")
def test_a_data_loader_with_workers_and_a_distributed_sampler(mount: Mount, program: Program) -> None:
    expected = {name: digest(data) for name, data in files().items()}
    before = mount.status()
    shares = lines_of(program(LOADED), 0)
    assert [len(share) for share in shares] == [FILES // 2] * 4
    for epoch in (0, 1):  # of each, both ranks have all of it
        assert shares[epoch] | shares[2 + epoch] == expected
    after = mount.status()
    fetched = after["cache"]["scheduled_files"] - before["cache"]["scheduled_files"]
    assert fetched > 0, "how many is the processors' affair, as above"
    wait_for("the end of the schedule", lambda: mount.status()["cache"]["schedules"] == 0)


@pytest.mark.parametrize("how", ["close", "kill"])
def test_nothing_is_fetched_for_a_program_that_has_left(mount: Mount, program: Program, how: str) -> None:
    process = program(LEFT)
    assert process.stdin is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert mount.status()["cache"]["schedules"] == 1
        if how == "close":
            process.stdin.write("close\n")
            process.stdin.flush()
            assert process.stdout.readline() == "closed\n"
        else:
            process.kill()
            process.wait(PATIENCE_S)
            os.kill(child, signal.SIGKILL)  # as DataLoader's workers end when they miss their parent
        wait_for("the end of the schedule", lambda: mount.status()["cache"]["schedules"] == 0)
    finally:
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)


def test_a_daemon_that_is_started_again_is_told_the_rest(
    mounting: Mounts, bucket: str, s3: FastS3, fill: Callable[..., None]
) -> None:
    """And a mount that goes away does not end the program."""
    fill(files())
    mount = mounting(f"s3://{bucket}", "--cache-size", str(FILES * FILE_BYTES // 3), endpoint_url=s3.endpoint)
    text = """
from luxfuse.training import teller
teller.AGAIN_S = 0.1
seen = []
for n, path in enumerate(in_order(paths)):
    if n in (100, 200):  # the daemon that there is by then is told before the latter
        print(n, flush=True)
        sys.stdin.readline()
    seen.append(read(path))
print(json.dumps(dict(seen)), flush=True)
"""
    process = start(mount, text)
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "100\n"
        mount.remount()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "200\n"
        wait_for("the rest is fetched", lambda: mount.status()["cache"]["scheduled_files"])
        out, err = process.communicate("\n", timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert err.count("files are not fetched ahead") == 1
    assert json.loads(out) == {name: digest(data) for name, data in files().items()}
