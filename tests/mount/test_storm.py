"""Daemons are killed again and again under programs that know what they were told: none is told anything wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mount.test_crash import bucket_files
from tests.mount.test_keeper import DIED
from tests.support.fast_s3 import FastS3
from tests.support.mounted import Mounts, wait_for

WORKERS = 4
SEED = int(os.environ.get("LUXFUSE_TEST_SEED", time.time_ns() % 10**9))
PROGRAM = Path(__file__).parents[1] / "support" / "storm.py"


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("async-through", 3),
        ("cache-through", 2),
        pytest.param("async-through", 100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param("cache-through", 100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_no_program_notices_that_daemons_are_killed(
    s3: FastS3, bucket: str, mounting: Mounts, mode: str, kills: int
) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    mount = mounting(
        f"s3://{bucket}", "--write-mode", mode, endpoint_url=s3.endpoint, keeper=True,
        expected_logs=[DIED, "was being written when the last run ended", "is gone; fetching it again"],
    )  # fmt: skip
    seconds = 3.0 * kills
    workers = [
        subprocess.Popen(
            [sys.executable, "-I", PROGRAM, mount.path / f"w{number}", f"{SEED} {number}", str(seconds)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(WORKERS)
    ]  # fmt: skip
    killed = 0
    while killed < kills and all(worker.poll() is None for worker in workers):
        time.sleep(rng.uniform(0.2, 2.0))
        mount.replaced()
        killed += 1
    steps, wanted = 0, dict[str, str]()
    for number, worker in enumerate(workers):
        out, err = worker.communicate(timeout=seconds + 120)
        assert worker.returncode == 0, f"seed {SEED}, worker {number}, after {killed} kills: {err}"
        said = json.loads(out)
        steps += said["steps"]
        wanted |= {f"w{number}/{name}": digest for name, digest in said["files"].items()}
    print(f"{killed} kills, {steps} steps")
    assert mount.status()["restarts"] == killed
    wait_for("all is uploaded", lambda: mount.status()["dirty"]["files"] == 0)
    wait_for("no staging file is left", lambda: not list(mount.cache.glob("*/staging/[0-9a-f]*")))
    assert mount.unmount().returncode == 0
    found = {key: hashlib.sha256(data).hexdigest() for key, data in bucket_files(s3.bucket_path(bucket)).items()}
    empty = {name for name, digest in wanted.items() if digest == hashlib.sha256(b"").hexdigest()}
    assert found == {name: digest for name, digest in wanted.items() if name not in empty}, f"seed {SEED}"
