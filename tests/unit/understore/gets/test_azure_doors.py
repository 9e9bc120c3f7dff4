"""What opens a container of Azure to C: tokens that cannot be had in time, signatures as they are given."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest

from luxfuse.core.vain import LONGEST_PAUSE_S, PAUSE_S
from luxfuse.understore.azure import gets as azure
from luxfuse.understore.gets.client import IS_BUILT, Elsewhere
from luxfuse.understore.locations import parse_location
from luxfuse.understore.obstore.options import azure_settings

BEARER = "Authorization: Bearer "


class Clock:
    """The time, as it is told."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("AZURE_", "HTTP", "IDENTITY_", "MSI_", "SSL_")):
            monkeypatch.delenv(name)


def opened(**options: str) -> Any:
    location = parse_location("az://c")
    settings, reach = azure_settings(location, None, {"account_name": "a", **options})
    return azure.open_gets(location, settings, {}, reach, 10, 4)


@pytest.mark.usefixtures("no_variables")
def test_without_the_extra_obstore_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "azure" or name.startswith("azure.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "azure", None)
    assert opened() is None


@pytest.mark.usefixtures("no_variables")
@pytest.mark.skipif(not IS_BUILT, reason="built without libcurl")
@pytest.mark.parametrize("odd", [{"tenant_id": "t/../u"}, {"authority_host": "http://h"}])
def test_settings_that_azure_identity_refuses_are_left_to_obstore(odd: dict[str, str]) -> None:
    pytest.importorskip("azure.identity")
    given = {"client_id": "i", "client_secret": "s", "tenant_id": "t"}
    assert opened(**given) is not None
    assert opened(**{**given, **odd}) is None


SIGNED = "sv=2021-12-02&sp=r&sig=a%2Bb%2Fc%3D"


@pytest.mark.parametrize(
    "given",
    [
        SIGNED,
        f"?{SIGNED}\n",
        "sv=2021-12-02&sp=r&sig=a+b/c=",
        " ?sv=2021-12-02&sp=r&sig=a+b/c=\n",
        f"&{SIGNED}& &",
        "sv%3D2021-12-02%26sp%3Dr%26sig%3Da%2Bb%2Fc%3D",
    ],
)
def test_a_signature_is_sent_encoded_however_it_is_given(given: str) -> None:
    assert azure._encoded(given) == SIGNED


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("given", ["nothing", "sig=%ff"])
def test_what_is_no_signature_is_left_to_obstore(given: str) -> None:
    assert opened(sas_token=given) is None


def test_signatures_of_the_key_are_made_again_after_a_pause(clock: Clock) -> None:
    door = azure.DoorOfKey("a", "a2V5", "c")
    for pause_s in (PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S):
        assert not door.is_elsewhere
        for _ in range(3):
            door.refused()
        assert door.is_elsewhere
        with pytest.raises(Elsewhere):
            door()
        clock.now_s += pause_s
        assert door().query is not None
    door.accepted()
    door.refused()
    clock.now_s += PAUSE_S
    assert not door.is_elsewhere
    assert 4 * PAUSE_S < LONGEST_PAUSE_S


class Service:
    """Gives tokens for an hour, if it does."""

    def __init__(self, clock: Clock) -> None:
        self.asked = 0
        self.holds_s = 3600.0
        self.fails = False
        self._clock = clock

    def __call__(self) -> tuple[str, float]:
        self.asked += 1
        if self.fails:
            raise OSError("away")
        return f"t{self.asked}", self._clock() + self.holds_s


def test_a_token_is_used_as_long_as_it_holds_though_there_is_no_other(clock: Clock) -> None:
    service = Service(clock)
    door = azure.DoorOfToken(service)
    assert door().headers[-1] == f"{BEARER}t1"
    service.fails = True
    clock.now_s += 3600 - azure.EARLY_S
    for _ in range(3):
        assert door().headers[-1] == f"{BEARER}t1"
        assert not door.is_elsewhere
    assert service.asked == 2, "asked for again at once"
    clock.now_s += azure.EARLY_S
    with pytest.raises(Elsewhere):
        door()
    assert door.is_elsewhere
    clock.now_s += PAUSE_S
    assert not door.is_elsewhere
    service.fails = False
    assert door().headers[-1] == f"{BEARER}t4"


def test_a_token_for_a_moment_is_not_asked_for_with_each_request(clock: Clock) -> None:
    service = Service(clock)
    service.holds_s = azure.EARLY_S
    door = azure.DoorOfToken(service)
    for _ in range(3):
        door()
    assert service.asked == 1
    clock.now_s += PAUSE_S
    assert door().headers[-1] == f"{BEARER}t2"


def test_nobody_waits_for_the_next_token_while_one_holds(clock: Clock) -> None:
    asked, goes_on = threading.Event(), threading.Event()
    tokens = ["second", "first"]

    def ask() -> tuple[str, float]:
        token = tokens.pop()
        if token == "second":
            asked.set()
            goes_on.wait()
        return token, clock() + 3600

    door = azure.DoorOfToken(ask)
    door()
    clock.now_s += 3600 - azure.EARLY_S
    other = threading.Thread(target=door)
    other.start()
    try:
        asked.wait()
        assert door().headers[-1] == f"{BEARER}first"
        door.refused()
        assert door().headers[-1] == f"{BEARER}first"
    finally:
        goes_on.set()
        other.join()
    assert door().headers[-1] == f"{BEARER}second"


def test_an_asking_without_an_end_is_given_up() -> None:
    goes_on = threading.Event()

    def ask() -> tuple[str, float]:
        goes_on.wait()
        return "t", 0.0

    try:
        with pytest.raises(TimeoutError):
            azure._in_time(ask, 0.01)
    finally:
        goes_on.set()
