"""LIST requests that botocore signs and sends, but neither checks nor parses: that is most of their time.

It has no public way to do so. Where this one does not work, as with a later version, requests are made as all others are.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from luxfuse.core.vain import InVain
from luxfuse.understore.base import ListedPart
from luxfuse.understore.s3.pages import EXPRESS, query_of

log = logging.getLogger(__name__)


_CODE = re.compile(rb"<Code>(\w+)</Code>")


class ShortRequests:
    """LIST requests over the connections of a ``client``. Thread-safe."""

    def __init__(self, client: Any, read_timeout_s: float) -> None:
        self._client = client
        self._read_timeout_s = read_timeout_s
        self._addresses: dict[str, str] = {}
        self._in_vain = InVain()
        """By the prefix that is listed."""
        self._fits = True
        """Whether botocore is as we know it."""

    def list_part(
        self, bucket: str, asked: Mapping[str, str], read: Callable[[bytes], ListedPart | None]
    ) -> ListedPart | None:
        """Return what ``read`` makes of the answer; None: the request has to be made in the ordinary way, which tells why.

        Raises botocore's errors, so when the server is overloaded or out of order: it is not asked twice then.
        """
        prefix = asked.get("Prefix", "")
        if ":" in bucket or bucket.endswith(EXPRESS) or not self._fits or self._is_given_up(prefix):
            return None
        try:
            prepared = self._prepared(bucket, asked)
            send = self._client._endpoint.http_session.send
        except (AttributeError, TypeError) as exc:
            log.info("botocore is not the one that is known: %s", exc)
            self._fits = False
            return None
        answer = send(prepared)
        body, status = answer.content, answer.status_code
        if status == 429 or status >= 500:
            code = _CODE.search(body)
            error = {"Code": code[1].decode() if code else str(status), "Message": ""}
            raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}}, "ListObjectsV2")
        part = read(body) if status == 200 else None
        if part is not None:
            self._in_vain.end()
        else:
            self._in_vain.note(prefix, time.monotonic())
        return part

    def _is_given_up(self, prefix: str) -> bool:
        return self._in_vain.gives_up(prefix, time.monotonic())

    def _prepared(self, bucket: str, asked: Mapping[str, str]) -> Any:
        config = self._client.meta.config
        request = AWSRequest(method="GET", url=f"{self._address(bucket)}?{query_of(asked)}", headers={})
        request.context.update(client_region=self._client.meta.region_name, client_config=config, auth_type=None)
        request.context.update(has_streaming_input=False, read_timeout=self._read_timeout_s)
        self._client._request_signer.sign("ListObjectsV2", request)
        return request.prepare()

    def _address(self, bucket: str) -> str:
        """Return the URL of the bucket, as botocore makes it: in the path, or in the name of the host."""
        if bucket not in self._addresses:
            url: str = self._client.generate_presigned_url("list_objects_v2", Params={"Bucket": bucket})
            self._addresses[bucket] = url.partition("?")[0]
        return self._addresses[bucket]
