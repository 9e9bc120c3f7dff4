"""Trials of several systems in turn, and what they found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import processes
from tests.bench.processes import Failed, TooSlow
from tests.bench.results import PEERS, SUBJECT, Row, Value
from tests.bench.systems import System, program
from tests.support.fast_s3 import FastS3

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FILE_BYTES = 100 * KIB
LATENCY_MS = 20
SETTLE_S = 1.0
READER = str(Path(__file__).with_name("reader.py"))


@dataclass(frozen=True)
class Size:
    name: str
    big_bytes: int
    files: int
    latency_files: int
    load_files: int
    listings: tuple[int, ...]
    random_s: float
    trials: int
    warm_trials: int
    timeout_s: float
    random_write_s: float
    created_files: int
    tree_files: int
    write_timeout_s: float


SIZES = {
    "small": Size("small", 128 * MIB, 200, 50, 500, (2_000,), 1.0, 1, 3, 20.0, 1.0, 200, 1_000, 40.0),
    "full": Size("full", GIB, 2_000, 500, 20_000, (10_000, 100_000), 3.0, 3, 5, 60.0, 8.0, 2_000, 20_000, 240.0),
}


class Trials:
    """Runs measurements of ``systems`` and fills in ``rows``, by their keys; ``work`` is a local directory."""

    long_trial_s = 10.0  # a system whose trial takes longer, mounting included, gets no further ones

    def __init__(self, server: FastS3, systems: list[System], size: Size, rows: dict[str, Row],
                 progress: Callable[[str], None], work: Path) -> None:  # fmt: skip
        self.server = server
        self.systems = systems
        self.size = size
        self.rows = rows
        self.progress = progress
        self.work = work

    def run(self) -> None:
        raise NotImplementedError

    def _trials(self, keys: list[str], systems: list[System], measure: Callable[[System], dict[str, float]],
                trials: int | None = None) -> None:  # fmt: skip
        """Trials in turn; the best of each figure counts."""
        wanted = [key for key in keys if key in self.rows]
        if not wanted:
            return
        found: dict[str, dict[str, list[float]]] = {s.name: {} for s in systems}
        active = [s for s in systems if not self._skip(s, wanted)]
        for trial in range(trials or self.size.trials):
            for system in list(active):
                self.progress(f"{', '.join(wanted)}: {system.name}, trial {trial + 1}")
                started = time.monotonic()
                try:
                    figures = measure(system)
                except (Failed, OSError) as error:
                    active.remove(system)
                    self._note_failure(system, [key for key in wanted if key not in found[system.name]], error)
                else:
                    self._note(system, figures, found[system.name])
                if time.monotonic() - started > self.long_trial_s and system in active:
                    active.remove(system)

    def _note(self, system: System, figures: dict[str, float], earlier: dict[str, list[float]]) -> None:
        """Puts a trial into the rows at once: what is interrupted later is shown, too."""
        for key, value in figures.items():
            each = earlier.setdefault(key, [])
            each.append(value)
            if key in self.rows:
                self.rows[key].values[system.name] = Value(self.rows[key].best(each), tuple(each))
                self.rows[key].missing.pop(system.name, None)

    def _skip(self, system: System, keys: list[str]) -> bool:
        if system.unusable is not None:
            for key in keys:
                self.rows[key].missing[system.name] = system.unusable
        return system.unusable is not None

    def _note_failure(self, system: System, keys: list[str], error: Exception) -> None:
        for key in keys:
            self.rows[key].missing[system.name] = str(error)
            amount = self._amount(key)
            if isinstance(error, TooSlow) and amount is not None:
                lower = self.rows[key].lower_is_better
                self.rows[key].values[system.name] = Value(
                    error.timeout_s if lower else amount / error.timeout_s, bound=True
                )

    def _amount(self, key: str) -> float | None:
        """How much work a row is, in its unit times seconds: what a cut-off trial did not do in its time."""
        return None

    def _some(self, *names: str) -> list[System]:
        return [s for s in self.systems if s.name in (*names, *PEERS, SUBJECT)]

    # commands -------------------------------------------------------------------------------------------------------

    def _reader(self, system: System, kind: str, name: str, *arguments: str, expected_bytes: int) -> dict[str, float]:
        command = [sys.executable, "-I", "-S", READER, kind, str(system.path / name), *arguments]
        return checked(json.loads(processes.run(command, timeout_s=self.size.timeout_s)), expected_bytes)

    def _files(self, system: System, name: str, count: int, readers: int) -> dict[str, float]:
        pids = ",".join(map(str, system.processes()))
        return self._reader(system, "files", name, str(readers), pids, expected_bytes=count * FILE_BYTES)

    def _fio(self, *options: str, timeout_s: float | None = None) -> dict[str, Any]:
        """What fio says of a job."""
        command = [program("fio"), "--output-format=json", *options]
        output = processes.run(command, timeout_s=timeout_s or self.size.timeout_s)
        job: dict[str, Any] = json.loads(output[output.index("{") :])["jobs"][0]
        if job["error"]:
            raise Failed(f"fio: error {job['error']}")
        return job


def checked(result: dict[str, float], expected_bytes: int) -> dict[str, float]:
    if result["bytes"] != expected_bytes:
        raise Failed(f"read {result['bytes']:g} of {expected_bytes} bytes")
    return result


def drop_caches(what: int = 3) -> None:
    """Drops what the kernel has cached; 1: only of files, not their names and attributes."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text(str(what))
    except OSError as error:
        raise Failed(f"cannot drop the kernel's caches: {error}") from None
