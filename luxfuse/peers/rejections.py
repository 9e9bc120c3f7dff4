"""Counts datagrams that are not taken, and says so now and then: a line for each reason, at most once a minute."""

from __future__ import annotations

import logging
from collections import Counter

from luxfuse.core.addresses import format_address
from luxfuse.core.members import Address
from luxfuse.core.units import format_count

log = logging.getLogger(__name__)

REASONS = {
    "garbage": "no datagrams of luxfuse",
    "version": "another format, of another version of luxfuse",
    "key": "sealed with a key that is not in our key file",
    "tampered": "changed on the way",
    "restarted": "from before the last start of the sender",
    "replay": "seen before, or very late",
    "namesake": "of a node with a copy of our state directory, and so our name: remove node.json there, and mount again",
    "own": "our own",
}
"""Why datagrams are rejected, and how that is said."""
INTERVAL_S = 60.0
_LEVELS = {"key": logging.WARNING, "version": logging.WARNING, "namesake": logging.WARNING, "own": logging.DEBUG}


class Rejected(Exception):
    """A datagram is not taken. ``reason``: one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Rejections:
    """``counts``: by reason, since the start."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._said: Counter[str] = Counter()
        self._said_s: dict[str, float] = {}

    def note(self, reason: str, sender: Address, now_s: float) -> None:
        """Count a datagram, and log it if nothing like it was logged lately. ``now_s``: of any clock."""
        self.counts[reason] += 1
        if now_s - self._said_s.get(reason, -INTERVAL_S) < INTERVAL_S:
            return
        new = self.counts[reason] - self._said[reason]
        self._said[reason], self._said_s[reason] = self.counts[reason], now_s
        what, where = format_count(new, "datagram"), format_address(sender)
        log.log(_LEVELS.get(reason, logging.INFO), "%s rejected, the last from %s: %s", what, where, REASONS[reason])
