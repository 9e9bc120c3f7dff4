"""What a mount tells of requests: traces, slow ones in the log, and the log's form."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from luxfuse.control import metrics
from luxfuse.control.client import ControlClient, DaemonRefused
from luxfuse.control.status import Status
from luxfuse.core.profile import MUCH
from luxfuse.core.units import format_size
from tests.support.collector import collecting
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import PATIENCE_S, Mount, Mounts, wait_for
from tests.support.watching import Watching
from tests.unit.control.samples import documented, fields

SIZE = 100_000


class Trace:
    """What a trace has told so far."""

    def __init__(self, mount: Mount, path: str = "", pid: int | None = None) -> None:
        self._batches = ControlClient(mount.directory() / "control.sock", PATIENCE_S).trace(path, pid)
        self.events: list[dict[str, Any]] = []
        self.dropped = 0
        self.more()  # from then on everything is told

    def more(self) -> None:
        batch = next(self._batches)
        self.events += batch["events"]
        self.dropped += batch["dropped"]

    def wait_for(self, operation: str, path: str, count: int = 1) -> list[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE_S
        while len(found := [e for e in self.events if e["op"] == operation and e["path"] == path]) < count:
            assert time.monotonic() < deadline, self.events
            self.more()
        return found

    def close(self) -> None:
        self._batches.close()


@pytest.fixture
def traced() -> Iterator[Callable[..., Trace]]:
    made: list[Trace] = []

    def make(*arguments: Any) -> Trace:
        made.append(Trace(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("way", ["passthrough", "dataplane"])
def test_a_trace_tells_who_read_what_from_where(
    s3: FastS3, bucket: str, fill: Callable[..., None], mounting: Mounts, traced: Callable[..., Trace], way: str
) -> None:
    fill({"a/one": os.urandom(SIZE), "b": b"b"})
    passthrough = "on" if way == "passthrough" else "off"
    mount = mounting(f"s3://{bucket}", "--passthrough", passthrough, endpoint_url=s3.endpoint)
    trace = traced(mount)
    mount.read("a/one")
    (cold,) = trace.wait_for("open", "a/one")
    assert cold["program"].startswith("python")
    assert cold.get("uid", 0) == os.getuid()
    assert (cold["bytes"], cold["way"], cold["sources"]) == (SIZE, way, {"store": SIZE})
    assert cold["took_s"] > 0
    mount.read("a/one")
    _, warm = trace.wait_for("open", "a/one", 2)
    assert (warm["bytes"], warm["way"], warm["pid"]) == (SIZE, way, cold["pid"])
    assert "sources" not in warm
    if way == "dataplane":
        # What the lanes did is told in batches.
        while sum(read["sources"]["ssd"] for read in trace.wait_for("read", "a/one")) < SIZE:
            trace.more()
        assert sum(read["sources"]["ssd"] for read in trace.wait_for("read", "a/one")) == SIZE
    assert mount.error("stat", f"{mount.path}/nothing") == "ENOENT"
    assert trace.wait_for("lookup", "nothing")
    number = 0
    while not [event for event in trace.events if event.get("way") == "dataplane" and event["op"] == "lookup"]:
        number += 1
        mount.do("list", str(mount.path))  # from here on the lanes know what is missing
        assert mount.error("stat", f"{mount.path}/no-{number}") == "ENOENT"
        assert trace.wait_for("lookup", f"no-{number}")[0]["error"] == "ENOENT"
    with pytest.raises(DaemonRefused, match="this mount is being traced already"):
        Trace(mount)
    trace.close()
    only = traced(mount, "a", cold["pid"])
    mount.read("b")
    mount.read("a/one")
    only.wait_for("open", "a/one")
    assert {event["path"] for event in only.events} <= {"a", "a/one"}
    for verb, old, new, error in (
        ("rename", "b", "a/b", None), ("rename", "a/one", "two", None), ("link", "two", "a/linked", "EPERM"),
    ):  # fmt: skip
        assert mount.error(f"os.{verb}", f"{mount.path}/{old}", f"{mount.path}/{new}") == error
        assert [(event["to"], event.get("error")) for event in only.wait_for(verb, old)] == [(new, error)]
    assert trace.dropped == only.dropped == 0


TIERS = ("mem", "ssd", "hdd")


def test_what_the_command_prints_is_what_was_done(
    memory: Path, s3: FastS3, bucket: str, fill: Callable[..., None], mounting: Mounts, tmp_path: Path
) -> None:
    """Each line: whose it was, what was asked of which file, how long it took, where the bytes came from."""
    config = tmp_path / "luxfuse.toml"
    config.write_text("".join(f'[[path]]\npattern = "{tier}/**"\ntier = "{tier}"\n' for tier in TIERS))
    fill({f"{tier}/file": os.urandom(4000) for tier in TIERS})
    tiers = [f"{memory}/c,tier=mem,size=20MiB", f"{tmp_path}/hdd,tier=hdd"]
    flags = [part for each in tiers for part in ("--cache-dir", each)]
    mount = mounting(
        f"s3://{bucket}", *flags, "--config", str(config), endpoint_url=s3.endpoint, options={"passthrough": "off"}
    )
    whose = rf"^\d\d:\d\d:\d\d\.\d{{3}} \S+\[\d+\] uid {os.getuid()}"
    took = r"\d[\d.]* (us|ms|s)(, .* in the queue)?"
    with Watching(mount) as watching:
        for tier in TIERS:
            mount.read(f"{tier}/file")
            watching.wait_for(f"{whose} open {tier}/file {took}, dataplane, 3.9 KiB from store")
            watching.wait_for(f"{whose} read {tier}/file 0\\+4000 {took}, dataplane, 3.9 KiB from {tier}")
        mount.do("os.mkdir", f"{mount.path}/made")
        assert mount.error("os.rmdir", f"{mount.path}/ssd") == "ENOTEMPTY"
        mount.do("os.rename", f"{mount.path}/ssd/file", f"{mount.path}/made/here")
        watching.wait_for(f"{whose} mkdir made {took}")
        watching.wait_for(f"{whose} rmdir ssd {took}, ENOTEMPTY")
        watching.wait_for(f"{whose} rename ssd/file -> made/here {took}")
        mount.do("create", f"{mount.path}/made/new")
        watching.wait_for(f"{whose} create made/new {took}")
        watching.wait_for(f"{whose} flush made/new {took}")
        assert watching.found(f"{whose} lookup is it watched {took}.*, ENOENT")


def while_reading(mount: Mount, names: Iterable[str], *command: str) -> str:
    """Run a command while files are read, one after the other; returns what it prints."""
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(mount.cli, *command, str(mount.path), "--seconds", "2", check=True)
        for name in names:
            if ran.done():
                break
            mount.read(name)
    return ran.result().stdout


def line_in(text: str, pattern: str) -> tuple[str, ...]:
    """The groups of the line that a pattern matches the beginning of."""
    found = re.search(f"^{pattern}", text, re.MULTILINE)
    assert found, text
    return found.groups()


def test_sums_and_a_profile(bucket: str, fill: Callable[..., None], mounting: Mounts, proxy: FaultProxy) -> None:
    size, names = 10_000, [str(n) for n in range(600)]  # enough for a command that takes a minute to begin
    fill({name: os.urandom(size) for name in names})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("list", str(mount.path))
    proxy.set(latency_s=0.1)
    profile = while_reading(mount, names, "profile")
    proxy.set(latency_s=0.0)
    requests, processes = map(int, line_in(profile, r".*: watched for [\d.]+ s: (\d+) requests of (\d+) process"))
    assert processes >= 1
    assert float(line_in(profile, r"  the store +([\d.]+) s +\d+%$")[0]) > 0.1
    (fetched,) = map(int, line_in(profile, r"  opens from store +(\d+) +[\d.]+ s, mean \d"))
    assert 1 <= fetched <= requests
    assert line_in(profile, r"bytes: .*?([\d.]+ \S+) from store") == (format_size(fetched * size),)
    (opens,) = line_in(profile, r"(\d+) opens? in passthrough: the kernel reads")
    assert int(opens) >= fetched
    advice = profile.partition("what to change:\n")[2]
    # A busy machine may take so long between two reads that hardly anything is waited for.
    idle = r"the mount is not what is waited for: in ([\d.]+) s .*, those of the busiest process ([\d.]+) s"
    first = rf"(?:\d+% of the time is the first read of data: (\d+) waits of|{idle})"
    waits, watched_s, busiest_s = line_in(advice, rf"  - {first}")
    if waits is None:
        assert float(busiest_s) < MUCH * float(watched_s) + 0.02, profile  # as rounded there
    else:
        assert int(waits) == fetched

    for name in names[:3]:
        mount.read(name)
    sums = while_reading(mount, itertools.cycle(names[:3]), "trace", "--summary")
    for name in names[:3]:
        opens, read = line_in(sums, rf"  {name}: \d+ requests?, (\d+) opens?, .* in sum, (.*) from kernel$")
        assert read == format_size(int(opens) * size)
    (total,) = line_in(sums, r"all: \d+ requests, (\d+) opens, ")
    assert line_in(sums, r"  python\S*\[\d+\]: \d+ requests, (\d+) opens, ") == (total,)
    assert int(total) >= 3


def test_a_collector_of_opentelemetry_is_sent_what_the_metrics_say(bucket: str, mounting: Mounts, s3: FastS3) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="luxfuse[otlp] is not installed")
    with collecting() as collector:
        mount = mounting.make(f"s3://{bucket}", "--otlp", collector.url, endpoint_url=s3.endpoint)
        mount.expected_logs.append("metrics for http://127.0.0.1:")  # it ends before the mount does
        mount.mount()
        wait_for("metrics", lambda: collector.received)
        path, request = collector.received[0]
        (resource,) = request.resource_metrics
        named = {each.key: each.value.string_value for each in resource.resource.attributes}
        sent = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
        status = mount.status()
    assert (path, named["service.instance.id"], named["luxfuse.source"]) == (
        "/v1/metrics", str(mount.path), f"s3://{bucket}"
    )  # fmt: skip
    assert set(sent) == {family.name for family in metrics.families(status)}
    assert sent["luxfuse_pid"].gauge.data_points[0].as_double == status["pid"]
    varying = ("/node", "/peers", "/cluster", "/latency")
    known = {path for path, _ in documented(Status) if not path.startswith(varying)}
    assert {path for path in fields(status, Status) if not path.startswith(varying)} == known


def test_slow_requests_are_logged_as_json(
    bucket: str, fill: Callable[..., None], mounting: Mounts, proxy: FaultProxy
) -> None:
    fill({"slow.bin": os.urandom(SIZE)})
    mount = mounting.make(f"s3://{bucket}", "--log-format", "json", "--slow-request", "0.4s", endpoint_url=proxy.endpoint)
    mount.expected_logs += [r'"level": "(debug|info)"', r'"event": "slow request: ']
    mount.mount()
    proxy.set(latency_s=0.8)
    mount.read("slow.bin")
    records = [json.loads(line) for line in mount.log().splitlines()]
    slow = [each for each in records if each["event"].startswith("slow request: open of slow.bin took ")]
    assert slow, records
    assert slow[0]["level"] == "warning"
    assert " for python" in slow[0]["event"]
    # For the store, or longer for its turn or a disk where the machine is busy.
    assert re.search("it waited for [a-z ]+; got 97.7 KiB from store", slow[0]["event"])
    assert slow[0]["timestamp"][19] == "."
    assert slow[0]["timestamp"][-6] in "+-"
