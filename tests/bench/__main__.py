"""``python -m tests.bench``: luxfuse beside the local disk, the raw driver, rclone and s3fs, in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from tests.bench import workloads, writes
from tests.bench.processes import Failed
from tests.bench.results import Goal, Row, Value
from tests.bench.systems import ALL, BUCKET, System, program
from tests.bench.table import show
from tests.bench.trials import SIZES, Size
from tests.bench.workloads import Reads, create_data
from tests.bench.writes import Writes
from tests.support import fast_s3

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOTES = (
    "Best of 3 cold, 3 writing or 5 warm trials (size small: 1, 1, 3), systems taken in turn; no more for one that took "
    "over 10 s (writing: 40 s).",
    "Cold: remounted with an empty cache, kernel caches dropped, then the server's files read once so that it is fast.",
    "Warm: read once through the same mount before. Server: nginx on loopback, sharing this machine's processors.",
    "'<' and '>': cut off at the time limit, the true figure is worse. Memory: VmHWM of the daemon and its children.",
)


def rows_of(size: Size) -> list[Row]:
    memory = Row("memory", "daemon's peak memory, all runs", "MB", (Goal(300),), True)
    return [*workloads.rows_of(size), *writes.rows_of(size), memory]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, trial by trial")
    parser.add_argument("--only", metavar="NAME,...", help="rows whose name starts so; --list shows the names")
    parser.add_argument("--systems", metavar="NAME,...", help="default: " + ",".join(s.name for s in ALL))
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--dir", type=Path, help="work on this disk (default: the temporary directory)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    return parser.parse_args()


def _interrupted(number: int, frame: FrameType | None) -> None:
    for one in SIGNALS:  # a second one must not interrupt the cleaning up
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def version(name: str, *arguments: str) -> str:
    try:
        out = subprocess.run([program(name), *arguments], capture_output=True, text=True, timeout=20, check=True)
        return (out.stdout or out.stderr).strip().splitlines()[0]
    except (Failed, OSError, IndexError, subprocess.SubprocessError):
        return "missing"


def environment(work: Path) -> dict[str, str]:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "kernel": platform.release(),
        "cpus": str(len(os.sched_getaffinity(0))), "disk": kind.stdout.strip(), "rclone": version("rclone", "version"),
        "s3fs": version("s3fs", "--version"), "fio": version("fio", "--version"),
        "luxfuse": version("luxfuse", "--version"),
    }  # fmt: skip


def measure(arguments: argparse.Namespace, work: Path) -> None:
    size = SIZES[arguments.size]
    only = arguments.only.split(",") if arguments.only else None
    chosen = arguments.systems.split(",") if arguments.systems else [s.name for s in ALL]

    def wanted(key: str) -> bool:
        return only is None or any(key.startswith(name) for name in only)

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    started = time.monotonic()
    rows = {row.key: row for row in rows_of(size) if wanted(row.key)}
    systems: list[System] = []
    with fast_s3.FastS3(work / "server", buckets=(BUCKET,)) as server:
        try:
            progress("writing the data")
            create_data(server.bucket_path(BUCKET), size, wanted)
            systems += [kind(server, work) for kind in ALL if kind.name in chosen]
            Reads(server, systems, size, rows, progress).run()
            Writes(server, systems, size, rows, progress, work=work).run()
            for system in systems if "memory" in rows else ():
                if system.memory_bytes:
                    rows["memory"].values[system.name] = Value(system.memory_bytes / 1e6)
        finally:
            progress("")
            for system in systems:
                system.stop()
    facts = {**environment(work), "size": arguments.size, "seconds": f"{time.monotonic() - started:.0f}"}
    title = f"luxfuse bench, size {arguments.size}: " + ", ".join(f"{k} {facts[k]}" for k in ("kernel", "cpus", "disk"))
    notes = [*NOTES, f"{facts['rclone']}; {facts['s3fs']}; {facts['seconds']} s"]
    show(rows.values(), [s.name for s in systems], title, notes)
    if arguments.json:
        document = {"environment": facts, "rows": [row.as_json() for row in rows.values()]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def main() -> int:
    arguments = parse()
    if arguments.list:
        print("\n".join(f"{row.key:20} {row.title}" for row in rows_of(SIZES[arguments.size])))
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
    finally:
        if any(str(work) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            print(f"bench: a mount below {work} could not be removed", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
