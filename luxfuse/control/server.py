"""The daemon's local API: HTTP on a unix socket that only its owner can open.

The orders are those of `luxfuse.control.orders`. Errors are {"error": "one line"}.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from luxfuse.control import http
from luxfuse.control.address import short_address
from luxfuse.control.http import Request, Response, TooLarge
from luxfuse.control.orders import BODY_MAX_BYTES, ORDERS, BadRequest, order_in
from luxfuse.errors import ConfigError, LuxError, MountError

log = logging.getLogger("luxfuse.control")

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_NAMES = {endpoint.path: name for name, endpoint in ORDERS.items()}
_STATUSES = ((ConfigError, 400), (MountError, 409), (LuxError, 502))


async def serve(
    socket_path: str | Path,
    service: object,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` is told once the socket accepts connections. Raises OSError.

    ``service`` has a method for each of `ORDERS`. An expected failure is a `LuxError` with one line: `ConfigError` for a
    wrong order, `MountError` for something that is busy.
    """
    with _listening_socket(Path(socket_path)) as listener:
        await http.serve(listener, partial(answer, service), task_status=task_status)


def _listening_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the socket's inode is the mode of the file that bind makes: closed to others from the start.
        os.fchmod(listener.fileno(), 0o600)
        with short_address(path) as address:
            listener.bind(address)
        listener.listen(http.MOST_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


async def answer(service: object, request: Request) -> Response:
    """Carry out the order in a request; expected failures are one-line answers. Other errors are raised."""
    try:
        return await _carry_out(service, request)
    except BadRequest as exc:
        return http.error(exc.status, str(exc))
    except LuxError as exc:
        return http.error(next(status for kind, status in _STATUSES if isinstance(exc, kind)), str(exc))


async def _carry_out(service: object, request: Request) -> Response:
    name = _NAMES.get(request.path)
    raw = await _body(request, ORDERS[name].body_bytes if name is not None else BODY_MAX_BYTES)
    if name is None:
        raise BadRequest("no such request; is the daemon of another version?", 404)
    endpoint = ORDERS[name]
    if request.method != endpoint.method:
        refusal = http.error(405, f"{endpoint.path} wants {endpoint.method}")
        return replace(refusal, headers=(("allow", endpoint.method),))
    body = order_in(raw, endpoint.body)
    found = getattr(service, name)(**{field: getattr(body, field) for field in body.__struct_fields__})
    if endpoint.answer == "lines":
        return Response(_lines(found), "application/x-ndjson")
    if inspect.isawaitable(found):
        found = await found
    if endpoint.answer == "text":
        return Response(found.encode(errors="backslashreplace"), _PROMETHEUS)
    return http.json_response({endpoint.field: found} if endpoint.field else found or {})


async def _body(request: Request, most_bytes: int) -> bytes:
    try:
        return await request.body(most_bytes)
    except TooLarge:
        raise BadRequest(f"the request is too large: {most_bytes >> 20} MiB are the most; give fewer paths") from None


async def _lines(items: AsyncGenerator[dict[str, object], None]) -> AsyncGenerator[bytes, None]:
    """Yield each item as a line of JSON; a failure is the last line."""
    try:
        async with aclosing(items):
            async for item in items:
                yield json.dumps(item).encode() + b"\n"
    except LuxError as exc:
        yield json.dumps({"aborted": " ".join(str(exc).split())}).encode() + b"\n"
    except Exception:
        log.exception("a control request failed in its course")
        yield json.dumps({"aborted": "unexpected error in the daemon; see its log"}).encode() + b"\n"
