"""What a storm measures and reports, and the mount that it is made on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.storm.verdict import slope_per_minute
from tests.support.mounted import MIB, Mount

DEATHS = 10**6
"""A keeper gives up after ten deaths without a minute of life between them: here there are more."""
START = (
    "import sys; from luxfuse.cli import launch, main; "
    f"launch.MOST_DEATHS = {DEATHS}; sys.exit(main.main())"
)  # fmt: skip


class StormMount(Mount):
    """A mount whose keeper does not give up."""

    def _start(self, *arguments: Any, timeout_s: float, check: bool = False) -> subprocess.CompletedProcess[str]:
        return self.run([self.python, "-P", "-c", START, *arguments], timeout_s=timeout_s, check=check)


@dataclasses.dataclass
class Sample:
    """What a daemon takes at one time."""

    at: float
    pid: int
    memory: int
    descriptors: int
    threads: int
    disk: int
    kinds: Counter[str]
    """Of the descriptors."""


@dataclasses.dataclass
class Report:
    """What a storm found."""

    seed: int
    wrong: list[str]
    counts: dict[str, Any]

    def __str__(self) -> str:
        shown = "\n".join(f"  {name}: {value}" for name, value in self.counts.items())
        return f"seed {self.seed}\n{shown}\n" + ("\n".join(self.wrong) or "nothing was wrong")


def stuck(pid: int) -> str:
    """Say in which function of the kernel the threads of a process are that does not end."""
    found: Counter[str] = Counter()
    for stack in Path(f"/proc/{pid}/task").glob("*/stack"):  # none where it has ended
        with suppress(OSError):
            calls = [line.split()[-1].partition("+")[0] for line in stack.read_text().splitlines()]
            found[" < ".join(calls[:6])] += 1
    return str(dict(found))


def sample(mount: Mount, disk: Path) -> Sample:
    """Look at a daemon and its disk."""
    pid = mount.pid
    status = Path(f"/proc/{pid}/status").read_text()

    def field(name: str) -> int:
        return int(status.partition(f"\n{name}:")[2].split()[0])

    st = os.statvfs(disk)
    ballast = disk / "ballast"
    others = ballast.stat().st_blocks * 512 if ballast.exists() else 0
    used = (st.f_blocks - st.f_bfree) * st.f_frsize - others
    kinds = descriptors(pid)
    return Sample(time.monotonic(), pid, field("RssAnon") << 10, kinds.total(), field("Threads"), used, kinds)


def descriptors(pid: int) -> Counter[str]:
    """Count the descriptors of a process by what they are."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            kind = next((kind for kind in ("objects", "staging") if f"/{kind}/" in target), target.partition(":")[0])
            gone = " (deleted)" if target.endswith(" (deleted)") else ""
            found[("others" if kind.startswith("/") else kind) + gone] += 1
    return found


def errors(log: str) -> list[str]:
    """Lines of the log that nothing which is broken explains: at ERROR, or not of the log at all."""
    quiet = (" level=debug ", " level=info ", " level=warning ")
    return [line for line in log.splitlines() if line and not any(level in line[:60] for level in quiet)]


def logged(log: str) -> dict[str, int]:
    """Warnings and errors of the log, by their first words."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        level = line.partition(" level=")[2].partition(" ")[0]
        if level not in ("debug", "info"):
            event = line.partition('event="')[2] or line
            found[f"{level or 'no level'} {' '.join(event.split()[:6])}"] += 1
    return dict(found.most_common(12))


def taken(samples: Sequence[Sample]) -> dict[str, str]:
    """What the daemon took, and how that grew, in each half of the time: while caches fill up, and then."""
    named: dict[str, Callable[[Sample], float]] = {
        "memory (MiB)": lambda s: s.memory / MIB, "descriptors": lambda s: s.descriptors, "threads": lambda s: s.threads,
        "disk (MiB)": lambda s: s.disk / MIB,
    }  # fmt: skip
    for kind in sorted({kind for s in samples[len(samples) // 4 :] for kind in s.kinds}):
        named[f"descriptors: {kind}"] = lambda s, kind=kind: s.kinds[kind]  # type: ignore[misc]
    return {name: _growth([(s.at, float(value(s))) for s in samples]) for name, value in named.items()}


def _growth(values: Sequence[tuple[float, float]]) -> str:
    half = len(values) // 2
    most = max((value for _, value in values), default=0)
    first, second = slope_per_minute(values[:half]), slope_per_minute(values[half:])
    return f"{most:.0f} at most, {first:+.2f} and {second:+.2f} a minute in the first and the second half"
