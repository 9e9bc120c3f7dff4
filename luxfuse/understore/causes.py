"""The meaning of the words of stores: by code, the error that it stands for, its cause, and what to do next.

Codes of S3 (and of servers that speak its protocol: Ceph, MinIO, Google's XML interface), of Azure, and reasons of
Google's JSON. Where a code says less than the message does, `_BY_MESSAGE` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from luxfuse.errors import (
    AccessDenied,
    Archived,
    QuotaExceeded,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
    TooLarge,
)


@dataclass(frozen=True, slots=True)
class Said:
    """The words of a store beside status and code: its message, and details by name, as "ServerTime"."""

    message: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


NOTHING = Said()
DETAILS = ("RequestTime", "ServerTime", "Region")
"""The details that are looked at."""


@dataclass(frozen=True, slots=True)
class Cause:
    """``text`` names cause and next step. ``error`` None: that of the status. ``credentials``: other ones would help;
    ``places``: then say where they come from."""

    text: str
    error: type[StoreError] | None = None
    credentials: bool = False
    places: bool = True


def _of(codes: str, cause: Cause) -> dict[str, Cause]:
    return dict.fromkeys(codes.split(), cause)


_POLICY = Cause("the credentials were accepted, but neither they nor a policy of the bucket allow this", AccessDenied)
_CLOCK = Cause("this machine's clock is wrong, or the store's: set the clock", AccessDenied)
_KMS = "the encryption key of the object or bucket (KMS) "
_RETENTION = Cause("a retention policy or legal hold (Object Lock) protects the object until it ends", AccessDenied)
_SLOWLY = Cause("the store asks for fewer requests", StoreUnavailable)
_DAMAGED = Cause("what arrived there is not what was sent", StoreUnavailable)

CAUSES: Mapping[str, Cause] = {
    **_of("InvalidObjectState BlobArchived BlobBeingRehydrated",
          Cause("the object is in an archive: restore it first, then read it", Archived)),
    **_of("RequestTimeTooSkewed RequestExpired RequestInTheFuture", _CLOCK),
    **_of("InvalidAccessKeyId InvalidAccessKeyID InvalidClientTokenId UnrecognizedClientException",
          Cause("the store does not know the access key", AccessDenied, credentials=True)),
    **_of("SignatureDoesNotMatch",
          Cause("the secret key does not belong to the access key, or a proxy changes requests", AccessDenied,
                credentials=True)),
    **_of("ExpiredToken ExpiredTokenException TokenRefreshRequired",
          Cause("the credentials have expired; renew them", AccessDenied, credentials=True, places=False)),
    **_of("InvalidToken InvalidSecurity AuthFailure AuthenticationFailed InvalidAuthenticationInfo "
          "NoAuthenticationInformation InvalidCredentials authError required",
          Cause("the credentials are missing, malformed or not accepted", AccessDenied, credentials=True)),
    **_of("AuthorizationFailure",
          Cause("the credentials are not accepted, or the account's network rules do not let this machine in", AccessDenied,
                credentials=True)),
    **_of("AccessDenied AccessForbidden AuthorizationPermissionMismatch forbidden "
          "InsufficientAccountPermissions AuthorizationProtocolMismatch AuthorizationResourceTypeMismatch "
          "AuthorizationServiceMismatch AuthorizationSourceIPMismatch PublicAccessNotPermitted", _POLICY),
    **_of("NotSignedUp AccountProblem AllAccessDisabled InvalidPayer UserSuspended OptInRequired AccountIsDisabled "
          "accountDisabled BillingDisabled billingNotEnabled UserProjectAccountProblem UserProjectMissing",
          Cause("the account is not set up for this, or was suspended: its owner has to act", AccessDenied)),
    **_of("KMS.DisabledException KMS.KMSInvalidStateException KMS.InvalidStateException KMSDisabled",
          Cause(_KMS + "is disabled or about to be deleted: enable it", AccessDenied)),
    **_of("KMS.NotFoundException KMSKeyNotFound", Cause(_KMS + "does not exist: check its id and region", AccessDenied)),
    **_of("KMS.AccessDeniedException KMS.IncorrectKeyException KMSNotAuthorized",
          Cause(_KMS + "may not be used with these credentials: its policy has to allow that", AccessDenied)),
    **_of("KMS.ThrottlingException KMS.LimitExceededException KMS.InternalException", _SLOWLY),
    **_of("ObjectLocked retentionPolicyNotMet objectUnderActiveHold BlobImmutableDueToPolicy BlobImmutableDueToLegalHold",
          _RETENTION),
    **_of("BadDigest XAmzContentChecksumMismatch XAmzContentSHA256Mismatch Md5Mismatch Crc64Mismatch", _DAMAGED),
    **_of("QuotaExceeded QuotaExceededException XMinioAdminBucketQuotaExceeded StorageQuotaExceeded "
          "AccountStorageQuotaExceeded quotaExceeded", Cause("a quota of the account or bucket is used up", QuotaExceeded)),
    **_of("XMinioStorageFull InsufficientStorage", Cause("the store is full", StoreFull)),
    **_of("SlowDown SlowDownRead SlowDownWrite Throttling ThrottlingException ThrottledException RequestThrottled "
          "RequestThrottledException RequestLimitExceeded TooManyRequests TooManyRequestsException BandwidthLimitExceeded "
          "rateLimitExceeded userRateLimitExceeded ServerBusy", _SLOWLY),
    **_of("InternalError ServiceUnavailable OperationTimedOut RequestTimeout backendError internalError",
          Cause("the store is in trouble", StoreUnavailable)),
    **_of("EntityTooLarge RequestBodyTooLarge uploadTooLarge",
          Cause("that is more than the store takes in an object or part", TooLarge)),
    **_of("MetadataTooLarge", Cause("object metadata has no room for so many attributes", StoreFull)),
    **_of("MethodNotAllowed NotImplemented UnsupportedHeader",
          Cause("the server does not offer this: check that the endpoint is the store's, or look for a newer server")),
    **_of("InvalidStorageClass", Cause("the server does not know the storage class that is set", StoreRejected)),
    **_of("AuthorizationHeaderMalformed",
          Cause("the request is not signed as the store wants it", AccessDenied, credentials=True)),
    **_of("InvalidPart InvalidPartOrder InvalidBlockList", Cause("the store has lost parts of the upload")),
}  # fmt: skip

REGION_CODES = ("PermanentRedirect", "IllegalLocationConstraintException", "TemporaryRedirect", "IncorrectEndpoint")
"""The bucket is somewhere else."""

_BY_MESSAGE = (
    ("AccessDenied forbidden", "kms:|KMS|encryption key", CAUSES["KMS.AccessDeniedException"]),
    ("AccessDenied InvalidRequest forbidden", "[Oo]bject [Ll]ock|WORM|legal hold|retention", _RETENTION),
    ("AccessDenied", "[Rr]equest has expired|not yet valid", _CLOCK),
    ("AccessDenied", "explicit deny|resource-based policy|bucket policy",
     Cause("a policy of the bucket forbids it, whatever the credentials", AccessDenied)),
    ("AuthenticationFailed", "Request date header too old|not within the (validity|allowed)", _CLOCK),
    ("InvalidRequest", "[Kk][Mm][Ss]", Cause(_KMS + "or the way it is asked for is not as the bucket wants it")),
)  # fmt: skip

_LONG_TOKEN = re.compile(r"(?=\S*\d)[A-Za-z0-9+/=_%-]{16,}|\bhttps?://\S+")
MOST_SHOWN = 160


def cause_of(code: str, said: Said = NOTHING) -> Cause | None:
    """Return the meaning of a store's code, None if nothing is known of it."""
    for codes, pattern, cause in _BY_MESSAGE:
        if code in codes.split() and re.search(pattern, said.message):
            return cause
    return CAUSES.get(code)


def in_words(cause: Cause, said: Said) -> str:
    """Return a cause in words, of a wrong clock with both times where the store told them."""
    details = said.details
    if cause is _CLOCK and details.get("ServerTime"):
        here = f"this machine says {_short(details['RequestTime'])}, " if details.get("RequestTime") else ""
        return f"{cause.text} ({here}the store {_short(details['ServerTime'])})"
    return cause.text


def shown(message: str) -> str:
    """Return a store's message as one short line that can hold no secret: without URLs and words like keys."""
    line = _LONG_TOKEN.sub("...", " ".join(message.split()))
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "..."


def _short(detail: str) -> str:
    return re.sub(r"[^0-9A-Za-z:,+. -]", "", detail)[:40]
