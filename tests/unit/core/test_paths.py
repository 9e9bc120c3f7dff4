"""Which rule a path falls under."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.paths import (
    check_pattern,
    covers,
    has_pattern,
    literal_part,
    matches,
    name_matcher,
)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("a", ["a"], ["b", "a/b", "aa"]),
        ("*", ["a", ".a", "a\nb"], ["a/b"]),
        ("*.tmp", ["x.tmp", ".tmp"], ["d/x.tmp", "x.tmp/y", "xtmp"]),
        ("**", ["a", "a/b", "a/b\nc"], []),
        ("**/*.tmp", ["x.tmp", "d/x.tmp", "d/e/x.tmp"], ["x.tmp/y"]),
        ("d/**", ["d/a", "d/a/b"], ["d", "da/b"]),
        ("d/**/a", ["d/a", "d/b/a", "d/b/c/a"], ["a", "d/ba", "d/a/b"]),
        ("d/*/a", ["d/b/a"], ["d/a", "d/b/c/a"]),
        ("?[!a-c]", ["xd", "a!"], ["xa", "x", "x/"]),
        ("[]a-]", ["]", "a", "-"], ["b"]),
        ("[z-a]x", [], ["ax", "zx", "-x"]),
        ("[a", ["[a"], ["a"]),
        ("a.b+(c)", ["a.b+(c)"], ["aab+(c)"]),
        ("[^a]", ["^", "a"], ["b"]),
    ],
)
def test_patterns(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert [path for path in inside if not matches(pattern, path)] == []
    assert [path for path in outside if matches(pattern, path)] == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("", "empty"), ("/a", "relative"), ("a/", "ends with"), ("a//b", "empty"), ("a/../b", "dots"), ("a**", "whole names")],
)
def test_patterns_that_can_match_nothing(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_pattern(pattern)


@given(st.text("ab-[]!*?", min_size=1, max_size=8), st.text("ab-[]!", min_size=1, max_size=6))
def test_one_name_is_matched_as_by_fnmatch(pattern: str, name: str) -> None:
    if "**" not in pattern:
        check_pattern(pattern)
        assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern)


@pytest.mark.parametrize(
    ("path", "literal"),
    [("", ""), ("a/b", "a/b"), ("a/b*", "a"), ("*", ""), ("a/**/c", "a"), ("a/b?/c", "a"), ("a/[x]/c", "a")],
)
def test_the_literal_part_of_a_pattern(path: str, literal: str) -> None:
    assert literal_part(path) == literal
    assert has_pattern(path) == (literal != path)


def test_one_name_is_matched_as_in_a_whole_path() -> None:
    for pattern, name in (("*.jpg", "a.jpg"), ("i?g", "img"), ("[a-c]x", "bx"), ("[!a]x", "bx")):
        assert name_matcher(pattern)(name.encode())
        assert matches(f"d/{pattern}", f"d/{name}")
    assert not name_matcher("*.jpg")(b"a.png")
    assert not name_matcher("[!a]x")(b"ax")


def test_what_a_path_or_pattern_covers() -> None:
    assert all(covers("")(other) for other in ("a", "a/b"))
    plain, pattern, deep = covers("a/b"), covers("a/*.d"), covers("a/**")
    assert [other for other in ("a", "a/b", "a/b/c", "a/bc") if plain(other)] == ["a/b", "a/b/c"]
    assert [other for other in ("a/x.d", "a/x.d/y/z", "a/y/x.d", "a/*.d/z") if pattern(other)] == [
        "a/x.d", "a/x.d/y/z", "a/*.d/z",
    ]  # fmt: skip
    assert deep("a/b/c")
    assert not deep("a")
