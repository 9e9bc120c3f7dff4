"""URLs that no client can make use of: some of them panic on these."""

from __future__ import annotations

import pytest

from luxfuse.core.urls import endpoint_fault, url_fault


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://", "names no host"), ("http:///x", "names no host"), ("http://:9", "names no host"),
        ("http://[::", "brackets"), ("http://[x]", "brackets"), ("http://[]", "brackets"), ("http://a b:9", "blank"),
        ("http://h\n", "control character"), ("http://h:99999", "port"), ("http://h:0", "port"), ("http://h:abc", "port"),
        ("http://h\u00e9", "characters"), ("http://h%20x", "characters"), ("ftp://h", "must start with"),
        ("localhost:9000", "must start with"), ("http://h?x=y", "without"), ("http://h/p#f", "without"),
    ],
)  # fmt: skip
def test_what_no_endpoint_can_be(url: str, fault: str) -> None:
    assert fault in (endpoint_fault(url) or "")


@pytest.mark.parametrize(
    "url",
    ["http://h", "https://h:9/p/q", "http://[::1]:9", "http://127.0.0.1:1", "http://u:p@h_x.y-z:65535/", "http://h:"],
)
def test_what_one_can_be(url: str) -> None:
    assert endpoint_fault(url) is None
    assert url_fault(f"{url}?x") is None
