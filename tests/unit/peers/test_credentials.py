"""What is derived from the key file: certificates that nodes trust, signatures, and how keys are exchanged."""

from __future__ import annotations

import os
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from luxfuse.errors import ConfigError
from luxfuse.peers import tls
from luxfuse.peers.credentials import SIGNATURE_BYTES, Credentials
from luxfuse.peers.streams import peer_name
from luxfuse.peers.tls import Authority

KEY, OTHER = b"k" * 32, b"o" * 32
ALICE, BOB = "a11ce00000000001", "b0b0000000000002"
DAY_S = 86400.0


def credentials(name: str, *keys: bytes, ahead_s: float = 0.0, **options: Any) -> Credentials:
    return Credentials(keys or (KEY,), name=name, stamp_ns=1, clock=lambda: time.time() + ahead_s, **options)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Connect the two in memory and exchange a byte both ways. Raises ssl.SSLError."""
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap_bio(one, two, server_side=True), client.wrap_bio(two, one, server_side=False)]
    waiting = list(sides)
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    for sender, receiver in (sides, reversed(sides)):
        sender.write(b"x")
        assert receiver.read(1) == b"x"
    return sides[0], sides[1]


def connect(server: Credentials, client: Credentials) -> tuple[str, str]:
    """Return whom the server and the client see."""
    seen_by_server, seen_by_client = handshake(server.server_context(), client.client_context())
    return peer_name(seen_by_server), peer_name(seen_by_client)


def test_nodes_of_a_cluster_know_each_other_by_name() -> None:
    alice, bob = credentials(ALICE), credentials(BOB)
    assert connect(alice, bob) == (BOB, ALICE)
    server, _ = handshake(alice.server_context(), bob.client_context())
    assert server.version() == "TLSv1.3"


def test_another_key_opens_nothing() -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(credentials(ALICE), credentials(BOB, OTHER))
    # One that trusts the server, and shows a certificate of another cluster or none.
    _, trusting = tls.contexts([Authority(OTHER), Authority(KEY)], BOB, time.time())
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(credentials(ALICE).server_context(), trusting)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(credentials(ALICE).server_context(), bare)


def test_older_protocols_are_refused() -> None:
    client = credentials(BOB).client_context()
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(credentials(ALICE).server_context(), client)


def test_a_node_is_no_authority() -> None:
    """A certificate that was signed with the key of a node's certificate is worth nothing."""
    pem = Authority(KEY).issue(ALICE, time.time())
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    forger = Authority(OTHER)
    forger.private_key = key
    forger.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ALICE)])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    tls._load_chain(client, forger.issue(BOB, time.time()) + pem[pem.index(b"-----BEGIN CERTIFICATE") :])
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(credentials(ALICE).server_context(), client)


def test_the_authority_is_the_same_on_every_node() -> None:
    def parts(key: bytes) -> tuple[object, ...]:
        authority = Authority(key)
        public = authority.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert isinstance(authority.private_key.curve, ec.SECP256R1)
        return authority.subject.rfc4514_string(), public, authority.certificate.tbs_certificate_bytes

    assert parts(KEY) == parts(KEY)
    assert all(one != two for one, two in zip(parts(KEY), parts(OTHER), strict=True))


@pytest.mark.parametrize("ahead_s", [-0.9 * DAY_S, 6.9 * DAY_S])
def test_clocks_may_differ(ahead_s: float) -> None:
    # The one whose clock is wrong shows a certificate of another time; the other one verifies it by the true time.
    assert connect(credentials(ALICE), credentials(BOB, ahead_s=-ahead_s)) == (BOB, ALICE)


@pytest.mark.parametrize("ahead_s", [-1.1 * DAY_S, 7.1 * DAY_S])
def test_clocks_may_not_differ_by_more(ahead_s: float) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(credentials(ALICE), credentials(BOB, ahead_s=-ahead_s))


def test_certificates_are_renewed_each_day_and_when_the_clock_is_set_back() -> None:
    now_s = [time.time()]
    alice = Credentials((KEY,), name=ALICE, stamp_ns=1, clock=lambda: now_s[0])
    first = alice.server_context()
    now_s[0] += 0.9 * DAY_S
    assert alice.server_context() is first
    assert alice.client_context() is alice.client_context()
    now_s[0] += 0.2 * DAY_S
    second = alice.server_context()
    assert second is not first
    now_s[0] -= 0.2 * DAY_S
    assert alice.server_context() not in (first, second)


def test_threads_share_one_context() -> None:
    alice = credentials(ALICE)
    found: list[ssl.SSLContext] = []
    threads = [threading.Thread(target=lambda: found.append(alice.client_context())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_no_file_and_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.listdir("/proc/self/fd")
    credentials(ALICE).server_context()
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path) == []


def test_a_kernel_without_sealed_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags != os.MFD_CLOEXEC:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    assert connect(credentials(ALICE), credentials(BOB)) == (BOB, ALICE)


@pytest.mark.parametrize("subject", [(), ((("commonName", "www.example.com"),),), ((("commonName", ALICE.upper()),),)])
def test_a_certificate_that_names_no_node(subject: object) -> None:
    class Connection:
        def getpeercert(self) -> dict[str, Any]:
            return {"subject": subject}

    with pytest.raises(ssl.CertificateError):
        peer_name(Connection())


def test_signatures() -> None:
    alice, bob, eve = credentials(ALICE), credentials(BOB), credentials(BOB, OTHER)
    mac = alice.sign(b"data")
    assert len(mac) == SIGNATURE_BYTES
    assert bob.verify(b"data", mac)
    assert not bob.verify(b"date", mac)
    assert not bob.verify(b"data", mac[:-1])
    assert not bob.verify(b"data", bytes(32))
    assert not eve.verify(b"data", mac)


def write(path: Path, *keys: bytes) -> None:
    path.write_text("".join(f"{key.hex()}\n" for key in keys))
    path.chmod(0o600)


def test_keys_change_in_three_steps_without_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write(path, KEY)
    alice, bob = (Credentials.read(path, name=name, stamp_ns=1) for name in (ALICE, BOB))

    def agree() -> None:
        for one, two in ((alice, bob), (bob, alice)):
            assert connect(one, two) == (two.name, one.name)
            assert two.verify(b"data", one.sign(b"data"))
            assert two.open(one.seal(b"x")).payload == b"x"

    agree()
    assert not alice.reread()
    for keys in ((KEY, OTHER), (OTHER, KEY), (OTHER,)):
        write(path, *keys)
        for changed in (alice, bob):
            assert changed.reread()
            agree()
    old = credentials("0" * 16, KEY)
    assert not alice.verify(b"data", old.sign(b"data"))
    with pytest.raises(ssl.SSLError):
        connect(alice, old)


def test_a_bad_key_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write(path, KEY)
    alice = Credentials.read(path, name=ALICE, stamp_ns=1)
    context, mac = alice.server_context(), alice.sign(b"data")
    write(path, OTHER)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        alice.reread()
    path.write_text("nonsense")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="line 1"):
        alice.reread()
    assert alice.server_context() is context
    assert alice.sign(b"data") == mac
