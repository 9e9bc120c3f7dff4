from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from luxfuse.config import Settings
from luxfuse.daemon import main as daemon
from luxfuse.errors import MountError


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_what_the_daemon_makes_is_private(usual_umask: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def claim(_settings: Settings) -> None:
        seen.append(os.umask(0o077))
        raise MountError("far enough")

    monkeypatch.setattr(daemon, "_raise_file_limit", lambda: None)
    monkeypatch.setattr(daemon.registry, "claim", claim)
    told: list[str | None] = []
    assert daemon.run(object(), lambda error, _notes=(): told.append(error)) == 1
    assert told == ["far enough"]
    assert seen == [0o077]


def test_a_daemon_starts_without_libraries_that_few_mounts_need() -> None:
    program = (
        "import sys; import luxfuse.daemon.main\n"
        "heavy = {'cryptography', 'pydantic', 'typer', 'obstore', 'fsspec', 'botocore', 'aiohttp'}\n"
        "heavy |= {'rich', 'prometheus_client', 'luxfuse.cluster', 'luxfuse.peers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
