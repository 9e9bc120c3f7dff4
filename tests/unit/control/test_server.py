"""Server and client over a real unix socket."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import socket
import stat
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from luxfuse.control.address import short_address
from luxfuse.control.client import ControlClient, DaemonRefused
from luxfuse.control.server import serve
from luxfuse.errors import MountError, StoreUnavailable
from tests.unit.control.samples import sample_status

T = TypeVar("T")


class FakeService:
    def __init__(self) -> None:
        self.refreshed: list[str] = []
        self.unmounted: list[bool] = []
        self.fault: Exception | None = None
        self.draining = False

    def status(self) -> dict[str, object]:
        if self.fault:
            raise self.fault
        return dict(sample_status())

    def metrics(self) -> str:
        return "luxfuse_up 1\n"

    async def refresh(self, paths: list[str]) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.refreshed += paths
        return [f"{path}: no such file" for path in paths if path == "gone"]

    async def persist(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        yield {"files": len(paths), "done": False}
        if self.fault:
            raise self.fault
        yield {"files": 0, "done": True, "failures": [f"{path}: no" for path in paths if path == "gone"]}

    async def load(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        self.draining = True
        try:
            yield {"files": len(paths), "done": False}
            yield {"files": len(paths), "done": True}
        finally:
            self.draining = False

    async def free(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        yield {"freed_files": len(paths), "done": True}

    async def check(self, *, repair: bool) -> AsyncGenerator[dict[str, object], None]:
        if self.fault:
            raise self.fault
        yield {"repair": repair, "done": True}

    async def locate(self, paths: list[str]) -> list[dict[str, object]]:
        await trio.lowlevel.checkpoint()
        return [{"path": path} for path in paths]

    async def replicate(self, paths: list[str], least: int, most: int | None) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"failures": [], "notes": [f"{paths} {least} {most}"]}

    def start_load(self, paths: list[str]) -> int:
        if self.fault:
            raise self.fault
        return len(paths)

    def loads(self) -> list[dict[str, object]]:
        return [{"job": 1}]

    def stop_loads(self) -> int:
        return 3

    async def attach(self, source: str, path: str, options: dict[str, object]) -> list[str]:
        await trio.lowlevel.checkpoint()
        if self.fault:
            raise self.fault
        return [source, path, *options]

    async def detach(self, path: str, *, force: bool) -> AsyncGenerator[dict[str, object], None]:
        yield {"files": 1, "done": False}
        if self.fault:
            raise self.fault
        yield {"files": 0, "done": force}

    async def drain(self) -> AsyncGenerator[dict[str, object], None]:
        self.draining = True
        try:
            while True:
                yield {"files": 1, "done": False}
                await trio.sleep(0.01)
        finally:
            self.draining = False

    async def unmount(self, *, lazy: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self.fault:
            raise self.fault
        self.unmounted.append(lazy)


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[FakeService, ControlClient]]:
    service = FakeService()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, path, service)
        yield service, ControlClient(path)
        nursery.cancel_scope.cancel()


async def call(function: Callable[..., T], *args: object) -> T:
    return await trio.to_thread.run_sync(function, *args)


@pytest.mark.parametrize(("least", "most"), [(-1, None), (True, None), ("2", None), (2, 1), (0, 0), (1, 10_001)])
async def test_rules_of_replicas_must_make_sense(tmp_path: Path, least: int, most: int | None) -> None:
    async with serving(tmp_path / "control.sock") as (_, client):
        with pytest.raises(DaemonRefused, match=r"min|max") as caught:
            await call(client.replicate, ["a"], least, most)
        assert caught.value.status == 400
        assert (await call(client.replicate, ["a"], 2, 2))["notes"] == ["['a'] 2 2"]


async def test_every_request(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as (service, client):
        assert await call(client.status) == sample_status()
        assert await call(client.metrics) == "luxfuse_up 1\n"
        assert await call(client.refresh, ["a/ö", "gone"]) == ["gone: no such file"]
        assert await call(lambda: list(client.persist(["a", "gone"]))) == [
            {"files": 2, "done": False},
            {"files": 0, "done": True, "failures": ["gone: no"]},
        ]
        assert await call(client.attach, "s3://b", "d/m", {"driver": "auto"}) == ["s3://b", "d/m", "driver"]
        assert (await call(lambda: list(client.detach("d/m", force=True))))[-1] == {"files": 0, "done": True}
        service.fault = MountError("busy: in\nuse")
        with pytest.raises(DaemonRefused, match=r"^busy: in use$") as info:
            await call(client.attach, "s3://b", "d/m", {})
        assert info.value.status == 409
        with pytest.raises(DaemonRefused, match=r"^busy: in use$"):
            await call(lambda: list(client.detach("d/m", force=False)))
        service.fault = None
        await call(client.unmount)
        assert service.refreshed == ["a/ö", "gone"]
        assert service.unmounted == [False]


async def test_the_socket_is_closed_to_others_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    for _ in range(2):
        async with serving(path) as (_service, client):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert (await call(client.status))["pid"] == 42


async def test_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120) / ("y" * 120)
    directory.mkdir(parents=True)
    async with serving(directory / "control.sock") as (_service, client):
        assert (await call(client.status))["state"] == "serving"


async def test_expected_failures_are_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as (service, client):
        service.fault = MountError("/mnt is busy:\nused by cat")
        with pytest.raises(DaemonRefused, match=r"^/mnt is busy: used by cat$") as caught:
            await call(client.unmount)
        assert caught.value.status == 409
        service.fault = StoreUnavailable("no route")
        with pytest.raises(DaemonRefused, match="no route"):
            await call(client.status)


async def test_an_unexpected_failure_tells_nothing(tmp_path: Path, expected_logs: list[str]) -> None:
    expected_logs.append("request /v1/status failed")
    async with serving(tmp_path / "control.sock") as (service, client):
        service.fault = RuntimeError("secret")
        with pytest.raises(DaemonRefused) as caught:
            await call(client.status)
        assert caught.value.status == 500
        assert "secret" not in str(caught.value)
        service.fault = None
        assert (await call(client.status))["pid"] == 42


async def test_a_client_that_hangs_up_ends_what_it_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as (service, client):
        steps = client.drain()
        for _ in range(3):
            assert (await call(next, steps))["files"] == 1
        assert service.draining
        await call(steps.close)
        with trio.fail_after(60):
            while service.draining:
                await trio.sleep(0.01)
        assert await call(client.status)


async def test_a_failure_in_the_course_of_an_answer(tmp_path: Path, expected_logs: list[str]) -> None:
    expected_logs.append("a control request failed in its course")
    async with serving(tmp_path / "control.sock") as (service, client):
        service.fault = StoreUnavailable("no\nroute")
        with pytest.raises(DaemonRefused, match=r"^no route$"):
            await call(lambda: list(client.persist(["a"])))
        service.fault = RuntimeError("secret")
        with pytest.raises(DaemonRefused, match="unexpected error"):
            await call(lambda: list(client.persist(["a"])))


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("POST", "/v1/status", None, 405),
        ("POST", "/v1/refresh", b"{", 400),
        ("POST", "/v1/refresh", b"[]", 400),
        ("POST", "/v1/refresh", b'{"paths": [1]}', 400),
        ("POST", "/v1/persist", b'{"paths": "a"}', 400),
        ("GET", "/v1/drain", None, 405),
        ("POST", "/v1/unmount", b'{"lazy": "yes"}', 400),
        ("POST", "/v1/unmount", b'{"lazy": false, "force": true}', 400),
        ("POST", "/v1/refresh", b'{"paths": ["\\udce9"]}', 400),
        ("POST", "/v1/refresh", b'{"paths": ["\xe9"]}', 400),
        ("POST", "/v1/refresh", b'{"paths": ["\\u0000"]}', 400),
        ("POST", "/v1/refresh", b'{"paths": ["../x"]}', 400),
        ("POST", "/v1/refresh", b'{"paths": ["/etc"]}', 400),
        ("POST", "/v1/refresh", b'{"paths": ["a"], "path": "b"}', 400),
        ("POST", "/v1/refresh", b'{"paths": ' + b"[" * 100_000, 400),
        ("POST", "/v1/ttl", b'{"paths": ["a"], "seconds": 1e400, "action": "free"}', 400),
        ("POST", "/v1/ttl", b'{"paths": ["a"], "seconds": NaN, "action": "free"}', 400),
        ("POST", "/v1/ttl", b'{"paths": ["a"], "seconds": -1, "action": "free"}', 400),
        ("POST", "/v1/ttl", b'{"paths": ["a"], "seconds": 1, "action": "burn"}', 400),
        ("POST", "/v1/attach", b'{"source": 1, "path": "a"}', 400),
        ("POST", "/v1/drain", b'{"now": true}', 400),
        ("GET", "/v1/status/", None, 404),
        ("POST", "/v1/refresh", b" " * (5 << 20), 400),
    ],
)
async def test_bad_requests(tmp_path: Path, method: str, target: str, body: bytes | None, status: int) -> None:
    async with serving(tmp_path / "control.sock") as (service, client):
        answer = await call(raw_request, tmp_path / "control.sock", method, target, body or b"")
        assert answer.split(b" ", 2)[1] == str(status).encode()
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error
        assert "\n" not in error
        assert not service.refreshed
        assert not service.unmounted
        assert await call(client.status)


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"\0" * 100, b"GET /v1/status\r\n\r\n", b"GET /v1/status HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\0\x01" * 50,
        b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}", b"X" * 200_000,
        b"POST /v1/refresh HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 50,
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_request(tmp_path: Path, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    async with serving(tmp_path / "control.sock") as (_, client):
        await call(send_and_hang_up, tmp_path / "control.sock", sent)
        assert await call(client.status)
    assert capfd.readouterr() == ("", "")


def send_and_hang_up(path: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock, short_address(path) as address:
        sock.settimeout(120)
        sock.connect(address)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in b"".join(iter(lambda: sock.recv(65536), b""))


def raw_request(path: Path, method: str, target: str, body: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(120)
        with short_address(path) as address:
            sock.connect(address)
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            sock.sendall(head.encode() + body)
        except BrokenPipeError:
            pass
        return b"".join(iter(lambda: sock.recv(65536), b""))


async def test_a_wrong_method_is_told_the_right_one(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock"):
        for method, target, right in (("POST", "/v1/status", b"GET"), ("GET", "/v1/drain", b"POST")):
            answer = await call(raw_request, tmp_path / "control.sock", method, target, b"")
            assert b"\r\nallow: " + right + b"\r\n" in answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    def curl(*arguments: str, said: bytes = b"") -> str:
        command = ["curl", "-sS", "--max-time", "120", "--unix-socket", str(path), *arguments]
        return subprocess.run(command, input=said, capture_output=True, check=True).stdout.decode()

    async with serving(path) as (service, _client):
        assert json.loads(await call(curl, "http://localhost/v1/status")) == sample_status()
        assert json.loads(await call(curl, "--http1.0", "http://x/v1/status"))["pid"] == 42
        both = await call(curl, "-w", "%{content_type} %{num_connects}\n", *["http://x/v1/metrics"] * 2)
        media = "text/plain; version=0.0.4; charset=utf-8"
        assert both == f"luxfuse_up 1\n{media} 1\nluxfuse_up 1\n{media} 0\n"
        assert (await call(curl, "-I", "http://x/v1/status")).startswith("HTTP/1.1 405 Method Not Allowed\r\n")
        assert await call(curl, "-X", "POST", "-d", '{"paths": ["a"]}', "http://x/v1/load") == (
            '{"files": 1, "done": false}\n{"files": 1, "done": true}\n'
        )
        paths = [f"{'x' * 100}{number}" for number in range(20_000)]  # so many that curl asks before it sends them
        body = functools.partial(curl, "-d", "@-", "http://x/v1/refresh", said=json.dumps({"paths": paths}).encode())
        assert json.loads(await call(body)) == {"errors": []}
        assert service.refreshed == paths
        chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-d", '{"paths": ["gone"]}')
        assert json.loads(await call(curl, *chunked, "http://x/v1/refresh")) == {"errors": ["gone: no such file"]}


async def test_cancelling_ends_it_with_connections_open_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "control.sock"
    with trio.fail_after(120):
        async with serving(path) as (_service, client):
            assert await call(client.status)
            idle = socket.socket(socket.AF_UNIX)
            idle.connect(str(path))
            await trio.sleep(0.05)
    idle.close()
    assert capfd.readouterr() == ("", "")


async def test_loads(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as (service, client):
        steps = await call(lambda: list(client.load(["a", "b"])))
        assert [step["done"] for step in steps] == [False, True]
        assert not service.draining
        assert await call(client.start_load, ["a", "b"]) == 2
        assert await call(client.loads) == [{"job": 1}]
        assert await call(client.stop_loads) == 3
        long = [f"{'x' * 100}{n}" for n in range(100_000)]
        assert await call(client.start_load, long) == 100_000
        with pytest.raises(DaemonRefused, match="too large: 16 MiB are the most"):
            await call(client.start_load, long * 2)
        with pytest.raises(DaemonRefused, match="too large: 4 MiB are the most"):
            await call(client.refresh, long)
        service.fault = StoreUnavailable("enough loads run")
        with pytest.raises(DaemonRefused, match="enough loads run"):
            await call(client.start_load, ["a"])


async def test_check(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as (service, client):
        for repair in (False, True):
            assert await call(lambda repair=repair: list(client.check(repair=repair))) == [{"repair": repair, "done": True}]
        service.fault = StoreUnavailable("a check is running already")
        with pytest.raises(DaemonRefused, match="a check is running already"):
            await call(lambda: list(client.check(repair=False)))


async def test_free_and_locate(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as (_service, client):
        assert await call(lambda: list(client.free(["a", "b"]))) == [{"freed_files": 2, "done": True}]
        assert await call(client.locate, ["a"]) == [{"path": "a"}]
