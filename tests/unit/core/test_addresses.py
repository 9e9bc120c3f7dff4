"""Addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.core.addresses import DEFAULT_PORT, format_address, is_numeric, is_wildcard, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("node-1.example.com:80", ("node-1.example.com", 80)),
        ("10.0.0.1", ("10.0.0.1", DEFAULT_PORT)),
        (" h:0 ", ("h", 0)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert parse_address(format_address(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":1", "a:", "a:b", "a:1:2", "::1", "[]", "[a]:1", "[::1]5", "a b", "a/b:1", "a:99999", "ä:1", "a:١"]
)
def test_refusals(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no address|there is no port"):
        parse_address(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535


def test_kinds() -> None:
    assert is_numeric("10.0.0.1")
    assert not is_numeric("a")
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "a", "::1")] == [True, True, False, False]
