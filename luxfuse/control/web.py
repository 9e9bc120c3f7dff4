"""What the daemon shows by HTTP on a TCP port: a page for people, metrics for Prometheus, status and history as JSON.

Nothing here changes anything: orders are given by the control socket alone, and every method but GET and HEAD is refused.

On loopback any program of the machine may ask, so a browser must not be made to ask for a stranger: a request must name
this machine as its host (DNS rebinding), and no answer says that pages of other origins may read it. With a token, each
request has to give it: as a bearer, as Prometheus does, or as the password that a browser asks for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs

import trio

from luxfuse.control import http
from luxfuse.control.http import Request, Response
from luxfuse.core.addresses import is_loopback, parse_address
from luxfuse.errors import ConfigError, MountError
from luxfuse.private import read_private

MOST_CONNECTIONS = 32
TAKE_S = 20.0
"""For the client to take an answer, which takes no memory of its own meanwhile but what is on its way."""
MOST_PER_S = 100
"""Requests that are answered in a second; others wait their turn, so that programs that use the mount do not."""
OPENMETRICS = "application/openmetrics-text"
TOKEN_LEAST = 16
_TOKEN_MOST = 1024
_ALWAYS = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
)


class Sources(Protocol):
    """What is shown. Each answer is made from the last sample, and so costs little."""

    def status(self) -> bytes:
        """Return the status document as JSON."""

    def history(self, span: str) -> bytes | None:
        """Return what happened in ``span`` as JSON; None: there is no such span."""

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics, and their media type, in a format that ``accept`` prefers."""


class Page(NamedTuple):
    """The page, and the Content-Security-Policy that lets it run its own script and nothing else."""

    content: bytes
    policy: str


@cache
def page() -> Page:
    """Return the page. Raises OSError if it was not installed."""
    text = Path(__file__).with_name("page.html").read_text()
    script, style = (_hash_of(text, tag) for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
    return Page(text.encode(), policy + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def _hash_of(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


def read_token(path: str) -> bytes:
    """Return the token of a private file. Raises `ConfigError`."""
    where = f"--http-token-file {path}"
    token = read_private(path, where, _TOKEN_MOST, "; make one: (umask 077; openssl rand -hex 32 > FILE)").strip()
    if not TOKEN_LEAST <= len(token) <= _TOKEN_MOST or not re.fullmatch(rb"[!-~]+", token):
        raise ConfigError(f"{where}: must hold one word of {TOKEN_LEAST} to {_TOKEN_MOST} characters of ASCII")
    return token


def listen(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT. Raises `MountError`."""
    host, port = parse_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(MOST_CONNECTIONS)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise MountError(f"--http {address}: {exc.strerror}; choose another port, or end what uses it") from None
    return listener


async def serve(
    listener: socket.socket,
    sources: Sources,
    token: bytes | None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. ``token``: what each request has to give. Raises OSError."""
    web = Web(sources, token, any_host=not is_loopback(listener.getsockname()[0]))
    await http.serve(listener, web.answer, most_connections=MOST_CONNECTIONS, take_s=TAKE_S, task_status=task_status)


class Web:
    """Answers requests. ``any_host``: they may name any host; else it has to be one of loopback."""

    def __init__(self, sources: Sources, token: bytes | None, *, any_host: bool) -> None:
        self._sources = sources
        self._token = token
        self._any_host = any_host
        self._turn_s = 0.0
        self._routes: Mapping[str, Callable[[Request], Response]] = {
            "/": self._page,
            "/metrics": self._metrics,
            "/v1/status": self._status,
            "/v1/history": self._history,
        }

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        await self._turn()
        found = self._answer(request)
        return replace(found, headers=(*found.headers, *_ALWAYS))

    async def _turn(self) -> None:
        self._turn_s = max(self._turn_s + 1 / MOST_PER_S, trio.current_time())
        await trio.sleep_until(self._turn_s)

    def _answer(self, request: Request) -> Response:
        if not self._any_host and not _names_loopback(request.headers.get("host", "")):
            return http.error(403, "this is for this machine; ask for 127.0.0.1 or localhost")
        if not self._may(request.headers.get("authorization", "")):
            refusal = http.error(401, "a token is needed: that of --http-token-file, as a bearer or as the password")
            return replace(refusal, headers=(("www-authenticate", 'Basic realm="luxfuse", charset="UTF-8"'),))
        route = self._routes.get(request.path)
        if route is None:
            return http.error(404, f"there is no such page; there are {', '.join(self._routes)}")
        if request.method not in ("GET", "HEAD"):
            refusal = http.error(405, "nothing can be changed here; use the commands of luxfuse")
            return replace(refusal, headers=(("allow", "GET, HEAD"),))
        return route(request)

    def _may(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2].decode("latin-1")
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)

    def _page(self, _request: Request) -> Response:
        content, policy = page()
        return Response(content, "text/html; charset=utf-8", headers=(("content-security-policy", policy),))

    def _metrics(self, request: Request) -> Response:
        return Response(*self._sources.metrics(request.headers.get("accept", "")))

    def _status(self, _request: Request) -> Response:
        return Response(self._sources.status(), "application/json")

    def _history(self, request: Request) -> Response:
        span = parse_qs(request.query).get("span", [""])[-1]
        found = self._sources.history(span)
        if found is None:
            return http.error(400, "span: choose 15m or 1d, as in /v1/history?span=15m")
        return Response(found, "application/json")


def _names_loopback(host: str) -> bool:
    try:
        return bool(host) and is_loopback(parse_address(host)[0])
    except ValueError:
        return False
