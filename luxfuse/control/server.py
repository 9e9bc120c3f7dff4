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
| POST /v1/free | {"paths": [...]} or patterns | lines of progress: `luxfuse.vfs.inventory.FreeProgress` |
| POST /v1/check | {"repair": bool} | lines of progress: `luxfuse.vfs.check.CheckProgress` |
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
daemon stops as soon as the client hangs up. Their fields are those of `luxfuse.vfs.backlog.Progress`, of a load those of
`luxfuse.vfs.load.LoadProgress`; a line that has ``aborted`` instead says why it is the last.
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
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from luxfuse.control.address import short_address
from luxfuse.core.replication import MOST_COPIES
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


class _BadRequest(Exception):
    """The request cannot be understood; the text says why."""


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
    async def status(_request: Request) -> Response:
        return JSONResponse(service.status())

    async def metrics(_request: Request) -> Response:
        return PlainTextResponse(service.metrics(), media_type=_PROMETHEUS)

    async def refresh(request: Request) -> Response:
        return JSONResponse({"errors": await service.refresh(await _paths(request))})

    async def persist(request: Request) -> Response:
        return _Lines(service.persist(await _paths(request)))

    async def load(request: Request) -> Response:
        return _Lines(service.load(await _paths(request, _LOAD_MAX_BYTES)))

    async def free(request: Request) -> Response:
        return _Lines(service.free(await _paths(request)))

    async def check(request: Request) -> Response:
        return _Lines(service.check(repair=_flag(await _body(request), "repair")))

    async def locate(request: Request) -> Response:
        return JSONResponse({"paths": await service.locate(await _paths(request))})

    async def reload(_request: Request) -> Response:
        return JSONResponse({"changed": await service.reload()})

    async def pin(request: Request) -> Response:
        return JSONResponse(await service.pin(await _paths(request)))

    async def unpin(request: Request) -> Response:
        return JSONResponse(await service.unpin(await _paths(request)))

    async def limit(request: Request) -> Response:
        body = await _body(request)
        seconds, action = body.get("seconds"), body.get("action")
        if action not in ("free", "delete"):
            raise _BadRequest("action: free or delete is needed")
        if not (seconds is None or (isinstance(seconds, (int, float)) and seconds >= 0)):
            raise _BadRequest("seconds: a number or null is needed")
        return JSONResponse(await service.limit(_paths_in(body), seconds, action))

    async def replicate(request: Request) -> Response:
        body = await _body(request)
        least = _count(body, "min")
        most = None if body.get("max") is None else _count(body, "max")
        if most is not None and most < max(1, least):
            raise _BadRequest("max: is smaller than min")
        return JSONResponse(await service.replicate(_paths_in(body), least, most))

    async def start_load(request: Request) -> Response:
        return JSONResponse({"job": service.start_load(await _paths(request, _LOAD_MAX_BYTES))})

    async def loads(_request: Request) -> Response:
        return JSONResponse({"jobs": service.loads()})

    async def stop_loads(_request: Request) -> Response:
        return JSONResponse({"stopped": service.stop_loads()})

    async def attach(request: Request) -> Response:
        body = await _body(request)
        source, path, options = body.get("source"), body.get("path"), body.get("options", {})
        if not isinstance(source, str) or not isinstance(path, str) or not isinstance(options, dict):
            raise _BadRequest("source, path and options are needed")
        return JSONResponse({"notes": await service.attach(source, path, options)})

    async def detach(request: Request) -> Response:
        body = await _body(request)
        path, force = body.get("path"), body.get("force", False)
        if not isinstance(path, str) or not isinstance(force, bool):
            raise _BadRequest("path and force are needed")
        return _Lines(service.detach(path, force=force))

    async def drain(_request: Request) -> Response:
        return _Lines(service.drain())

    async def unmount(request: Request) -> Response:
        await service.unmount(lazy=_flag(await _body(request), "lazy"))
        return JSONResponse({})

    routes = [
        Route("/v1/status", _guard(status), methods=["GET"]),
        Route("/v1/metrics", _guard(metrics), methods=["GET"]),
        Route("/v1/refresh", _guard(refresh), methods=["POST"]),
        Route("/v1/persist", _guard(persist), methods=["POST"]),
        Route("/v1/load", _guard(load), methods=["POST"]),
        Route("/v1/load/start", _guard(start_load), methods=["POST"]),
        Route("/v1/load/jobs", _guard(loads), methods=["GET"]),
        Route("/v1/load/stop", _guard(stop_loads), methods=["POST"]),
        Route("/v1/free", _guard(free), methods=["POST"]),
        Route("/v1/check", _guard(check), methods=["POST"]),
        Route("/v1/locate", _guard(locate), methods=["POST"]),
        Route("/v1/reload", _guard(reload), methods=["POST"]),
        Route("/v1/pin", _guard(pin), methods=["POST"]),
        Route("/v1/unpin", _guard(unpin), methods=["POST"]),
        Route("/v1/ttl", _guard(limit), methods=["POST"]),
        Route("/v1/replicate", _guard(replicate), methods=["POST"]),
        Route("/v1/attach", _guard(attach), methods=["POST"]),
        Route("/v1/detach", _guard(detach), methods=["POST"]),
        Route("/v1/drain", _guard(drain), methods=["POST"]),
        Route("/v1/unmount", _guard(unmount), methods=["POST"]),
    ]
    return Router(routes, default=_not_found)


Endpoint = Callable[[Request], Awaitable[Response]]


def _guard(endpoint: Endpoint) -> Endpoint:
    """Turn every exception of an endpoint into a one-line answer."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except _BadRequest as exc:
            return _error(400, str(exc))
        except ConfigError as exc:
            return _error(400, str(exc))
        except MountError as exc:
            return _error(409, str(exc))
        except LuxError as exc:
            return _error(502, str(exc))
        except Exception:
            log.exception("control request %s failed", request.url.path)
            return _error(500, "unexpected error in the daemon; see its log")

    return guarded


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
    return JSONResponse({"error": " ".join(text.split())}, status_code=status)


async def _not_found(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await _error(404, "no such request; is the daemon of another version?")(scope, receive, send)


async def _paths(request: Request, most_bytes: int = _BODY_MAX_BYTES) -> list[str]:
    return _paths_in(await _body(request, most_bytes))


def _paths_in(body: dict[str, Any]) -> list[str]:
    paths = body.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise _BadRequest("paths: a list of strings is needed")
    return paths


def _count(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_COPIES:
        raise _BadRequest(f"{name}: a number from 0 to {MOST_COPIES} is needed")
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _BadRequest(f"{name}: true or false is needed")
    return value


async def _body(request: Request, most_bytes: int = _BODY_MAX_BYTES) -> dict[str, Any]:
    raw = bytearray()
    size = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size <= most_bytes:  # else it is received all the same: a client that still sends hears no answer
                raw += chunk
    if size > most_bytes:
        raise _BadRequest(f"the request is too large: {most_bytes >> 20} MiB are the most; give fewer paths")
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        raise _BadRequest("the request is not JSON") from None
    if not isinstance(body, dict):
        raise _BadRequest("a JSON object is needed")
    return body
