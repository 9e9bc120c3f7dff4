"""The errors of s3fs, adlfs, gcsfs, aiohttp, requests, paramiko and the operating system, mapped in one place."""

from __future__ import annotations

import errno
import ftplib
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    NoCredentials,
    NotFound,
    QuotaExceeded,
    ReadOnlyStore,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)
from luxfuse.understore.causes import DETAILS, NOTHING, Said
from luxfuse.understore.failures import CREDENTIAL_PLACES, describe, from_status, no_store, not_trusted

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
                   "ClientAuthenticationError", "CredentialUnavailableError", "RefreshError",
                   "DefaultCredentialsError")  # fmt: skip
_NOT_LET_IN = ("AuthenticationException", "BadAuthenticationType")
_UNAVAILABLE = ("ServiceRequestError", "ServiceResponseError", "EndpointConnectionError", "SSHException",
                "HTTPClientError", "ClientError", "TransportError")  # fmt: skip
_BROKEN_BODIES = ("ClientPayloadError", "IncompleteReadError")  # their causes look like "400 Bad Request"
_UNREADABLE = ("DeserializationError", "JSONDecodeError")  # of Azure and Google
_DENIED_ERRNOS = (errno.EACCES, errno.EPERM)
_CLASS_OF_ERRNO = {errno.ENOSPC: StoreFull, errno.EDQUOT: QuotaExceeded, errno.EROFS: ReadOnlyStore}
_MISSING_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def failure(exc: BaseException, what: str, family: str = "", *, bucket_level: bool = False) -> StoreError:
    """Return the `StoreError` for ``exc``. Library texts may hold URLs and tokens and are never repeated.

    ``bucket_level`` says that "not found" can only mean the bucket or root.
    """
    known = exc if isinstance(exc, StoreError) else _of_tls(exc, what)
    if known is not None:
        return known
    for link in _chain(exc):
        status, code = status_of(link)
        if (odd := _odd_answer(link, status, code, what)) is not None:
            return odd
        if status:
            return from_status(status, what, code=code, family=family, bucket_level=bucket_level, said=said_of(link))
        kind = type(link).__name__
        if kind in _NO_CREDENTIALS + _NOT_LET_IN:
            places = CREDENTIAL_PLACES.get(family, "the storage options")
            text = f"{what}: credentials missing or refused ({kind}); they come from: {places}"
            return NoCredentials(text) if kind in _NO_CREDENTIALS else AccessDenied(text, renewable=True)
    if isinstance(exc, ftplib.Error):
        return _of_ftp(exc, what, bucket_level)
    return _without_status(exc, what, family, bucket_level)


def _odd_answer(exc: Any, status: int, code: str, what: str) -> StoreError | None:
    """Return the error for an answer that a library could not read: it was cut short, or is no store's."""
    if type(exc).__name__ in _BROKEN_BODIES:
        return StoreUnavailable(f"{what}: the body was cut short")
    if type(exc).__name__ in _UNREADABLE:
        return no_store(what, "the answer cannot be read")
    response = getattr(exc, "response", None)
    if status != 500 or code or not isinstance(response, dict):
        return None
    # botocore says 500 for any page that it cannot read, of any status.
    kind = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("content-type", "")
    return no_store(what, f"{describe(status)}, or a success with a page", kind) if kind.startswith("text/html") else None


def _distrusts(exc: BaseException) -> bool:
    """Whether a certificate was not believed."""
    names = {type(link).__name__ for link in _chain(exc)}
    if names & {"SSLCertVerificationError", "ClientConnectorCertificateError"}:
        return True
    return "CERTIFICATE_VERIFY_FAILED" in str(exc)


def _of_tls(exc: BaseException, what: str) -> StoreError | None:
    """Return the error for a session of TLS that did not come about. Those of ssl have the number of EPERM, by chance."""
    if _distrusts(exc):
        return not_trusted(what)
    if any(isinstance(link, ssl.SSLError) or type(link).__name__ == "SSLError" for link in _chain(exc)):
        return StoreUnavailable(f"{what}: the connection failed in TLS")
    return None


