"""What ``luxfuse trace`` and ``luxfuse profile`` print of what a daemon tells."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from luxfuse.cli import main, profile, trace
from luxfuse.cli.trace import line_of
from luxfuse.control.registry import MountRecord
from luxfuse.core import tallies
from luxfuse.core.tallies import OPERATIONS
from luxfuse.fuse import accesses
from luxfuse.fuse.operations import Operations
from tests.unit.control.samples import sample_status

DOCUMENT = Path(__file__).parents[3] / "luxfuse/docs/MONITORING.md"
RECORD = MountRecord(mountpoint="/mnt/bucket", source="s3://b", pid=1, version="1", started_at=0.0, alive=True)
KIB = 1 << 10


def event(op: str, path: str | None, clock: str, took_s: float, **more: Any) -> dict[str, Any]:
    at = datetime.fromisoformat(f"2026-11-30T{clock}").timestamp()
    whose = {"pid": 4711, "program": "python", "uid": 1000}
    return {"time": at, "op": op, "path": path, "took_s": took_s, **whose, **more}


EXAMPLES = [
    event("open", "images/7.jpg", "14:05:09.250", 0.0214, way="passthrough", bytes=100_045, sources={"store": 100_045}),
    event("open", "images/8.jpg", "14:05:09.274", 9e-6, way="passthrough", bytes=100_045),
    event("read", "shards/0.tar", "14:05:09.301", 88e-6, way="dataplane", offset=1 << 20, bytes=128 * KIB,
          sources={"ssd": 128 * KIB}),
]  # fmt: skip


def test_the_lines_are_those_of_the_documents() -> None:
    text = DOCUMENT.read_text()
    for each in EXAMPLES:
        assert f"    {line_of(each)}\n" in text


@pytest.mark.parametrize(("event", "end"), [
    (event("lookup", "no", "14:05:09", 2.5, error="ENOENT"), "python[4711] uid 1000 lookup no 2.50 s, ENOENT"),
    (event("getattr", "", "14:05:09", 0.5, queued_s=0.25),
     "python[4711] uid 1000 getattr / 500.0 ms, 250.0 ms in the queue"),
    (event("getattr", "", "14:05:09", 0.5, queued_s=0.0009), "python[4711] uid 1000 getattr / 500.0 ms"),
    (event("write", "a b", "14:05:09", 0.5, bytes=7), "python[4711] uid 1000 write a b 0+7 500.0 ms"),
    (event("rename", "a", "14:05:09", 0.5, to="c/b"), "python[4711] uid 1000 rename a -> c/b 500.0 ms"),
    (event("fsync", None, "14:05:09", 0.5), "python[4711] uid 1000 fsync (no name) 500.0 ms"),
    (event("fsync", "a\x1b[2J\udcff", "14:05:09", 0.5, program="p\r"),
     r"p\r[4711] uid 1000 fsync a\x1b[2J\udcff 500.0 ms"),
    ({"time": 0.0, "op": "getattr", "path": "a", "program": "kernel"}, "kernel[0] uid 0 getattr a 0 us"),
    ({"time": 0.0, "op": "getattr", "path": "a", "program": "?", "pid": None, "uid": None}, "?[?] uid ? getattr a 0 us"),
])  # fmt: skip
def test_what_a_line_says(event: dict[str, Any], end: str) -> None:
    when, _, rest = line_of(event).partition(" ")
    assert datetime.strptime(when, "%H:%M:%S.%f")
    assert rest == end


# -- the commands


class Daemon:
    """As a `ControlClient`: tells prepared batches, once, and when it is told to wait, nothing more."""

    batches: list[Mapping[str, Any]]
    asked: list[tuple[str, int | None]]

    def __init__(self, *_: object) -> None:
        pass

    def trace(self, path: str, pid: int | None) -> Iterator[Mapping[str, Any]]:
        self.asked.append((path, pid))
        yield from self.batches
        raise KeyboardInterrupt

    def status(self) -> dict[str, Any]:
        return {**sample_status(), "uptime_s": time.monotonic()}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> type[Daemon]:
    Daemon.batches, Daemon.asked = [], []
    for module in (trace, profile):
        monkeypatch.setattr(module, "ControlClient", Daemon)
    monkeypatch.setattr(trace, "by_mount", lambda paths: [(RECORD, [path.removeprefix("/mnt/bucket/") for path in paths])])
    monkeypatch.setattr(profile, "mount_at", lambda _path: RECORD)
    return Daemon


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    code = main.guard(lambda: main.run(list(arguments)))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def batch(*events: dict[str, Any], dropped: int = 0) -> dict[str, Any]:
    return {"events": list(events), "dropped": dropped}


def test_a_trace_shows_what_was_asked_for(daemon: type[Daemon], capsys: pytest.CaptureFixture[str]) -> None:
    opened, warm, read = EXAMPLES
    daemon.batches = [batch(opened), batch(dropped=2), batch(warm, read, dropped=3)]
    out, err = run(capsys, "trace", "/mnt/bucket/images", "--pid", "4711")
    assert out.splitlines() == [line_of(each) for each in EXAMPLES]
    assert err == "luxfuse: 5 requests came too fast to be told of; choose a path or a process to see all of it\n"
    assert daemon.asked == [("images", 4711)]
    daemon.batches = [batch(*EXAMPLES)]
    assert run(capsys, "trace", "/mnt/bucket", "--op", "read")[0].splitlines() == [line_of(read)]
    assert run(capsys, "trace", "/mnt/bucket", "--op", "read", "--op", "open")[0].count("\n") == 3
    out, err = run(capsys, "trace", "/mnt/bucket", "--json")
    assert ([json.loads(line) for line in out.splitlines()], err) == (EXAMPLES, "")


def test_a_kind_of_request_that_there_is_not_is_refused(daemon: type[Daemon], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.guard(lambda: main.run(["trace", "/mnt/bucket", "--op", "open", "--op", "reads"])) == 2
    _, err = capsys.readouterr()
    assert err.startswith("luxfuse: --op: reads is none of create, fallocate, ")
    assert err.count("\n") == 1
    assert daemon.asked == []


def test_the_kinds_of_requests_are_those_of_the_kernel() -> None:
    answered = {name for name, each in vars(Operations).items() if inspect.iscoroutinefunction(each) and name[0] != "_"}
    assert answered - accesses.SILENT == OPERATIONS


def test_of_nothing_there_is_nothing_to_sum_up(daemon: type[Daemon], capsys: pytest.CaptureFixture[str]) -> None:
    daemon.batches = [batch()]
    assert run(capsys, "trace", "/mnt/bucket", "--summary")[0] == "all: 0 requests, 0 opens, 0 us in sum\n"
    assert [line.rstrip() for line in run(capsys, "profile", "/mnt/bucket")[0].splitlines()[1:]] == [
        "what to change:", "  - nothing was asked of the mount: run this while the job is at work",
    ]  # fmt: skip


def test_a_trace_ends_by_itself(daemon: type[Daemon], capsys: pytest.CaptureFixture[str]) -> None:
    daemon.batches = [batch(EXAMPLES[0]), batch(EXAMPLES[1])]
    out, _ = run(capsys, "trace", "/mnt/bucket", "--seconds", "1e-9")
    assert out.splitlines() == [line_of(EXAMPLES[0])]


SUMMARY = """\
by program:
  python[4711]: 3 requests, 2 opens, 21.5 ms in sum, 195.4 KiB from store, 97.7 KiB from kernel
  cp[9]: 3 requests, 0 opens, 3.0 ms in sum, 5 B written, 1 not found, 1 error
