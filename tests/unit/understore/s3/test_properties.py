"""ACLs that cannot be read, or set, now."""

from __future__ import annotations

import time
from typing import Any

import pytest

from luxfuse.core.vain import LONGEST_PAUSE_S, PAUSE_S
from luxfuse.errors import AccessDenied, NotFound, StoreError, StoreRejected, StoreUnavailable
from luxfuse.types import ObjectInfo
from luxfuse.understore.object_options import ObjectOptions
from luxfuse.understore.s3.properties import Examiner

GRANTED = {"Owner": {"ID": "me"}, "Grants": [{"Grantee": {"ID": "other"}, "Permission": "READ"}]}
GRANTS = {"GrantRead": 'id="other"'}


class Bucket:
    """Answers to questions about ACLs, or raises."""

    def __init__(self) -> None:
        self.errors: dict[str, StoreError] = {}
        self.asked: list[str] = []
        self.rules: list[dict[str, str]] = []

    def call(self, method: str, what: str, **_arguments: Any) -> dict[str, Any]:
        self.asked.append(method)
        if method in self.errors:
            raise self.errors[method]
        if method == "get_bucket_ownership_controls":
            return {"OwnershipControls": {"Rules": self.rules}}
        return GRANTED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def grants(examiner: Examiner) -> object:
    found = examiner.properties("x", ObjectInfo("x", 1, '"v"', 0), {}, whole=False)
    return found.own.get("grants", {})


def test_the_next_pause_is_a_short_one_once_an_acl_was_read(clock: list[float]) -> None:
    bucket = Bucket()
    examiner = Examiner(bucket.call, ObjectOptions())
    for _ in range(3):
        bucket.errors["get_object_acl"] = AccessDenied("for now")
        assert grants(examiner) == {}
        bucket.errors.clear()
        clock[0] += PAUSE_S
        assert grants(examiner) == GRANTS


@pytest.mark.expected_logs("refuses to set ACLs")
@pytest.mark.parametrize("taken", [False, True])
def test_where_acls_can_be_read_and_not_set_the_pauses_grow_until_one_is_set(
    clock: list[float], caplog: pytest.LogCaptureFixture, taken: bool
) -> None:
    caplog.set_level("INFO", logger="luxfuse")
    examiner = Examiner(Bucket().call, ObjectOptions())
    for pause_s in (PAUSE_S, PAUSE_S if taken else 2 * PAUSE_S):
        examiner.note_refused(["GrantRead"])
        clock[0] += pause_s - 1
        assert grants(examiner) == {}
        clock[0] += 1
        assert grants(examiner) == GRANTS
        if taken:
            examiner.note_set(["GrantRead"])
    assert [record.levelname for record in caplog.records if "refuses to set" in record.message] == ["WARNING", "INFO"]


@pytest.mark.expected_logs("refuses to set ACLs")
@pytest.mark.parametrize("method", ["get_object_acl", "get_bucket_acl"])
@pytest.mark.parametrize("error", [AccessDenied("for now"), StoreRejected("odd")])
def test_acls_that_are_refused_are_asked_for_again_after_a_while(
    clock: list[float], method: str, error: StoreError
) -> None:
    """One object may be closed to us, or what answered was something in between: others lose their ACL when edited."""
    bucket = Bucket()
    examiner = Examiner(bucket.call, ObjectOptions())
    bucket.errors[method] = error
    for pause_s in (PAUSE_S, 2 * PAUSE_S):
        assert grants(examiner) == {}
        asked = len(bucket.asked)
        clock[0] += pause_s - 1
        assert grants(examiner) == {}
        assert len(bucket.asked) == asked, "asked for with each object"
        clock[0] += 1
    bucket.errors.clear()
    assert grants(examiner) == GRANTS
    examiner.note_refused(["GrantRead"])
    assert grants(examiner) == {}
    clock[0] += LONGEST_PAUSE_S
    assert grants(examiner) == GRANTS


def test_a_bucket_that_says_that_it_has_no_acls_is_not_asked_again(clock: list[float]) -> None:
    for prepare in (
        lambda bucket: bucket.rules.append({"ObjectOwnership": "BucketOwnerEnforced"}),
        lambda bucket: bucket.errors.update(get_bucket_acl=NotFound("no ACL")),
    ):
        bucket = Bucket()
        prepare(bucket)
        examiner = Examiner(bucket.call, ObjectOptions())
        assert grants(examiner) == {}
        asked = len(bucket.asked)
        clock[0] += LONGEST_PAUSE_S
        assert grants(examiner) == {}
        assert len(bucket.asked) == asked


def test_an_outage_says_nothing_of_acls(clock: list[float]) -> None:
    bucket = Bucket()
    examiner = Examiner(bucket.call, ObjectOptions())
    for method in ("get_bucket_ownership_controls", "get_object_acl"):
        bucket.errors = {method: StoreUnavailable("away")}
        with pytest.raises(StoreUnavailable):
            grants(examiner)
    bucket.errors.clear()
    assert grants(examiner) == GRANTS
