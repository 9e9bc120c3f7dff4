"""The memory of a container is that of its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from luxfuse.volume import machine

MIB = 1 << 20


def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_limits_it_is_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/a/b\n", {"a/memory.max": "max\n"})
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert machine.memory_bytes() == total


def test_a_group_above_limits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{64 * MIB}\n"})
    assert machine.memory_bytes() == 64 * MIB


def test_in_a_container_the_top_is_its_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, monkeypatch, "0::/docker/123\n", {"memory.max": f"{64 * MIB}\n"})
    assert machine.memory_bytes() == 64 * MIB


def test_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "5:cpu,cpuacct:/x\n4:memory:/y\n"
    groups(tmp_path, monkeypatch, own, {"memory/y/memory.limit_in_bytes": f"{64 * MIB}\n", "memory.max": "1\n"})
    assert machine.memory_bytes() == 64 * MIB
