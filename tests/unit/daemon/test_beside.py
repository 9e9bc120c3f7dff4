"""What shows a mount to others, where a part of it cannot begin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from luxfuse.daemon import beside
from luxfuse.errors import ConfigError


async def test_a_successor_shows_what_it_can(monkeypatch: pytest.MonkeyPatch, expected_logs: list[str]) -> None:
    begun: list[bool] = []

    class WebPage:
        def __init__(self, *_: object) -> None:
            pass

        async def run(self, *, patient: bool, task_status: trio.TaskStatus[None]) -> None:
            begun.append(patient)
            task_status.started()

    def missing(*_: object) -> None:
        raise ConfigError("--otlp: the libraries for it are missing")

    monkeypatch.setattr("luxfuse.daemon.otlp.Export", missing)
    monkeypatch.setattr("luxfuse.daemon.web.WebPage", WebPage)
    running: Any = SimpleNamespace(settings=SimpleNamespace(otlp="http://collector:4318", http="127.0.0.1:0"))
    async with trio.open_nursery() as nursery:
        with pytest.raises(ConfigError, match="libraries"):
            await beside.begin(nursery, running, dict, successor=False)
        expected_logs.append("goes on without what was to show it: --otlp")
        await beside.begin(nursery, running, dict, successor=True)
    assert begun == [True]
