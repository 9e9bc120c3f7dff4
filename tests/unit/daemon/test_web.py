"""The web page's part of the daemon: where it listens, and what it remembers of the log."""

from __future__ import annotations

import logging
import math
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from luxfuse.config import Settings
from luxfuse.daemon import logs
from luxfuse.daemon.web import AGAIN_S, WebPage
from luxfuse.errors import MountError
from tests.unit.control.samples import sample_status


def page_at(port: int) -> tuple[WebPage, Any]:
    """A page for that port, and the running daemon that it is of."""
    settings = Settings(source="s3://b", mountpoint="/m", cache_dirs=(), state_dir="/s", http=f"127.0.0.1:{port}")
    running: Any = SimpleNamespace(parts=SimpleNamespace(operations=SimpleNamespace(volumes=None)), http=None)
    made = WebPage(settings, running, lambda: dict(sample_status()))
    made._busy = SimpleNamespace(begin=lambda _: None, collect=lambda _: None, top=lambda _: [])  # type: ignore[assignment]
    return made, running


async def test_a_successor_that_finds_its_port_taken_tries_again(autojump_clock, expected_logs, caplog) -> None:
    expected_logs.append(r"Address already in use.*it is tried again every 5 s")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        page, running = page_at(port)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: page.run(patient=True, task_status=task_status))
            await trio.sleep(3.5 * AGAIN_S)
            assert running.http is None
            assert [each.levelname for each in caplog.records if "already in use" in each.getMessage()] == ["WARNING"]
            taken.close()
            await trio.sleep(AGAIN_S)
            assert running.http == f"http://127.0.0.1:{port}/"
            autojump_clock.autojump_threshold = math.inf  # the network takes its time, which is no deadline of the page
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /v1/history?span=15m HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 200")
            nursery.cancel_scope.cancel()
    assert running.http is None


async def test_a_first_mount_that_finds_its_port_taken_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page, running = page_at(taken.getsockname()[1])
        with pytest.raises(MountError, match="Address already in use; choose another port"):
            await page.run(patient=False)
        assert running.http is None


def test_the_last_warnings_and_errors_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = logs.Recent()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [recent])
    monkeypatch.setattr(root, "level", logging.INFO)
    told = logging.getLogger("luxfuse.somewhere")
    told.info("not worth it")
    for number in range(logs.RECENT_KEPT + 5):
        told.warning("number %d", number)
    told.error("x" * 2000)
    found = logs.recent()
    assert len(found) == logs.RECENT_KEPT
    assert found[0] | {"time": 0} == {
        "time": 0, "level": "error", "logger": "luxfuse.somewhere", "event": "x" * logs.RECENT_CHARACTERS
    }  # fmt: skip
    assert [each["event"] for each in found[1:3]] == [f"number {logs.RECENT_KEPT + 4}", f"number {logs.RECENT_KEPT + 3}"]
    assert found[0]["time"] >= found[1]["time"]  # type: ignore[operator]
