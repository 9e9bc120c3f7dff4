"""One-line errors without secrets: status numbers to `luxfuse.errors` classes, and URLs that are safe to show."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    NotFound,
    NotTrusted,
    QuotaExceeded,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
    VersionChanged,
    WrongRegion,
)
from luxfuse.understore.base import Buffer

_EXPIRED_CODES = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
_DENIED_CODES = (*_EXPIRED_CODES, "InvalidToken", "InvalidAccessKeyId", "InvalidAccessKeyID", "SignatureDoesNotMatch",
                 "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure", "AuthenticationFailed",
                 "InvalidAuthenticationInfo", "NoAuthenticationInformation", "AuthorizationHeaderMalformed")  # fmt: skip
"""Other credentials would help."""
_REGION_CODES = ("PermanentRedirect", "IllegalLocationConstraintException", "TemporaryRedirect", "IncorrectEndpoint")
_MISSING_BUCKET_CODES = ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "InvalidResourceName")
_SPELLED_OUT = {"SlowDown": 503, "RequestTimeout": 408, "ThrottlingException": 429, "ServerBusy": 503,
                "AccessDenied": 403, "InternalError": 500, "ServiceUnavailable": 503,
                # These differ from what their status says elsewhere.
                "BlobAlreadyExists": 412, "LeaseIdMissing": 403, "BlobImmutableDueToPolicy": 403,
                "InvalidBlobType": 400, "InvalidBlockList": 404}  # fmt: skip
_DAMAGED_CODES = ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "Md5Mismatch", "Crc64Mismatch")
_QUOTA_CODES = ("QuotaExceeded", "QuotaExceededException", "XMinioAdminBucketQuotaExceeded", "StorageQuotaExceeded",
                "AccountStorageQuotaExceeded")  # fmt: skip

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
    status: int, what: str, *, code: str = "", family: str = "", bucket_level: bool = False, region: str = ""
) -> StoreError:
    """Return the error for an HTTP ``status``; ``code`` is the store's own word for it ("NoSuchKey") if known.

    ``family`` ("s3", "az", "gs") adds where credentials come from; ``bucket_level`` says that a 404 can only mean the
    bucket, as in a listing. ``region`` is the one that the store names.
    """
    status = _SPELLED_OUT.get(code, status)
    text = f"{what}: {describe(status, code)}"
    if code in _MISSING_BUCKET_CODES or (status == 404 and bucket_level):
        return BucketMissing(f"{text}; the bucket or container does not exist, check the URL and the endpoint")
    if code in _QUOTA_CODES:
        return QuotaExceeded(text)
    if code in _DAMAGED_CODES:
        return StoreUnavailable(f"{text}; what arrived there is not what was sent")
    if (refusal := _refusal(status, code, text, family, region)) is not None:
        return refusal
    if 300 <= status < 400:
        text += "; the store redirects elsewhere, check region and endpoint"
    error = _class_of(status)(text)
    error.unexplained = family == "s3" and status == 400 and not code
    return error


def _refusal(status: int, code: str, text: str, family: str, region: str) -> StoreError | None:
    """Return the error for a request that was not let in: from there, or with these credentials."""
    redirected = code in _REGION_CODES or (family == "s3" and 300 <= status < 400 and status != 304)
    if redirected or (region and code == "AuthorizationHeaderMalformed"):
        where = f"the bucket is in region {region}" if region else "the bucket is in another region, or elsewhere"
        hint = f"region={region}" if region else "region"
        return WrongRegion(f"{text}; {where}: set the storage option {hint}, and check the endpoint", region)
    if code in _EXPIRED_CODES:
        return AccessDenied(f"{text}; the credentials have expired", renewable=True)
    if status not in (401, 403) and code not in _DENIED_CODES:
        return None
    places = CREDENTIAL_PLACES.get(family)
    text = f"{text}; credentials come from: {places}" if places else text
    return AccessDenied(text, renewable=status == 401 or not code or code in _DENIED_CODES)


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


def describe(status: int, code: str = "") -> str:
    """Return "503 Service Unavailable (SlowDown)"."""
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    return f"{phrase} ({code})" if code else phrase


def checked(data: Buffer, wanted: int, found: str, version: str, what: str) -> Buffer:
    """Return ``data`` if it is ``wanted`` bytes of ``version``; some servers ignore If-Match, some cut bodies."""
    if found != version:
        raise VersionChanged(f"{what}: version is {found}, not {version}")
    if len(data) != wanted:
        raise StoreUnavailable(f"{what}: {len(data)} bytes came")
    return data
