"""A storm: processes work on a mount while its daemon is killed, its store fails, and its disk fills up."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.storm import plan as plans
from tests.storm.calls import Settings
from tests.storm.files import content
from tests.storm.report import Report, Sample, StormMount, logged, sample, stuck, taken
from tests.storm.verdict import ALWAYS, WITHOUT_KEEPER, Call, Window, allowed_by, judge
from tests.support.disks import Disk
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, REPOSITORY, free, put

SHARED = {f"s{number}": 1000 * 3**number for number in range(9)} | {"large": 9 * MIB}
DISK_BYTES = 512 * MIB
CACHE_BYTES = 192 * MIB
REQUEST_TIMEOUT_S = 5.0
ROOM_TIMEOUT_S = 3.0
DEADLINE_S = 3 * REQUEST_TIMEOUT_S
"""A call may make several requests one after the other, each of which has ``request-timeout``."""
MEMORY_BYTES = 256 * MIB
OWN_BYTES = 112 * MIB
"""What a daemon needs beside its ``memory-limit`` (M6)."""
SAMPLE_S = 0.5
END_S = 120.0
FORGOTTEN_S = 60.0
"""For how long cache files that a kill has cost may be in the index."""


class Storm:
    """One storm on one mount."""

    def __init__(self, seed: int, plan: plans.Plan, base: Path, *, keeper: bool, mode: str, workers: int = 8,
                 options: dict[str, str] | None = None) -> None:  # fmt: skip
        self.seed, self.plan, self.base, self.keeper, self.mode, self.workers = seed, plan, base, keeper, mode, workers
        self.options = options or {}
        self.windows: list[Window] = []
        self.wrong: list[str] = []
        self.samples: list[Sample] = []
        self.kills = 0
        self.faults: Counter[str] = Counter()
        self.ended = threading.Event()
        self.zero = 0.0
        self.said = ""
        """The daemon's log."""

    # -- the whole

    def run(self) -> Report:
        """Let it happen."""
        with FastS3(buckets=("bucket",)) as s3, FaultProxy(s3.endpoint, seed=self.seed) as proxy, self.disk() as disk:
            self.s3, self.proxy, self.small = s3, proxy, disk
            for name, size in SHARED.items():
                put(s3, "bucket", f"shared/{name}", content(f"shared {name}", size))
            put(s3, "bucket", "common/first", b"first")
            self.mount = StormMount(
                "s3://bucket", "--write-mode", self.mode, "--free-space-ratio", "0", endpoint_url=proxy.endpoint,
                keeper=self.keeper, cache_dir=disk.path / "cache", forked=False,
                options={
                    "request_timeout": f"{REQUEST_TIMEOUT_S:g}s", "room_timeout": f"{ROOM_TIMEOUT_S:g}s",
                    "cache_size": CACHE_BYTES, "memory_limit": MEMORY_BYTES, "metadata_ttl": "10s", **self.options,
                },
            )  # fmt: skip
            try:
                self.mount.mount()
                return self.weather()
            finally:
                self.ended.set()
                self.said = self.mount.log()
                self.mount.expected_logs.append("")
                self.mount.close()

    @contextmanager
    def disk(self) -> Iterator[Disk]:
        """The cache disk."""
        made = Disk(self.base)
        with made.image.open("r+b") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", made.image], check=True)
        made.attach()
        try:
            yield made
        finally:
            made.detach(lazily=True)

    def weather(self) -> Report:
        """Work and break things, then let all end."""
        self.zero = time.monotonic()
        processes = [self.start(number) for number in range(self.workers)]
        tracks = [
            threading.Thread(target=self.guarded, args=(track,), name=track.__name__)
            for track in (self.kill_daemons, self.break_store, self.fill_disk, self.watch)
        ]
        for track in tracks:
            track.start()
        self.until(self.plan.seconds)
        for track in tracks[:-1]:
            track.join(END_S)
        for number in range(self.workers):
            (self.base / f"worker{number}" / "stop").touch()
        self.await_workers(processes)
        self.ended.set()
        tracks[-1].join(END_S)
        events = self.events()
        self.judge(events)
        self.at_the_end(events)
        return Report(self.seed, self.wrong, self.counted(events))

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
                process.wait(10)
                continue
            if process.returncode:
                self.wrong.append(f"worker {number} ended with {process.returncode}: {(directory / 'said').read_text()}")

    def events(self) -> list[dict[str, Any]]:
        """All that the workers told."""
        found = []
        for number in range(self.workers):
            with suppress(FileNotFoundError):
                lines = (self.base / f"worker{number}" / "events").read_text().splitlines()
                found += [json.loads(line) for line in lines]
        return found

    # -- what is broken

    def until(self, at: float) -> bool:
        """Wait until so many seconds after the beginning; whether the storm still is."""
        return not self.ended.wait(max(0.0, self.zero + at - time.monotonic()))

    @contextmanager
    def window(self, kind: str) -> Iterator[None]:
        """Something is broken for the block."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.windows.append(Window(kind, begin, time.monotonic()))

    def kill_daemons(self) -> None:
        """Kill daemons; without a keeper, mount again."""
        for lives in self.plan.kills:
            kill_at = time.monotonic() - self.zero + lives
            if kill_at > self.plan.seconds or not self.until(kill_at):
                return
            with self.window("kill"):
                before = self.mount.pid
                try:
                    if self.keeper:
                        self.mount.kill_daemon()
                    else:
                        self.mount.kill()
                except AssertionError as exc:
                    raise AssertionError(f"{exc}: {stuck(before)}") from exc
                self.kills += 1
                if self.keeper:
                    self.await_successor(before)
                else:
                    self.mount_again()

    def await_successor(self, before: int) -> None:
        give_up_at = time.monotonic() + 60
        while not self.mount.serves_as_successor_of(before):
            if time.monotonic() > give_up_at:
                raise AssertionError(f"no successor within a minute\n{self.mount.log()[-3000:]}")
            time.sleep(0.05)

    def mount_again(self) -> None:
        """Mount until that works: during an outage it may be refused."""
        give_up_at = time.monotonic() + 90
        while True:
            done = self.mount.try_mount(timeout_s=60)
            if done.returncode == 0:
                return
            self.faults["mount refused"] += 1
            if time.monotonic() > give_up_at:
                raise AssertionError(f"cannot be mounted again: {done.stderr}")
            time.sleep(0.2)

    def break_store(self) -> None:
        """Let the under-store fail."""
        for each in self.plan.store:
            if not self.until(each.at):
                return
            self.faults[each.what] += 1
            with self.window(plans.WINDOWS.get(each.what, "store")):
                self.break_it(each.what)
                self.until(each.at + each.seconds)
                self.proxy.clear()
                self.proxy.outage(False)
                self.s3.set(rate_bytes_s=0)

    def break_it(self, what: str) -> None:
        """Break the store in one way."""
        match what:
            case "errors":
                self.proxy.set(error_probability=0.6, error_status=500)
            case "throttled":
                self.proxy.set(error_probability=0.6, error_status=503)
            case "refused":
                self.proxy.outage(True)
            case "black hole":
                self.proxy.set(hold=True)
            case "slow":
                self.proxy.set(latency_s=1.0)
            case "resets":
                self.proxy.set(reset_probability=0.5)
            case "truncated":
                self.proxy.set(truncate_probability=0.5)
            case "stalled":
                self.proxy.set(stall_probability=0.4)
            case "trickle":
                self.s3.set(rate_bytes_s=1000)
            case "forbidden":
                self.proxy.set(error_probability=1.0, error_status=403)

    def fill_disk(self) -> None:
        """Let somebody else fill the cache disk, and remove that again."""
        for each in self.plan.disk:
            if not self.until(each.at):
                return
            self.faults["disk full"] += 1
            with self.window("disk"):
                self.small.fill_up()
                self.until(each.at + each.seconds)
                self.small.make_room()

    # -- what is looked at

    def watch(self) -> None:
        """Sample what the daemon takes."""
        while not self.ended.wait(SAMPLE_S):
            with suppress(OSError, StopIteration, ValueError, KeyError, IndexError):
                self.samples.append(sample(self.mount, self.small.path))

    def judge(self, events: list[dict[str, Any]]) -> None:
        """Hold what was told against what is allowed."""
        allowed = ALWAYS if self.keeper else ALWAYS | WITHOUT_KEEPER
        self.allowed: Counter[str] = Counter()
        calls = [Call(e["worker"], e["verb"], e["name"], e["error"], e["begin"], e["end"]) for e in events if "verb" in e]
        for call in calls:
            if call.error and (why := allowed_by(call, self.windows, allowed)):
                self.allowed[f"{os.strerror(call.error)} ({why})"] += 1
        found = [
            f"at {e['end'] - self.zero:.2f} s, worker {e['worker']}: {e['wrong']}" for e in events if "wrong" in e
        ]  # fmt: skip
        self.wrong += found
        self.wrong += judge(calls, self.windows, allowed, deadline_s=DEADLINE_S, zero=self.zero)
        most = max((s.memory for s in self.samples), default=0)
        if most > MEMORY_BYTES + OWN_BYTES:
            self.wrong.append(f"the daemon took {most >> 20} MiB")

    def at_the_end(self, events: list[dict[str, Any]]) -> None:
        """All is brought up: the bucket has what the workers saw last, and nothing is left over."""
        if not self.mount.mounted:
            self.wrong.append("nothing is mounted at the end")
            return
        if said := self.check():
            self.wrong.append(f"check: {said}")
        done = self.mount.unmount(timeout_s=90)
        if done.returncode:
            self.wrong.append(f"unmount: {done.stderr}")
            return
        root = self.s3.bucket_path()
        for event in events:
            for name, digest in event.get("files", {}).items():
                if event["steps"] is None:
                    continue
                path = root / name
                if not path.is_file():
                    self.wrong.append(f"the bucket lacks {name}")
                elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                    self.wrong.append(f"the bucket has other bytes of {name}")
        known = {name for event in events for name in event.get("files", {})}
        stray = [
            str(p.relative_to(root)) for p in root.glob("w*/[!.]*") if p.is_file() and str(p.relative_to(root)) not in known
        ]  # fmt: skip
        if stray:
            self.wrong.append(f"the bucket has what nobody has: {stray[:20]}")
        left = [p.name for p in self.mount.cache.glob("*/staging/[0-9a-f]*")]
        if left:
            self.wrong.append(f"staging files are left: {left[:10]}")
        aside = [path.name for path in self.mount.state.glob("recovered/*/*")]
        # Without a keeper a kill leaves files that were never closed (R3); with one, those whose close failed (R6).
        failed = {event["name"] for event in events if event.get("error")}
        strange = [name for name in aside if urllib.parse.unquote(name.rsplit(".", 2)[0]) not in failed]
        if self.keeper and strange:
            self.wrong.append(f"set aside, though no call about it has failed: {strange[:10]}")
        self.aside = len(aside)

    def check(self) -> str:
        """Say what `luxfuse check` finds. After a kill, missing cache files are forgotten in the background (R8)."""
        give_up_at = time.monotonic() + FORGOTTEN_S
        while True:
            done = self.mount.cli("check", self.mount.path, timeout_s=60)
            problems = done.stdout.splitlines()[:-1] if done.returncode else []
            missing = [line for line in problems if line.endswith("its cache file is missing")]
            if not done.returncode:
                return ""
            if not self.kills or missing != problems or time.monotonic() > give_up_at:
                return f"{done.stdout} {done.stderr}"
            time.sleep(1)

    def counted(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures."""
        ends = [e for e in events if "files" in e]
        longest: dict[str, float] = {}
        for end in ends:
            for verb, seconds in end["longest"].items():
                longest[verb] = max(longest.get(verb, 0.0), seconds)
        kills = [w.end - w.begin for w in self.windows if w.kind == "kill"]
        return {
            "keeper": self.keeper, "write mode": self.mode, "seconds": self.plan.seconds, "kills": self.kills,
            "longest without a daemon": f"{max(kills, default=0):.2f} s", "faults": dict(self.faults),
            "requests that failed": dict(self.proxy.injected()), "steps": sum(e["steps"] for e in ends),
            "calls": sum(sum(e["made"].values()) for e in ends), "errors that are allowed": dict(self.allowed),
            "longest calls": {v: f"{s:.1f}" for v, s in sorted(longest.items(), key=lambda i: -i[1])[:6]},
            "set aside": getattr(self, "aside", None), "log": logged(self.mount.log()), **taken(self.samples),
        }  # fmt: skip
