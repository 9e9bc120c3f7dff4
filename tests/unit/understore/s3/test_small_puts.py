"""Small objects that are put several at once in C: as obstore puts each, and left to it wherever something is odd."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from luxfuse.core.vain import PAUSE_S, VAIN_MOST
from luxfuse.errors import StoreUnavailable
from luxfuse.shares import shares
from luxfuse.types import ABSENT, Buffer
from luxfuse.understore.factory import open_driver
from luxfuse.understore.gets import client
from luxfuse.understore.s3 import direct
from luxfuse.understore.small_puts import MOST_PUTS, PutAnswer, SmallPut, put_small, puts_small
from tests.support.direct import SECRETS
from tests.support.odd_s3 import Answer, OddS3, Seen, error

pytestmark = pytest.mark.skipif(direct._gets is None, reason="built without libcurl")

OF_CONNECTIONS = ("authorization", "x-amz-date", "user-agent", "accept", "host", "connection")


@pytest.fixture
def server() -> Iterator[OddS3]:
    with OddS3() as s3:
        yield s3


@pytest.fixture
def driver(server: OddS3) -> Iterator[Any]:
    driver = opened(server)
    yield driver
    driver.close()


def opened(server: OddS3, **options: str) -> Any:
    return open_driver(
        "s3://bucket/some/prefix", endpoint_url=server.endpoint, storage_options={**SECRETS, **options}, direct_gets=8
    )


def wanted(number: int, expect: str | None = ABSENT, data: Buffer | None = None) -> SmallPut:
    return SmallPut(f"d/ä {number}", b"x" * number if data is None else data, {"mode": "33188"}, expect)


def put(driver: Any, puts: Sequence[SmallPut]) -> list[PutAnswer | None]:
    found: list[PutAnswer | None] = [None] * len(puts)

    def tell(answers: Sequence[tuple[int, PutAnswer]]) -> None:
        for number, answer in answers:
            assert found[number] is None
            found[number] = answer

    put_small(driver, puts, tell)
    return found


def is_stored(answer: PutAnswer | None) -> bool:
    return answer is not None and answer.info is not None


def is_left(answer: PutAnswer | None) -> bool:
    """Whether it has to be put as usual."""
    return answer is None or (answer.info is None and answer.error is None)


@pytest.mark.parametrize("options", [{}, {"checksum_algorithm": "none"}, {"storage_class": "STANDARD_IA"}])
def test_they_are_put_as_obstore_puts_each(server: OddS3, options: dict[str, str]) -> None:
    driver = opened(server, **options)
    infos = [answer and answer.info for answer in put(driver, [wanted(n) for n in range(MOST_PUTS)])]
    together, server.seen[:] = list(server.seen), []
    found = dict(server.objects)
    server.objects.clear()
    alone = [driver.put(*wanted(n)[:3], expect=ABSENT) for n in range(MOST_PUTS)]
    assert infos == alone
    assert {key: (each.body, each.headers) for key, each in found.items()} == {
        key: (each.body, each.headers) for key, each in server.objects.items()
    }
    assert sorted(map(said, together)) == sorted(map(said, server.seen))
    driver.close()


def said(seen: Seen) -> tuple[str, str, list[tuple[str, str]], bytes]:
    """What a request says, with the hash of its body as it is signed."""
    headers = {name: value for name, value in seen.headers.items() if name not in OF_CONNECTIONS}
    return seen.name, seen.key, sorted(headers.items()), seen.body


def test_each_has_its_own_condition_and_a_failed_one_is_left_to_others_to_tell(server: OddS3, driver: Any) -> None:
    etag = driver.put("d/ä 2", b"another", {}).version
    absent, changed, new, same = put(driver, [wanted(2), wanted(2, '"no"'), wanted(3), wanted(2, etag)])
    assert [is_left(absent), is_left(changed), is_stored(new), is_stored(same)] == [True] * 4
    assert server.objects["some/prefix/d/ä 2"].body == b"xx"


@pytest.mark.parametrize("key", ["a//b", "./c"])
def test_keys_that_obstore_cannot_name_are_left(server: OddS3, driver: Any, key: str) -> None:
    odd, plain = put(driver, [SmallPut(key, b"1", {}, None), wanted(1)])
    assert (odd, is_stored(plain), server.count("put")) == (None, True, 1)


def test_one_without_an_answer_fails_and_the_others_are_stored(server: OddS3, driver: Any) -> None:
    server.after["put"] = lambda seen, answer: Answer(200, lost=True) if seen.key.endswith("1") else answer
    lost, stored = put(driver, [wanted(1), wanted(2)])
    assert lost is not None
    assert type(lost.error) is StoreUnavailable
    assert is_stored(stored)


@pytest.mark.parametrize("answer", [error(503, "SlowDown"), error(500, "InternalError"), error(400, "RequestTimeout")])
def test_that_the_server_is_busy_is_told(server: OddS3, driver: Any, answer: Answer) -> None:
    server.on["put"] = lambda seen: answer if seen.key.endswith("1") else None
    busy, stored = put(driver, [wanted(1), wanted(2)])
    assert busy is not None
    assert type(busy.error) is StoreUnavailable
    assert is_stored(stored)


def test_the_others_are_told_while_one_does_not_end(server: OddS3, driver: Any) -> None:
    told: list[int] = []
    rest, seen_while_stuck = threading.Event(), []

    def stuck(seen: Seen) -> Answer | None:
        if seen.key.endswith("3"):
            seen_while_stuck.append(rest.wait(60))
        return None

    def tell(answers: Sequence[tuple[int, PutAnswer]]) -> None:
        told.extend(number for number, answer in answers if is_stored(answer))
        if len(told) == MOST_PUTS - 1:
            rest.set()

    server.on["put"] = stuck
    driver.put_small([wanted(n) for n in range(MOST_PUTS)], tell)
    assert seen_while_stuck == [True]
    assert told[-1] == 3
    assert sorted(told) == list(range(MOST_PUTS))


def test_what_fails_while_it_is_told_is_raised(server: OddS3, driver: Any) -> None:
    def tell(_answers: object) -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        driver.put_small([wanted(1)], tell)
    assert is_stored(put(driver, [wanted(2)])[0])


@pytest.mark.parametrize("headers", [{"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, {"etag": "none"}])
def test_an_answer_about_something_else_is_none(server: OddS3, driver: Any, headers: dict[str, str]) -> None:
    server.after["put"] = lambda _seen, answer: Answer(answer.status, answer.body, {**answer.headers, **headers})
    assert is_left(put(driver, [wanted(1)])[0])


@pytest.mark.parametrize("answer", [error(400, "InvalidRequest"), error(403, "SignatureDoesNotMatch"), Answer(200)])
def test_it_ends_where_the_server_does_not_understand(server: OddS3, driver: Any, answer: Answer) -> None:
    server.on["put"] = lambda _seen: answer
    assert all(map(is_left, put(driver, [wanted(n) for n in range(VAIN_MOST)])))
    assert not puts_small(driver)
    server.seen.clear()
    assert put(driver, [wanted(9)]) == [None]
    assert not server.seen


def test_conditions_that_fail_say_nothing_about_the_server(server: OddS3, driver: Any) -> None:
    server.on["put"] = lambda _seen: error(412, "PreconditionFailed")
    put(driver, [wanted(n) for n in range(MOST_PUTS)])
    assert puts_small(driver)


@pytest.mark.expected_logs("does not take CRC64NVME checksums")
def test_checksums_that_are_refused_to_obstore_are_not_sent(server: OddS3, driver: Any) -> None:
    def refuse(seen: Seen) -> Answer | None:
        sent = any("checksum" in name for name in seen.headers)
        return error(400, "InvalidRequest", "no such checksum") if sent else None

    server.on["put"] = refuse
    driver.put(*wanted(9)[:3])
    assert is_stored(put(driver, [wanted(1)])[0])


@pytest.mark.parametrize("algorithm", ["CRC32C", "CRC32"])
def test_checksums_that_obstore_does_not_know_leave_all_to_another_client(server: OddS3, algorithm: str) -> None:
    driver = opened(server, checksum_algorithm=algorithm)
    assert not puts_small(driver)
    driver.close()


def test_nothing_is_put_so_once_the_driver_is_closed(server: OddS3) -> None:
    driver = opened(server)
    driver.close()
    assert not puts_small(driver)


@pytest.fixture
def allow() -> Iterator[Callable[[int], None]]:
    yield client.allow
    client.allow(shares().requests)


@pytest.mark.parametrize(("descriptors", "kept"), [(8, 4), (4, 2)])
def test_idle_connections_take_no_more_descriptors_than_are_allowed(
    server: OddS3, driver: Any, allow: Callable[[int], None], descriptors: int, kept: int
) -> None:
    allow(descriptors)
    all_are_there = threading.Barrier(4)
    server.on["put"] = lambda _seen: all_are_there.wait(60) < 0 or None
    threads = [threading.Thread(target=put, args=(driver, [wanted(n), wanted(n + 1)])) for n in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.objects) == 4
    assert connections(server) == kept


def connections(server: OddS3) -> int:
    """How many connections to a server are open."""
    port = f":{int(server.endpoint.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(remote.endswith(port) and state == "01" for _, _, remote, state, *_ in lines)


@pytest.mark.expected_logs("no conditional writes")
def test_a_condition_that_was_met_makes_the_next_pause_a_short_one(
    server: OddS3, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ahead_s = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead_s)
    for _ in range(2):
        version = server.place("some/prefix/x", b"old")
        server.on["put"] = lambda seen: error(412, "PreconditionFailed") if "if-match" in seen.headers else None
        version = driver.put("x", b"new", {}, expect=version).version
        assert not driver.abilities.conditional
        del server.on["put"]
        ahead_s += PAUSE_S
        assert driver.abilities.conditional
        assert is_stored(*put(driver, [SmallPut("x", b"newer", {}, version)]))
