"""LIST requests without botocore's parser: when they are given up."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import pytest

from luxfuse.core.vain import PAUSE_S, VAIN_MOST
from luxfuse.understore.s3.pages import listing_of, part_of
from luxfuse.understore.s3.short import ShortRequests

EMPTY = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


class Server:
    """Answers to whatever is asked; remembers the prefixes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.odd: set[str] = set()

    def send(self, request: Any) -> SimpleNamespace:
        prefix = request.url.rpartition("prefix=")[2].partition("&")[0]
        self.asked.append(prefix)
        return SimpleNamespace(status_code=200, content=b"<html>" if prefix in self.odd else EMPTY)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def requests(server: Server) -> ShortRequests:
    client = botocore.session.get_session().create_client(
        "s3", region_name="us-east-1", endpoint_url="http://127.0.0.1:9", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client._endpoint.http_session = server
    return ShortRequests(client, 10.0)


def ask(requests: ShortRequests, prefix: str, after: str = "") -> object:
    return requests.list_part("bucket", listing_of(prefix, after, ""), lambda body: part_of(body, prefix, 0))


def test_an_odd_directory_says_nothing_about_others(server: Server, requests: ShortRequests) -> None:
    server.odd.add("odd")
    for number in range(VAIN_MOST + 2):
        assert ask(requests, "odd", f"odd{number}") is None
    assert server.asked == ["odd"] * VAIN_MOST
    assert ask(requests, "good") is not None


def test_a_server_that_is_always_odd_is_asked_no_more(server: Server, requests: ShortRequests) -> None:
    server.odd |= {f"d{number}" for number in range(VAIN_MOST + 2)}
    assert not any(ask(requests, prefix) for prefix in sorted(server.odd))
    assert len(server.asked) == VAIN_MOST


def test_it_is_asked_again_after_a_pause(server: Server, requests: ShortRequests, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    server.odd |= {f"d{number}" for number in range(VAIN_MOST)}
    assert not any(ask(requests, prefix) for prefix in [*sorted(server.odd), "good"])
    now_s += PAUSE_S
    assert ask(requests, "good") is not None


def test_an_answer_of_use_ends_the_count(server: Server, requests: ShortRequests) -> None:
    server.odd.add("odd")
    for _ in range(VAIN_MOST + 1):
        assert ask(requests, "odd") is None
        assert ask(requests, "good") is not None
    assert len(server.asked) == 2 * (VAIN_MOST + 1)
