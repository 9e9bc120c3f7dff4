"""``luxfuse index export`` of a source that is not mounted; with all that lists it, so imported only for that."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from luxfuse.config import Settings
from luxfuse.errors import LuxError
from luxfuse.orders.source_manifest import export_source
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store


def export_listed(settings: Settings, file: Path, show: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    """Write the manifest of the source of ``settings``; returns the last `ManifestProgress`. Raises `LuxError`."""
    return trio.run(_export, settings, file, show)


async def _export(settings: Settings, file: Path, show: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    step: Mapping[str, Any] = {}
    store = Store(
        open_driver(
            settings.source, endpoint_url=settings.endpoint_url, storage_options=settings.driver_options,
            driver=settings.driver, request_timeout_s=settings.request_timeout_s, direct_gets=settings.max_requests,
        ),
        request_timeout_s=settings.request_timeout_s,
        max_requests=settings.max_requests,
        rng=random.Random(),  # noqa: S311 (jitter)
        name=safe_url(settings.source),
    )  # fmt: skip
    refused: LuxError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch_deadlines)
            source = safe_url(settings.source)
            try:
                async with aclosing(export_source(store, file, source, settings.source_id)) as steps:
                    async for progress in steps:
                        step = asdict(progress)
                        show(step)
            except LuxError as exc:  # which would leave the nursery in a group
                refused = exc
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)
    if refused is not None:
        raise refused
    return step
