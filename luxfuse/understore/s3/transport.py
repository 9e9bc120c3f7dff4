"""A botocore client that sends large bodies well: from any buffer without a copy, in slices.

The socket's time-out bounds one `sendall`; for a whole part over a slow line it would be too short.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import botocore.config  # type: ignore[import-untyped]
import urllib3
from botocore import UNSIGNED

from luxfuse.types import Buffer
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.s3.sessions import session_for

SLICE_BYTES = 256 << 10


class Body:
    """What botocore wants of a body to hash it; `_send_in_slices` then replaces it by its slices."""

    def __init__(self, data: Buffer) -> None:
        self.view = memoryview(data)
        self._at = 0

    def __len__(self) -> int:
        return len(self.view)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self.view))[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        end = len(self.view) if size is None or size < 0 else self._at + size
        piece = self.view[self._at : end]
        self._at += len(piece)
        return piece

    def slices(self) -> Iterator[memoryview]:
        """Yield the whole body in pieces."""
        for start in range(0, len(self.view), SLICE_BYTES):
            yield self.view[start : start + SLICE_BYTES]


def _send_in_slices(request: Any, **_: Any) -> None:
    if isinstance(request.body, Body):
        request.body = request.body.slices()
        request.headers.pop("Expect", None)  # it would cost a round trip


_opening = threading.Lock()


def open_client(bucket: str, arguments: Mapping[str, Any], request_timeout_s: float, checksums: Checksums) -> Any:
    """Return a client with what `s3_arguments` made. Opens no connection."""
    access = arguments["access"]
    options = dict(arguments["client_kwargs"])
    config = dict(arguments["config_kwargs"])
    endpoint = options.pop("endpoint_url", None) or arguments.get("endpoint_url")
    if endpoint and urlsplit(endpoint).netloc.startswith(f"{bucket}."):  # as obstore's virtual_hosted_style_request
        endpoint = endpoint.replace(f"//{bucket}.", "//", 1)
        config["s3"] = {**config.get("s3", {}), "addressing_style": "virtual"}
    if options["verify"] is False:  # which is said once, in the log
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    # The server may be at work for long before it answers a copy or the end of an upload.
    config["read_timeout"] = max(config["read_timeout"], request_timeout_s)
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        if name in botocore.config.Config.OPTION_DEFAULTS:
            config.setdefault(name, "when_required")
    if arguments.get("anon"):
        config["signature_version"] = UNSIGNED
    with _opening:  # building clients is not thread-safe
        client = session_for(access).create_client(
            "s3",
            endpoint_url=endpoint,
            use_ssl=arguments.get("use_ssl", True),
            config=botocore.config.Config(**config),
            **options,
        )
    client.meta.events.register("before-send.s3", _send_in_slices)
    checksums.register(client.meta.events)
    return client
