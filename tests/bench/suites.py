"""What can be measured in one run: rows, the objects that they read, and the classes that fill them in."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import data, dlio, published, rows
from tests.bench.cold import Cold
from tests.bench.juicefs import VOLUME
from tests.bench.mounts import ALL
from tests.bench.results import Row, Value
from tests.bench.systems import BUCKET, System
from tests.bench.trials import SIZES, Size, Trials
from tests.bench.warm import Warm
from tests.bench.writes import Writes
from tests.support import fast_s3


@dataclass(frozen=True)
class Suite:
    rows: Callable[[Size], list[Row]]
    fill: Callable[[Path, Size, set[str], Path], set[str]]
    """Writes into the bucket what the rows of these names read, and returns the names of what is to be read there."""
    parts: tuple[type[Trials], ...]


SUITES = {
    "table": Suite(rows.table_rows, data.fill, (Warm, Cold, Writes)),
    "published": Suite(published.rows, published.fill, (published.Published,)),
    "dlio": Suite(dlio.rows, dlio.fill, (dlio.Dlio,)),
}


def available(chosen: list[str]) -> tuple[list[type[System]], list[str]]:
    """The chosen systems that this machine has, and a line for each that it has not."""
    kinds = [kind for kind in ALL if kind.name in chosen]
    reasons = {kind: kind.missing() for kind in kinds}
    absent = [f"left out: {kind.name}: {reason}" for kind, reason in reasons.items() if reason is not None]
    return [kind for kind in kinds if reasons[kind] is None], absent


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


@dataclass
class Run:
    """One run of a suite: its rows as far as they were measured, also after it was interrupted."""

    suite: Suite
    size: Size
    rows: dict[str, Row]
    kinds: list[type[System]]
    seconds: float = 0.0

    def measure(self, work: Path) -> None:
        started = time.monotonic()
        systems: list[System] = []
        with fast_s3.FastS3(work / "server", buckets=(BUCKET, VOLUME)) as server:
            try:
                progress("writing the data")
                names = self.suite.fill(server.bucket_path(BUCKET), self.size, set(self.rows), work)
                systems += [kind(server, work) for kind in self.kinds]
                for system in systems:
                    progress(f"preparing {system.name}")
                    system.prepare(names)
                for part in self.suite.parts:
                    part(server, systems, self.size, self.rows, progress, work).run()
            finally:
                progress("")
                for system in systems:
                    system.stop()
                    if system.memory_bytes and "memory" in self.rows:
                        self.rows["memory"].values[system.name] = Value(system.memory_bytes / 1e6)
                self.seconds = time.monotonic() - started


def start(suite: str, size: str, wanted: Callable[[str], bool], kinds: list[type[System]]) -> Run:
    chosen, scale = SUITES[suite], SIZES[size]
    return Run(chosen, scale, {row.key: row for row in chosen.rows(scale) if wanted(row.key)}, kinds)