by file:
  images/7.jpg: 2 requests, 1 open, 21.5 ms in sum, 195.4 KiB from store
  new: 3 requests, 0 opens, 3.0 ms in sum, 5 B written, 1 not found, 1 error
  and 1 more
all: 6 requests, 2 opens, 24.5 ms in sum, 195.4 KiB from store, 97.7 KiB from kernel, 5 B written, 1 not found, 1 error
"""


def test_the_text_of_a_summary(
    daemon: type[Daemon], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "SHOWN", 2)
    copied = {"pid": 9, "program": "cp"}
    opened, warm, _ = EXAMPLES
    again = event("read", "images/7.jpg", "14:05:10", 88e-6, bytes=100_045, sources={"store": 100_045})
    daemon.batches = [
        batch(opened, warm, again),
        batch(event("lookup", "new", "14:05:10", 0.0, error="ENOENT", **copied)),
        batch(event("write", "new", "14:05:10", 0.001, bytes=5, **copied)),
        batch(event("fsync", "new", "14:05:10", 0.002, error="EIO", **copied)),
    ]
    assert run(capsys, "trace", "/mnt/bucket", "--summary") == (SUMMARY, "")
    sums = json.loads(run(capsys, "trace", "/mnt/bucket", "--summary", "--json")[0])
    assert (sums["total"]["requests"], sums["files"]["new"]["written_bytes"], sums["dropped"]) == (6, 5, 0)
    assert (sums["total"]["errors"], sums["total"]["not_found"]) == (1, 1)
    assert sums["programs"]["python[4711]"]["read_bytes"] == {"store": 200_090, "kernel": 100_045}


def test_files_beyond_what_a_summary_remembers_are_summed_up(
    daemon: type[Daemon], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "MOST_NAMES", 2)
    daemon.batches = [batch(*(event("open", f"{n}", "14:05:10", 1.0 / (n + 1)) for n in range(5)))]
    assert "  (others): 3 requests, 3 opens, " in run(capsys, "trace", "/mnt/bucket", "--summary")[0]


def test_the_text_of_a_profile(daemon: type[Daemon], capsys: pytest.CaptureFixture[str]) -> None:
    opened = event("open", "a", "14:05:10", 3.0, way="passthrough", bytes=2048, sources={"store": 2048},
                   waited={"the store": 0.1})  # fmt: skip
    looked = event("lookup", "b", "14:05:10", 0.25, queued_s=0.75, pid=9)
    daemon.batches = [batch(opened, dropped=7), batch(looked, looked)]
    out, err = run(capsys, "profile", "/mnt/bucket")
    first, *lines = out.splitlines()
    assert first.startswith("/mnt/bucket: watched for 0.")
    assert re.search(r" s: 3 requests of 2 processes, 5\.00 s in sum, \d+% of that time$", first)
    assert lines[:8] == [
        "  7 requests more came too fast to be looked at",
        "what they waited for:",
        f"  {'the store':<32}     3.000 s    60%",
        f"  {'the queue of the daemon':<32}     1.500 s    30%",
        f"  {'the daemon itself':<32}     0.500 s    10%",
        "by kind:",
        lines[6],
        lines[7],
    ]
    assert lines[6].startswith(f"  {'opens from store':<24}       1      3.000 s, mean 3000.00 ms, p95 ")
    assert lines[7].startswith(f"  {'names and attributes':<24}       2      2.000 s, mean 1000.00 ms, p95 ")
    assert lines[8:11] == [
        "bytes: 2.0 KiB from store",
        "1 open in passthrough: the kernel reads these files, at no cost here",
        "what to change:",
    ]
    store, queue = lines[11:]
    assert store.startswith(
        "  - 60% of the time is the first read of data: 1 waits of 3000 ms in the mean; luxfuse load PATH"
    )
    assert queue.startswith("  - 30% of the time requests wait for the daemon to look at them")
    assert err == ""
    daemon.batches = []
    out, _ = run(capsys, "profile", "/mnt/bucket")
    assert out.endswith("what to change:\n  - nothing was asked of the mount: run this while the job is at work\n")
