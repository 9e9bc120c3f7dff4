"""What goes wrong is told by its true cause, with what to do next; by credentials only where other ones would help."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

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
from luxfuse.understore.base import UnderStore
from luxfuse.understore.causes import CAUSES, NOTHING, Said, cause_of, shown
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import from_status
from tests.support.odd_s3 import Answer, OddS3, error

KMS_MESSAGE = "User: arn:aws:iam::1:user/me is not authorized to perform: kms:GenerateDataKey on this resource"
CASES: list[tuple[int, str, str, type[StoreError], str]] = [
    (403, "InvalidObjectState", "", Archived, "archive: restore it first"),
    (409, "BlobArchived", "This operation is not permitted on an archived blob.", Archived, "restore it first"),
    (403, "RequestTimeTooSkewed", "", AccessDenied, "set the clock"),
    (403, "AccessDenied", "Request has expired", AccessDenied, "set the clock"),
    (403, "AuthenticationFailed", "Request date header too old: 'x'", AccessDenied, "set the clock"),
    (403, "InvalidAccessKeyId", "", AccessDenied, "does not know the access key; credentials come from"),
    (403, "SignatureDoesNotMatch", "", AccessDenied, "secret key does not belong"),
    (400, "ExpiredToken", "", AccessDenied, "expired; renew them"),
    (403, "AuthenticationFailed", "", AccessDenied, "not accepted; credentials come from"),
    (403, "AccessDenied", "Access Denied", AccessDenied, "accepted, but neither they nor a policy"),
    (403, "AccessDenied", "with an explicit deny in a resource-based policy", AccessDenied, "policy of the bucket forbids"),
    (403, "AuthorizationPermissionMismatch", "", AccessDenied, "accepted, but neither"),
    (403, "AccessDenied", KMS_MESSAGE, AccessDenied, "(KMS) may not be used"),
    (400, "KMS.DisabledException", "", AccessDenied, "(KMS) is disabled"),
    (403, "AccessDenied", "Access Denied because object protected by object lock.", AccessDenied, "Object Lock"),
    (409, "BlobImmutableDueToPolicy", "", AccessDenied, "Object Lock"),
    (403, "retentionPolicyNotMet", "", AccessDenied, "retention"),
    (400, "BadDigest", "", StoreUnavailable, "not what was sent"),
    (400, "XAmzContentChecksumMismatch", "", StoreUnavailable, "not what was sent"),
    (403, "QuotaExceeded", "", QuotaExceeded, "quota"),
    (507, "XMinioStorageFull", "", StoreFull, "full"),
    (503, "SlowDown", "Reduce your request rate.", StoreUnavailable, "fewer requests"),
    (403, "rateLimitExceeded", "", StoreUnavailable, "fewer requests"),
    (403, "UserSuspended", "", AccessDenied, "its owner has to act"),
    (403, "AllAccessDisabled", "", AccessDenied, "its owner has to act"),
    (405, "MethodNotAllowed", "", StoreRejected, "does not offer this"),
    (400, "EntityTooLarge", "", TooLarge, "more than the store takes"),
    (400, "MetadataTooLarge", "", StoreFull, "no room for so many attributes"),
    (403, "", "", AccessDenied, "refused, or do not allow this; they come from"),
]


@pytest.mark.parametrize(("status", "code", "message", "kind", "text"), CASES)
def test_each_code_has_its_class_and_cause(status: int, code: str, message: str, kind: type[StoreError], text: str) -> None:
    found = from_status(status, "GET 'x'", code=code, family="s3", said=Said(message))
    assert type(found) is kind
    assert text in str(found)
    assert found.code == code
    assert str(found).startswith("GET 'x': ")
    cause = cause_of(code, Said(message))
    assert ("come from" in str(found)) == (cause is None or (cause.credentials and cause.places))


def test_only_other_credentials_are_called_credentials() -> None:
    for code, cause in CAUSES.items():
        text = str(from_status(403, "x", code=code, family="s3"))
        assert "\n" not in text
        assert ("credentials come from" in text) == (cause.credentials and cause.places)
    assert Archived.errno == errno.EACCES
    assert cause_of("Nobody'sCode", NOTHING) is None


def test_a_message_is_one_short_line_without_secrets() -> None:
    assert shown("less\n  please") == "less please"
    assert "s3cr3t" not in shown("the key s3cr3t/Key+Value== is wrong")
    assert "sig" not in shown("see https://account/x?sig=abc")
    assert len(shown("word " * 100)) <= 160


def test_both_times_and_the_region_are_told() -> None:
    times = {"RequestTime": "20260101T000000Z", "ServerTime": "2026-01-01T01:00:00Z"}
    text = str(from_status(403, "x", code="RequestTimeTooSkewed", said=Said("", times)))
    assert "this machine says 20260101T000000Z" in text
    assert "the store 2026-01-01T01:00:00Z" in text
    text = str(from_status(301, "x", code="PermanentRedirect", said=Said("", {"Region": "eu-west-1"})))
    assert "eu-west-1" in text


@pytest.fixture(scope="module")
def server() -> Iterator[OddS3]:
    with OddS3() as server:
        yield server


@pytest.fixture(params=["obstore", "fsspec"])
def store(request: pytest.FixtureRequest, server: OddS3) -> Iterator[UnderStore]:
    driver = open_driver("s3://bucket", endpoint_url=server.endpoint, driver=request.param, request_timeout_s=30.0,
                         storage_options={"key": "k", "secret": "s"})  # fmt: skip
    server.on.clear()
    yield driver
    driver.close()


REQUESTS: list[tuple[str, Callable[[UnderStore], object]]] = [
    ("get", lambda store: store.read("x", 0, 1, '"v"')),
    ("put", lambda store: store.put("x", b"data", {})),
    ("part", lambda store: store.upload_part("x", "u", 1, b"data")),
    ("copy", lambda store: store.copy("y", "x", size=1)),
]


@pytest.mark.parametrize(("name", "ask"), REQUESTS)
def test_what_a_server_answers_is_understood(store, server, name, ask):
    store.put("y", b"y", {})
    skewed = {"RequestTime": "20260101T000000Z", "ServerTime": "2026-01-01T01:00:00Z"}
    answers = [
        (error(403, "InvalidObjectState", "not valid for the object's storage class"), Archived, "restore it first"),
        (error(403, "RequestTimeTooSkewed", "too large", **skewed), AccessDenied, "the store 2026-01-01T01:00:00Z"),
        (error(403, "AccessDenied", KMS_MESSAGE), AccessDenied, "(KMS)"),
        (error(400, "KMS.DisabledException", "disabled"), AccessDenied, "enable it"),
        (error(403, "SignatureDoesNotMatch", "The request signature"), AccessDenied, "come from"),
        (error(400, "TooOdd", "What is this?"), StoreRejected, "400 Bad Request (TooOdd: What is this?)"),
    ]
    for answer, kind, text in answers:
        server.on[name] = lambda _seen, answer=answer: answer
        with pytest.raises(StoreError) as caught:
            ask(store)
        assert type(caught.value) is kind, answer
        assert text in str(caught.value)


def test_an_answer_without_what_it_should_have_is_the_servers_error(store, server):
    server.place("y", b"data")
    upload = store.begin_upload("x", {})
    requests = {
        "part": lambda: store.upload_part("x", upload, 1, b"data"),
        "copy_part": lambda: store.copy_part("x", upload, 1, "y", None, 0, 4),
        "begin": lambda: store.begin_upload("x", {}),
        "copy": lambda: store.copy("y", "x", size=4),
    }
    for name, ask in requests.items():
        for body in (b"", b"<Odd></Odd>"):
            server.on[name] = lambda _seen, body=body: Answer(200, body)
            with pytest.raises(StoreUnavailable, match="200 OK, but"):
                ask()