def _without_status(exc: BaseException, what: str, family: str, bucket_level: bool) -> StoreError:
    number = getattr(exc, "errno", None)
    names = {cls.__name__ for cls in type(exc).__mro__}
    kind = type(exc).__name__
    if isinstance(exc, FileNotFoundError | NotADirectoryError | IsADirectoryError) or number in _MISSING_ERRNOS:
        return from_status(404, what, family=family, bucket_level=bucket_level)
    if isinstance(exc, PermissionError) or number in _DENIED_ERRNOS:
        return AccessDenied(f"{what}: permission denied")
    if (error_class := _CLASS_OF_ERRNO.get(number or 0)) is not None:
        return error_class(f"{what}: {os.strerror(number or 0)}")
    if isinstance(exc, TimeoutError):  # asyncio's, fsspec's and the socket's
        return StoreUnavailable(f"{what}: timed out")
    if isinstance(exc, ValueError | TypeError | NotImplementedError):
        return StoreRejected(f"{what}: the driver refuses this ({kind})")
    broken = isinstance(exc, OSError | EOFError) or names & set(_UNAVAILABLE)
    reason = _origin_of(exc) or (os.strerror(number) if isinstance(exc, OSError) and number and number > 0 else kind)
    return StoreUnavailable(f"{what}: the connection or the device failed ({reason})" if broken else f"{what}: {kind}")


def _origin_of(exc: BaseException) -> str:
    """Return why there is no connection, if what a library has made of it goes back to that; else ""."""
    link: BaseException | None = exc
    for _ in range(16):
        if link is None:
            break
        if isinstance(link, socket.gaierror):
            return "the host's name does not resolve"
        if isinstance(link, ConnectionRefusedError) or type(link).__name__ == "NoValidConnectionsError":
            return "Connection refused"
        if isinstance(link, TimeoutError):
            return "timed out"
        inner = link.__cause__ or next((each for each in link.args if isinstance(each, BaseException)), None)
        link = inner or (None if link.__suppress_context__ else link.__context__)
    return ""


def _of_ftp(exc: ftplib.Error, what: str, bucket_level: bool) -> StoreError:
    """Return the error for a reply of an FTP server, of which the code is shown: the text after it may be anything."""
    code = str(exc)[:3]
    text = f"{what}: the server answers {code}" if code.isdigit() else f"{what}: the server's answer is no FTP"
    if code in ("530", "532"):
        return AccessDenied(f"{text}, not logged in: check the storage options username and password")
    if code == "550":  # not found, or no access: FTP has one code for both
        return (BucketMissing if bucket_level else NotFound)(f"{text}, no such file or no access")
    if code == "552":
        return StoreFull(f"{text}, no room")
    return StoreRejected(text) if code.startswith("5") else StoreUnavailable(text)


def said_of(exc: Any) -> Said:
    """Return the words of a store beside status and code, as far as a library tells."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore
        error = response.get("Error", {})
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        details = {name: str(error[name]) for name in DETAILS if error.get(name)}
        if region := headers.get("x-amz-bucket-region"):
            details.setdefault("Region", region)
        told = str(error.get("Message") or "")
        return Said("" if told == error.get("Code") else told, details)
    message = getattr(exc, "message", None)  # azure, gcsfs
    return Said(message.splitlines()[0]) if isinstance(message, str) and message else NOTHING


def _chain(exc: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = exc
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def message_of(exc: BaseException) -> str:
    """Return the store's own text, as botocore gives it; it may hold anything, and is only to be looked at."""
    response = getattr(exc, "response", None)
    return str(response.get("Error", {}).get("Message", "")) if isinstance(response, dict) else ""


def status_of(exc: Any) -> tuple[int, str]:
    """Return the HTTP status and the store's code of an error of any library; (0, "") if it has none."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status, "" if code.isdigit() else code
    if isinstance(status := getattr(exc, "status_code", None), int):  # azure
        error_code: Any = getattr(exc, "error_code", None)
        return status, str(getattr(error_code, "value", error_code) or "")
    if isinstance(status := getattr(exc, "status", None), int):  # aiohttp
        return status, ""
    if isinstance(status := getattr(response, "status_code", None), int):  # requests, httpx
        return status, ""
    number = str(getattr(exc, "code", ""))  # gcsfs
    if number.isdigit() and 100 <= int(number) < 600:
        return int(number), ""
    return 0, ""
