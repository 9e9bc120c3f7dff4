"""The client of a daemon that is gone, sick, or of another version."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import threading
from pathlib import Path

import pytest

from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="not running"):
        ControlClient(tmp_path / "control.sock").status()
    with pytest.raises(DaemonUnreachable, match="not running"):
        ControlClient(tmp_path / "missing/control.sock").status()


def answering(path: Path, answer: bytes | None) -> threading.Thread:
    """A daemon that gives one answer to one request; None: never."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def run() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    connection.recv(1)  # until the client gives up
                else:
                    connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_daemon_that_has_its_lock_and_no_socket_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def bind(_seconds: float) -> None:
        if not threads:
            threads.append(answering(tmp_path / "s", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))

    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DaemonUnreachable, match="starting or ending"):
            ControlClient(tmp_path / "s", deadline_s=0.3).status()
        monkeypatch.setattr("luxfuse.control.client.time.sleep", bind)
        assert ControlClient(tmp_path / "s").status() == {}
        threads[0].join()


def test_a_daemon_that_takes_no_more_clients(tmp_path: Path) -> None:
    """The kernel refuses then at once, instead of letting the client wait."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(tmp_path / "s"))
        with pytest.raises(DaemonUnreachable, match="does not answer within"):
            ControlClient(tmp_path / "s", deadline_s=0.3).status()


@pytest.mark.parametrize("call", ["loads", "stop_loads", "reload"])
def test_an_answer_of_another_version(tmp_path: Path, call: str) -> None:
    thread = answering(tmp_path / "s", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    try:
        with pytest.raises(DaemonUnreachable, match="another version"):
            getattr(ControlClient(tmp_path / "s"), call)()
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (None, DaemonUnreachable, "does not answer within 0.3 s"),
        (b"", DaemonUnreachable, "broke off"),
        (b"nonsense\r\n\r\n", DaemonUnreachable, "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", DaemonUnreachable, "another version"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", DaemonUnreachable, "broke off"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", DaemonRefused, "status 503"),
    ],
)
def test_a_sick_daemon(tmp_path: Path, answer: bytes | None, error: type[Exception], text: str) -> None:
    thread = answering(tmp_path / "s", answer)
    try:
        with pytest.raises(error, match=text):
            ControlClient(tmp_path / "s", deadline_s=0.3).status()
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("lines", "text"), [(b'{"files": 1}\n', "broke off"), (b'{"files": 1}\n{"fil', "broke off"), (b"", "broke off")]
)
def test_progress_that_is_cut_off(tmp_path: Path, lines: bytes, text: str) -> None:
    thread = answering(tmp_path / "s", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + lines)
    try:
        with pytest.raises(DaemonUnreachable, match=text):
            list(ControlClient(tmp_path / "s", deadline_s=1).drain())
    finally:
        thread.join()
