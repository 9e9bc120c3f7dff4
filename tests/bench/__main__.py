"""``python -m tests.bench``: luxfuse beside the local disk, the raw driver, rclone, s3fs and JuiceFS, in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from tests.bench.mounts import ALL
from tests.bench.processes import Failed
from tests.bench.suites import SUITES, Run, available, start
from tests.bench.systems import program
from tests.bench.table import show
from tests.bench.trials import SIZES
from tests.support import fast_s3

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TRIALS = {
    "dlio": "One trial each, systems taken in turn.",
    "published": "Best of 3 trials (size small: 1), systems taken in turn; no more for one that took over 10 s.",
    "table": "Best of 3 cold, 3 writing or 5 warm trials (size small: 1, 1, 3), systems taken in turn; no more for one "
    "that took over 10 s (writing: 40 s).",
}
NOTES = (
    "Cold: remounted with an empty cache, kernel caches dropped, then the server's files read once so that it is fast.",
    "Warm: read once through the same mount before. Server: nginx on loopback, sharing this machine's processors.",
    "'<' and '>': cut off at the time limit, the true figure is worse. Memory: VmHWM of the daemon and its children.",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="table", help="default: table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, trial by trial")
    parser.add_argument("--only", metavar="NAME,...", help="rows whose name starts so; --list shows the names")
    parser.add_argument("--systems", metavar="NAME,...", help="default: " + ",".join(s.name for s in ALL))
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--dir", type=Path, help="work on this disk (default: the temporary directory)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    arguments = parser.parse_args()
    rows = SUITES[arguments.suite].rows(SIZES[arguments.size])
    for name in (arguments.only or "").split(","):
        if not any(row.key.startswith(name) for row in rows):
            parser.error(f"--only: no row of this suite begins with {name!r}; --list prints them")
    for name in (arguments.systems or ALL[0].name).split(","):
        if name not in {kind.name for kind in ALL}:
            parser.error(f"--systems: {name!r} is none of " + ", ".join(kind.name for kind in ALL))
    return arguments


def _ignore_signals() -> None:
    """From now on nothing interrupts the cleaning up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupted(number: int, frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def version(name: str, *arguments: str) -> str:
    try:
        out = subprocess.run([program(name), *arguments], capture_output=True, text=True, timeout=20, check=True)
        return (out.stdout or out.stderr).strip().splitlines()[0]
    except (Failed, OSError, IndexError, subprocess.SubprocessError):
        return "missing"


def load() -> str:
    """The machine's load average of the last minute: figures of a busy machine say little."""
    return f"{os.getloadavg()[0]:.1f}"


def environment(work: Path) -> dict[str, str]:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join(["tests.bench", *sys.argv[1:]]),
        "load before": load(), "kernel": platform.release(),
        "cpus": str(len(os.sched_getaffinity(0))), "disk": kind.stdout.strip(), "rclone": version("rclone", "version"),
        "s3fs": version("s3fs", "--version"), "juicefs": version("juicefs", "--version"),
        "fio": version("fio", "--version"),
        "luxfuse": version("luxfuse", "--version"),
    }  # fmt: skip


def report(run: Run, arguments: argparse.Namespace, facts: dict[str, str], absent: list[str]) -> None:
    facts["seconds"], facts["load after"] = f"{run.seconds:.0f}", load()
    title = f"luxfuse bench, {arguments.suite}, size {arguments.size}: "
    title += ", ".join(f"{name} {facts[name]}" for name in ("kernel", "cpus", "disk"))
    versions = "; ".join(facts[name] for name in ("rclone", "s3fs", "juicefs"))
    names = [kind.name for kind in run.kinds]
    how = f"{versions}; {facts['seconds']} s, load {facts['load before']} before, {facts['load after']} after"
    show(run.rows.values(), names, title, [TRIALS[arguments.suite], *NOTES, how, *absent])
    if arguments.json:
        document = {"environment": facts, "left out": absent, "rows": [row.as_json() for row in run.rows.values()]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def measure(arguments: argparse.Namespace, work: Path) -> None:
    only = arguments.only.split(",") if arguments.only else [""]
    kinds, absent = available(arguments.systems.split(",") if arguments.systems else [s.name for s in ALL])
    facts = {**environment(work), "suite": arguments.suite, "size": arguments.size}
    run = start(arguments.suite, arguments.size, lambda key: key.startswith(tuple(only)), kinds)
    try:
        run.measure(work)
    finally:
        report(run, arguments, facts, absent)


def main() -> int:
    arguments = parse()
    if arguments.list:
        rows = SUITES[arguments.suite].rows(SIZES[arguments.size])
        print("\n".join(f"{row.key:20} {row.title}" for row in rows))
        return 0
    reason = fast_s3.available() or (None if os.geteuid() == 0 else "must be root, to drop caches and to mount")
    if reason is not None:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    for number in SIGNALS:
        signal.signal(number, _interrupted)
    work = Path(tempfile.mkdtemp(prefix="luxfuse-bench-", dir=arguments.dir)).resolve()
    try:
        measure(arguments, work)
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        _ignore_signals()
        if any(str(work) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            print(f"bench: a mount below {work} could not be removed", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
