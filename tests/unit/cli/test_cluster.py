"""``luxfuse cluster``: against status documents that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luxfuse.cli import cluster, main, render
from luxfuse.control.registry import MountRecord
from luxfuse.control.status import ClusterStatus
from luxfuse.peers.keyfile import read_keys
from tests.unit.control.samples import sample_status


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main.guard(lambda: main.run(["cluster", *map(str, arguments)]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Status documents by mountpoint; add some."""
    documents: dict[str, Any] = {}

    def record(path: str) -> MountRecord:
        return MountRecord(mountpoint=path, source="s3://b", pid=1, version="1", started_at=0.0, alive=True)

    monkeypatch.setattr(cluster, "ask_status", lambda record: documents[record.mountpoint])
    monkeypatch.setattr(cluster, "mount_at", record)
    monkeypatch.setattr(cluster.registry, "list_mounts", lambda _: list(map(record, documents)))
    return documents


def test_init_makes_a_key_and_overwrites_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "key"
    code, out, err = run(capsys, "init", "--key-file", path)
    assert (code, err) == (0, "")
    (key,) = read_keys(path)
    assert key.hex() not in out
    assert str(path) in out
    code, out, err = run(capsys, "init", "--key-file", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"luxfuse: {path} exists")
    assert read_keys(path) == (key,)


def test_status_is_a_table_of_nodes(capsys: pytest.CaptureFixture[str], mounts: dict[str, Any]) -> None:
    mounts["/mnt/bucket"] = sample_status()
    mounts["/alone"] = {**sample_status("/alone"), "node": None, "peers": []}
    code, out, _ = run(capsys, "status", "/mnt/bucket")
    assert code == 0
    header, own, first, second, third = (line.split() for line in out.splitlines())
    assert header == ["NODE", "ADDRESS", "STATE", "VERSION", "ROUND", "TRIP", "RACK", "HOLDS", "SOURCES"]
    assert own == ["host-0:/mnt/bucket", "(this)", "10.0.0.0:7950", "alive", "0.1.0", "-", "r1", "0", "1"]
    assert first == ["host-1:/mnt/bucket", "10.0.0.1:7950", "alive", "0.1.0", "0.4", "ms", "r1", "1000", "1"]
    assert second[2:6] == ["suspect", "0.1.0", "20.0", "ms"]
    assert third[2:5] == ["dead", "0.1.0", "-"]
    assert run(capsys, "status")[1] == out
    document = json.loads(run(capsys, "status", "--json")[1])
    assert (document["mountpoint"], document["node"]["name"], len(document["peers"])) == ("/mnt/bucket", "0" * 16, 3)


def test_status_without_a_cluster_or_with_several(capsys: pytest.CaptureFixture[str], mounts: dict[str, Any]) -> None:
    code, _, err = run(capsys, "status")
    assert (code, "no mount of this user is in a cluster" in err) == (1, True)
    mounts["/alone"] = {**sample_status("/alone"), "node": None}
    code, _, err = run(capsys, "status", "/alone")
    assert (code, "/alone is in no cluster" in err) == (1, True)
    mounts["/a"], mounts["/b"] = sample_status("/a"), sample_status("/b")
    code, _, err = run(capsys, "status")
    assert (code, "name one of them: /a, /b" in err) == (1, True)


def test_status_shows_what_goes_on_between_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {name for fields in render._BETWEEN_NODES.values() for name, _ in fields}
    assert shown == set(ClusterStatus.__annotations__)
    status = sample_status("/m")
    render.show_status(status)
    text = capsys.readouterr().out
    for words in ("1 alive, 1 dead, 1 suspect", "12 asked for, 2 failed, 1 damaged", "99 B given to others",
                  "3 datagrams rejected", "2 held for others, 77 B held", "1 rules known, 9 ordered"):  # fmt: skip
        assert words in text
    status["node"] = None
    render.show_status(status)
    assert "notices" not in capsys.readouterr().out
