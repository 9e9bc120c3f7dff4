"""The prolog and the epilog of examples/slurm, as slurmd runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from luxfuse.fuse import mountpoint
from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, free

SCRIPTS = Path(__file__).parents[2] / "examples/slurm"


class Slurmd:
    """Runs them for jobs."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "mnt"
        (base / "bin").mkdir()
        command = base / "bin/luxfuse"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m luxfuse.cli.main "$@"\n')
        command.chmod(0o755)
        kept = {name: os.environ[name] for name in ("TMPDIR", "HOME") if name in os.environ}
        self.environment = kept | {
            "PATH": f"{base / 'bin'}:/usr/bin:/bin", "CONFIGS": str(base / "configs"), "ROOT": str(self.root),
            "JOBS": str(base / "jobs"), "LUXFUSE_STATE_DIR": str(base / "state"), "LUXFUSE_CACHE_DIR": str(base / "cache"),
        }  # fmt: skip

    def run(self, script: str, job: int | None, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {} if job is None else {"SLURM_JOB_ID": str(job)}
        return subprocess.run([SCRIPTS / script], capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd="/",
                              env=self.environment | given | environment)  # fmt: skip

    def mounted(self) -> list[str]:
        return [
            Path(m.mountpoint).name for m in mountpoint.read_mounts() if mountpoint.is_inside(m.mountpoint, str(self.root))
        ]


def done(outcome: subprocess.CompletedProcess[str]) -> bool:
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return True


def test_a_mount_is_there_from_the_first_job_of_a_node_to_its_last(
    s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({"a": b"a"})
    slurmd = Slurmd(tmp_path)
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs/data.toml"
    settings = f'source = "s3://{bucket}"\nendpoint_url = "{s3.endpoint}"\nwrite_mode = "async-through"\n'
    config.write_text(settings + '[storage_options]\nkey = "test"\nsecret = "test-secret"\n')
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
