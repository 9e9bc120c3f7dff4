"""Claims, the list of mounts, and what a dead daemon leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from luxfuse.config import Settings
from luxfuse.configuration import building
from luxfuse.control import registry
from luxfuse.control.attached_file import AttachedFile, Recorded
from luxfuse.errors import MountError


def settings_for(tmp_path: Path, mountpoint: str = "/nowhere/bucket") -> Settings:
    flags = {"source": "s3://bucket", "mountpoint": mountpoint, "state_dir": str(tmp_path / "state")}
    return building.build(flags, environ={})


def test_a_claim_is_exclusive_and_listed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with registry.claim(settings) as claim:
        assert stat.S_IMODE(claim.directory.stat().st_mode) == 0o700
        (record,) = registry.list_mounts(settings.state_dir)
        assert (record.mountpoint, record.source, record.pid) == ("/nowhere/bucket", "s3://bucket", os.getpid())
        assert record.alive
        assert record.socket_path == claim.socket_path
        with pytest.raises(MountError, match=rf"a daemon \(pid {os.getpid()}\) is about to mount there, or still brings"):
            registry.claim(settings)
        with registry.claim(settings_for(tmp_path, "/nowhere/other")):
            assert len(registry.list_mounts(settings.state_dir)) == 2
    assert registry.list_mounts(settings.state_dir) == []
    claim.close()
    registry.claim(settings).close()


def test_find_takes_the_innermost_mount(tmp_path: Path) -> None:
    with registry.claim(settings_for(tmp_path, "/n/a")), registry.claim(settings_for(tmp_path, "/n/a/b")):
        found = {
            path: record and record.mountpoint
            for path in ("/n/a", "/n/a/x", "/n/a/b/c", "/n", "/n/ab")
            for record in [registry.find(tmp_path / "state", path)]
        }
    assert found == {"/n/a": "/n/a", "/n/a/x": "/n/a", "/n/a/b/c": "/n/a/b", "/n": None, "/n/ab": None}


def test_a_killed_daemon_leaves_a_dead_record(tmp_path: Path) -> None:
    program = (
        "import sys; from luxfuse.configuration import building; from luxfuse.control import registry\n"
        "c = registry.claim(building.build({'source': 's3://b', 'mountpoint': '/n/a', 'state_dir': sys.argv[1]}, {}))\n"
        "print('claimed', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "state")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"claimed\n"
        assert registry.find(tmp_path / "state", "/n/a").alive
        child.kill()
    record = registry.find(tmp_path / "state", "/n/a")
    assert record is not None
    assert not record.alive
    registry.forget(record)
    assert registry.list_mounts(tmp_path / "state") == []


def test_forget_leaves_the_living_alone(tmp_path: Path) -> None:
    with registry.claim(settings_for(tmp_path)):
        (record,) = registry.list_mounts(tmp_path / "state")
        registry.forget(record)
        assert registry.list_mounts(tmp_path / "state") == [record]


ATTACHED = b'{"format":1,"last_number":3,"attached":[{"path":"a","source":"s3://b","options":{},"number":3}]}'


@pytest.mark.parametrize(
    ("kept", "content"),
    [("attached.json", ATTACHED), ("attached.json", b""), ("replicas/0011223344556677/1.record", b"")],
)
def test_discard_leaves_what_is_nowhere_else(tmp_path: Path, kept: str, content: bytes) -> None:
    with registry.claim(settings_for(tmp_path)) as claim:
        for name in ("daemon.log.1", "locations/data", kept):
            (claim.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (claim.directory / name).write_bytes(content)
    registry.discard(tmp_path / "state", "/nowhere/bucket", ["locations"])
    assert {"lock", "daemon.log.1", "locations", kept.partition("/")[0]} == {
        path.name for path in claim.directory.iterdir()
    }
    (claim.directory / kept).unlink()
    for _ in range(2):
        registry.discard(tmp_path / "state", "/nowhere/bucket", ["locations"])
        assert list((tmp_path / "state/mounts").iterdir()) == []


def test_discard_takes_what_a_kill_left_half_written(tmp_path: Path) -> None:
    """And a record of attachments that has none."""
    with registry.claim(settings_for(tmp_path)) as claim:
        AttachedFile(claim.directory).write(Recorded(last_number=3))
        for name in (
            ".mount.json.new",
            ".attached.json.new",
            ".identity.json.new",
            "replicas/0011223344556677/.1.record.new",
        ):
            (claim.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (claim.directory / name).write_bytes(b"{")
    registry.discard(tmp_path / "state", "/nowhere/bucket", [])
    assert list((tmp_path / "state/mounts").iterdir()) == []


def test_discard_leaves_the_living_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_END_PATIENCE_S", 0.0)
    with registry.claim(settings_for(tmp_path)):
        before = registry.list_mounts(tmp_path / "state")
        registry.discard(tmp_path / "state", "/nowhere/bucket", [])
        assert registry.list_mounts(tmp_path / "state") == before != []


def test_looking_does_not_disturb_a_claim(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    directory = registry.mount_directory(settings)
    program = (
        "import sys, time; from luxfuse.control import registry\n"
        "print('looking', flush=True)\nwhile True: registry.is_alive(sys.argv[1])"
    )
    (directory / registry.LOCK).touch()
    with subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            for _ in range(20):
                registry.claim(settings).close()
        finally:
            child.kill()


def test_damaged_and_foreign_records_are_left_out(tmp_path: Path) -> None:
    for name, content in (("a", b"{"), ("b", b'{"mountpoint": 3}'), ("c", b"\xff")):
        (tmp_path / "mounts" / name).mkdir(parents=True)
        (tmp_path / "mounts" / name / "mount.json").write_bytes(content)
    (tmp_path / "mounts/file").touch()
    assert registry.list_mounts(tmp_path) == []
    assert registry.list_mounts(tmp_path / "missing") == []


def test_an_unusable_state_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(MountError, match=r"state directory .*LUXFUSE_STATE_DIR"):
        registry.claim(settings_for(tmp_path))
