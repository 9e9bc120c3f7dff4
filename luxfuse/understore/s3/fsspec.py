"""Requests to S3 through the client that s3fs holds: its event loop, its connections, its credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from fsspec.asyn import sync

from luxfuse.understore.base import ListedPart
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.s3 import answers
from luxfuse.understore.s3.transport import Body

SMALL_BYTES = 64 << 10


class S3fsTransport:
    """A `Transport` on the public `call_s3`. Threads wait for the event loop, in which all requests are made."""

    def __init__(self, filesystem: Any, checksums: Checksums) -> None:
        """``filesystem`` has made no request yet."""
        filesystem.retries = 1  # retries are made above the drivers
        self._fs = filesystem
        self._stall_s: float = filesystem.config_kwargs["read_timeout"]  # as with the sockets of botocore
        self._used = False
        filesystem.session.register("before-send.s3", self._send_in_slices)
        checksums.register(filesystem.session)
        answers.register(filesystem.session)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._used = True
        answer: dict[str, Any] | None = None
        try:
            self._require_known(method, arguments)
            answer = self._fs.call_s3(method, **arguments)
        except asyncio.CancelledError:
            pass
        except OSError as exc:  # s3fs' own error, from that of the library
            if isinstance(exc.__cause__, ClientError):
                raise exc.__cause__ from None
            raise
        if answer is None:  # the request was cancelled, by `_Slices`
            raise TimeoutError(f"the server has taken nothing of the body for {self._stall_s:g} s")
        return answer | {"Body": _Content(self._fs.loop, answer["Body"])} if "Body" in answer else answer

    def list_part(
        self, bucket: str, asked: Mapping[str, str], read: Callable[[bytes], ListedPart | None]
    ) -> ListedPart | None:
        return None

    def _require_known(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Raise `ValueError` for parameters that botocore is too old for: s3fs would leave them out, even conditions."""
        meta = self._fs.s3.meta
        known = meta.service_model.operation_model(meta.method_to_api_mapping[method]).input_shape.members
        if unknown := arguments.keys() - known.keys():
            raise ValueError(f"{method} does not know {', '.join(sorted(unknown))}")

    def _send_in_slices(self, request: Any, **_: Any) -> None:
        if not isinstance(body := request.body, Body):
            return
        # aiohttp does not wait for the server to take so little.
        request.body = bytes(body.view) if len(body) <= SMALL_BYTES else _Slices(body.slices(), self._stall_s)
        request.headers.pop("Expect", None)  # it would cost a round trip

    def close(self) -> None:
        if self._used:
            self._fs.close_session(self._fs.loop, self._fs.s3)


class _Slices:
    """The slices of a body, made in the task of its request, which is cancelled when one is not taken in time.

    aiohttp itself has no time-out for sending.
    """

    def __init__(self, slices: Iterator[memoryview], stall_s: float) -> None:
        self._slices = slices
        self._stall_s = stall_s
        self._request = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> _Slices:
        return self

    async def __anext__(self) -> memoryview:
        """Return the next slice, in aiohttp's task that sends the body."""
        if self._timer is not None:
            self._timer.cancel()
        if (piece := next(self._slices, None)) is None:
            raise StopAsyncIteration
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._give_up, asyncio.current_task())
        return piece

    def _give_up(self, sender: asyncio.Task[Any] | None) -> None:
        for task in (self._request, sender):
            if task is not None:
                task.cancel()


class _Content:
    """The body of an answer, which is read in the event loop that it comes in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: Any) -> None:
        self._loop = loop
        self._body = body

    def read(self) -> bytes:
        data: bytes = sync(self._loop, self._body.read)
        return data

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._body.close)
