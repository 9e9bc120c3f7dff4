"""A driver that cannot be opened yet: calls fail with the reason until it can, and hang behind no attempt that does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from luxfuse.errors import ConfigError, LuxError, NoCredentials, NotFound, StoreError, StoreUnavailable
from luxfuse.understore import unopened
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.unopened import UnopenedDriver, abilities_of, open_or_wait
from tests.support.fake_store import FakeStore

WAIT_S = 60.0


class Opener:
    """Opens fake drivers; ``error`` instead, if there is one; those in ``gates`` wait first, one for each attempt."""

    def __init__(self, error: LuxError | None = None, *gates: threading.Event) -> None:
        self.error = error
        self.gates = list(gates)
        self.began = 0
        self.begins = threading.Event()
        self.opened: list[Any] = []

    def __call__(self) -> UnderStore:
        self.began += 1
        gate = self.gates.pop(0) if self.gates else None
        self.begins.set()
        if gate is not None:
            gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        driver: Any = FakeStore()
        driver.place("key", b"content")
        self.opened.append(driver)
        return driver  # type: ignore[no-any-return]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unopened, "PAUSE_S", 0.0)
    monkeypatch.setattr(unopened, "SHARED_S", 0.0)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def waiting(opener: Callable[[], UnderStore], patience_s: float = WAIT_S) -> UnopenedDriver:
    driver: Any = open_or_wait(opener, abilities_of("s3://b"), patience_s, lambda _error: True)
    assert isinstance(driver, UnopenedDriver)
    return driver


def test_what_can_be_opened_is_not_wrapped() -> None:
    opener = Opener()
    assert open_or_wait(opener, abilities_of("s3://b"), WAIT_S, lambda _error: False) is opener.opened[0]


def test_what_does_not_pass_is_raised() -> None:
    with pytest.raises(ConfigError, match="mistake"):
        open_or_wait(Opener(ConfigError("a mistake")), abilities_of("s3://b"), WAIT_S, lambda _error: False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreUnavailable("no answer"), StoreUnavailable),
        (NoCredentials("none"), NoCredentials),
        (NotFound("no such root"), StoreUnavailable),
        (ConfigError("no such file"), StoreUnavailable),
    ],
)
def test_calls_say_why_until_it_can_be_opened(at_once: None, error: LuxError, kind: type[StoreError]) -> None:
    """And never that an object is missing, which nobody has looked for."""
    opener = Opener(error)
    driver: Any = waiting(opener)
    assert (driver.driver, driver.abilities.conditional, driver.fetches_small) == ("not open yet", True, False)
    for call in (lambda: driver.head("key"), lambda: driver.list_directory(""), driver.renew):
        with pytest.raises(kind, match=str(error)) as caught:
            call()
        assert type(caught.value) is kind
    opener.error = None
    assert driver.head("key").size == 7
    assert [page.objects[0].key for page in driver.list_directory("")] == ["key"]
    assert (driver.driver, len(opener.opened)) == (opener.opened[0].driver, 1)
    assert driver.abilities == opener.opened[0].abilities
    assert driver.renew() is False
    driver.close()


def test_a_failure_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unopened, "PAUSE_S", WAIT_S)
    opener = Opener(StoreUnavailable("no answer"))
    driver: Any = waiting(opener)
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="no answer"):
            driver.head("key")
    assert opener.began == 1


def test_attempts_that_hang_are_outrun(at_once: None, gate: threading.Event) -> None:
    opener = Opener(None, gate)
    driver: Any = waiting(opener, patience_s=0.0)
    assert opener.begins.wait(WAIT_S)
    assert driver.head("key").size == 7
    assert opener.began == 2


def test_calls_that_come_at_once_share_an_attempt(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    monkeypatch.setattr(unopened, "SHARED_S", WAIT_S)
    opener = Opener(None, gate)
    driver: Any = waiting(opener, patience_s=0.0)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(driver.head("key").size)) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert (found, opener.began) == ([7, 7, 7], 1)


def test_no_more_than_a_few_attempts_hang_at_once(at_once: None, gate: threading.Event, monkeypatch) -> None:
    monkeypatch.setattr(unopened, "WAIT_S", 0.01)
    opener = Opener(None, *[gate] * 50)
    driver: Any = waiting(opener, patience_s=0.0)
    for _ in range(20):
        with pytest.raises(StoreUnavailable, match="not open yet"):
            driver.head("key")
    assert driver._running == unopened.MOST_ATTEMPTS
    driver.close()


def test_what_is_opened_too_late_is_closed(gate: threading.Event) -> None:
    closed = threading.Event()

    class Closing(FakeStore):
        def close(self) -> None:
            closed.set()

    def opener() -> UnderStore:
        gate.wait(WAIT_S)
        return Closing()  # type: ignore[return-value]

    driver = waiting(opener, patience_s=0.0)
    driver.close()
    gate.set()
    assert closed.wait(WAIT_S)


@pytest.mark.parametrize("source", ["s3://b", "/tmp", "http://127.0.0.1:9/", "webdav:///"])
def test_the_abilities_that_are_assumed_are_kept(source: str) -> None:
    options = {"anon": "true"} if source.startswith("s3:") else {}
    url = "http://127.0.0.1:9" if source.startswith(("s3:", "webdav:")) else None
    driver = open_driver(source, endpoint_url=url, storage_options=options)
    real, assumed = driver.abilities, abilities_of(source)
    for name in ("metadata", "conditional", "hierarchical", "writable"):
        assert getattr(real, name) == getattr(assumed, name), name
    driver.close()


def test_that_no_thread_can_be_started_now_says_nothing_of_later(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_threads(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    opener = Opener()
    driver = UnopenedDriver(opener, abilities_of("s3://b"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        for _ in range(2 * unopened.MOST_ATTEMPTS):
            with pytest.raises(StoreUnavailable, match="can't start new thread"):
                driver.require_open()
    driver.require_open()
    assert driver.is_open
