"""The prolog and the epilog of examples/slurm, as slurmd runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from luxfuse.fuse import mountpoint
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import PATIENCE_S, PROGRESS, STILL, free, wait_for

SCRIPTS = Path(__file__).parents[2] / "examples/slurm"


class Slurmd:
    """Runs them for jobs."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "mnt"
        (base / "bin").mkdir()
        self.told = base / "told"
        self.give_up_after(60)
        self._command("logger", f'echo "$@" >>{self.told}')
        kept = {name: os.environ[name] for name in ("TMPDIR", "HOME") if name in os.environ}
        self.environment = kept | {
            "PATH": f"{base / 'bin'}:/usr/bin:/bin", "CONFIGS": str(base / "configs"), "ROOT": str(self.root),
            "JOBS": str(base / "jobs"), "LUXFUSE_STATE_DIR": str(base / "state"), "LUXFUSE_CACHE_DIR": str(base / "cache"),
        }  # fmt: skip

    def _command(self, name: str, script: str) -> None:
        command = self.base / "bin" / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)

    def give_up_after(self, seconds: int) -> None:
        """Have `luxfuse unmount` give up after so long without progress."""
        program = f"import sys; from luxfuse.cli import main, unmount; unmount.STALLED_S = {seconds}; sys.exit(main.main())"
        self._command("luxfuse", f'exec {sys.executable} -P -c "{program}" "$@"')

    def configure(self, bucket: str, endpoint: str) -> str:
        """Describe a mount for all jobs; returns the settings."""
        (self.base / "configs").mkdir()
        settings = f'source = "s3://{bucket}"\nendpoint_url = "{endpoint}"\nwrite_mode = "async-through"\n'
        (self.base / "configs/data.toml").write_text(settings + '[storage_options]\nkey = "test"\nsecret = "test-secret"\n')
        return settings

    def run(self, script: str, job: int | None, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {} if job is None else {"SLURM_JOB_ID": str(job)}
        return subprocess.run([SCRIPTS / script], capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd="/",
                              env=self.environment | given | environment)  # fmt: skip

    def mounted(self) -> list[str]:
        return [
            Path(m.mountpoint).name for m in mountpoint.read_mounts() if mountpoint.is_inside(m.mountpoint, str(self.root))
        ]


def said(outcome: subprocess.CompletedProcess[str]) -> list[str]:
    """What is on stderr, but for what commands say while they take long."""
    return [line for line in outcome.stderr.splitlines() if not STILL.match(line) and not PROGRESS.fullmatch(line)]


def done(outcome: subprocess.CompletedProcess[str]) -> bool:
    assert (outcome.returncode, said(outcome)) == (0, [])
    return True


def test_a_mount_is_there_from_the_first_job_of_a_node_to_its_last(
    s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({"a": b"a"})
    slurmd = Slurmd(tmp_path)
    settings = slurmd.configure(bucket, s3.endpoint)
    try:
        assert "SLURM_JOB_ID" in slurmd.run("prolog.sh", None).stderr
        for job in (1, 1, 2):
            assert done(slurmd.run("prolog.sh", job))
        data = slurmd.root / "data"
        written = subprocess.run(
            ["sh", "-ec", f"cat {data}/a; printf one > {data}/one"], capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert (written.returncode, written.stdout) == (0, b"a")
        for _ in range(2):
            assert done(slurmd.run("epilog.sh", 1))
            assert slurmd.mounted() == ["data"]
            assert (s3.bucket_path(bucket) / "one").read_bytes() == b"one"
        # A job whose mount cannot be made: its node is drained, or it starts without.
        (tmp_path / "others").mkdir()
        (tmp_path / "others/bad.toml").write_text(settings + "colour = 1\n")
        failed = slurmd.run("prolog.sh", 3, CONFIGS=str(tmp_path / "others"))
        assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, "luxfuse prolog, job 3: not mounted: bad")
        assert slurmd.run("prolog.sh", 3, CONFIGS=str(tmp_path / "others"), REQUIRED="no").returncode == 0
        assert done(slurmd.run("epilog.sh", 3))
        assert slurmd.mounted() == ["data"], "job 2 is still there"
        for _ in range(2):
            assert done(slurmd.run("epilog.sh", 2))
        assert slurmd.mounted() == []
    finally:
        for name in slurmd.mounted():
            free(str(slurmd.root / name))


def test_a_job_ends_though_the_store_takes_nothing(s3: FastS3, bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    slurmd = Slurmd(tmp_path)
    slurmd.configure(bucket, proxy.endpoint)
    data, kept = slurmd.root / "data", s3.bucket_path(bucket) / "one"
    try:
        assert done(slurmd.run("prolog.sh", 1))
        proxy.only(lambda request: request.method in ("PUT", "POST"))
        proxy.set(error_probability=1.0, error_status=403)
        subprocess.run(["sh", "-ec", f"printf one > {data}/one"], timeout=PATIENCE_S, check=True)
        slurmd.give_up_after(1)
        ended = slurmd.run("epilog.sh", 1)
        assert ended.returncode == 0, "the node is not drained"
        text = f"job 1: {data} stays mounted, or has changes that are not in the store"
        why, last = said(ended)
        assert "still not in the under-store, without progress for 1 s" in why
        assert last == f"luxfuse epilog, {text}"
        assert slurmd.told.read_text() == f"-t luxfuse-epilog {text}\n"
        assert (slurmd.mounted(), kept.exists()) == (["data"], False)
        assert list((tmp_path / "jobs/data").iterdir()) == [], "no job waits for it"
        slurmd.give_up_after(60)
        proxy.clear()
        wait_for("it is uploaded", lambda: kept.exists() and kept.read_bytes() == b"one")
        # The next job of the node finds the mount there, and takes it away.
        assert done(slurmd.run("prolog.sh", 2))
        assert done(slurmd.run("epilog.sh", 2))
        assert slurmd.mounted() == []
    finally:
        proxy.clear()
        for name in slurmd.mounted():
            free(str(slurmd.root / name))
