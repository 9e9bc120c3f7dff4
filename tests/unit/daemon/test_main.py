from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from luxfuse.config import Settings
from luxfuse.daemon import main as daemon
from luxfuse.errors import MountError
from luxfuse.estate.memory import Estate


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_what_the_daemon_makes_is_private(usual_umask: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def claim(_settings: Settings, *, inherited: bool) -> None:
        seen.append(os.umask(0o077))
        raise MountError("far enough")

    monkeypatch.setattr(daemon.limits, "raise_file_limit", lambda: None)
    monkeypatch.setattr(daemon.registry, "claim", claim)
    told: list[str | None] = []
    assert daemon.run(object(), lambda error, _notes=(): told.append(error)) == 1
    assert told == ["far enough"]
    assert seen == [0o077]


def test_a_successor_whose_mount_was_taken_away_ends_quietly(
    usual_umask: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(daemon.limits, "raise_file_limit", lambda: None)
    monkeypatch.setattr(
        daemon.registry, "claim", lambda _, **_also: contextlib.nullcontext(SimpleNamespace(directory=tmp_path))
    )
    monkeypatch.setattr(daemon.logs, "configure", lambda *_: None)
    told: list[str | None] = []
    reader, device = os.pipe()  # as a device without its mount: errors, and says so to poll
    os.close(reader)
    estate = os.memfd_create("estate")
    try:
        Estate(estate).serve()
        held = device, estate
        assert daemon.run(SimpleNamespace(mountpoint="/m"), lambda error, _notes=(): told.append(error), held=held) == 1
    finally:
        os.close(device)
        os.close(estate)
    assert told == ["/m: the mount was taken away as the daemon began"]


def test_a_daemon_starts_without_libraries_that_few_mounts_need() -> None:
    program = (
        "import sys; import luxfuse.daemon.main\n"
        "heavy = {'cryptography', 'pydantic', 'typer', 'obstore', 'fsspec', 'botocore', 'aiohttp'}\n"
        "heavy |= {'rich', 'prometheus_client', 'luxfuse.cluster', 'luxfuse.peers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
