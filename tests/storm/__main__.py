"""Runs a storm by command: ``python -m tests.storm --help``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.storm import plan
from tests.storm.report import Report
from tests.storm.storm import Storm


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--seconds", type=float, default=3600, help="it ends then, or with the last kill")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kill-every", type=float, default=5, metavar="SECONDS", help="on average")
    parser.add_argument("--keeper", action="store_true")
    parser.add_argument("--mode", default="async-through", choices=("async-through", "cache-through", "must-cache"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--calm", action="store_true", help="the store does not fail")
    parser.add_argument("--plain", action="store_true", help="plain HTTP to an address: no name, TLS or key fails")
    parser.add_argument("--roomy", action="store_true", help="the disk does not fill up")
    parser.add_argument("--soak", action="store_true", help="break nothing, and see what grows")
    parser.add_argument("--log", help="a copy of the daemon's log")
    parser.add_argument(
        "--keep", type=Path, help="a directory for what the cause of a wrong answer is found from; traces the mount"
    )
    parser.add_argument("-o", dest="options", default="", help="options of the mount")
    given = parser.parse_args()
    if given.soak:
        given.kills, given.calm, given.roomy = 0, True, True
    return given


def storm(given: argparse.Namespace) -> Report:
    """Run one as the command line says."""
    store = () if given.calm else plan.STORE if given.plain else plan.STORE + plan.GUARDS
    drawn = plan.draw(
        given.seed, given.seconds, kills=given.kills, kill_every_s=given.kill_every, store=store, disk=not given.roomy,
    )  # fmt: skip
    options = dict(option.split("=", 1) for option in given.options.split(",") if option)
    with tempfile.TemporaryDirectory(prefix="storm-") as base:
        made = Storm(
            given.seed, drawn, Path(base), keeper=given.keeper, mode=given.mode, workers=given.workers, options=options,
            trace=given.keep is not None,
        )  # fmt: skip
        try:
            return made.run()
        finally:
            if given.log:
                Path(given.log).write_text(made.said)
            if given.keep and made.evidence.kept.exists():
                shutil.copytree(made.evidence.kept, given.keep, dirs_exist_ok=True)


if __name__ == "__main__":
    given = arguments()
    print(f"seed {given.seed}", flush=True)
    report = storm(given)
    print(report)
    sys.exit(bool(report.wrong))
