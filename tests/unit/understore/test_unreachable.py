"""Why a server cannot be reached, as drivers on fsspec tell it: their libraries wrap the reason each in its own way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.factory import open_driver

AZURE = {"account_name": "a", "account_key": "a2V5"}
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "s3": ("s3://bucket", "http://{}", {"key": "k", "secret": "s", "region": "eu-west-1"}),
    "az": ("az://bucket", "http://{}", AZURE),
    "gs": ("gs://bucket", "http://{}", {"token": "anon"}),
    "webdav": ("webdav:///", "http://{}", {}),
    "http": ("http://{}/", "", {}),
    "webhdfs": ("webhdfs://{}/", "", {}),
    "sftp": ("sftp://{}/", "", {"username": "me", "look_for_keys": "false", "allow_agent": "false"}),
    "ftp": ("ftp://{}/", "", {}),
}
PYTHON_RESOLVES = socket.getaddrinfo


@pytest.fixture
def address() -> Iterator[str]:
    """An address that refuses connections: bound, but nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def reason(kind: str, address: str, timeout_s: float = 30.0) -> str:
    source, endpoint, options = (each.format(address) if isinstance(each, str) else each for each in KINDS[kind])
    with pytest.raises(StoreUnavailable) as caught:
        open_driver(
            source, endpoint_url=endpoint or None, driver="fsspec", request_timeout_s=timeout_s, storage_options=options
        ).probe()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_refused_connections(kind: str, address: str) -> None:
    assert "Connection refused" in reason(kind, address)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_hosts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: Any, *arguments: Any, **named: Any) -> Any:
        if host in ("store.invalid", b"store.invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return PYTHON_RESOLVES(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert "the host's name does not resolve" in reason(kind, "store.invalid:9")


@pytest.mark.parametrize("kind", KINDS)
def test_silence(kind: str) -> None:
    """No thread hangs in a driver for longer than the time-outs of its own."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        told = reason(kind, f"127.0.0.1:{silent.getsockname()[1]}", 1.0)
        assert "timed out" in told or kind == "sftp"  # whose library tells one error of all that is no SSH
