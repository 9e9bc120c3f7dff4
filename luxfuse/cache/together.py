"""Several things at once, of which the first failure ends all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

Start = Callable[..., None]


@asynccontextmanager
async def together() -> AsyncIterator[Start]:
    """Give a function that starts tasks: ``start(async_function, *arguments)``; the block ends when all have ended.

    The first exception of a task cancels the others and the block, and is raised as it is, not in a group.
    """
    failed: list[Exception] = []

    async with trio.open_nursery() as nursery:

        async def run(function: Callable[..., Awaitable[object]], arguments: tuple[object, ...]) -> None:
            try:
                await function(*arguments)
            except Exception as exc:  # noqa: BLE001 (it is raised below)
                failed.append(exc)
                nursery.cancel_scope.cancel()

        def start(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
            nursery.start_soon(run, function, arguments)

        try:
            yield start
        except Exception as exc:  # noqa: BLE001 (it is raised below)
            failed.append(exc)
            nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]
