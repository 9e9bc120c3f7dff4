"""The examples: the quickstart, and those of examples/training and examples/tables where their packages are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = {
    "training/images.py": (["torch", "numpy", "PIL"], "epoch 2: "),
    "training/shards.py": (["torch", "numpy"], "epoch 2: "),
    "training/tokens.py": (["torch", "numpy"], "4000000 tokens"),
    "training/checkpoints.py": (["torch"], "epoch 2: loss"),
    "training/tfrecords.py": (["tensorflow"], "epoch 2: 2000 samples"),
    "tables/with_pandas.py": (["pandas", "pyarrow"], "'Ulm': 1498500"),
    "tables/with_pyarrow.py": (["pyarrow"], "[1, 4, 7] 3000"),
    "tables/with_duckdb.py": (["duckdb"], "'Ulm': 1498500"),
    "tables/with_dask.py": (["dask", "pandas", "pyarrow"], "'Ulm': 1498500"),
    "tables/with_ray.py": (["ray", "pyarrow"], "3000 4498500"),
    "tables/with_spark.py": (["pyspark"], "0: 1498500"),
}
"""The packages that each needs, and what it prints."""


def test_every_example_is_run() -> None:
    there = {str(path.relative_to(EXAMPLES)) for room in ("training", "tables") for path in (EXAMPLES / room).glob("*.py")}
    assert there == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_runs_on_a_mount(mounting: Mounts, proxy: FaultProxy, bucket: str, name: str, tmp_path: Path) -> None:
    packages, expected = RUNS[name]
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    mount = mounting(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint)
    place = f"{mount.path}/{Path(name).stem}"
    environment = {**mount.environment, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    environment["RAY_raylet_start_wait_time_s"] = "300"  # else Ray gives itself 30 s to begin

    def run(*arguments: Any) -> str:
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False, cwd="/")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    if name == "training/images.py":
        run(place, "--generate", "--count", 200)
        printed = run(place, "--num-workers", 1)
    else:
        printed = run(f"{place}.bin" if name == "training/tokens.py" else place)
    if name == "training/checkpoints.py":
        assert "epoch 4: loss" in run(place), "the second run goes on where the first ended"
    assert expected in printed


def test_the_quickstart_runs_and_leaves_nothing(tmp_path: Path) -> None:
    """As it is, but for fewer files, and with the virtualenv and the packages that are here."""
    script = (EXAMPLES / "quickstart.sh").read_text()
    assert "\nfiles=60\n" in script
    (tmp_path / "quickstart.sh").write_text(script.replace("\nfiles=60\n", "\nfiles=6\n"))
    (tmp_path / "bootstrap.sh").write_text(f'VENV="{sys.prefix}"\nbootstrap() {{ test "$*" = demo; }}\n')
    place = tmp_path / "here"
    place.mkdir()
    command = ["bash", str(tmp_path / "quickstart.sh")]
    environment = {**os.environ, "TMPDIR": str(place)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert "every byte is what was put in the bucket" in told
    assert [line.split()[0] for line in told if "MiB/s" in line] == ["cold,", "warm,"]
    assert "passthrough" in done.stdout
    assert list(place.iterdir()) == []
