"""Sealed datagrams: who can read them, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.peers import sealing
from luxfuse.peers.rejections import REASONS, Rejected
from luxfuse.peers.sealing import OVERHEAD_BYTES, WINDOW, Sealer

KEY, OTHER = b"k" * 32, b"o" * 32
ALICE, BOB = "a11ce00000000001", "b0b0000000000002"


def sealer(name: str = ALICE, stamp: int = 10, *keys: bytes) -> Sealer:
    return Sealer(name, stamp, keys or (KEY,))


def reason(opener: Sealer, datagram: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        opener.open(datagram)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_what_is_sealed_can_be_opened() -> None:
    alice, bob = sealer(), sealer(BOB)
    for payload in (b"", b"hello", bytes(1200)):
        datagram = alice.seal(payload)
        assert len(datagram) == len(payload) + OVERHEAD_BYTES
        opened = bob.open(datagram)
        assert (opened.sender_name, opened.payload) == (ALICE, payload)
    assert OVERHEAD_BYTES <= 64
    assert b"hello" not in alice.seal(b"hello")


def test_another_key_is_told_from_tampering() -> None:
    assert reason(sealer(BOB, 10, OTHER), sealer().seal(b"x")) == "key"


@pytest.mark.parametrize(
    ("offset", "why"),
    [
        (0, "garbage"), (2, "garbage"), (3, "version"), (4, "key"), (7, "key"), (8, "tampered"), (15, "tampered"),
        (16, "tampered"), (23, "tampered"), (24, "tampered"), (31, "tampered"), (32, "tampered"), (-17, "tampered"),
        (-16, "tampered"), (-1, "tampered"),
    ],
)  # fmt: skip
def test_each_changed_field_is_refused(offset: int, why: str) -> None:
    datagram = bytearray(sealer().seal(b"payload"))
    datagram[offset] ^= 1
    bob = sealer(BOB)
    assert reason(bob, bytes(datagram)) == why
    # It left no trace: the true one is new.
    datagram[offset] ^= 1
    assert bob.open(bytes(datagram)).payload == b"payload"


@given(st.binary(max_size=100), st.booleans())
def test_garbage_is_refused(content: bytes, like: bool) -> None:
    reason(sealer(BOB), sealing.MAGIC + content if like else content)


def test_what_is_cut_short_is_refused() -> None:
    whole = sealer().seal(b"payload")
    for length in range(len(whole)):
        assert reason(sealer(BOB), whole[:length]) == ("garbage" if length < OVERHEAD_BYTES else "tampered")


def test_a_datagram_is_taken_once_and_in_any_order_inside_the_window() -> None:
    alice, bob = sealer(), sealer(BOB)
    sent = [alice.seal(b"%d" % number) for number in range(WINDOW + 1)]
    for number in (5, 3, 4, WINDOW, 1):
        assert bob.open(sent[number]).payload == b"%d" % number
    for number in (5, 3, 4, WINDOW, 1):
        assert reason(bob, sent[number]) == "replay"
    # The last one that the window has room for, and the first that it has not.
    assert reason(bob, sent[0]) == "replay"
    assert bob.open(sent[2]).payload == b"2"


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_the_window_against_a_set(order: list[int]) -> None:
    alice, bob = sealer(), sealer(BOB)
    latest, seen = -1, set[int]()
    for counter in order:
        alice._counter = counter
        expected = counter not in seen and counter > latest - WINDOW
        try:
            bob.open(alice.seal(b""))
            taken = True
        except Rejected:
            taken = False
        assert taken == expected
        if taken:
            seen.add(counter)
            latest = max(latest, counter)


def test_an_earlier_life_is_refused_once_a_later_one_was_heard() -> None:
    bob, old, new = sealer(BOB), sealer(stamp=10), sealer(stamp=11)
    early, late = old.seal(b"1"), old.seal(b"2")
    bob.open(early)
    bob.open(new.seal(b"3"))
    assert reason(bob, late) == "restarted"
    assert reason(bob, early) == "restarted"
    bob.open(new.seal(b"4"))


def test_a_forged_later_life_shuts_nobody_out() -> None:
    bob, alice = sealer(BOB), sealer()
    forged = bytearray(alice.seal(b"x"))
    forged[16:24] = b"\xff" * 8
    assert reason(bob, bytes(forged)) == "tampered"
    assert bob.open(alice.seal(b"y")).payload == b"y"


def test_no_two_senders_or_lives_share_a_key() -> None:
    # Equal counters and payloads, so equal nonces: with equal keys the encrypted payloads would be equal.
    payload = bytes(64)
    made = [sealer(name, stamp, key) for name in (ALICE, BOB) for stamp in (10, 11) for key in (KEY, OTHER)]
    assert len({each.seal(payload)[32:-16] for each in made}) == len(made)


def test_no_nonce_comes_twice_also_when_keys_change() -> None:
    alice = sealer()
    counters = []
    for keys in ((KEY,), (OTHER, KEY), (KEY, OTHER), (KEY,)):
        alice.use(keys)
        counters += [alice.seal(b"")[24:32] for _ in range(3)]
    assert counters == sorted(set(counters))


def test_our_own_and_those_of_a_namesake() -> None:
    alice = sealer()
    assert reason(alice, alice.seal(b"x")) == "own"
    assert reason(alice, sealer(stamp=11).seal(b"x")) == "namesake"


def test_keys_change_in_three_steps_without_a_gap() -> None:
    """Each step on one node after the other; after each change, everybody can talk to everybody."""
    nodes = [sealer(f"{number:016x}", 10, KEY) for number in range(3)]
    for keys in ((KEY, OTHER), (OTHER, KEY), (OTHER,)):
        for changed in nodes:
            changed.use(keys)
            for one in nodes:
                for two in nodes:
                    if one is not two:
                        assert two.open(one.seal(b"x")).payload == b"x"
    assert reason(nodes[0], sealer(ALICE, 10, KEY).seal(b"x")) == "key"


def test_a_change_of_keys_makes_nothing_new_again() -> None:
    alice, bob = sealer(), sealer(BOB)
    datagram = alice.seal(b"x")
    bob.open(datagram)
    bob.use((OTHER, KEY))
    assert reason(bob, datagram) == "replay"


def test_the_senders_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MOST_SENDERS", 3)
    bob = sealer(BOB)
    datagrams = [sealer(f"{number:016x}").seal(b"x") for number in range(4)]
    for datagram in datagrams:
        bob.open(datagram)
    assert [reason(bob, datagram) for datagram in datagrams[1:]] == ["replay"] * 3
    assert bob.open(datagrams[0]).payload == b"x"  # forgotten
