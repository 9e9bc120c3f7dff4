"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re
from typing import Any

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)\s*$", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
MOST_BYTES = (1 << 63) - 1
"""The largest number that the kernel and JSON can hold."""
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def shown(value: Any) -> str:
    """Return a value as an error repeats it: in one line, and not too long."""
    text = repr(value) if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def parse_size(text: str | int) -> int:
    """Return bytes. ``50GiB``, ``50G`` and ``50g`` are binary, ``50GB`` is decimal, a plain number is bytes.

    Raises ValueError for anything else, TypeError for neither text nor number.
    """
    refusal = f"{shown(text)} is not a size; write it like 512MiB or 50GiB"
    if isinstance(text, int) and not isinstance(text, bool):
        count: float = text
    elif not isinstance(text, str):
        raise TypeError(refusal)
    else:
        match = _SIZE.match(text)
        if match is None:
            raise ValueError(refusal)
        number, power, unit = match.groups()
        base = 1000 if power and unit.lower() == "b" else 1024
        count = float(number) * base ** _POWERS[power.lower()]
        if number.isdecimal() and len(number) < 20:
            count = int(number) * base ** _POWERS[power.lower()]
    if count < 0:
        raise ValueError(refusal)
    if count > MOST_BYTES:
        raise ValueError(f"{shown(text)} is too large; a size is less than 8192PiB")
    return int(count)


def parse_duration(text: str | float) -> float:
    """Return seconds. ``90``, ``60s``, ``1h30m``, ``500ms`` and ``never`` (infinite) are understood.

    Raises ValueError for anything else, negative ones included, and TypeError for neither text nor number.
    """
    refusal = f"{shown(text)} is not a duration; write it like 60s, 1h30m or never"
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise TypeError(refusal)
    stripped = str(text).strip().lower()
    if stripped == "never":
        return math.inf
    try:
        seconds = float(stripped)
    except ValueError:
        pass
    else:
        if not seconds >= 0:  # not a number is refused as well
            raise ValueError(refusal)
        return seconds
    if not stripped or _DURATION.sub("", stripped).strip():
        raise ValueError(refusal)
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in _DURATION.findall(stripped))


YES = ("1", "true", "yes", "on")
NO = ("0", "false", "no", "off")
"""The texts that storage options take for true and false."""


def parse_switch(value: str | bool) -> bool:
    """Return True for ``on`` and ``true``, False for ``off`` and ``false``. Raises ValueError for anything else."""
    word = str(value).strip().lower()
    if word not in ("on", "off", "true", "false"):
        raise ValueError(f"{shown(value)} is not understood; write on or off")
    return word in ("on", "true")


def format_size(count: float) -> str:
    """Return ``count`` bytes for people, in binary units: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def format_age(seconds: float) -> str:
    """Return a duration for people: ``5 s``, ``12 min``, ``3 h 5 min``, ``2 d 4 h``."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def format_count(count: int, what: str) -> str:
    """Return a number of things for people: ``1 file``, ``2 files``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
