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
from luxfuse.understore.reach import READ_TIMEOUT_S

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
        assert door._over.wait(60)
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
    assert door().headers[-1] == f"{BEARER}t1"
    assert door._over.wait(60)
    assert door().headers[-1] == f"{BEARER}t2"


def test_a_token_that_comes_too_late_is_not_asked_for_with_each_request(clock: Clock) -> None:
    service = Service(clock)
    service.holds_s = -1
    door = azure.DoorOfToken(service)
    for _ in range(3):
        with pytest.raises(Elsewhere):
            door()
    assert service.asked == 1
    assert door.is_elsewhere


class Silent:
    """Gives its first token at once, and others when it is told to."""

    def __init__(self, clock: Clock, *, first: bool = True) -> None:
        self.goes_on = threading.Event()
        self.asked = threading.Semaphore(0)
        self._clock = clock
        self._tokens = iter(["first", "second", "third"][not first :])

    def __call__(self) -> tuple[str, float]:
        token = next(self._tokens)
        if token != "first":
            self.asked.release()
            self.goes_on.wait()
        return token, self._clock() + 3600


def test_no_request_waits_for_the_next_token_while_one_holds(clock: Clock) -> None:
    service = Silent(clock)
    door = azure.DoorOfToken(service)
    door()
    clock.now_s += 3600 - azure.EARLY_S
    try:
        for _ in range(2):
            assert door().headers[-1] == f"{BEARER}first", "the one that asks does not wait, either"
        service.asked.acquire()
        door.refused()
        assert door().headers[-1] == f"{BEARER}first", "another one is on its way"
        clock.now_s += READ_TIMEOUT_S
    finally:
        service.goes_on.set()
    assert door._over.wait(60)
    assert door().headers[-1] == f"{BEARER}second", "what came late is thrown away"


def test_without_a_token_a_silent_service_is_waited_for_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "READ_TIMEOUT_S", 0.01)
    service = Silent(clock, first=False)
    door = azure.DoorOfToken(service)
    try:
        with pytest.raises(Elsewhere):
            door()
        service.asked.acquire()
        clock.now_s += 0.02
        assert door.is_elsewhere
        with pytest.raises(Elsewhere):
            door()
        clock.now_s += PAUSE_S
        assert not door.is_elsewhere
        with pytest.raises(Elsewhere):
            door()
        service.asked.acquire()
        clock.now_s += PAUSE_S
        assert door._running == 2
        monkeypatch.setattr(azure, "MOST_ASKINGS", 2)
        with pytest.raises(Elsewhere):
            door()
        assert door._running == 2, "threads that hang become more and more"
    finally:
        service.goes_on.set()
    assert door._over.wait(60)
    assert door().headers[-1].startswith(BEARER)


def test_that_no_thread_can_be_started_now_says_nothing_of_later(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_threads(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    door = azure.DoorOfToken(Service(clock))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        for _ in range(2 * azure.MOST_ASKINGS):
            with pytest.raises(Elsewhere):
                door()
            clock.now_s += PAUSE_S
    assert door().headers[-1] == f"{BEARER}t1"
