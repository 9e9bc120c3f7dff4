"""The daemon's local API: HTTP on a unix socket that only its owner can open.

What can be asked for is said in `luxfuse.control.orders`. Errors are {"error": "one line"}.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_http
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Router

from luxfuse.control.address import short_address
from luxfuse.control.orders import BODY_MAX_BYTES, ORDERS, BadRequest, order_in
from luxfuse.errors import ConfigError, LuxError, MountError

log = logging.getLogger("luxfuse.control")

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def serve(
    socket_path: str | Path,
    service: object,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` is told once the socket accepts connections. Raises OSError.

    ``service`` has a method for each of `ORDERS`. What they expect to fail raises `LuxError` with one line: `ConfigError`
    for what was asked wrongly, `MountError` for what is busy.
    """
    with _listening_socket(Path(socket_path)) as listener:
        config = Config()
        # hypercorn makes its own socket object of the descriptor and closes it.
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        config.accesslog = None
        config.errorlog = logging.getLogger("luxfuse.control.http")
        config.errorlog.setLevel(logging.WARNING)
        config.include_server_header = False
        config.graceful_timeout = 1.0
        application: Any = _application(service)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_http, application, config, mode="asgi"))
            task_status.started()


def _listening_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode of the socket's inode is the mode of the file that bind makes: closed to others from the start.
        os.fchmod(listener.fileno(), 0o600)
        with short_address(path) as address:
            listener.bind(address)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _application(service: object) -> Router:
    names = {endpoint.path: name for name, endpoint in ORDERS.items()}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        response = await _answer(Request(scope, receive), service, names.get(scope["path"]))
        await response(scope, receive, send)

    return Router(default=answer, redirect_slashes=False)


async def _answer(request: Request, service: object, name: str | None) -> Response:
    """Carry out an order and turn every exception into a one-line answer."""
    try:
        raw = await _body(request, ORDERS[name].body_bytes if name is not None else BODY_MAX_BYTES)
        if name is None:
            raise BadRequest("no such request; is the daemon of another version?", 404)
        endpoint = ORDERS[name]
        if request.method != endpoint.method:
            raise BadRequest(f"{endpoint.path} wants {endpoint.method}", 405)
        body = order_in(raw, endpoint.body)
        found = getattr(service, name)(**{field: getattr(body, field) for field in body.__struct_fields__})
        if endpoint.answer == "lines":
            return _Lines(found)
        if inspect.isawaitable(found):
            found = await found
        if endpoint.answer == "text":
            return Response(found.encode(errors="backslashreplace"), media_type=_PROMETHEUS)
        return _Json({endpoint.field: found} if endpoint.field else found or {})
    except Exception as exc:  # noqa: BLE001 (it is told apart there, and logged)
        return _refusal(request, exc)


def _refusal(request: Request, exc: Exception) -> Response:
    for kind, status in ((ConfigError, 400), (MountError, 409), (LuxError, 502)):
        if isinstance(exc, kind):
            return _error(status, str(exc))
    if isinstance(exc, BadRequest):
        return _error(exc.status, str(exc))
    if isinstance(exc, ClientDisconnect):
        return _error(400, "the client hung up")
    log.error("control request %s failed", request.url.path, exc_info=exc)
    return _error(500, "unexpected error in the daemon; see its log")


class _Json(Response):
    """An object as JSON. Text that is no UTF-8 is escaped, as `json` does it."""

    def __init__(self, content: object, status_code: int = 200) -> None:
        super().__init__(json.dumps(content).encode(), status_code, media_type="application/json")


class _Lines(Response):
    """Sends each item as a line of JSON, and stops asking for more when the client hangs up."""

    def __init__(self, items: AsyncGenerator[dict[str, object], None]) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self._items = items

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery, aclosing(self._items), aclosing(self._guarded()) as lines:
            nursery.start_soon(watch)
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _guarded(self) -> AsyncGenerator[bytes, None]:
        try:
            async for item in self._items:
                yield json.dumps(item).encode() + b"\n"
        except LuxError as exc:
            yield json.dumps({"aborted": " ".join(str(exc).split())}).encode() + b"\n"
        except Exception:
            log.exception("a control request failed in its course")
            yield json.dumps({"aborted": "unexpected error in the daemon; see its log"}).encode() + b"\n"


def _error(status: int, text: str) -> Response:
    return _Json({"error": " ".join(text.split())}, status)


async def _body(request: Request, most_bytes: int) -> bytes:
    raw = bytearray()
    size = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size <= most_bytes:  # else it is received all the same: a client that still sends hears no answer
                raw += chunk
    if size > most_bytes:
        raise BadRequest(f"the request is too large: {most_bytes >> 20} MiB are the most; give fewer paths")
    return bytes(raw)
