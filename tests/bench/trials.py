"""Trials of several systems in turn, and what they found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.processes import Failed, TooSlow
from tests.bench.results import PEERS, SUBJECT, Row, Value
from tests.bench.systems import System
from tests.support.fast_s3 import FastS3

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Size:
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
    "small": Size(128 * MIB, 200, 50, 500, (2_000,), 1.0, 1, 3, 20.0, 1.0, 200, 1_000, 40.0),
    "full": Size(GIB, 2_000, 500, 20_000, (10_000, 100_000), 3.0, 3, 5, 60.0, 8.0, 2_000, 20_000, 240.0),
}


class Trials:
    """Runs measurements of ``systems`` and fills in ``rows``, by their keys."""

    long_trial_s = 10.0  # a system whose trial takes longer, mounting included, gets no further ones

    def __init__(self, server: FastS3, systems: list[System], size: Size, rows: dict[str, Row],
                 progress: Callable[[str], None]) -> None:  # fmt: skip
        self.server = server
        self.systems = systems
        self.size = size
        self.rows = rows
        self.progress = progress

    def _trials(self, keys: list[str], systems: list[System], measure: Callable[[System], dict[str, float]]) -> None:
        """Trials in turn; the best of each figure counts."""
        wanted = [key for key in keys if key in self.rows]
        if not wanted:
            return
        found: dict[str, dict[str, list[float]]] = {s.name: {} for s in systems}
        active = [s for s in systems if not self._skip(s, wanted)]
        all_warm = all("warm" in key or key.startswith("random") for key in wanted)
        for trial in range(self.size.warm_trials if all_warm else self.size.trials):
            for system in list(active):
                self.progress(f"{', '.join(wanted)}: {system.name}, trial {trial + 1}")
                started = time.monotonic()
                try:
                    for key, value in measure(system).items():
                        found[system.name].setdefault(key, []).append(value)
                except (Failed, OSError) as error:
                    active.remove(system)
                    self._note_failure(system, wanted, error)
                if time.monotonic() - started > self.long_trial_s and system in active:
                    active.remove(system)
        for name, figures in found.items():
            for key, trials in figures.items():
                if key in self.rows:
                    self.rows[key].values[name] = Value(self.rows[key].best(trials), tuple(trials))
                    self.rows[key].missing.pop(name, None)

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
        raise NotImplementedError

    def _some(self, *names: str) -> list[System]:
        return [s for s in self.systems if s.name in (*names, *PEERS, SUBJECT)]
