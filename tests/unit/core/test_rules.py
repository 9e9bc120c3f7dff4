"""What holds for a path."""

from __future__ import annotations

import msgspec

from luxfuse.core.rules import MARKS_BOUND, Marks, PathPolicies, PathPolicy, PathRule, TimeLimit, above_and_self
from luxfuse.types import WriteMode

DEFAULT = PathPolicy(WriteMode.CACHE_THROUGH, "cache")


def test_the_first_rule_that_matches_counts() -> None:
    through, later, never = WriteMode.THROUGH, WriteMode.ASYNC_THROUGH, WriteMode.MUST_CACHE
    policies = PathPolicies([PathRule("a/b/**", through), PathRule("a/**", later), PathRule("**/b", never)], DEFAULT)
    expected = {"a/b/c": through, "a/b": later, "c/b": never, "c": WriteMode.CACHE_THROUGH}
    assert {path: policies.of(path).write_mode for path in expected} == expected


def test_of_each_thing_the_first_rule_that_says_it_counts() -> None:
    policies = PathPolicies(
        [
            PathRule("hot/**", pin=True, tier="mem"),
            PathRule("hot/cold/**", pin=False, tier="hdd", ttl_s=60.0),
            PathRule("**", read_mode="no-cache", read_only=True),
        ],
        DEFAULT,
    )
    assert policies.of("hot/cold/x") == PathPolicy(WriteMode.CACHE_THROUGH, "no-cache", "mem", True, 60.0, True)
    assert policies.of("else") == PathPolicy(WriteMode.CACHE_THROUGH, "no-cache", read_only=True)
    assert policies.any_ttl
    policies.replace([], DEFAULT)
    assert policies.of("hot/cold/x") is DEFAULT
    assert not policies.any_ttl


def test_rules_that_say_nothing_are_told() -> None:
    assert not PathRule("**").says_something
    assert PathRule("**", pin=False).says_something


def test_marks_hold_for_what_is_below() -> None:
    day, week = TimeLimit(86400.0, "free"), TimeLimit(7 * 86400.0, "delete")
    marks = Marks({"a/b"}, {"": week, "a": day})
    assert [path for path in ("a/b", "a/b/c/d", "a", "a/bc", "") if marks.pinned(path)] == ["a/b", "a/b/c/d"]
    assert [marks.limit(path) for path in ("a", "a/b/c", "b", "ab")] == [day, day, week, week]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(marks), type=Marks) == marks
    assert Marks().limit("a") is None
    assert Marks({""}).pinned("anything/at/all")


def test_marks_are_bounded() -> None:
    assert Marks({str(number) for number in range(MARKS_BOUND)}).full
    assert not Marks({str(number) for number in range(MARKS_BOUND - 1)}).full


def test_above_and_self() -> None:
    assert above_and_self("a/b/c") == ["a/b/c", "a/b", "a", ""]
    assert above_and_self("") == [""]


def test_limits_count_for_the_first_rule_that_limits() -> None:
    rules = [PathRule("x/**", pin=True), PathRule("a/b/**", max_cached_bytes=10), PathRule("a/**", max_cached_bytes=20)]
    policies = PathPolicies(rules, DEFAULT)
    assert policies.limits() == [10, 20]
    assert [policies.limit_of(path) for path in ("x/y", "a/b/c", "a/c", "else")] == [None, 0, 1, None]


def test_paths_share_the_rate_of_the_first_rule_that_sets_one() -> None:
    rules = [
        PathRule("x/**", pin=True), PathRule("a/b/**", bandwidth_limit_bytes_s=10),
        PathRule("a/**", bandwidth_limit_bytes_s=20, upload_bandwidth_limit_bytes_s=30), PathRule("a/b/**", ttl_s=1.0),
        PathRule("a/b/**", bandwidth_limit_bytes_s=40),
    ]  # fmt: skip
    policies = PathPolicies(rules, DEFAULT)
    assert policies.rates("bandwidth_limit_bytes_s") == {"a/b/**": 10, "a/**": 20}
    assert policies.rates("upload_bandwidth_limit_bytes_s") == {"a/**": 30}
    found = {path: policies.rate_of("bandwidth_limit_bytes_s", path) for path in ("x/y", "a/b/c", "a/c", "else")}
    assert found == {"x/y": None, "a/b/c": "a/b/**", "a/c": "a/**", "else": None}
    assert policies.rate_of("upload_bandwidth_limit_bytes_s", "a/b/c") == "a/**"
    assert PathRule("**", upload_bandwidth_limit_bytes_s=1).says_something
