"""Requests to S3 through a synchronous client of botocore."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import botocore.config  # type: ignore[import-untyped]
import urllib3
from botocore import UNSIGNED

from luxfuse.understore.base import ListedPart
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.s3 import answers
from luxfuse.understore.s3.sessions import session_for
from luxfuse.understore.s3.short import ShortRequests
from luxfuse.understore.s3.transport import Body

_opening = threading.Lock()


class BotocoreTransport:
    """A `Transport`: each request is made in the thread that asks for it."""

    def __init__(self, arguments: Mapping[str, Any], checksums: Checksums) -> None:
        """Make a client of the ``arguments`` that `s3_arguments` made. Opens no connection."""
        options = arguments["client_kwargs"]
        config = dict(arguments["config_kwargs"])
        if options["verify"] is False:  # which is said once, in the log
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if arguments.get("anon"):
            config["signature_version"] = UNSIGNED
        session = session_for(arguments["access"], arguments["read_timeout_s"])
        session.register("before-send.s3", _send_in_slices)
        checksums.register(session)
        answers.register(session)
        with _opening:  # building clients is not thread-safe
            self._client = session.create_client(
                "s3",
                endpoint_url=arguments.get("endpoint_url"),
                use_ssl=arguments.get("use_ssl", True),
                config=botocore.config.Config(**config),
                **options,
            )
        self._short = ShortRequests(self._client, arguments["read_timeout_s"])

    def list_part(
        self, bucket: str, asked: Mapping[str, str], read: Callable[[bytes], ListedPart | None]
    ) -> ListedPart | None:
        return self._short.list_part(bucket, asked, read)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self._client, method)(**arguments)
        return answer

    def close(self) -> None:
        self._client.close()


def _send_in_slices(request: Any, **_: Any) -> None:
    if isinstance(request.body, Body):
        request.body = request.body.slices()
        request.headers.pop("Expect", None)  # it would cost a round trip
