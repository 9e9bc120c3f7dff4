"""Descriptions and listings in C: those of botocore, without it; and left to it wherever something is odd."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import quote

import pytest

from luxfuse.core.vain import PAUSE_S, VAIN_MOST
from luxfuse.errors import NotFound, StoreError, StoreUnavailable
from luxfuse.types import ObjectInfo
from luxfuse.understore.base import ListsFromKeys, UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.s3 import direct
from tests.support.ceph_rgw import CephRgw
from tests.support.direct import SECRETS, check_signature, opened
from tests.support.odd_gets import MODIFIED_S, OddGets, answer_to
from tests.support.odd_s3 import Answer, OddS3, Seen, error
from tests.support.servers_store import ceph_rgw
from tests.support.store_targets import s3_client

pytestmark = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")

__all__ = ["ceph_rgw"]

SOURCE = "s3://bucket/some/prefix"


@pytest.fixture
def server() -> Iterator[OddGets]:
    with OddGets() as odd:
        yield odd


def test_descriptions_and_listings_are_those_of_botocore() -> None:
    with OddS3() as s3:
        for key in ("d/", "d//f", "d/./x", "d/ä ", "d/plain", "d/e/f"):
            s3.place(key, key.encode(), mode="33188", **{"X-Y": "Z z"})
        gets = opened("s3://bucket", s3.endpoint, SECRETS)
        driver = open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS)
        for key in ("d/", "d//f", "d/./x"):
            assert gets.head(key) == driver.head(key)
            assert asked_by(s3.seen[-2:]) == ["C", "botocore"]
        assert gets.list_page("d/", "", "") == cast(ListsFromKeys, driver).list_page("d/", "", "")
        assert gets.list_page("d/", "d/e", "") is not None
        assert asked_by(s3.seen[-3:]) == ["C", "botocore", "C"]
        assert s3.seen[-1].query["start-after"] == "d/e"
        errors = []
        for head in (gets.head, driver.head):
            with pytest.raises(NotFound) as caught:
                head("none/")
            errors.append((str(caught.value), caught.value.code, type(caught.value)))
        assert errors[0] == errors[1]
        driver.close()


def asked_by(requests: Sequence[Seen]) -> list[str]:
    return ["C" if request.headers["user-agent"].startswith("luxfuse/") else "botocore" for request in requests]


@pytest.mark.parametrize("status", [301, 307, 400, 403, 500])
@pytest.mark.parametrize("name", ["head", "list"])
def test_other_answers_are_left_to_botocore(status: int, name: str) -> None:
    def ask(driver: UnderStore) -> object:
        return driver.head("d/") if name == "head" else cast(ListsFromKeys, driver).list_page("d/")

    with OddS3() as s3:
        s3.on[name] = lambda _seen: error(status, "Odd") if name == "list" else Answer(status)
        drivers = [
            open_driver("s3://bucket", endpoint_url=s3.endpoint, storage_options=SECRETS, direct_gets=most)
            for most in (0, 4)
        ]
        errors = []
        for driver in drivers:
            with pytest.raises(StoreError) as caught:
                ask(driver)
            errors.append((str(caught.value), type(caught.value), caught.value.unexplained))
        assert errors[0] == errors[1]
        s3.on.clear()
        s3.place("d/", b"")
        assert ask(drivers[0]) == ask(drivers[1])
        for driver in drivers:
            driver.close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_once(status: int) -> None:
    with OddS3() as s3:
        s3.on["head"] = s3.on["list"] = lambda _seen: Answer(status)
        gets = opened("s3://bucket", s3.endpoint, SECRETS)
        for ask in (lambda: gets.head("d/"), lambda: gets.list_page("d/", "", "")):
            with pytest.raises(StoreUnavailable, match=str(status)):
                ask()
        assert s3.names() == ["head", "list"]


def test_questions_that_are_always_in_vain_end() -> None:
    with OddS3() as s3:
        gets = opened("s3://bucket", s3.endpoint, SECRETS)
        s3.on["head"] = lambda _seen: Answer(403)
        s3.on["list"] = lambda _seen: Answer(200, b"<html>")
        assert [gets.head("d/") for _ in range(2)] == [None, None]
        s3.on["head"] = lambda _seen: None
        with pytest.raises(NotFound):
            gets.head("d/")
        s3.on["head"] = lambda _seen: Answer(403)
        assert not any(gets.head("d/") or gets.list_page("d/", "", "") for _ in range(5))
        assert (s3.count("head"), s3.count("list")) == (2 + 1 + VAIN_MOST, VAIN_MOST)
        s3.on["head"] = s3.on["list"] = lambda _seen: None
        assert gets.list_page("e/", "", "") is not None, "which says nothing about other names"
        with pytest.raises(NotFound):
            gets.head("e/")
        s3.on["head"] = lambda _seen: Answer(403)
        s3.on["list"] = lambda _seen: Answer(200, b"<html>")
        asked = len(s3.names())
        assert not any(gets.head(f"{n}/") or gets.list_page(f"{n}/", "", "") for n in range(VAIN_MOST + 2))
        assert len(s3.names()) == asked + 2 * VAIN_MOST


def test_questions_that_were_in_vain_are_asked_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with OddS3() as s3:
        gets = opened("s3://bucket", s3.endpoint, SECRETS)
        s3.on["head"], s3.on["list"] = lambda _seen: Answer(500), lambda _seen: Answer(200, b"<html>")
        assert not any(gets.head(f"{n}/") or gets.list_page(f"{n}/", "", "") for n in range(VAIN_MOST))
        s3.on.clear()
        s3.place("d/", b"")
        assert gets.head("d/") is gets.list_page("d/", "", "") is None
        now_s += PAUSE_S
        assert gets.head("d/") is not None
        assert gets.list_page("d/", "", "") is not None


@pytest.mark.parametrize("code", [35, 60])
def test_a_server_to_which_tls_fails_is_not_asked_twice_for_ever(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    gets, asked = opened("s3://bucket", "http://127.0.0.1:1", SECRETS), 0

    class Pool:
        def head(self, *_: object) -> tuple[int, int, int]:
            nonlocal asked
            asked += 1
            return direct._gets.GET_FAILED, 0, code

    monkeypatch.setattr(gets, "_pool", Pool())
    assert not any(gets.head(f"{n}/") for n in range(2 * VAIN_MOST))
    assert asked == VAIN_MOST


def test_descriptions_without_a_version_to_ask_for_are_not_asked_for_twice_for_ever(server: OddGets) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    assert not any(gets.head(f"weak-{n}-30/") for n in range(2 * VAIN_MOST))
    assert len(server.heads) == VAIN_MOST


def test_many_odd_pages_of_one_directory_say_nothing_about_others() -> None:
    with OddS3() as s3:
        gets = opened("s3://bucket", s3.endpoint, SECRETS)
        s3.on["list"] = lambda _seen: Answer(200, b"<html>")
        assert not any(gets.list_page("d/", f"d/{n}", "") for n in range(VAIN_MOST + 2))
        assert s3.count("list") == VAIN_MOST
        s3.on.clear()
        assert gets.list_page("e/", "", "") is not None


@pytest.mark.parametrize(
    "kind", ["chunked", "noetag", "weak", "heads", "giant", "no-length", "two-lengths", "no-date", "foreign"]
)
def test_odd_descriptions_are_left_to_botocore(server: OddGets, kind: str) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    assert gets.head(f"{kind}-7-30/") is None
    assert gets.head("good-7-30/") is not None


@pytest.mark.parametrize("more", [answer_to("good", 8, 500, head=True)[0], b"<Error/>" * 100_000], ids=["answer", "much"])
def test_what_comes_after_an_answer_is_not_taken_for_the_next_one(server: OddGets, more: bytes) -> None:
    gets = opened(SOURCE, f"http://{server.host}", SECRETS)
    for number in range(3):
        info = gets.head(f"good-{number}-30/")
        assert info is not None
        assert (info.size, info.version) == (30, f'"v{number}"')
        server.interject(more)


def test_names_that_c_cannot_say(server: OddGets) -> None:
    gets = opened("s3://bucket", f"http://{server.host}", SECRETS)
    for key in ("", "a\0b", "\udc80/"):
        assert gets.head(key) is None
    assert gets.list_page("\udc80/", "", "") is None
    assert not server.heads


LOOKS_AND_READS = """
import sys
import uuid
from luxfuse.types import ObjectInfo
from luxfuse.understore.base import ListsFromKeys
from luxfuse.understore.factory import open_driver
driver = open_driver("s3://bucket", endpoint_url=sys.argv[1],
                     storage_options={"key": "k", "secret": "s"}, direct_gets=int(sys.argv[2]))
