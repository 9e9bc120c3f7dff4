from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luxfuse.core.names import (
    NAME_MAX_BYTES,
    PATH_MOST_BYTES,
    SYMLINK_SUFFIX,
    KeyLimits,
    classify,
    component_of,
    name_of,
    not_taken,
    too_long,
    too_long_below,
    wins,
)
from luxfuse.types import Kind

any_text = st.text(st.characters(), max_size=300)  # lone surrogates included


@given(any_text)
@example("\udcff")
@example("\ud800")
def test_a_name_is_valid_for_the_kernel_and_leads_back_to_its_component(component: str) -> None:
    name = name_of(component)
    if name is not None:
        assert 0 < len(name) <= NAME_MAX_BYTES
        assert name not in (b".", b"..")
        assert b"\0" not in name
        assert b"/" not in name
        assert component_of(name) == component


@pytest.mark.parametrize("component", ["", ".", "..", "a\0b", "a/b", "x" * 256, "ä" * 128])
def test_what_cannot_be_a_name_is_refused(component: str) -> None:
    assert name_of(component) is None
    assert classify(component) is None


@pytest.mark.parametrize("component", ["a", "...", ".hidden", " ", "x" * 255, "ä" * 127, "a\nb", "日本"])
def test_what_can_be_a_name_is_taken(component: str) -> None:
    assert name_of(component) == component.encode()


def test_a_link_object_is_the_link() -> None:
    assert classify("here.rclonelink") == (b"here", Kind.SYMLINK)
    assert classify("x" * 255 + SYMLINK_SUFFIX) == (b"x" * 255, Kind.SYMLINK)
    assert classify("..rclonelink") is None
    assert classify("...rclonelink") is None
    assert classify(SYMLINK_SUFFIX) == (SYMLINK_SUFFIX.encode(), Kind.FILE)
    assert classify("a.rclonelink.rclonelink") == (b"a.rclonelink", Kind.SYMLINK)


@given(any_text)
def test_every_component_is_classified_without_an_error(component: str) -> None:
    classified = classify(component)
    if classified is not None and classified[1] is Kind.FILE:
        assert classified[0] == name_of(component)


def test_no_component_has_bytes_that_are_not_utf8() -> None:
    assert component_of(b"\xff") is None
    assert component_of("ä".encode()) == "ä"


def test_a_directory_wins_over_a_file_and_a_file_over_a_link() -> None:
    order = [Kind.SYMLINK, Kind.FILE, Kind.DIRECTORY]
    for low, old in enumerate(order):
        for high, new in enumerate(order):
            assert wins(new, old) == (high > low)


S3 = KeyLimits(prefix="training/")
AZURE = KeyLimits(prefix="training/", characters=True)
LOCAL = KeyLimits(PATH_MOST_BYTES, "/mnt/disk/")


def deep(length: int, letter: str = "d") -> str:
    """A key of so many letters, none of whose parts is too long."""
    key = f"{letter * 99}/" * (length // 100 + 1)
    return key[: length - 1].rstrip("/").ljust(length, letter)


@pytest.mark.parametrize(
    ("key", "limits", "fits"),
    [
        ("n" * 255, S3, True),
        ("n" * 256, S3, False),
        ("é" * 127, S3, True),
        ("é" * 128, S3, False),
        ("d" * 255 + "/", S3, True),
        ("d" * 256 + "/", S3, False),
        ("l" * 244 + SYMLINK_SUFFIX, S3, True),
        ("l" * 245 + SYMLINK_SUFFIX, S3, False),
        ("d" * 256 + "/n", S3, False),
        ("l" * 245 + SYMLINK_SUFFIX, LOCAL, False),
        (deep(1015), S3, True),
        (deep(1016), S3, False),
        (deep(1014) + "/", S3, True),
        (deep(1015) + "/", S3, False),
        (deep(600, "é"), S3, False),
        (deep(600, "é"), AZURE, True),
        (deep(1015, "é"), AZURE, True),
        (deep(1016), AZURE, False),
        (deep(600, "😀"), AZURE, False),
        (deep(1016), LOCAL, True),
        (deep(PATH_MOST_BYTES - 10), LOCAL, True),
        (deep(PATH_MOST_BYTES - 9), LOCAL, False),
    ],
)
def test_a_key_that_a_store_cannot_hold_is_too_long(key: str, limits: KeyLimits, fits: bool) -> None:
    assert (too_long(key, limits) is None) == fits


def test_a_character_that_a_store_does_not_take_is_named() -> None:
    assert not_taken("a:b/c", KeyLimits(refused=":")) == "the under-store takes no names with ':' in them"
    assert not_taken("a/c", KeyLimits(refused=":")) is None
    assert not_taken("a:b/c", KeyLimits()) is None


def test_parts_that_come_along_with_a_directory_are_not_looked_at() -> None:
    assert too_long_below("d/" + "l" * 245 + SYMLINK_SUFFIX, S3) is None
    assert too_long_below(deep(1016), S3) == "the key would have 1025 bytes, 1024 are the most"
