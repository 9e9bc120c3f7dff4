"""The errors of obstore, mapped in one place. Its texts hold URLs and bodies: they are classified but never repeated."""

from __future__ import annotations

import re
from xml.sax.saxutils import unescape

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from luxfuse.errors import NoCredentials, StoreError, StoreUnavailable
from luxfuse.understore.causes import DETAILS, Said
from luxfuse.understore.failures import CREDENTIAL_PLACES, from_status, no_store, not_trusted

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_DETAIL = re.compile(rf"<({'|'.join(DETAILS)})>([^<]*)</")
_STATUS_OF_CLASS = (
    (AlreadyExistsError, 412),
    (PreconditionError, 412),
    (FileNotFoundError, 404),
    (PermissionDeniedError, 403),
    (UnauthenticatedError, 401),
    (NotSupportedError, 501),
    (NotImplementedError, 501),
)
_ODD_SUCCESSES = {
    "invalid list response": "the answer is no listing",
    "missing from response": "a success, but the answer describes no object",
}
_CONFLICTS = ("ConditionalRequestConflict", "OperationAborted")
_CREDENTIAL_URLS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "/latest/api/token")


def obstore_status(exc: Exception) -> tuple[int, str]:
    """Return the HTTP status and the store's code that ``exc`` stands for; 0 and "" where it tells none."""
    text = str(exc)
    code = found[1] if (found := _CODE.search(text)) else ""
    if code in _CONFLICTS:  # obstore takes any 409 for "exists already"
        return 409, code
    status = next((number for kind, number in _STATUS_OF_CLASS if isinstance(exc, kind)), 0)
    if not status and (found := _STATUS.search(text)):
        status = int(found[1])
    elif "redirect without LOCATION" in text:
        status = 301
    return status, code


def obstore_message(exc: Exception) -> str:
    """Return the store's own text; it may hold anything, and is only to be looked at."""
    return found[1] if (found := _MESSAGE.search(str(exc))) else ""


def obstore_failure(exc: Exception, family: str, what: str, *, bucket_level: bool = False) -> StoreError:
    """Return the `StoreError` for ``exc``, raised by a request of ``family`` that ``what`` names."""
    text = str(exc)
    if any(url in text for url in _CREDENTIAL_URLS):
        return NoCredentials(f"{what}: no credentials found in: {CREDENTIAL_PLACES[family]}")
    status, code = obstore_status(exc)
    if status:
        said = Said(unescape(obstore_message(exc)), dict(_DETAIL.findall(text)))
        return from_status(status, what, code=code, family=family, bucket_level=bucket_level, said=said)
    return _without_status(exc, text, what)


def _without_status(exc: Exception, text: str, what: str) -> StoreError:
    odd = next((seen for said, seen in _ODD_SUCCESSES.items() if said in text), None)
    if isinstance(exc, BaseError) and odd is not None:
        return no_store(what, odd)
    if isinstance(exc, BaseError) and "HTTP error" in text and "ertificate" in text:
        return not_trusted(what)
    if isinstance(exc, BaseError) and "HTTP error" in text:
        return StoreUnavailable(f"{what}: {_transport(text)}")
    return StoreUnavailable(f"{what}: {type(exc).__name__} in obstore")


def _transport(text: str) -> str:
    if "TimedOut" in text or "operation timed out" in text:
        return "timed out"
    if "dns error" in text:
        return "the endpoint's name does not resolve"
    if "ConnectionRefused" in text or "onnection refused" in text:
        return "the endpoint refuses connections"
    return "the connection failed" if "error sending" in text else "the connection broke"
