"""Tokens of Google that cannot be renewed now."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest

gcsfs_credentials = pytest.importorskip("gcsfs.credentials")

from google.auth.credentials import Credentials  # noqa: E402
from google.auth.exceptions import RefreshError, TransportError  # noqa: E402

from luxfuse.errors import NoCredentials, StoreError, StoreUnavailable  # noqa: E402
from luxfuse.understore.gcs import reach as google  # noqa: E402
from luxfuse.understore.gcs.gets import DoorOfGcsfs  # noqa: E402
from luxfuse.understore.reach import READ_TIMEOUT_S, Reach  # noqa: E402


class Failing(Credentials):  # type: ignore[misc]
    """A token that holds for so long, and fails to be renewed."""

    def __init__(self, holds_s: float, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.asked = 0
        self.token = "t"
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        self.expiry = now + datetime.timedelta(seconds=holds_s)

    def refresh(self, request: Any) -> None:
        self.asked += 1
        self.request = request
        raise self.error


def wrapped(error: Exception) -> RefreshError:
    outer = RefreshError("away")
    outer.__cause__ = error
    return outer


def door_of(credentials: Failing) -> DoorOfGcsfs:
    tokens = gcsfs_credentials.GoogleCredentials("", "read_only", credentials)
    tokens.maybe_refresh = google.Renewal(tokens, Reach.of((google.TOKENS,), {}, {}))
    return DoorOfGcsfs(tokens)


ERRORS = [
    (TransportError("away"), StoreUnavailable),
    (wrapped(TransportError("away")), StoreUnavailable),
    (RefreshError("busy", retryable=True), StoreUnavailable),
    (RefreshError("refused"), NoCredentials),
]


@pytest.mark.parametrize("holds_s", [280, 180])  # google-auth thinks nothing of the last 225 s
@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_a_token_that_holds_yet_is_used(error: Exception, kind: type[StoreError], holds_s: float) -> None:
    credentials = Failing(holds_s, error)
    door = door_of(credentials)
    for _ in range(3):
        assert "authorization: Bearer t" in door().headers
        with door._tokens.lock:  # which the thread that asks has
            pass
    assert credentials.asked == 1, "asked for again at once"


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_without_a_token_it_is_said_whether_to_try_again(error: Exception, kind: type[StoreError]) -> None:
    door = door_of(Failing(-1, error))
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            door()
        assert type(caught.value) is kind
        assert caught.value.retryable is (kind is StoreUnavailable)


def test_no_request_waits_for_the_next_token_while_one_holds() -> None:
    credentials = Failing(280, TransportError("away"))
    door = door_of(credentials)
    goes_on = threading.Event()

    def refresh(request: Any) -> None:
        credentials.asked += 1
        goes_on.wait()
        credentials.token = "next"
        credentials.expiry += datetime.timedelta(hours=1)

    credentials.refresh = refresh
    try:
        for _ in range(3):
            assert "authorization: Bearer t" in door().headers, "the one that asks does not wait, either"
    finally:
        goes_on.set()
    with door._tokens.lock:
        assert credentials.asked == 1
    assert "authorization: Bearer next" in door().headers
    assert door._tokens.heads["authorization"] == "Bearer next"


def test_while_another_one_asks_the_token_that_holds_is_used() -> None:
    credentials = Failing(280, TransportError("away"))
    door = door_of(credentials)
    with door._tokens.lock:
        assert "authorization: Bearer t" in door().headers
    assert not credentials.asked


def test_what_a_library_raises_beside_a_request_ends_no_thread() -> None:
    credentials = Failing(280, ValueError("odd"))
    door = door_of(credentials)
    assert "authorization: Bearer t" in door().headers
    with door._tokens.lock:
        assert credentials.asked == 1


def test_one_asking_answers_all_threads_that_wait_for_it() -> None:
    credentials = Failing(-1, TransportError("away"))
    door = door_of(credentials)
    waiting = threading.Barrier(4)
    began, goes_on = threading.Event(), threading.Event()
    seen: list[type[Exception]] = []

    def refresh(request: Any) -> None:
        credentials.asked += 1
        began.set()
        goes_on.wait()
        raise credentials.error

    def ask() -> None:
        try:
            door()
        except StoreError as exc:
            seen.append(type(exc))

    credentials.refresh = refresh
    first = threading.Thread(target=ask)
    first.start()
    began.wait()

    class Lock:
        """Lets the first one go on when all others are about to wait."""

        def __init__(self, lock: Any) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            waiting.wait()
            goes_on.set()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    door._tokens.lock = Lock(door._tokens.lock)
    others = [threading.Thread(target=ask) for _ in range(4)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert seen == [StoreUnavailable] * 5
    assert credentials.asked == 1


def test_requests_for_tokens_do_not_wait_for_minutes() -> None:
    credentials = Failing(-1, TransportError("away"))
    with pytest.raises(StoreUnavailable):
        door_of(credentials)()
    seen: list[Any] = []

    class Session:
        def request(self, *args: object, **options: Any) -> Any:
            seen.append(options["timeout"])
            raise OSError("no request is made")

        def close(self) -> None:
            pass

    credentials.request.session = Session()
    for more in ({}, {"timeout": 3}):
        with pytest.raises(OSError, match="no request is made"):
            credentials.request("http://127.0.0.1:1/", method="POST", body=b"", **more)
    assert seen == [READ_TIMEOUT_S, 3]


def test_a_token_that_holds_is_used_though_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_threads(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    door = door_of(Failing(280, TransportError("away")))
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    assert "authorization: Bearer t" in door().headers
    assert not door._tokens.lock.locked()
