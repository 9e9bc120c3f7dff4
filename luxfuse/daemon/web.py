"""The daemon's web page: samples what it does, and serves that by `luxfuse.control.web`."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import trio

from luxfuse.config import Settings
from luxfuse.control import metrics, web
from luxfuse.core.addresses import format_address
from luxfuse.core.history import Ring
from luxfuse.daemon import logs
from luxfuse.daemon.running import Running
from luxfuse.errors import MountError
from luxfuse.fuse.busy import BusyFiles

T = TypeVar("T")
log = logging.getLogger(__name__)

SAMPLE_S = 2.0
SPANS = {"15m": (SAMPLE_S, 450), "1d": (60.0, 1440)}
"""What is remembered: seconds between samples, and how many samples."""
FILES_SHOWN = 20
AGAIN_S = 5.0
"""Between tries to listen, where a successor finds its port taken."""


class WebPage:
    """The page of one mount."""

    def __init__(self, settings: Settings, running: Running, status: Callable[[], dict[str, Any]]) -> None:
        """``status``: returns the status document. Raises `ConfigError` if the token cannot be taken."""
        assert settings.http is not None
        self._address = settings.http
        self._token = web.read_token(settings.http_token_file) if settings.http_token_file is not None else None
        self._running = running
        self._make = status
        self._busy = BusyFiles(running.parts.operations)
        self._rings = {name: Ring(step_s, most) for name, (step_s, most) in SPANS.items()}
        self._document: dict[str, Any] = {}
        self._made: dict[str, Any] = {}
        """Answers that were made since the last sample."""

    async def run(self, *, patient: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ``task_status`` is told once it can be asked. A mistake in it ends the page alone.

        Raises `MountError` if the address cannot be had; ``patient``: then that is logged, and tried again and again.
        """
        listener = self._try_to_listen(level=logging.WARNING) if patient else web.listen(self._address)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._keep_sampling)
                while listener is None:
                    await trio.sleep(AGAIN_S)
                    listener = self._try_to_listen(level=logging.DEBUG)
                host, port = listener.getsockname()[:2]
                self._running.http = f"http://{format_address((host, port))}/"
                log.info("the web page is at %s", self._running.http)
                nursery.start_soon(web.serve, listener, self, self._token)
        except Exception:
            log.exception("the web page ends")
        finally:
            self._running.http = None

    def _try_to_listen(self, *, level: int) -> socket.socket | None:
        try:
            return web.listen(self._address)
        except MountError as exc:
            log.log(level, "%s; it is tried again every %g s", exc, AGAIN_S)
            return None

    async def _keep_sampling(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._busy.begin(time.monotonic())
        self._sample()
        task_status.started()
        while True:
            await trio.sleep(SAMPLE_S)
            self._busy.collect(time.monotonic())
            self._sample()

    def _sample(self) -> None:
        self._document = self._make()
        self._made.clear()
        for ring in self._rings.values():
            ring.feed(time.monotonic(), time.time(), self._document)

    # -- what is shown

    def status(self) -> bytes:
        """Return the status document as JSON."""
        return self._once("status", lambda: _json(self._document))

    def history(self, span: str) -> bytes | None:
        """Return the samples of a span, recent warnings and errors, and the busiest files, as JSON."""
        ring = self._rings.get(span)
        if ring is None:
            return None
        return self._once(
            span,
            lambda: _json({**ring.document(), "events": logs.recent(), "files": self._busy.top(FILES_SHOWN)}),
        )

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics, and their media type."""
        form = web.OPENMETRICS if web.OPENMETRICS in accept else ""
        return self._once(f"metrics {form}", lambda: metrics.render(self._document, form))

    def _once(self, what: str, make: Callable[[], T]) -> T:
        """Return what ``make`` does, once for all that ask before the next sample."""
        if what not in self._made:
            self._made[what] = make()
        found: T = self._made[what]
        return found


def _json(document: dict[str, Any]) -> bytes:
    """Return a document as JSON; names that are no UTF-8 escaped, as on the control socket: ten times slower."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        return json.dumps(document).encode()
