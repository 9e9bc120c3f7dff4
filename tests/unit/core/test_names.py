from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luxfuse.core.names import NAME_MAX_BYTES, SYMLINK_SUFFIX, classify, component_of, name_of, wins
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
