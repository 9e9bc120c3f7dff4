"""``python -m tests.bench.policies``: hit ratios of the eviction policies on made-up traces, beside Belady's optimum."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from luxfuse.core.policies import DEFAULT_POLICY, POLICIES
from tests.bench import policy_traces as traces
from tests.bench.policy_simulation import Random, hit_ratio, optimal_hit_ratio
from tests.bench.policy_traces import Trace

FRACTIONS = tuple(tenths / 10 for tenths in range(1, 10))
OTHERS = ("lru", "lrfu", "random")
OPTIMUM = "optimum"
COLUMNS = (*OTHERS, DEFAULT_POLICY, OPTIMUM)
SCAN_CACHE = 0.2
"""Size of the cache in the scans, as a share of all that is read; the hot set is 0.8 of the cache."""

Goal = Callable[[dict[str, float]], float]


class Row(NamedTuple):
    """One trace with one size of the cache, as a fraction of the bytes of all objects, and the default's goal."""

    name: str
    trace: Trace
    fraction: float
    goal: Goal | None
    goal_text: str = ""

    def ratios(self) -> dict[str, float]:
        """Hit ratios by column."""
        capacity_bytes = int(self.fraction * self.trace.total_bytes)
        makers = {**POLICIES, "random": Random}
        found = {name: hit_ratio(makers[name](), self.trace, capacity_bytes) for name in COLUMNS if name != OPTIMUM}
        found[OPTIMUM] = optimal_hit_ratio(self.trace, capacity_bytes)
        return found


def _share(fraction: float) -> Goal:
    return lambda _ratios: 0.95 * fraction


def _best_of_others(ratios: dict[str, float]) -> float:
    return 0.97 * max(ratios[name] for name in OTHERS)


def rows_of(objects: int, epochs: int, seed: int, fractions: tuple[float, ...] = FRACTIONS) -> Iterator[Row]:
    """All rows, with traces of ``objects`` objects."""
    equal, mixed = traces.equal_sizes(objects), traces.mixed_sizes(objects, seed)
    for name, trace in (
        ("shuffled epochs", traces.shuffled(equal, epochs, seed)),
        ("shuffled epochs, mixed sizes", traces.shuffled(mixed, epochs, seed)),
        ("sequential epochs", traces.sequential(equal, epochs)),
        ("sequential epochs, mixed sizes", traces.sequential(mixed, epochs)),
    ):
        for fraction in fractions:
            yield Row(name, trace, fraction, _share(fraction), "0.95 f")
    for fraction in fractions[::4]:
        trace = traces.another_data_set(objects // 2, epochs, seed)
        yield Row("another data set, from its 4th epoch on", trace, fraction / 2, _share(fraction), "0.95 f of the set")
    reads = 20 * objects
    for name, trace, goal in (
        ("Zipf(0.9)", traces.zipf(equal, reads, seed), _best_of_others),
        ("Zipf(0.9), mixed sizes", traces.zipf(mixed, reads, seed), _best_of_others),
        ("Zipf(0.9), popularity shifts 4 times", traces.zipf(equal, reads, seed, shifts=4), None),
    ):
        for fraction in (0.05, *fractions[::2]):
            yield Row(name, trace, fraction, goal, "0.97 of the best other" if goal else "")
    hot = round(0.8 * SCAN_CACHE * objects)
    for name, beside in (("hot set after a scan", 0), ("hot set during and after a scan", 4)):
        trace = traces.scan(hot, objects - hot, seed, beside=beside)
        yield Row(name, trace, SCAN_CACHE, lambda _ratios: 0.95, "0.95")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policies", description=__doc__)
    parser.add_argument("--objects", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 140)
    title = "hit ratios by bytes ({objects} objects, {epochs} epochs, seed {seed})".format(**vars(arguments))
    table = Table("trace", "cache", *COLUMNS, "goal", title=title)
    missed = 0
    for row in rows_of(arguments.objects, arguments.epochs, arguments.seed):
        ratios = row.ratios()
        verdict = ""
        if row.goal is not None:
            least = row.goal(ratios)
            met = ratios[DEFAULT_POLICY] >= least
            missed += not met
            verdict = f">= {least:.3f} ({row.goal_text}): {'met' if met else 'MISSED'}"
        table.add_row(row.name, f"{row.fraction:.2f}", *(f"{ratios[name]:.3f}" for name in COLUMNS), verdict)
        if sys.stderr.isatty():
            print(row.name, row.fraction, file=sys.stderr)
    console.print(table)
    console.print(f"{missed} goals missed" if missed else "all goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
