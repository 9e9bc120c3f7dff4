from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from luxfuse.core.ledger import BLOCK_BYTES, Ledger, allocated_bytes

sizes = st.integers(0, 50)


@given(st.integers(0, 1 << 40))
def test_allocation_is_whole_blocks(size: int) -> None:
    found = allocated_bytes(size)
    assert found % BLOCK_BYTES == 0
    assert size <= found < size + BLOCK_BYTES


class LedgerMachine(RuleBasedStateMachine):
    """Against a disk that is counted by hand: neither the capacity nor the free-space floor is ever passed."""

    reservations = Bundle("reservations")

    @initialize(capacity=st.none() | st.integers(0, 200), disk=st.integers(10, 400), ratio=st.sampled_from([0.0, 0.1, 0.5]))
    def begin(self, capacity: int | None, disk: int, ratio: float) -> None:
        self.capacity = capacity
        self.disk = disk
        self.ratio = ratio
        self.ours = 0
        self.reserved = 0
        self.ledger = Ledger(capacity)
        self.ledger.observe(disk, disk, ratio)

    @rule(target=reservations, wanted=sizes)
    def reserve(self, wanted: int) -> int:
        shortage = self.ledger.shortage(wanted)
        done = self.ledger.reserve(wanted)
        assert done == (shortage == 0)
        if not done:
            return 0
        self.reserved += wanted
        return wanted

    @rule(reserved=consumes(reservations), part=st.floats(0, 1))
    def settle(self, reserved: int, part: float) -> None:
        written = int(reserved * part)
        self.ledger.settle(reserved, written)
        self.reserved -= reserved
        self.ours += written

    @rule(part=st.floats(0, 1))
    def evict(self, part: float) -> None:
        gone = int(self.ours * part)
        self.ledger.free(gone)
        self.ours -= gone

    @rule()
    def observe(self) -> None:
        self.ledger.observe(self.disk - self.ours, self.disk, self.ratio)

    @rule(wanted=sizes)
    def freeing_the_shortage_is_enough(self, wanted: int) -> None:
        short = self.ledger.shortage(wanted)
        if 0 < short <= self.ours:
            self.ledger.free(short)
            self.ours -= short
            assert self.ledger.shortage(wanted) == 0

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.used_bytes == self.ours
        assert self.ledger.reserved_bytes == self.reserved
        if self.capacity is not None:
            assert self.ours + self.reserved <= self.capacity
        if self.ours + self.reserved:
            assert self.disk - self.ours - self.reserved >= int(self.disk * self.ratio)


TestLedger = LedgerMachine.TestCase


def test_more_cannot_be_written_than_was_reserved() -> None:
    ledger = Ledger(100)
    assert ledger.reserve(10)
    with pytest.raises(AssertionError):
        ledger.settle(10, 11)
    with pytest.raises(AssertionError):
        ledger.settle(20, 0)


def test_a_cache_found_over_its_capacity_says_by_how_much() -> None:
    ledger = Ledger(100, used_bytes=150)
    assert ledger.shortage(0) == 50
    assert not ledger.reserve(1)


def test_others_filling_the_disk_makes_a_shortage() -> None:
    ledger = Ledger(None)
    assert ledger.reserve(1 << 40), "without a limit and before the first look, all fits"
    ledger.settle(1 << 40, 0)
    ledger.observe(50, 1000, 0.1)
    assert ledger.shortage(0) == 50
