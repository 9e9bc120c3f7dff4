"""``--suite dlio``: how many accelerators DLIO finds busy on one mount, with MLPerf Storage's workloads.

DLIO reads as training does (PyTorch's loader, or TensorFlow's for TFRecord) and sleeps for the time that an accelerator
would compute; utilisation is the part of the time that it computes. An accelerator is a process of an MPI run; the figure
is the largest number of them whose utilisation is at the workload's threshold, of those tried. Samples of unet3d and
cosmoflow are smaller than MLPerf's, and there are fewer files, as this disk and these processors are smaller.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import processes
from tests.bench.cold import Fresh
from tests.bench.processes import Failed
from tests.bench.results import Row
from tests.bench.systems import Mounted, System, program
from tests.bench.trials import LATENCY_MS, Size, drop_caches

PYTHON = os.environ.get("BENCH_DLIO_PYTHON", sys.executable)
RUNNER = str(Path(__file__).with_name("dlio_run.py"))
ACCELERATORS = {"full": (1, 2, 4), "small": (1,)}
GENERATE_TIMEOUT_S, RUN_TIMEOUT_S = 900.0, 240.0
JPEG_BYTES = 322_957
JPEG_PIXELS = 579_000  # DLIO's random pixels take 0.556 bytes each; the file is then filled up
GENERATE = ("++workload.workflow.generate_data=True", "++workload.workflow.train=False")
LATENCIES = (0, LATENCY_MS)
STATES = ("cold", "warm")


@dataclass(frozen=True)
class Workload:
    """``base`` is a configuration of DLIO, ``settings`` what differs from it; ``loader``: the module that reads."""

    name: str
    base: str
    loader: str
    files: dict[str, int]
    settings: dict[str, object]

    def overrides(self, size: Size, folder: Path, output: Path) -> list[str]:
        settings = {
            "workflow.checkpoint": False, "train.epochs": 1, "output.folder": output, "dataset.data_folder": folder,
            "dataset.num_files_train": self.files[size.name], **self.settings,
        }  # fmt: skip
        return [
            f"workload={self.base}",
            *(f"++workload.{key}={value}" for key, value in settings.items()),
            f"hydra.run.dir={output}",
        ]


WORKLOADS = (
    Workload("unet3d", "unet3d_h100", "torch", {"full": 112, "small": 28},
             {"dataset.record_length": 146_600_628 // 16, "dataset.record_length_stdev": 68_341_808 // 16}),
    Workload("resnet50", "resnet50_h100", "tensorflow", {"full": 8, "small": 2}, {}),
    Workload("cosmoflow", "cosmoflow_h100", "tensorflow", {"full": 2_000, "small": 400},
             {"dataset.record_length": 2_828_486 // 8, "dataset.record_length_stdev": 71_311 // 8}),
    Workload("retinanet", "unet3d_h100", "torch", {"full": 960, "small": 192},
             {"model": "retinanet", "dataset.format": "jpeg", "dataset.record_length": JPEG_PIXELS,
              "dataset.record_length_stdev": 0, "dataset.record_length_resize": JPEG_PIXELS, "reader.batch_size": 24,
              "reader.read_threads": 8, "train.computation_time": 0.04755, "metric.au": 0.85}),
)  # fmt: skip


def _key(workload: Workload, state: str, latency_ms: int) -> str:
    return f"{workload.name}-{state}" + (f"-{latency_ms}ms" if latency_ms else "")


def rows(size: Size) -> list[Row]:
    found = []
    for latency_ms in LATENCIES:
        for workload in WORKLOADS:
            for state in STATES:
                key, slow = _key(workload, state, latency_ms), f", {latency_ms} ms" if latency_ms else ""
                most = ACCELERATORS[size.name][-1]
                found.append(Row(key, f"{state}{slow}: DLIO {workload.name}", f"accelerators of {most}"))
                found.append(Row(f"{key}-au", f"{state}{slow}: DLIO {workload.name}, 1 accelerator", "% busy"))
    return found


def fill(bucket: Path, size: Size, keys: set[str], work: Path) -> set[str]:
    """Has DLIO make the data sets that the rows read; the names of their directories."""
    wanted = [workload for workload in WORKLOADS if any(key.startswith(workload.name) for key in keys)]
    _check({workload.loader for workload in wanted})
    names = set()
    for workload in wanted:
        overrides = workload.overrides(size, bucket / workload.name, work / "dlio")
        _run(workload, [*overrides, *GENERATE], 1, GENERATE_TIMEOUT_S)
        (bucket / workload.name / "valid" / ".keep").touch()  # DLIO lists it, and a bucket has no empty directories
        names.add(workload.name)
    for image in (bucket / "retinanet").glob("train/*.jpeg"):
        with image.open("ab") as out:
            out.truncate(max(JPEG_BYTES, out.tell()))
    return names


def _check(loaders: set[str]) -> None:
    for module in ("dlio_benchmark", "mpi4py", "torch", *sorted(loaders - {"torch"})):
        found = subprocess.run(
            [PYTHON, "-c", f"import importlib.util as u, sys; sys.exit(u.find_spec('{module}') is None)"], check=False
        )
        if found.returncode:
            raise Failed(f"{PYTHON} has no {module}: see tests/bench/README.md, and set BENCH_DLIO_PYTHON")
    program("mpirun")


def _run(workload: Workload, overrides: list[str], accelerators: int, timeout_s: float) -> None:
    quiet = {
        **os.environ,
        "BENCH_DLIO_LOADER": workload.loader,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    }
    command = [
        program("mpirun"), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", str(accelerators),
        PYTHON, RUNNER, *overrides,
    ]  # fmt: skip
    processes.run(command, timeout_s=timeout_s, env=quiet)


class Dlio(Fresh):
    """The rows of this suite."""

    long_trial_s = math.inf

    def run(self) -> None:
        for latency_ms in LATENCIES:
            systems = [s for s in self._some("native") if s.mounts or not latency_ms]
            for workload in WORKLOADS:
                keys = [_key(workload, state, latency_ms) for state in STATES]
                self._trials(
                    [*keys, *(f"{key}-au" for key in keys)], systems,
                    lambda s, workload=workload, latency_ms=latency_ms: self._workload(s, workload, latency_ms), 1,
                )  # fmt: skip

    def _workload(self, system: System, workload: Workload, latency_ms: int) -> dict[str, float]:
        """More and more accelerators, each number on a fresh mount, until they are not busy enough."""
        figures = {_key(workload, state, latency_ms): 0.0 for state in STATES}
        for accelerators in ACCELERATORS[self.size.name]:
            busy = False
            with self._cold(system, workload.name, latency_ms):
                for state in STATES:
                    key = _key(workload, state, latency_ms)
                    used, enough = self._train(system, workload, accelerators)
                    if accelerators == 1:
                        figures[f"{key}-au"] = used
                    if enough and (accelerators == 1 or figures[key]):
                        figures[key], busy = float(accelerators), True
            if not busy:
                break
        return figures

    @contextmanager
    def _cold(self, system: System, name: str, latency_ms: int) -> Iterator[None]:
        with self._fresh(system, name, latency_ms):
            if not isinstance(system, Mounted):
                drop_caches()  # what the server's memory holds is native's own
            yield

    def _train(self, system: System, workload: Workload, accelerators: int) -> tuple[float, bool]:
        """How much of the time the accelerators computed, in per cent, and whether that is enough."""
        output = self.work / "dlio"
        shutil.rmtree(output, ignore_errors=True)
        _run(workload, workload.overrides(self.size, system.path / workload.name, output), accelerators, RUN_TIMEOUT_S)
        metric = json.loads((output / "summary.json").read_text())["metric"]
        return metric["train_au_mean_percentage"], metric["train_au_meet_expectation"] == "success"
