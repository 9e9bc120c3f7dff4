"""Replicas on disk: what was acknowledged is there after a stop at any step, and nothing is left over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from luxfuse import steps
from luxfuse.cluster.replicas import Refused, ReplicaFiles
from luxfuse.core.replicas import FileId, Replica, State, Write
from luxfuse.errors import ConfigError

FILE = FileId("a" * 16, "b" * 8, 7)
MOMENT_S = 1_800_000_000.0


def replica(generation: int, size: int, *, number: int = 7, key: str = "key") -> Replica:
    write = Write(FileId(FILE.writer, FILE.journal, number), generation)
    return Replica(b"12345678", write, key, size, {"mode": "0100644"}, "", ("e" * 16,), MOMENT_S)


def put(files: ReplicaFiles, generation: int, data: bytes, *, number: int = 7) -> None:
    arrival = files.begin(replica(generation, len(data), number=number))
    try:
        arrival.write(data[:3])
        arrival.write(data[3:])
        arrival.commit(MOMENT_S)
    finally:
        arrival.abort()


def content(files: ReplicaFiles, file: FileId = FILE) -> bytes:
    held = files.holdings[file]
    assert files.is_whole(held)
    return files.path_of(held).read_bytes()


def on_disk(root: Path) -> list[str]:
    return sorted(path.suffix for path in root.glob("*/*"))


def test_a_later_content_takes_the_place_of_the_earlier(tmp_path: Path):
    files = ReplicaFiles(tmp_path / "replicas", 100)
    put(files, 1, b"first content")
    put(files, 2, b"second")
    assert content(files) == b"second"
    assert files.used_bytes == 6
    assert on_disk(files.root) == [".data", ".record"]
    with pytest.raises(Refused, match="later content"):
        files.begin(replica(1, 3))
    again = ReplicaFiles(files.root, 100)
    assert (again.holdings, again.used_bytes) == (files.holdings, 6)
    assert content(again) == b"second"
    assert files.root.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files.root.glob("*/*")} == {0o600}


def test_what_does_not_fit_or_does_not_come_whole_is_refused_and_leaves_nothing(tmp_path: Path):
    files = ReplicaFiles(tmp_path, 10)
    put(files, 1, b"12345678")
    with pytest.raises(Refused, match="no room for 3 bytes beside 8"):
        files.begin(replica(1, 3, number=8))
    short = files.begin(replica(1, 2, number=9))
    with pytest.raises(Refused, match="more came"):
        short.write(b"123")
    with pytest.raises(Refused, match="0 bytes came instead of 2"):
        short.commit(MOMENT_S)
    short.abort()
    assert files.used_bytes == 8
    assert on_disk(tmp_path) == [".data", ".record"]


def test_content_gets_another_name_without_being_sent_again(tmp_path: Path):
    files = ReplicaFiles(tmp_path, 100)
    put(files, 1, b"content")
    renamed = replica(2, 7, key="other")
    files.describe(renamed, 1, MOMENT_S)
    files.describe(renamed, 1, MOMENT_S)  # the answer got lost
    assert ReplicaFiles(tmp_path, 100).holdings[FILE].replica == renamed
    assert content(files) == b"content"
    with pytest.raises(Refused, match="another content"):
        files.describe(replica(5, 7), 4, MOMENT_S)
    with pytest.raises(Refused, match="not here"):
        files.describe(replica(2, 7, number=8), 1, MOMENT_S)


def test_what_is_being_brought_up_is_neither_replaced_nor_dropped(tmp_path: Path):
    files = ReplicaFiles(tmp_path, 100)
    put(files, 1, b"content")
    assert files.settle(files.holdings[FILE], State.TAKEN, MOMENT_S)
    with pytest.raises(Refused, match="being brought"):
        files.begin(replica(2, 3))
    assert not files.drop(FILE, 5)
    held = ReplicaFiles(tmp_path, 100).holdings[FILE]
    assert held.state is State.TAKEN
    assert files.settle(files.holdings[FILE], State.DONE, MOMENT_S, version="v2", effective=True)
    assert files.used_bytes == 0
    assert on_disk(tmp_path) == [".record"]
    outcome = ReplicaFiles(tmp_path, 100).holdings[FILE].outcome
    assert (outcome.state, outcome.version, outcome.effective) == (State.DONE, "v2", True)
    assert files.drop(FILE, 1)
    assert on_disk(tmp_path) == []


def test_what_has_been_replaced_meanwhile_is_not_settled(tmp_path: Path):
    files = ReplicaFiles(tmp_path, 100)
    put(files, 1, b"first")
    before = files.holdings[FILE]
    put(files, 2, b"second")
    assert not files.settle(before, State.DONE, MOMENT_S)
    assert not files.drop(FILE, 1)
    assert content(files) == b"second"


def test_damage_is_noticed(tmp_path: Path):
    files = ReplicaFiles(tmp_path, 100)
    put(files, 1, b"content")
    files.path_of(files.holdings[FILE]).write_bytes(b"c0ntent")
    assert not files.is_whole(files.holdings[FILE])


@pytest.mark.expected_logs("cannot be read .* put aside", "has lost its content")
def test_a_damaged_record_is_put_aside_and_another_format_refused(tmp_path: Path):
    files = ReplicaFiles(tmp_path, 100)
    for number in (7, 8):
        put(files, 1, b"content", number=number)
    files.path_of(files.holdings[FILE]).unlink()
    (tmp_path / FILE.writer / f"{FILE.journal}-8.record").write_bytes(b"\xc1")
    assert not ReplicaFiles(tmp_path, 100).holdings
    assert on_disk(tmp_path) == [".damaged"]
    put(files, 2, b"content")
    record = tmp_path / FILE.writer / f"{FILE.journal}-7.record"
    record.write_bytes(record.read_bytes()[:1] + b"\x09" + record.read_bytes()[2:])
    with pytest.raises(ConfigError, match=r"has format 9, this luxfuse knows 1; use the luxfuse that wrote it"):
        ReplicaFiles(tmp_path, 100)


def test_after_a_stop_at_any_step_the_old_or_the_new_is_there_whole(tmp_path: Path):
    root = tmp_path / "live"
    files = ReplicaFiles(root, 100)
    stops: list[tuple[str, Path]] = []
    phases: list[set[bytes | None]] = []

    def stop(step: str) -> None:
        copy = tmp_path / f"stop-{len(stops)}"
        shutil.copytree(root, copy)
        stops.append((step, copy))
        phases.append(set(allowed))

    allowed: set[bytes | None] = {None, b"first"}
    steps.install(stop)
    try:
        put(files, 1, b"first")
        allowed = {b"first", b"second one"}
        put(files, 2, b"second one")
        allowed = {b"second one"}
        files.describe(replica(3, 10, key="other"), 2, MOMENT_S)
        files.settle(files.holdings[FILE], State.TAKEN, MOMENT_S)
        allowed = {b"second one", None}
        files.settle(files.holdings[FILE], State.DONE, MOMENT_S, version="v")
        allowed = {None}
        files.drop(FILE, 3)
    finally:
        steps.install(None)
    assert {step for step, _ in stops} == {
        "replica.content", "replica.record-written", "replica.recorded", "replica.settled", "replica.dropped",
    }  # fmt: skip
    for (step, copy), wanted in zip(stops, phases, strict=True):
        again = ReplicaFiles(copy, 100)
        held = again.holdings.get(FILE)
        found = content(again) if held is not None and held.content else None
        assert found in wanted, (step, found)
        assert again.used_bytes == len(found or b"")
        assert on_disk(copy).count(".data") == (found is not None), step
        assert ".part" not in on_disk(copy)
