"""The web page's requests: what is answered, to whom, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from luxfuse.control import web
from luxfuse.control.http import NotReceived, Request, Response
from luxfuse.errors import ConfigError, MountError

TOKEN = "0123456789abcdef"


class Sources:
    def status(self) -> bytes:
        return b'{"state": "serving"}'

    def history(self, span: str) -> bytes | None:
        return b"{}" if span == "15m" else None

    def metrics(self, accept: str) -> tuple[bytes, str]:
        return b"luxfuse_up 1\n", accept or "text/plain"


async def asked(path: str, *, method: str = "GET", host: str = "127.0.0.1:9180", token: str | None = None,
                any_host: bool = False, query: str = "", **headers: str) -> Response:  # fmt: skip
    async def body(_most: int) -> bytes:
        raise NotReceived("nobody asks for a body")

    wanted = web.Web(Sources(), token.encode() if token else None, any_host=any_host)
    return await wanted.answer(Request(method, path, query, {"host": host, **headers}, body))


async def test_what_there_is() -> None:
    assert (await asked("/")).media_type == "text/html; charset=utf-8"
    assert (await asked("/metrics", accept="application/openmetrics-text")).content == b"luxfuse_up 1\n"
    assert (await asked("/v1/status")).content == b'{"state": "serving"}'
    assert (await asked("/v1/history", query="span=15m")).content == b"{}"
    assert (await asked("/v1/history", query="span=9y")).status == 400
    assert (await asked("/nowhere")).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
async def test_nothing_can_be_changed(method: str) -> None:
    for path in ("/", "/v1/status", "/metrics"):
        assert (await asked(path, method=method)).status == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9180", 200), ("localhost", 200), ("[::1]:9180", 200), ("LOCALHOST:1", 200), ("127.9.9.9", 200),
        ("evil.example", 403), ("127.0.0.1.evil.example:9180", 403), ("", 403), ("10.0.0.1", 403), ("a b", 403),
        ("localhost.evil.example", 403), ("[::1", 403), ("127.0.0.1:99999", 403),
    ],
)  # fmt: skip
async def test_a_browser_cannot_be_led_here_by_another_name(host: str, status: int) -> None:
    assert (await asked("/v1/status", host=host)).status == status


async def test_where_other_machines_may_ask_any_name_will_do() -> None:
    answer = await asked("/v1/status", host="node-7:9180", any_host=True, token=TOKEN, authorization=f"Bearer {TOKEN}")
    assert answer.status == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode(), 200),
        ("", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}0", 401),
        ("Bearer", 401),
        ("Basic !!!", 401),
        ("Basic " + base64.b64encode(TOKEN.encode()).decode(), 401),
        ("Bearer \xe4", 401),
    ],
)
async def test_with_a_token_each_request_needs_it(authorization: str, status: int) -> None:
    for path in ("/", "/metrics", "/v1/status", "/nowhere"):
        answer = await asked(path, token=TOKEN, authorization=authorization)
        assert answer.status == (404 if status == 200 and path == "/nowhere" else status)
        assert status == 200 or ("www-authenticate", 'Basic realm="luxfuse", charset="UTF-8"') in answer.headers


async def test_the_page_runs_its_own_script_and_loads_nothing_from_elsewhere() -> None:
    answer = await asked("/")
    assert isinstance(answer.content, bytes)
    text, headers = answer.content.decode(), dict(answer.headers)
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, which is not loaded
    assert not re.search(r"\s(style|on\w+)=|innerHTML|<link(?! rel=\"icon\")|<img|@import", text)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


async def test_requests_take_turns(autojump_clock: MockClock) -> None:
    page = web.Web(Sources(), None, any_host=True)
    began = trio.current_time()

    async def body(_most: int) -> bytes:
        return b""

    async with trio.open_nursery() as nursery:
        for _ in range(web.MOST_PER_S):
            nursery.start_soon(page.answer, Request("GET", "/v1/status", "", {}, body))
    assert trio.current_time() - began >= 0.98


@asynccontextmanager
async def serving(token: bytes | None = None) -> AsyncIterator[int]:
    listener = web.listen("127.0.0.1:0")
    port = listener.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(web.serve, listener, Sources(), token)
        yield port
        nursery.cancel_scope.cancel()


async def test_by_a_socket_and_with_many_that_do_not_read() -> None:
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving() as port:
        slow = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(web.MOST_CONNECTIONS - 1)]
        for stream in slow:
            await stream.send_all(get)
        async with await trio.open_tcp_stream("127.0.0.1", port) as reader:
            await reader.send_all(get.replace(b"GET /", b"GET /v1/status"))
            with trio.fail_after(60):
                assert (await reader.receive_some(4096)).startswith(b"HTTP/1.1 200")
        for stream in slow:
            await stream.aclose()


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MountError, match=f"--http 127.0.0.1:{port}: Address already in use; choose another port"):
            web.listen(f"127.0.0.1:{port}")


def test_a_token_is_private_and_long(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match=r"No such file or directory; make one: .umask 077; openssl rand"):
        web.read_token(str(file))
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=f"others can get at it; run: chmod 600 {file}"):
        web.read_token(str(file))
    file.chmod(0o600)
    assert web.read_token(str(file)) == TOKEN.encode()
    for wrong in ("", "short", "two words of enough length", "\u00e4" * 20, "x" * 2000):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="must hold one word of 16 to 1024 characters"):
            web.read_token(str(file))
