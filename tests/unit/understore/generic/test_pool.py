"""File system objects for many threads, with clients that tell when two threads use one, and that die."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.generic.pool import MOST, FileSystems, is_thread_safe, like


class Client:
    """A file system whose connection takes one thread at a time."""

    protocol = "ftp"
    async_impl = False
    storage_args = ()
    storage_options: ClassVar[dict[str, Any]] = {}
    server: ClassVar[dict[str, Any]] = {}

    def __init__(self, **_options: Any) -> None:
        if len(self.server["open"]) >= self.server["most"]:
            raise ConnectionRefusedError
        self.server["open"].append(self)
        self.server["made"] += 1
        self._users = threading.Lock()
        self.alive = True

    def close(self) -> None:
        self.server["open"].remove(self)

    def ask(self, pause_s: float = 0.0) -> str:
        assert self._users.acquire(blocking=False), "two threads at once"
        try:
            time.sleep(pause_s)
            if not self.alive:
                raise ConnectionResetError
            return "answer"
        finally:
            self._users.release()


@pytest.fixture
def server() -> dict[str, Any]:
    Client.server = {"open": [], "made": 0, "most": 100}
    return Client.server


def test_each_thread_has_one_of_its_own_and_there_is_a_bound(server):
    systems = FileSystems(Client(), timeout_s=10)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: systems.run(lambda one: one.ask(0.002), again=True), range(200)))
    assert answers == ["answer"] * 200
    assert 1 < server["made"] <= MOST
    systems.close()
    assert server["open"] == []


def test_those_whose_connection_died_are_replaced_at_once(server):
    systems = FileSystems(Client(), timeout_s=10)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: systems.run(lambda one: one.ask(0.002), again=True), range(50)))
    before = list(server["open"])
    for one in before:
        one.alive = False
    assert systems.run(Client.ask, again=True) == "answer"
    assert not set(before) & set(server["open"])
    server["open"][0].alive = False
    with pytest.raises(ConnectionResetError):  # what changes something is for the caller to do once more
        systems.run(Client.ask, again=False)
    assert systems.run(Client.ask, again=False) == "answer"


def test_an_answer_that_is_no_keeps_the_connection(server):
    systems = FileSystems(Client(), timeout_s=10)

    def refuse(_one: Any) -> None:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        systems.run(refuse, again=True)
    assert systems.run(Client.ask, again=True) == "answer"
    assert server["made"] == 1


def test_server_that_is_gone(server):
    systems = FileSystems(Client(), timeout_s=10)
    server["open"][0].alive = False
    server["most"] = 0
    for _ in range(3):
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
            systems.run(Client.ask, again=True)
    server["most"] = 1
    assert systems.run(Client.ask, again=True) == "answer"


def test_server_that_takes_few_connections(server):
    server["most"] = 2
    systems = FileSystems(Client(), timeout_s=10)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: systems.run(lambda one: one.ask(0.002), again=True), range(60)))
    assert answers == ["answer"] * 60
    assert server["made"] == 2


def test_nobody_waits_for_ever(server):
    now, looked = [0.0], threading.Event()

    def clock() -> float:
        looked.set()
        return now[0]

    systems = FileSystems(Client(), timeout_s=1, most=1, clock=clock)
    go = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(systems.run, lambda one: go.wait(120), again=True)
        while systems._idle:
            time.sleep(0.001)
        looked.clear()
        waiting = pool.submit(systems.run, Client.ask, again=True)
        assert looked.wait(120)  # its deadline begins
        now[0] = 1.5
        with pytest.raises(StoreUnavailable, match="busy"):
            waiting.result(120)
        now[0] = 4.5  # the thread that hangs is taken for lost
        assert systems.run(Client.ask, again=True) == "answer"
        go.set()
        assert hanging.result(120)
    assert len(server["open"]) == 1  # what it had is not used again


def test_which_are_shared():
    import fsspec

    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    assert is_thread_safe(memory)
    assert is_thread_safe(fsspec.filesystem("http", skip_instance_cache=True))  # async
    data = fsspec.filesystem("data", skip_instance_cache=True)
    assert not is_thread_safe(data)
    assert like(data) is not data
    assert like(memory).dircache.use_listings_cache is False
