"""A server that answers with its questions, and a client that says whatever it is told, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import trio

from luxfuse.control import http
from luxfuse.control.http import Request, Response

MOST_BODY_BYTES = 1 << 20
MUCH_BYTES = 10 << 20
"""More than the kernel takes for a client that does not read."""
GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD", 1)


class Handler:
    """Answers with what it was asked for; some paths do more."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.bodies: list[bytes] = []
        self.counting = 0
        self.counted = 0

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        if request.path == "/unread":
            return Response(b"not interested", "text/plain")
        self.bodies.append(await request.body(MOST_BODY_BYTES))
        if request.path == "/fail":
            raise RuntimeError("secret")
        if request.path.startswith("/sleep/"):
            await trio.sleep(float(request.path[7:]))
        if request.path.startswith("/count"):
            return Response(self._count(request.path[7:], int(request.query or 0)), "text/plain")
        if request.path == "/much":
            return Response(b"x" * MUCH_BYTES, "text/plain")
        return Response(f"{request.method} {request.path}".encode(), "text/plain")

    async def _count(self, how: str, last: int) -> AsyncGenerator[bytes, None]:
        """Count up to ``last``, or slowly for ever."""
        self.counting += 1
        try:
            self.counted = 0
            while self.counted < last or not last:
                self.counted += 1
                yield b"x" * MUCH_BYTES if how == "much" else b"%d\n" % self.counted
                if how == "fail":
                    raise RuntimeError("secret")
                if how == "slowly" or not last:
                    await trio.sleep(0.01)
        finally:
            self.counting -= 1


class Client:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._rest = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, method: str = "GET") -> tuple[int, dict[bytes, bytes], bytes]:
        """Return status, headers and body of the next answer, 0 for the status if there is none."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._rest:
            parser.receive_data(self._rest)
        status, headers, body = 0, {}, bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await self.stream.receive_some(65536)
                if not data and parser.their_state is h11.SEND_RESPONSE:
                    return status, headers, b""
                parser.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                self._rest = parser.trailing_data[0]
                return event.status_code, {}, b""
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, dict(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                self._rest = parser.trailing_data[0]
                return status, headers, bytes(body)

    async def say_until_cut_off(self, data: bytes, every_s: float) -> None:
        """Send ``data`` again and again."""
        while True:
            try:
                await self.send(data)
            except trio.BrokenResourceError:
                return
            await trio.sleep(every_s)

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        await self.send(data)
        status, _, body = await self.answer()
        return status, body

    async def broken_answer(self, data: bytes) -> bool:
        """Send a request; returns whether its answer broke off."""
        await self.send(data)
        try:
            await self.answer()
        except h11.RemoteProtocolError:
            return True
        return False

    async def closed(self) -> bool:
        """Wait for more; returns whether there was none."""
        try:
            return self._rest == b"" and await self.stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            return True


class Served:
    def __init__(self, listener: socket.socket) -> None:
        self._where = listener.getsockname()
        self._family = listener.family
        self.handler = Handler()
        self.stop = trio.CancelScope()
        self.stopped = trio.Event()
        self.nursery: trio.Nursery | None = None

    async def run(self, listener: socket.socket, task_status: trio.TaskStatus[None]) -> None:
        with self.stop:
            await http.serve(listener, self.handler, task_status=task_status)
        self.stopped.set()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        with trio.socket.socket(self._family) as sock:
            await sock.connect(self._where)
            yield Client(trio.SocketStream(sock))

    def connections(self) -> int:
        """Count the tasks of connections."""
        assert self.nursery is not None
        (task,) = self.nursery.child_tasks
        return sum(len(nursery.child_tasks) for nursery in task.child_nurseries)

    async def all_ended(self) -> None:
        with trio.fail_after(60):
            while self.connections():
                await trio.sleep(0.001)


@asynccontextmanager
async def serving(listener: socket.socket) -> AsyncIterator[Served]:
    served = Served(listener)
    async with trio.open_nursery() as nursery:
        served.nursery = nursery
        await nursery.start(served.run, listener)
        yield served
        nursery.cancel_scope.cancel()
    assert listener.fileno() == -1


def listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(256)
    return listener


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(headers or [f"Content-Length: {len(body)}"])]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
