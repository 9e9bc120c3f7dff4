"""Sessions of botocore and aiobotocore, whose clients sign with the credentials that all clients of an under-store share.

A request that only reads is given up after ``read_timeout_s``. The time-out of the client itself holds for writes: the
server may be at work for long before it answers a copy or the end of an upload. So it does for all requests if the
library is older than time-outs of single requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.credentials import Frozen

_REDIRECTS = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")


def session_for(access: S3Access, read_timeout_s: float) -> Any:
    """Return a new botocore session."""
    import botocore.credentials  # type: ignore[import-untyped]
    import botocore.session  # type: ignore[import-untyped]

    credentials = access.credentials

    class Credentials(botocore.credentials.Credentials):  # type: ignore[misc]
        def get_frozen_credentials(self) -> Frozen:
            assert credentials is not None
            return credentials.current()

    class Session(botocore.session.Session):  # type: ignore[misc]
        def get_credentials(self) -> Any:
            return None if credentials is None else Credentials("", "")

    session = Session(profile=access.profile)
    return _watched(session, read_timeout_s)


def aio_session_for(access: S3Access, read_timeout_s: float) -> Any:
    """Return a new aiobotocore session."""
    import aiobotocore.credentials
    import aiobotocore.session

    credentials = access.credentials

    class Credentials(aiobotocore.credentials.AioCredentials):  # type: ignore[misc]
        async def get_frozen_credentials(self) -> Frozen:
            assert credentials is not None
            if credentials.ready:
                return credentials.current()
            return await asyncio.to_thread(credentials.current)

    class Session(aiobotocore.session.AioSession):  # type: ignore[misc]
        async def get_credentials(self) -> Any:
            return None if credentials is None else Credentials("", "")

    session = Session(profile=access.profile)
    return _watched(session, read_timeout_s)


def _watched(session: Any, read_timeout_s: float) -> Any:
    def hurry(model: Any, context: dict[str, Any], **_: Any) -> None:
        if model.name.startswith(("Get", "Head", "List")):
            context["read_timeout"] = read_timeout_s

    session.register("before-call.s3", hurry)
    session.register("needs-retry.s3", _stay)
    return session


def _stay(response: Any = None, operation: Any = None, **_: Any) -> None:
    """Raise a redirect, which both libraries would follow, once for each client and request: all clients shall."""
    if response is None:
        return
    parsed = response[1]
    code, status = parsed.get("Error", {}).get("Code"), parsed.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _REDIRECTS or status in (301, 302, 307) or (code == "400" and operation.name.startswith("Head")):
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        raise ClientError(parsed, operation.name)
