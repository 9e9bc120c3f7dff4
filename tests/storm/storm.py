"""A storm: processes work on a mount while its daemon is killed, its store fails, and its disk fills up."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.storm import plan as plans
from tests.storm.breaks import Breaks
from tests.storm.calls import Settings
from tests.storm.ending import Ending
from tests.storm.evidence import Evidence
from tests.storm.files import content
from tests.storm.guarded import GuardedProxy
from tests.storm.report import Report, Sample, StormMount, errors, logged, sample, taken
from tests.storm.verdict import ALWAYS, WITHOUT_KEEPER, Call, allowed_by, judge
from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, PATIENCE_S, REPOSITORY, free, put

SHARED = {f"s{number}": 1000 * 3**number for number in range(9)} | {"large": 9 * MIB}
GIVEN = {f"shared/{name}": content(f"shared {name}", size) for name, size in SHARED.items()} | {"common/first": b"first"}
DISK_BYTES = 512 * MIB
CACHE_BYTES = 192 * MIB
REQUEST_TIMEOUT_S = 5.0
ROOM_TIMEOUT_S = 3.0
REQUESTS = 3
"""So many requests a call makes one after the other, at most, each of which has ``request-timeout``."""
MEMORY_BYTES = 256 * MIB
OWN_BYTES = 112 * MIB
"""What a daemon needs beside its ``memory-limit`` (M6)."""
SAMPLE_S = 0.5
END_S = 240.0


class Storm:
    """One storm on one mount.

    ``request_timeout_s``: of the mount, and a third of how long a call may take. ``trace``: note what is asked of the
    mount, for what is kept of a wrong answer.
    """

    def __init__(self, seed: int, plan: plans.Plan, base: Path, *, keeper: bool, mode: str, workers: int = 8,
                 request_timeout_s: float = REQUEST_TIMEOUT_S, options: dict[str, str] | None = None,
                 trace: bool = False) -> None:  # fmt: skip
        self.seed, self.plan, self.base, self.keeper, self.mode, self.workers = seed, plan, base, keeper, mode, workers
        self.request_timeout_s, self.trace = request_timeout_s, trace
        self.options = options or {}
        self.allowed_errors = ALWAYS if keeper else ALWAYS | WITHOUT_KEEPER
        self.wrong: list[str] = []
        self.samples: list[Sample] = []
        self.allowed: Counter[str] = Counter()
        self.aside = 0
        self.ended = threading.Event()
        self.said = ""
        """The daemon's log."""

    # -- the whole

    def run(self) -> Report:
        """Let it happen."""
        with (
            FastS3(buckets=("bucket",)) as s3,
            self.front(s3) as proxy,
            Disk(self.base, DISK_BYTES).attached() as disk,
        ):
            self.s3, self.proxy, self.small = s3, proxy, disk
            for key, data in GIVEN.items():
                put(s3, "bucket", key, data)
            flags, environment = (proxy.flags, proxy.environment) if isinstance(proxy, GuardedProxy) else ((), None)
            self.mount = StormMount(
                "s3://bucket", "--write-mode", self.mode, "--free-space-ratio", "0", *flags, endpoint_url=proxy.endpoint,
                keeper=self.keeper, cache_dir=disk.path / "cache", forked=False, environment=environment,
                options={
                    "request_timeout": f"{self.request_timeout_s:g}s", "room_timeout": f"{ROOM_TIMEOUT_S:g}s",
                    "cache_size": CACHE_BYTES, "memory_limit": MEMORY_BYTES, "metadata_ttl": "10s", **self.options,
                },
            )  # fmt: skip
            self.evidence = Evidence(self.base, self.mount, s3.bucket_path(), self.ended)
            try:
                self.mount.mount()
                return self.weather()
            finally:
                self.ended.set()
                self.said = self.mount.log()
                self.mount.expected_logs.append("")
                self.mount.close()

    def front(self, s3: FastS3) -> FaultProxy:
        """What the mount talks to."""
        if self.plan.guarded:
            return GuardedProxy(s3.endpoint, self.base, seed=self.seed)
        return FaultProxy(s3.endpoint, seed=self.seed)

    def weather(self) -> Report:
        """Work and break things, then let all end."""
        self.breaks = Breaks(self.plan, self.mount, self.s3, self.proxy, self.small, keeper=self.keeper)
        processes = [self.start(number) for number in range(self.workers)]
        breaking = self.tracks(self.breaks.kill_daemons, self.breaks.break_store, self.breaks.fill_disk)
        watching = self.tracks(self.watch, *([self.evidence.trace] if self.trace else []))
        if self.plan.kills:
            breaking[0].join(self.plan.seconds)
        else:
            self.breaks.until(self.plan.seconds)
        self.breaks.over.set()
        for track in breaking:
            track.join(END_S)
        for number in range(self.workers):
            (self.base / f"worker{number}" / "stop").touch()
        self.await_workers(processes)
        self.ended.set()
        for track in watching:
            track.join(END_S)
        events = self.events()
        self.wrong += self.judged(events, count=True)
        if self.wrong:
            self.evidence.take(self.wrong)
        self.look_at_the_end(events)
        self.evidence.complete(self.breaks.windows)
        return Report(self.seed, self.wrong, self.counted(events))

    def tracks(self, *tracks: Callable[[], None]) -> list[threading.Thread]:
        """Let these run beside the processes."""
        started = [threading.Thread(target=self.guarded, args=(track,), name=track.__name__) for track in tracks]
        for each in started:
            each.start()
        return started

    def guarded(self, track: Callable[[], None]) -> None:
        """Run a track; what it meets is a finding."""
        try:
            track()
        except BaseException as exc:
            self.wrong.append(f"{track.__name__}: {exc!r}")

    # -- workers

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """Start a worker."""
        directory = self.base / f"worker{number}"
        directory.mkdir()
        settings = Settings(
            str(self.mount.path), str(directory), number, self.workers, self.seed, self.keeper, SHARED
        )  # fmt: skip
        with (directory / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.storm.worker", json.dumps(dataclasses.asdict(settings))],
                cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=said, stderr=said,
            )  # fmt: skip

    def await_workers(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Wait for their end; one that does not end waits for a call."""
        give_up_at = time.monotonic() + END_S
        for number, process in enumerate(processes):
            directory = self.base / f"worker{number}"
            try:
                process.wait(max(0.1, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.wrong.append(f"worker {number} hangs in: {(directory / 'now').read_text().strip()}")
                free(str(self.mount.path))
                process.kill()
                process.wait(PATIENCE_S)
                continue
            if process.returncode:
                self.wrong.append(f"worker {number} ended with {process.returncode}: {(directory / 'said').read_text()}")

    def events(self, told: dict[Path, int] | None = None) -> list[dict[str, Any]]:
        """All that the workers told, beyond what was ``told`` before, in bytes by file."""
        told = {} if told is None else told
        found = []
        for number in range(self.workers):
            path = self.base / f"worker{number}" / "events"
            with suppress(FileNotFoundError):
                whole = path.read_bytes()[told.get(path, 0) :].rpartition(b"\n")[0] + b"\n"
                told[path] = told.get(path, 0) + len(whole) - (whole == b"\n")
                found += [json.loads(line) for line in whole.splitlines() if line]
        return found

    # -- what is looked at

    def watch(self) -> None:
        """Sample what the daemon takes, and keep how everything is when the first wrong answer is told."""
        told: dict[Path, int] = {}
        while not self.ended.wait(SAMPLE_S):
            with suppress(OSError, StopIteration, ValueError, KeyError, IndexError):
                self.samples.append(sample(self.mount, self.small.path))
            if wrong := self.judged(self.events(told)):
                self.evidence.take(wrong)

    def judged(self, events: Sequence[dict[str, Any]], *, count: bool = False) -> list[str]:
        """Hold what was told against what is allowed."""
        windows = list(self.breaks.windows)
        calls = [Call(e["worker"], e["verb"], e["name"], e["error"], e["begin"], e["end"]) for e in events if "verb" in e]
        for call in calls if count else ():
            if call.error and (why := allowed_by(call, windows, self.allowed_errors)):
                self.allowed[f"{os.strerror(call.error)} ({why})"] += 1
        zero = self.breaks.zero
        found = [f"at {e['end'] - zero:.2f} s, worker {e['worker']}: {e['wrong']}" for e in events if "wrong" in e]
        deadline_s = REQUESTS * self.request_timeout_s
        return found + judge(calls, windows, self.allowed_errors, deadline_s=deadline_s, zero=zero)

    def look_at_the_end(self, events: Sequence[dict[str, Any]]) -> None:
        """All is where it was promised to be, nothing failed unforeseen, and memory was bounded."""
        self.wrong += [f"the log: {line}" for line in errors(self.mount.log())]
        most = max((s.memory for s in self.samples), default=0)
        if most > MEMORY_BYTES + OWN_BYTES:
            self.wrong.append(f"the daemon took {most >> 20} MiB")
        end = Ending(
            self.mount, self.s3.bucket_path(), GIVEN, events, keeper=self.keeper, uploaded=self.mode != "must-cache",
            kills=self.breaks.kills,
        )  # fmt: skip
        found = list(end.wrong())
        self.aside = end.aside
        if found:
            self.evidence.take(found)
        self.wrong += found

    def counted(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Figures."""
        ends = [e for e in events if "files" in e]
        longest: dict[str, float] = {}
        for end in ends:
            for verb, seconds in end["longest"].items():
                longest[verb] = max(longest.get(verb, 0.0), seconds)
        kills = [w.end - w.begin for w in self.breaks.windows if w.kind == "kill"]
        return {
            "keeper": self.keeper, "write mode": self.mode, "seconds": self.plan.seconds, "kills": self.breaks.kills,
            "longest without a daemon": f"{max(kills, default=0):.2f} s", "faults": dict(self.breaks.faults),
            "requests that failed": dict(self.proxy.injected()), "steps": sum(e["steps"] for e in ends),
            "calls": sum(sum(e["made"].values()) for e in ends), "errors that are allowed": dict(self.allowed),
            "longest calls": {v: f"{s:.1f}" for v, s in sorted(longest.items(), key=lambda i: -i[1])[:6]},
            "set aside": self.aside, "log": logged(self.mount.log()), **taken(self.samples),
        }  # fmt: skip
