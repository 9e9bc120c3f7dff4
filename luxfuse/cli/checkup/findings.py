"""What checks find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "FAIL"]
STATES: tuple[State, ...] = ("ok", "warn", "FAIL")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and in ``advice`` what to do about it, where something is to be done.

    ``warn``: works, but worse than it could, or not for long. ``FAIL``: a mount, or what it is for, does not work.
    """

    name: str
    state: State
    text: str
    advice: str = ""


def ok(name: str, text: str, advice: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(name, "ok", text, advice)


def warn(name: str, text: str, advice: str) -> Finding:
    """Return a finding that something is worse than it could be."""
    return Finding(name, "warn", text, advice)


def fail(name: str, text: str, advice: str) -> Finding:
    """Return a finding that something does not work."""
    return Finding(name, "FAIL", text, advice)
