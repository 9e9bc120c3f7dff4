"""Each guard of a store fails, and lets in again, as seen by a plain client."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.storm.guarded import GuardedProxy
from tests.storm.plan import GUARDS
from tests.support.http_server import HttpServer, answering
from tests.support.mounted import PATIENCE_S
from tests.support.resolving import HOST

RESOLVE = f"import socket; socket.getaddrinfo({HOST!r}, 80)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GuardedProxy]:
    with answering(HttpServer(Handler)) as server, GuardedProxy(server.url, tmp_path, seed=1) as made:
        yield made


def key(store: GuardedProxy) -> str:
    """The one that the credentials file has."""
    found = re.search(r"aws_access_key_id = (\w+)", Path(store.environment["AWS_SHARED_CREDENTIALS_FILE"]).read_text())
    assert found
    return found[1]


class Client:
    """A connection, which stays open."""

    def __init__(self, store: GuardedProxy) -> None:
        context = ssl.create_default_context(cafile=store.flags[1].removeprefix("verify="))
        plain = socket.create_connection(("127.0.0.1", store.port), timeout=PATIENCE_S)
        self._http = http.client.HTTPConnection(HOST)
        self._http.sock = context.wrap_socket(plain, server_hostname=HOST)

    def get(self, key: str) -> tuple[int, bytes]:
        self._http.request(
            "GET", "/a", headers={"Authorization": f"AWS4-HMAC-SHA256 Credential={key}/2026/s3, Signature=x"}
        )
        answer = self._http.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._http.close()


def ask(store: GuardedProxy, key: str) -> tuple[int, bytes]:
    """Ask once, on a connection of its own."""
    client = Client(store)
    try:
        return client.get(key)
    finally:
        client.close()


def resolves(store: GuardedProxy) -> bool:
    command = [sys.executable, "-I", "-S", "-c", RESOLVE]
    done = subprocess.run(
        command, env={**os.environ, **store.environment}, capture_output=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode == 0


@pytest.mark.parametrize("what", GUARDS)
def test_a_guard_fails_and_lets_in_again(store: GuardedProxy, what: str) -> None:
    before, connected = key(store), Client(store)
    assert connected.get(before) == ask(store, before) == (200, b"ok")
    assert resolves(store)
    store.fail(what)
    if what == "expired":
        assert key(store) == before
        for status, body in (connected.get(before), ask(store, before)):
            assert (status, b"<Code>ExpiredToken</Code>" in body) == (400, True)
    else:
        with pytest.raises((OSError, http.client.HTTPException)):
            connected.get(before)
    match what:
        case "name":
            assert not resolves(store)
        case "certificate":
            with pytest.raises(ssl.SSLCertVerificationError):
                ask(store, before)
        case "TLS":
            with pytest.raises(OSError, match=r"EOF|[Rr]eset"):
                ask(store, before)
    connected.close()
    store.recover()
    assert resolves(store)
    assert ask(store, key(store)) == (200, b"ok")
    assert (key(store) != before) == (what == "expired")
    assert ask(store, before)[0] == (400 if what == "expired" else 200)
