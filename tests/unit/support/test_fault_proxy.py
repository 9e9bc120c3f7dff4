"""Each fault of the proxy, seen from a plain client."""

import http.client
import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.fault_proxy import FaultProxy, Faults

BODY = bytes(range(256)) * 4096  # 1 MiB: more than the socket buffers hide
TIMEOUT_S = 120.0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(200, BODY, send=False)

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"one", b"two"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        elif self.headers.get("If-Match", '"v1"') != '"v1"':
            self._answer(412, b"changed")
        else:
            self._answer(200, BODY)

    def do_PUT(self) -> None:
        self._answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, body: bytes, *, send: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        if send:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients that hang up are the point here
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(upstream: str) -> Iterator[FaultProxy]:
    with FaultProxy(upstream, seed=1) as it:
        yield it


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=TIMEOUT_S)
    yield connection
    connection.close()


def ask(client: http.client.HTTPConnection, path: str = "/a", method: str = "GET", **headers: str) -> tuple[int, bytes]:
    client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    response = client.getresponse()
    return response.status, response.read()


def test_passes_through_and_keeps_the_connection(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    assert ask(client) == (200, BODY)
    used = client.sock
    assert ask(client, "/chunked") == (200, b"onetwo")
    assert ask(client, method="HEAD") == (200, b"")
    client.request("PUT", "/a", body=b"x" * 100_000)
    assert client.getresponse().read() == b"x" * 100_000
    client.request("PUT", "/a", body=iter([b"ab", b"cd"]), encode_chunked=True)
    assert client.getresponse().read() == b"abcd"
    assert client.sock is used


def test_counts(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    ask(client, "/b%20c?list", Range="bytes=0-1")
    ask(client, "/b%20c", Range="bytes=0-1")
    ask(client, "/b%20c", method="HEAD")
    assert proxy.counts() == {("GET", "/b c"): 2, ("HEAD", "/b c"): 1}
    assert proxy.ranges() == {("/b c", "bytes=0-1"): 2}
    assert [r.query for r in proxy.requests] == ["list", "", ""]
    proxy.reset_counts()
    assert not proxy.counts()


@pytest.mark.parametrize("status", [429, 503])
def test_errors_for_the_next_requests(proxy: FaultProxy, client: http.client.HTTPConnection, status: int) -> None:
    proxy.next("error", 2, status=status)
    assert [ask(client)[0] for _ in range(3)] == [status, status, 200]
    assert proxy.injected() == {"error": 2}


def test_error_probability_follows_the_seed(upstream: str) -> None:
    def statuses(seed: int) -> list[int]:
        with FaultProxy(upstream, seed=seed, faults=Faults(error_probability=0.5)) as proxy:
            client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=TIMEOUT_S)
            try:
                return [ask(client, method="HEAD")[0] for _ in range(20)]
            finally:
                client.close()

    assert statuses(3) == statuses(3)
    assert {200, 503} == set(statuses(3))
    assert statuses(3) != statuses(4)


def test_reset_in_the_middle(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.next("reset")
    with pytest.raises(ConnectionResetError):
        ask(client)
    client.close()
    assert ask(client) == (200, BODY)


def test_truncated_body(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.next("truncate")
    client.request("GET", "/a")
    response = client.getresponse()
    assert response.getheader("Content-Length") == str(len(BODY))
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    assert caught.value.partial == BODY[: len(BODY) // 2]


def test_stall_sends_half_and_then_nothing(proxy: FaultProxy) -> None:
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=TIMEOUT_S)
    proxy.next("stall")
    client.request("GET", "/a")
    connection, response = client.sock, client.getresponse()
    assert response.read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        response.read(1)
    client.close()
    response.close()


def test_release_closes_what_is_stalled(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.next("stall")
    client.request("GET", "/a")
    response = client.getresponse()
    response.read(len(BODY) // 2)
    proxy.release()
    assert response.read(1) == b""
    response.close()


def test_wrong_etag(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.set(wrong_etag='"other"')
    client.request("HEAD", "/a")
    response = client.getresponse()
    response.read()
    assert response.getheader("ETag") == '"other"'


def test_dropped_if_match(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    assert ask(client, If_Match='"v2"')[0] == 412
    proxy.set(drop_if_match=True)
    assert ask(client, If_Match='"v2"') == (200, BODY)


def test_latency(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.set(latency_s=0.1)
    started = time.monotonic()
    ask(client, method="HEAD")
    assert time.monotonic() - started >= 0.1


def test_only_some_requests(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.set(error_probability=1.0)
    proxy.only(lambda request: request.path == "/b")
    assert [ask(client, p)[0] for p in ("/a", "/b", "/a")] == [200, 503, 200]
    proxy.clear()
    assert ask(client, "/b")[0] == 200


def test_outage(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    port = proxy.port
    ask(client)
    proxy.outage(True)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        ask(client)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    proxy.outage(False)
    assert proxy.port == port
    client.close()
    assert ask(client) == (200, BODY)
