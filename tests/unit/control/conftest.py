from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.unit.control.conversing import listen_at


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    return listen_at(tmp_path / "s")