from_keys = driver.abilities.start_after
page = driver.list_page("d/").page if from_keys else next(driver.list_directory("d/"))
(info,) = page.objects
assert driver.has_prefix("d/")
driver.head("d/"), driver.head(info.key)
assert bytes(driver.read(info.key, 0, info.size, info.version)) == b"content"
print("botocore" in sys.modules)
driver.close()
"""


@pytest.mark.parametrize("most", [4, 0])
def test_to_look_and_to_read_imports_no_botocore(most: int) -> None:
    with OddS3() as s3:
        s3.place("d/f", b"content")
        s3.place("d/", b"")
        command = [sys.executable, "-c", LOOKS_AND_READS, s3.endpoint, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == (f"{most == 0}\n", "")


@pytest.mark.parametrize("key", ["d/", "/a//b", "./a/../b", "a/.", "..", "ä ö/", "a\nb\x01", "%2F/?list-type=2#"])
@pytest.mark.parametrize("token", [None, "token/+="])
def test_questions_are_signed_as_botocore_signs_them(
    server: OddGets, monkeypatch: pytest.MonkeyPatch, key: str, token: str | None
) -> None:
    options = {**SECRETS, "region": "eu-west-9", **({"token": token} if token else {})}
    gets = opened("s3://bucket", f"http://{server.host}", options)
    assert gets.head(f"{key}/good-7-3000//") == ObjectInfo(f"{key}/good-7-3000//", 3000, '"v7"', MODIFIED_S * 10**9, {})
    assert gets.list_page(f"{key}/whole-7-3000", "", "") is None  # no listing, but a body
    asked, listed = server.heads
    assert asked.startswith(f"HEAD /bucket/{quote(key, safe='/~')}/good-7-3000// ")
    assert listed.startswith("GET /bucket?delimiter=%2F&")
    for head in (asked, listed):
        check_signature(head, server.host, token, monkeypatch)


@pytest.mark.ceph
def test_a_server_that_checks_signatures_answers(ceph_rgw: CephRgw) -> None:
    server, bucket = ceph_rgw, f"b-{uuid.uuid4().hex[:12]}"
    client = s3_client(server.endpoint, server.access_key, server.secret_key)
    client.create_bucket(Bucket=bucket)
    options = {"key": server.access_key, "secret": server.secret_key}
    gets = opened(f"s3://{bucket}", server.endpoint, options)
    driver = open_driver(f"s3://{bucket}", endpoint_url=server.endpoint, storage_options=options)
    keys = ["d/", "d//x", "d/./x", "d/../x", "/x", "d ä+%2F=?#/"]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode(), Metadata={"Mode": "33188"})
        info = gets.head(key)
        assert info is not None
        assert info == driver.head(key)
    for prefix, after in (("", ""), ("d/", ""), ("d/", "d/../"), ("d ä+%2F=?#/", ""), ("none/", "")):
        part = gets.list_page(prefix, after, "")
        assert part is not None
        assert part == cast(ListsFromKeys, driver).list_page(prefix, after)
    with pytest.raises(NotFound):
        gets.head("none/")
    driver.close()
