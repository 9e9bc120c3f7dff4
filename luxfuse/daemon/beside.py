"""What shows a mount to others: the web page, and the export of metrics. A mistake in it ends no mount that is in use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from luxfuse.daemon.running import Running
from luxfuse.errors import ConfigError

log = logging.getLogger(__name__)


async def begin(nursery: trio.Nursery, running: Running, status: Callable[[], dict[str, Any]], *, successor: bool) -> None:
    """Begin what the settings ask for. Raises `ConfigError`, `MountError`; for a ``successor`` that is a warning."""
    settings = running.settings

    async def export() -> None:
        if settings.otlp is not None:
            from luxfuse.daemon.otlp import Export  # what it needs may not be installed

            nursery.start_soon(Export(settings.otlp, status).run)

    async def page() -> None:
        if settings.http is not None:
            from luxfuse.daemon.web import WebPage  # most mounts have none, and metrics take long to import

            await nursery.start(partial(WebPage(settings, running, status).run, patient=successor))

    for show in (export, page):
        try:
            await show()
        except ConfigError as exc:
            if not successor:
                raise
            log.warning("the mount goes on without what was to show it: %s", exc)
