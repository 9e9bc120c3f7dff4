"""Text of others, such as names of files, on its way to a terminal. Imports nothing: every command has it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with all that could steer a terminal or break a line escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
