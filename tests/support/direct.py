"""Direct requests to a server of a test, and whether they are signed as botocore signs them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from luxfuse.understore.locations import parse_location
from luxfuse.understore.object_options import take_object_options
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.direct import DirectGets, refusal

SECRETS = {"key": "test", "secret": "test-secret"}


def opened(source: str, endpoint: str, options: Mapping[str, str], timeout_s: float = 10.0) -> DirectGets:
    location = parse_location(source)
    access = S3Access(location.bucket, options, endpoint)
    assert refusal(location, options, take_object_options("s3", options, endpoint)[0], access) is None
    return DirectGets(location, options, access, timeout_s, 8)


def headers_of(head: str) -> dict[str, str]:
    lines = head.split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}


def check_signature(head: str, host: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = headers_of(head)
    assert headers.get("x-amz-security-token") == token
    method, path, _ = head.split(" ", 2)
    condition = {"If-Match": headers["if-match"]} if "if-match" in headers else {}
    request = AWSRequest(method, f"http://{host}{path}", headers=condition)
    now = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60
    for place in ("get_current_datetime", "_get_current_datetime"):
        monkeypatch.setattr(f"botocore.auth.{place}", lambda *_, **__: now.replace(tzinfo=None), raising=False)

    class Clock(datetime):
        @classmethod
        def utcnow(cls) -> datetime:
            return now.replace(tzinfo=None)

    monkeypatch.setattr("botocore.auth.datetime.datetime", Clock, raising=False)
    request.context["payload_signing_enabled"] = True
    auth = S3SigV4Auth(Credentials("test", "test-secret", token), "s3", "eu-west-9")
    auth.add_auth(request)
    assert request.headers["Authorization"] == headers["authorization"]
