"""The daemon's local API: HTTP on a unix socket that only its owner can open.

| request | body | answer |
|---|---|---|
| GET /v1/status | | the status document, `luxfuse.control.status` |
| GET /v1/metrics | | Prometheus text |
| POST /v1/refresh | {"paths": [...]}, relative to the mount | {"errors": [...]} |
| POST /v1/persist | {"paths": [...]}, relative to the mount | lines of progress; the last has done, failures, notes |
| POST /v1/load | {"paths": [...]}, or patterns | lines of progress; the last has done, failures |
| POST /v1/load/start | {"paths": [...]} | {"job": number}: the same in the background |
| GET /v1/load/jobs | | {"jobs": [...]}: a line of progress of each: those that run, and the last that ended |
| POST /v1/load/stop | | {"stopped": how many} |
| POST /v1/free | {"paths": [...]} or patterns | lines of progress: `luxfuse.orders.inventory.FreeProgress` |
| POST /v1/check | {"repair": bool} | lines of progress: `luxfuse.orders.check.CheckProgress` |
| POST /v1/locate | {"paths": [...]} | {"paths": [...]}: what is cached of each, and where; see below |
| POST /v1/pin, /v1/unpin | {"paths": [...]} | {"failures": [...], "notes": [...]}, lines |
| POST /v1/ttl | {"paths": [...], "seconds": number or null, "action": "free" or "delete"} | the same |
| POST /v1/replicate | {"paths": [...], "min": number (0: the rule ends), "max": number or null} | the same |
| POST /v1/reload | | {"changed": [...]}: names of settings; 400 with the reason if the file is refused |
| POST /v1/attach | {"source", "path", relative to the mount, "options": {...}} | {"notes": [...]} once attached; or 409 |
| POST /v1/detach | {"path", "force": bool} | lines of progress; the last has done |
| POST /v1/drain | | lines of progress; the last has done |
| POST /v1/unmount | {"lazy": bool} | {} once unmounted; 409 when busy |

Each path of /v1/locate has ``path`` and either ``error``, or ``kind``. A ``file`` has ``size`` and ``page_bytes`` in bytes,
``state`` (``clean``, ``dirty`` or ``open for writing``), ``missing_pages`` as ``0-15,20``, and ``places``: each a
``tier``, its ``directory``, the ``file`` there, ``pages`` in the same manner (``all``; none for a staging file in parts)
and ``bytes``; and ``nodes``, the others of the cluster that hold ranges of it: each a ``node``, its ``label``, and how
many ``ranges`` it holds ``of`` how many. A ``directory`` has ``tiers``: each a ``tier``, ``directory``, ``files`` and
``bytes`` on disk; and ``whole_files``, ``partial_files`` and ``dirty_files``. Versions that the store has no more are
counted there.

Errors are {"error": "one line"}. Lines of progress are one JSON object each, about ten a second, until all is done; the
daemon stops as soon as the client hangs up. Their fields are those of `luxfuse.orders.backlog.Progress`, of a load those of
`luxfuse.orders.load.LoadProgress`; a line that has ``aborted`` instead says why it is the last.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_http
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Router

from luxfuse.control import orders
from luxfuse.control.address import short_address
from luxfuse.control.orders import BadRequest, Order
from luxfuse.errors import ConfigError, LuxError, MountError
from luxfuse.types import TtlAction

log = logging.getLogger("luxfuse.control")

_BODY_MAX_BYTES = 4 << 20
_LOAD_MAX_BYTES = 16 << 20
"""A list of paths may be long."""
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class ControlService(Protocol):
    """What the daemon offers. Expected failures are LuxError; `unmount` raises MountError when busy."""

    def status(self) -> dict[str, object]:
        """Return the status document."""

    def metrics(self) -> str:
        """Return the metrics as Prometheus text."""

    async def refresh(self, paths: list[str]) -> list[str]:
        """Forget what is known of the paths; returns one line for each that failed."""

    def persist(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below the paths to the under-store; yields how far that is."""

    def load(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below the paths into the cache; yields how far that is."""

    def free(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Drop what is cached at and below the paths; yields how far that is."""

    def check(self, *, repair: bool) -> AsyncGenerator[dict[str, object], None]:
        """Compare the cache with what is recorded of it, and mend it if ``repair``; yields how far that is."""

    async def locate(self, paths: list[str]) -> list[dict[str, object]]:
        """Return what is cached of each path, and where."""

    def start_load(self, paths: list[str]) -> int:
        """The same in the background; returns the number of the job."""

    def loads(self) -> list[dict[str, object]]:
        """Return how far each load is."""

    def stop_loads(self) -> int:
        """End all loads; returns how many those are."""

    async def reload(self) -> list[str]:
        """Take up a changed configuration file; returns what changed. Raises `ConfigError`, with nothing changed."""

    async def pin(self, paths: list[str]) -> dict[str, object]:
        """Never evict what is at and below the paths."""

    async def unpin(self, paths: list[str]) -> dict[str, object]:
        """Let what is at and below the paths be evicted again."""

    async def limit(self, paths: list[str], seconds: float | None, action: TtlAction) -> dict[str, object]:
        """Set how long what is at and below the paths is kept; None: for ever."""

    async def replicate(self, paths: list[str], least: int, most: int | None) -> dict[str, object]:
        """Have what is at and below the paths held by so many nodes; ``least`` 0: by as many as it comes."""

    async def attach(self, source: str, path: str, options: dict[str, Any]) -> list[str]:
        """Attach a further under-store at a path; returns lines worth knowing."""

    def detach(self, path: str, *, force: bool) -> AsyncGenerator[dict[str, object], None]:
        """Bring what was written in an attached under-store there, and take it away; yields how far that is."""

    def drain(self) -> AsyncGenerator[dict[str, object], None]:
        """Bring everything that is closed to the under-store; yields how far that is."""

    async def unmount(self, *, lazy: bool) -> None:
        """Unmount and begin to end."""


async def serve(
    socket_path: str | Path,
    service: ControlService,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status` is told once the socket accepts connections. Raises OSError."""
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


def _application(service: ControlService) -> Router:
    async def status(_body: orders.Nothing) -> Response:
        return _Json(service.status())

    async def metrics(_body: orders.Nothing) -> Response:
        return Response(service.metrics().encode(errors="backslashreplace"), media_type=_PROMETHEUS)

    async def refresh(body: orders.Paths) -> Response:
        return _Json({"errors": await service.refresh(body.paths)})

    async def persist(body: orders.Paths) -> Response:
        return _Lines(service.persist(body.paths))

    async def load(body: orders.Paths) -> Response:
        return _Lines(service.load(body.paths))

    async def free(body: orders.Paths) -> Response:
        return _Lines(service.free(body.paths))

    async def check(body: orders.Check) -> Response:
        return _Lines(service.check(repair=body.repair))

    async def locate(body: orders.Paths) -> Response:
        return _Json({"paths": await service.locate(body.paths)})

    async def reload(_body: orders.Nothing) -> Response:
        return _Json({"changed": await service.reload()})

    async def pin(body: orders.Paths) -> Response:
        return _Json(await service.pin(body.paths))

    async def unpin(body: orders.Paths) -> Response:
        return _Json(await service.unpin(body.paths))

    async def limit(body: orders.Limit) -> Response:
        return _Json(await service.limit(body.paths, body.seconds, body.action))

    async def replicate(body: orders.Replicate) -> Response:
        if body.max is not None and body.max < max(1, body.min):
            raise BadRequest("max: is smaller than min")
        return _Json(await service.replicate(body.paths, body.min, body.max))

    async def start_load(body: orders.Paths) -> Response:
        return _Json({"job": service.start_load(body.paths)})

    async def loads(_body: orders.Nothing) -> Response:
        return _Json({"jobs": service.loads()})

    async def stop_loads(_body: orders.Nothing) -> Response:
        return _Json({"stopped": service.stop_loads()})

    async def attach(body: orders.Attach) -> Response:
        return _Json({"notes": await service.attach(body.source, body.path, body.options)})

    async def detach(body: orders.Detach) -> Response:
        return _Lines(service.detach(body.path, force=body.force))

    async def drain(_body: orders.Nothing) -> Response:
        return _Lines(service.drain())

    async def unmount(body: orders.Unmount) -> Response:
        await service.unmount(lazy=body.lazy)
        return _Json({})

    table: dict[str, tuple[str, type[Order], Endpoint]] = {
        "/v1/status": ("GET", orders.Nothing, status),
        "/v1/metrics": ("GET", orders.Nothing, metrics),
        "/v1/refresh": ("POST", orders.Paths, refresh),
        "/v1/persist": ("POST", orders.Paths, persist),
        "/v1/load": ("POST", orders.Paths, load),
        "/v1/load/start": ("POST", orders.Paths, start_load),
        "/v1/load/jobs": ("GET", orders.Nothing, loads),
        "/v1/load/stop": ("POST", orders.Nothing, stop_loads),
        "/v1/free": ("POST", orders.Paths, free),
        "/v1/check": ("POST", orders.Check, check),
        "/v1/locate": ("POST", orders.Paths, locate),
        "/v1/reload": ("POST", orders.Nothing, reload),
        "/v1/pin": ("POST", orders.Paths, pin),
        "/v1/unpin": ("POST", orders.Paths, unpin),
        "/v1/ttl": ("POST", orders.Limit, limit),
        "/v1/replicate": ("POST", orders.Replicate, replicate),
        "/v1/attach": ("POST", orders.Attach, attach),
        "/v1/detach": ("POST", orders.Detach, detach),
        "/v1/drain": ("POST", orders.Nothing, drain),
        "/v1/unmount": ("POST", orders.Unmount, unmount),
    }

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        response = await _answer(Request(scope, receive), table.get(scope["path"]))
        await response(scope, receive, send)

    return Router(default=answer, redirect_slashes=False)


Endpoint = Callable[[Any], Awaitable[Response]]


async def _answer(request: Request, asked: tuple[str, type[Order], Endpoint] | None) -> Response:
    """Call an endpoint and turn every exception into a one-line answer."""
    try:
        most_bytes = _LOAD_MAX_BYTES if request.url.path.startswith("/v1/load") else _BODY_MAX_BYTES
        raw = await _body(request, most_bytes)
        if asked is None:
            raise BadRequest("no such request; is the daemon of another version?", 404)
        method, order, endpoint = asked
        if request.method != method:
            raise BadRequest(f"{request.url.path} wants {method}", 405)
        return await endpoint(orders.order_in(raw, order))
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
