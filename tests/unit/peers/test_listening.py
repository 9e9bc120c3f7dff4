"""Where a node listens, and where others reach it."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from luxfuse import lasting
from luxfuse.errors import ConfigError
from luxfuse.peers import listening
from luxfuse.peers.listening import Unreachable, advertised, from_wire, listen, on_wire

V4, V6 = socket.AF_INET, socket.AF_INET6


def has_ipv6() -> bool:
    try:
        with socket.socket(V6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


def test_one_port_for_both_kinds() -> None:
    opened = listen("127.0.0.1:0")
    try:
        assert opened.datagrams.getsockname() == opened.connections.getsockname() == (opened.host, opened.port)
        assert not opened.datagrams.getblocking()
        assert not opened.connections.getblocking()
        with pytest.raises(ConfigError, match=f"--listen 127.0.0.1:{opened.port}: Address already in use"):
            listen(f"127.0.0.1:{opened.port}")
    finally:
        opened.close()
    listen(f"127.0.0.1:{opened.port}").close()


@pytest.mark.parametrize("port", ["0", "its own"])
@pytest.mark.parametrize("kinds", ["datagrams connections", "datagrams", "connections"])
def test_a_port_is_inherited_also_by_half(kinds: str, port: str) -> None:
    """The keeper has what is inherited as well, until it hears otherwise: the port cannot be taken anew."""
    opened = listen("127.0.0.1:0")
    text = f"127.0.0.1:{opened.port if port == 'its own' else 0}"
    both = {"datagrams": opened.datagrams, "connections": opened.connections}
    keepers = {kind: both[kind].dup() for kind in kinds.split()}
    fds = {kind: os.dup(sock.fileno()) for kind, sock in keepers.items()}
    opened.close()
    lasting.inherit(f"{fd}={kind} {text}" for kind, fd in fds.items())
    again = listen(text)
    found = {"datagrams": again.datagrams, "connections": again.connections}
    assert again.datagrams.getsockname() == again.connections.getsockname() == (again.host, opened.port)
    assert {kind: found[kind].fileno() for kind in fds} == fds
    with socket.create_connection((again.host, again.port), timeout=60):
        pass
    for sock in (again.datagrams, again.connections, *keepers.values()):
        sock.close()


def test_half_a_port_of_which_others_have_the_rest_is_given_back() -> None:
    with socket.socket(V4, socket.SOCK_DGRAM) as keepers, socket.socket(V4, socket.SOCK_STREAM) as others:
        others.bind(("127.0.0.1", 0))
        others.listen()
        port = others.getsockname()[1]
        keepers.bind(("127.0.0.1", port))
        lasting.inherit([f"{os.dup(keepers.fileno())}=datagrams 127.0.0.1:0"])
        again = listen("127.0.0.1:0")
        assert again.port != port
        again.close()
        lasting.inherit([f"{os.dup(keepers.fileno())}=datagrams 127.0.0.1:{port}"])
        with pytest.raises(ConfigError, match="Address already in use"):
            listen(f"127.0.0.1:{port}")
        assert not lasting.is_left(f"datagrams 127.0.0.1:{port}")


def test_a_port_that_is_taken_for_datagrams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(V4, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match="Address already in use"):
            listen(f"127.0.0.1:{other.getsockname()[1]}")
    real, calls = listening._bind, []

    def taken(*arguments: object) -> listening.Listening:
        calls.append(arguments)
        if len(calls) < 3:
            raise OSError(98, "Address already in use")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(listening, "_bind", taken)
    listen("127.0.0.1:0").close()
    assert len(calls) == 3


@pytest.mark.parametrize("text", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_what_is_not_ours_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--listen {text}") as caught:
        listen(text)
    assert "\n" not in str(caught.value)


async def test_what_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {"10.0.0.9": "10.0.0.1", "127.0.0.1": "127.0.0.1", "192.0.2.1": "172.16.0.1"}
    monkeypatch.setattr(listening, "_source", lambda family, address: routes.get(address[0]))
    narrow, wide = listen("127.0.0.1:0"), listen("0.0.0.0:0")
    try:
        assert await advertised(narrow, None, [("10.0.0.9", 1)]) == ("127.0.0.1", narrow.port)
        assert await advertised(narrow, "10.1.1.1", []) == ("10.1.1.1", narrow.port)
        assert await advertised(narrow, "10.1.1.1:5", []) == ("10.1.1.1", 5)
        assert await advertised(narrow, "localhost:5", []) == ("127.0.0.1", 5)
        with pytest.raises(ConfigError, match=r"--advertise no\.invalid"):
            await advertised(narrow, "no.invalid", [])
        assert await advertised(wide, None, [("127.0.0.1", 1), ("10.0.0.9", 1)]) == ("10.0.0.1", wide.port)
        assert await advertised(wide, None, [("127.0.0.1", 1)]) == ("127.0.0.1", wide.port)
        assert await advertised(wide, None, [("1.1.1.1", 1)]) == ("172.16.0.1", wide.port)
        routes.clear()
        assert await advertised(wide, None, []) == ("127.0.0.1", wide.port)
    finally:
        narrow.close()
        wide.close()


async def test_the_route_tells_our_address() -> None:
    opened = listen("0.0.0.0:0")
    try:
        assert await advertised(opened, None, [("127.0.0.1", 9)]) == ("127.0.0.1", opened.port)
    finally:
        opened.close()


def test_addresses_on_the_wire() -> None:
    assert on_wire(V4, ("10.0.0.1", 1)) == ("10.0.0.1", 1)
    assert on_wire(V6, ("10.0.0.1", 1)) == ("::ffff:10.0.0.1", 1)
    assert on_wire(V6, ("fe80::1", 1)) == ("fe80::1", 1)
    assert from_wire(("::ffff:10.0.0.1", 1, 0, 0)) == ("10.0.0.1", 1)
    bad = ((V4, "::1", 1), (V4, "localhost", 1), (V6, "", 1), (V4, "10.0.0.1", 0), (V4, "10.0.0.1", 65536))
    for family, host, port in bad:
        with pytest.raises(Unreachable):
            on_wire(family, (host, port))


@needs_ipv6
async def test_a_wildcard_of_ipv6_reaches_both() -> None:
    both, four = listen("[::]:0"), listen("127.0.0.1:0")
    try:
        for sender, receiver, address in ((both, four, ("127.0.0.1", four.port)), (four, both, ("127.0.0.1", both.port))):
            sender.datagrams.sendto(b"x", on_wire(sender.family, address))
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(receiver.datagrams)
            content, name = receiver.datagrams.recvfrom(10)
            assert (content, from_wire(name)) == (b"x", ("127.0.0.1", sender.port))
    finally:
        both.close()
        four.close()
