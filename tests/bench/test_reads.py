"""The clients that read, what the rows need, and how a listing is made for JuiceFS."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import data, dlio, processes, published, rows
from tests.bench.juicefs import _clone
from tests.bench.suites import SUITES
from tests.bench.trials import READER, SIZES


@pytest.fixture
def some(tmp_path: Path) -> Path:
    for number in range(7):
        (tmp_path / f"file{number}").write_bytes(bytes(5000 + number))
    return tmp_path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-I", "-S", READER, *map(str, arguments)]


@pytest.mark.parametrize("kind", ["files", "shuffled"])
@pytest.mark.parametrize("readers", [1, 3])
def test_each_file_is_read_once(some: Path, kind: str, readers: int) -> None:
    out = subprocess.run(command(kind, some, readers), capture_output=True, check=True, timeout=30).stdout
    result = json.loads(out)
    assert (result["files"], result["bytes"]) == (7, 7 * 5000 + 21)


def test_a_held_file_is_read_at_random_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20 * 4096))
    arguments = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("held", tmp_path / "big", 60), **arguments) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "read\n"
        out, _ = process.communicate("\n", timeout=30)
    assert json.loads(out)["reads"] == 20  # none twice, so it ends before the time


@pytest.mark.parametrize(
    ("said", "reason"),
    [("a\nOSError: no\n  File x\n-----\n", "sh: OSError: no"), ("a\nb\n---\n", "sh: b"), ("", "sh: exit 3")],
)
def test_a_failure_is_told_by_the_line_that_says_it(said: str, reason: str) -> None:
    with pytest.raises(processes.Failed) as failed:
        processes.run(["sh", "-c", 'printf "%s" "$1" >&2; exit 3', "sh", said], timeout_s=30)
    assert str(failed.value) == reason


def test_processor_time_is_that_of_the_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as idle, subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) as busy:
        deadline = time.monotonic() + 30
        while processes.processor_s([busy.pid]) < 0.02 and time.monotonic() < deadline:
            time.sleep(0.01)
        used = processes.processor_s([busy.pid])
        assert used >= 0.02
        assert processes.processor_s([idle.pid, busy.pid]) >= used
        idle.kill()
        busy.kill()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_rows_find_what_they_read(size) -> None:
    every = [row.key for row in rows.table_rows(size)]
    assert len(set(every)) == len(every)
    listings = {data.listed(count) for count in size.listings}
    assert data.needed(every, size) == {"big.bin", "files", "few", "load", *listings}
    reading = [row.key for row in (*rows.warm_rows(size), *rows.cold_rows(size))]
    assert [key for key in reading if not data.needed([key], size)] == []
    assert data.needed([row.key for row in rows.write_rows(size)], size) == set()
    recipes = published.RECIPES[size.name]
    assert len({(r.directory, r.total_bytes) for r in recipes}) == len({r.directory for r in recipes})


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_no_two_rows_of_a_suite_are_alike(suite, size) -> None:
    every = suite.rows(size)
    assert len({row.key for row in every}) == len({row.title + row.unit for row in every}) == len(every) > 0


def test_dlio_is_told_what_differs_from_its_configuration(tmp_path: Path) -> None:
    retinanet = next(workload for workload in dlio.WORKLOADS if workload.name == "retinanet")
    told = retinanet.overrides(SIZES["full"], tmp_path / "data", tmp_path / "out")
    assert told[0] == "workload=unet3d_h100"
    settings = {"reader.batch_size": 24, "train.computation_time": 0.04755, "dataset.data_folder": tmp_path / "data"}
    assert {f"++workload.{name}={value}" for name, value in settings.items()} < set(told)


def test_dlio_is_run_without_a_loader_that_the_workload_has_no_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[dict[str, str]] = []
    monkeypatch.setattr(dlio, "program", lambda name: name)
    monkeypatch.setattr(processes, "run", lambda _command, *, timeout_s, env: ran.append(env))
    for workload in dlio.WORKLOADS:
        dlio._run(workload, [], 1, 1.0)
    loaders = {w.name: env["BENCH_DLIO_LOADER"] for w, env in zip(dlio.WORKLOADS, ran, strict=True)}
    assert loaders == {"unet3d": "torch", "resnet50": "tensorflow", "cosmoflow": "tensorflow", "retinanet": "torch"}


def test_large_files_have_their_size(tmp_path: Path) -> None:
    data.write_large(tmp_path / "file", (16 << 20) + 3)
    assert (tmp_path / "file").stat().st_size == (16 << 20) + 3


def test_a_directory_is_filled_in_dumped_metadata() -> None:
    first = {"attr": {"inode": 5, "type": "regular", "length": 0}}
    document = {
        "Counters": {"nextInodes": 100, "usedInodes": 2},
        "FSTree": {"entries": {"d": {"attr": {"inode": 4}, "entries": {"a": first}}}},
    }
    _clone(document, "d", ["a", "b", "c"])
    entries = document["FSTree"]["entries"]["d"]["entries"]
    assert [entry["attr"]["inode"] for entry in entries.values()] == [5, 100, 101]
    assert document["Counters"] == {"nextInodes": 102, "usedInodes": 4}
