"""One-line errors without secrets: status numbers to `luxfuse.errors` classes, and URLs that are safe to show."""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import urlsplit

from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    NoStore,
    NotFound,
    NotTrusted,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
    VersionChanged,
    WrongRegion,
)
from luxfuse.types import Buffer
from luxfuse.understore.causes import NOTHING, REGION_CODES, Cause, Said, cause_of, in_words, shown

_MISSING_BUCKET_CODES = ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "InvalidResourceName")
_SPELLED_OUT = {"SlowDown": 503, "RequestTimeout": 408, "ThrottlingException": 429, "ServerBusy": 503,
                "AccessDenied": 403, "InternalError": 500, "ServiceUnavailable": 503,
                # These differ from the meaning of their status elsewhere.
                "BlobAlreadyExists": 412, "LeaseIdMissing": 403, "BlobImmutableDueToPolicy": 403,
                "InvalidBlobType": 400, "InvalidBlockList": 404}  # fmt: skip

_TYPE = re.compile(r"[\w.+-]{1,30}/[\w.+-]{1,30}(;|$)")

CREDENTIAL_PLACES = {
    "s3": "storage options key and secret, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, the instance's role; "
    "for a public bucket set the storage option anon=true",
    "az": "storage options account_name with account_key or sas_token, connection_string, AZURE_STORAGE_* variables, "
    "the instance's identity; for a public container set the storage option anon=true",
    "gs": "storage option token, GOOGLE_APPLICATION_CREDENTIALS, ~/.config/gcloud, the instance's account; "
    "for a public bucket set the storage option token=anon",
}


def not_trusted(what: str) -> NotTrusted:
    """Return the error for a certificate that nobody believed has signed."""
    return NotTrusted(f"{what}: the endpoint's certificate is not trusted; name the authority that signed it with the "
                      "storage option verify=FILE, or SSL_CERT_FILE")  # fmt: skip


def no_store(what: str, seen: str, content_type: str | None = None) -> NoStore:
    """Return the error for an answer that no store gives; ``seen`` names the oddity."""
    kind = f", of type {content_type.partition(';')[0]}" if content_type and _TYPE.match(content_type) else ""
    return NoStore(f"{what}: {seen}{kind}: something other than a store answers, as a web page or a login; check the "
                   "endpoint URL (many servers have their console on another port)")  # fmt: skip


def safe_url(url: str) -> str:
    """Return ``url`` without user name, password, query and fragment, which may hold secrets."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    netloc, slash, path = rest.partition("/")
    if scheme in ("http", "https"):
        path = urlsplit("//h/" + path).path[1:]
    elif scheme not in ("abfs", "abfss"):  # there the part before "@" is the container
        return f"{scheme}://{netloc.rpartition('@')[2]}{slash}{path}"
    else:
        return f"{scheme}://{netloc}{slash}{path}"
    return f"{scheme}://{netloc.rpartition('@')[2]}{slash}{path}"


def from_status(
    status: int, what: str, *, code: str = "", family: str = "", bucket_level: bool = False, said: Said = NOTHING
) -> StoreError:
    """Return the error for an HTTP ``status``; ``code`` is the store's own word for it ("NoSuchKey") if known.

    ``family`` ("s3", "az", "gs") adds where credentials come from, where other ones would help; ``bucket_level`` says that
    a 404 can only mean the bucket, as in a listing. ``said``: further words of the store.
    """
    status = _SPELLED_OUT.get(code, status)
    cause = cause_of(code, said)
    repeated = "" if cause is not None and cause.credentials else shown(said.message)
    text = f"{what}: {describe(status, code, repeated)}"
    if code in _MISSING_BUCKET_CODES or (status == 404 and bucket_level):
        error: StoreError = BucketMissing(f"{text}; the bucket or container does not exist, check the URL and the endpoint")
    else:
        error = _elsewhere(status, code, text, family, said) or _refused(status, code, text, family, cause, said)
    error.code = code
    error.unexplained = family == "s3" and status == 400 and not code
    return error


def _elsewhere(status: int, code: str, text: str, family: str, said: Said) -> StoreError | None:
    """Return the error for a request that was sent to the wrong region or endpoint."""
    named = said.details.get("Region", "")
    region = named if re.fullmatch(r"[a-z0-9-]{1,64}", named) else ""
    redirected = code in REGION_CODES or (family == "s3" and 300 <= status < 400 and status != 304)
    if redirected or (region and code == "AuthorizationHeaderMalformed"):
        where = f"the bucket is in region {region}" if region else "the bucket is in another region, or elsewhere"
        hint = f"region={region}" if region else "region"
        return WrongRegion(f"{text}; {where}: set the storage option {hint}, and check the endpoint", region)
    if 300 <= status < 400:
        return _class_of(status)(f"{text}; the store redirects elsewhere, check region and endpoint")
    return None


def _refused(status: int, code: str, text: str, family: str, cause: Cause | None, said: Said) -> StoreError:
    places = CREDENTIAL_PLACES.get(family)
    if cause is not None:
        text = f"{text}; {in_words(cause, said)}"
        text = f"{text}; credentials come from: {places}" if cause.credentials and cause.places and places else text
        kind = cause.error or _class_of(status)
        return AccessDenied(text, renewable=cause.credentials or status == 401) if kind is AccessDenied else kind(text)
    if status not in (401, 403):
        return _class_of(status)(text)
    text = f"{text}; the credentials are refused, or do not allow this"
    return AccessDenied(f"{text}; they come from: {places}" if places else text, renewable=status == 401 or not code)


def _class_of(status: int) -> type[StoreError]:
    if status in (404, 410):
        return NotFound
    if status in (412, 416):  # 416: the version that was asked for has that range, so it must be another one
        return VersionChanged
    if status == 507:
        return StoreFull
    if status == 501:
        return StoreRejected
    if status in (408, 409, 423, 425, 429) or status >= 500:
        return StoreUnavailable
    return StoreRejected


def describe(status: int, code: str = "", message: str = "") -> str:
    """Return "503 Service Unavailable (SlowDown: Reduce your request rate.)"."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    said = ": ".join(part for part in (code, message) if part and part != phrase)
    return f"{status} {phrase}".rstrip() + (f" ({said})" if said else "")


def checked(data: Buffer, wanted: int, found: str, version: str, what: str) -> Buffer:
    """Return ``data`` if it is ``wanted`` bytes of ``version``; some servers ignore If-Match, some cut bodies."""
    require_version(found, version, what)
    if len(data) != wanted:
        raise StoreUnavailable(f"{what}: {len(data)} bytes came")
    return data


def require_version(found: str, wanted: str | None, what: str) -> None:
    """Raise `VersionChanged` if another version was found than is wanted: None is any, "" that there is no object."""
    if wanted is not None and found != wanted:
        raise VersionChanged(f"{what}: version is {found or 'none'}, not {wanted or 'none'}")
