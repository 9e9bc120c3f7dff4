"""Names that are no UTF-8, in what the web page tells of a mount."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from luxfuse.config import Settings
from luxfuse.daemon.web import WebPage
from tests.unit.control.samples import sample_status

NO_UTF8 = os.fsdecode(b"a\xff")


def test_names_of_any_bytes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    status: Any = sample_status()
    status["dirty"]["error"] = f"PUT {NO_UTF8}: refused"
    running: Any = SimpleNamespace(parts=SimpleNamespace(operations=SimpleNamespace(volumes=None)))
    settings = Settings(source="s3://b", mountpoint="/m", cache_dirs=(), state_dir="/s", http="127.0.0.1:0")
    page = WebPage(settings, running, lambda: status)
    page._sample()
    busy = [{"path": NO_UTF8, "opens": 1, "read_bytes": 2, "size": 3}]
    monkeypatch.setattr(page._busy, "top", lambda most: busy[:most])
    assert json.loads(page.status()) == status
    history = page.history("15m")
    assert history is not None
    assert json.loads(history)["files"] == busy
    status["dirty"]["error"] = None
    page._sample()
    assert json.loads(page.status()) == status
