"""The name of a node from start to start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luxfuse.errors import ConfigError
from luxfuse.peers import identity
from luxfuse.peers.identity import FILE, Identity


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "machine-id"
    path.write_text("1" * 32 + "\n")
    monkeypatch.setattr(identity, "MACHINE_ID", path)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


SECOND = 10**9


def opened(state: Path, now_s: float = 100) -> Identity:
    return Identity.open(state, lambda: int(now_s * SECOND))


def test_the_name_stays_and_the_rest_rises(state: Path) -> None:
    first = opened(state, 100.5)
    assert len(bytes.fromhex(first.name)) == 8
    assert (first.incarnation, first.stamp_ns) == (100, 100.5 * SECOND)
    first.note(107)
    assert (state / FILE).stat().st_mode & 0o777 == 0o600
    second = opened(state, 200)
    assert (second.name, second.incarnation, second.stamp_ns) == (first.name, 200, 200 * SECOND)
    # The clock was set back.
    second.note(204)
    third = opened(state, 50)
    assert (third.incarnation, third.stamp_ns) == (205, 200 * SECOND + 1)
    fourth = opened(state, 200)
    assert (fourth.incarnation, fourth.stamp_ns) == (206, 200 * SECOND + 2)


def test_two_nodes_have_two_names(state: Path, tmp_path: Path) -> None:
    assert opened(state).name != opened(tmp_path).name


@pytest.mark.expected_logs("comes from another machine")
def test_a_copy_on_another_machine_gets_a_name_of_its_own(state: Path, machine: Path) -> None:
    name = opened(state).name
    machine.write_text("2" * 32 + "\n")
    other = opened(state, 50)
    assert other.name != name
    assert other.incarnation == 50
    assert opened(state).name == other.name


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_a_machine_without_an_id_keeps_the_name(state: Path, machine: Path, content: str | None) -> None:
    name = opened(state).name
    if content is None:
        machine.unlink()
    else:
        machine.write_text(content)
    assert opened(state).name == name
    machine.write_text("1" * 32)
    assert opened(state).name == name


def test_the_id_of_the_machine_is_not_given_away(state: Path) -> None:
    opened(state)
    assert "1" * 32 not in (state / FILE).read_text()


@pytest.mark.expected_logs("gets a new name")
@pytest.mark.parametrize("content", ["", "{", '{"format": 1}'])
def test_a_damaged_file_gives_a_new_name(state: Path, content: str) -> None:
    (state / FILE).write_text(content)
    assert opened(state).incarnation == 100


def test_a_file_of_another_version_is_refused(state: Path) -> None:
    opened(state)
    record = json.loads((state / FILE).read_text())
    (state / FILE).write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(ConfigError, match="format 2"):
        opened(state)


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=FILE):
        opened(tmp_path / "missing")
