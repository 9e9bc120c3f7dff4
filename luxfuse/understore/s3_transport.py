"""A botocore client that sends large bodies well: from any buffer without a copy, in slices.

The socket's time-out bounds one `sendall`; for a whole part over a slow line it would be too short.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import botocore.config  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
from botocore import UNSIGNED

from luxfuse.understore.base import Buffer

SLICE_BYTES = 256 << 10


class Body:
    """What botocore wants of a body to hash it; `_send_in_slices` then replaces it by its slices."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data)
        self._at = 0

    def __len__(self) -> int:
        return len(self._view)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        end = len(self._view) if size is None or size < 0 else self._at + size
        piece = self._view[self._at : end]
        self._at += len(piece)
        return piece

    def slices(self) -> Iterator[memoryview]:
        """Yield the whole body in pieces."""
        for start in range(0, len(self._view), SLICE_BYTES):
            yield self._view[start : start + SLICE_BYTES]


def _send_in_slices(request: Any, **_: Any) -> None:
    if isinstance(request.body, Body):
        request.body = request.body.slices()
        request.headers.pop("Expect", None)  # it would cost a round trip


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Older servers want this checksum of a bulk delete; botocore no longer sends it."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


_opening = threading.Lock()


def open_client(bucket: str, arguments: Mapping[str, Any], request_timeout_s: float) -> Any:
    """Return a client with what `s3_arguments` made. Opens no connection."""
    options = dict(arguments["client_kwargs"])
    config = dict(arguments["config_kwargs"])
    endpoint = options.pop("endpoint_url", None) or arguments.get("endpoint_url")
    if endpoint and urlsplit(endpoint).netloc.startswith(f"{bucket}."):  # as obstore's virtual_hosted_style_request
        endpoint = endpoint.replace(f"//{bucket}.", "//", 1)
        config["s3"] = {**config.get("s3", {}), "addressing_style": "virtual"}
    # The server may be at work for long before it answers a copy or the end of an upload.
    config["read_timeout"] = max(config["read_timeout"], request_timeout_s)
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        if name in botocore.config.Config.OPTION_DEFAULTS:
            config.setdefault(name, "when_required")
    if arguments.get("anon"):
        config["signature_version"] = UNSIGNED
    with _opening:  # building clients is not thread-safe
        session = botocore.session.Session(profile=arguments.get("profile"))
        client = session.create_client(
            "s3",
            endpoint_url=endpoint,
            use_ssl=arguments.get("use_ssl", True),
            aws_access_key_id=arguments.get("key"),
            aws_secret_access_key=arguments.get("secret"),
            aws_session_token=arguments.get("token"),
            config=botocore.config.Config(**config),
            **options,
        )
    client.meta.events.register("before-send.s3", _send_in_slices)
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    return client
