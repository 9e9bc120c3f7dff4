"""Kinds of values that a setting can have: how each is written, and which values are allowed.

A kind's ``parse`` takes what stands in a flag, a variable, a TOML file or a JSON order, and returns what the daemon works
with. It raises ValueError or TypeError with the fault and the values that are allowed, without the setting's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from luxfuse.core.addresses import is_loopback, is_numeric, is_wildcard, parse_address, parse_seeds
from luxfuse.core.prices import Prices
from luxfuse.core.units import parse_duration, parse_size, parse_switch, shown

FOREVER_S = 10 * 365 * 86400.0
"""The value of "never": ten years, since JSON and the kernel's time-outs know no infinity."""


class ValueKind(NamedTuple):
    """``shape``: how values are given, which says how flags, ``-o`` and variables hold them.

    ``one``; ``switch``: on or off; ``many``: may be repeated; ``pairs``: NAME=VALUE, may be repeated, a table in a file;
    ``rules``: tables, which only a file can hold. ``unit``: the end of the field's name in `luxfuse.config.Settings`.
    ``path``: it names a file, and is made absolute.
    """

    metavar: str
    parse: Callable[[Any], Any]
    shape: Literal["one", "switch", "many", "pairs", "rules"] = "one"
    unit: str = ""
    path: bool = False
    choices: tuple[str, ...] = ()


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` if one of the words is like ``word``, else nothing."""
    import difflib  # every command starts faster without it

    plain = {each.lower(): each for each in words}
    found = difflib.get_close_matches(word[:100].lower(), plain, 1)
    return f"; did you mean {plain[found[0]]}?" if found else ""


def check_text(value: Any) -> str:
    """Return a text that can go to the daemon as JSON and to the kernel. Raises ValueError, and TypeError for others."""
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown(value)} is not UTF-8, which it must be") from None
    if "\0" in value:
        raise ValueError(f"{shown(value)} holds a NUL character, which no name can")
    return value


def text(metavar: str, *, empty: bool = False, path: bool = False) -> ValueKind:
    """Any text; ``empty``: also none."""

    def parse(value: Any) -> str:
        if not check_text(value).strip() and not empty:
            raise ValueError(f"is empty; write {metavar}, or leave it out")
        return str(value)

    return ValueKind(metavar, parse, path=path)


def _parse_source(value: Any) -> str:
    source: str = text("SOURCE").parse(value)
    if re.match(r"[A-Za-z][A-Za-z0-9+]*:/(?!/)", source):
        raise ValueError(f"{shown(value)} has one slash after the colon; write PROTOCOL://, or ./ in front of a path")
    return source


def _parse_mountpoint(value: Any) -> str:
    where: str = text("MOUNTPOINT").parse(value)
    if "://" in where:
        raise ValueError(f"{shown(value)} is a URL, and no directory; write: luxfuse mount SOURCE MOUNTPOINT")
    return where


def choice(*words: str) -> ValueKind:
    """One of some words."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            hint = nearest(value, words) if isinstance(value, str) else ""
            raise ValueError(f"{shown(value)} is not one of {', '.join(words)}{hint}")
        return value

    return ValueKind("|".join(words), parse, choices=words)


def whole(least: int, most: int) -> ValueKind:
    """A whole number from ``least`` to ``most``."""
    allowed = f"write a whole number from {least} to {most}"

    def parse(value: Any) -> int:
        digits = value.strip() if isinstance(value, str) else ""
        if digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) < 20:
            value = int(digits)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{shown(value)} is not allowed; {allowed}")
        return value

    return ValueKind("N", parse)


def parse_ratio(value: Any) -> float:
    """Return a part of a whole, 0 to 1: ``0.9`` or ``90%``. Raises ValueError."""
    written = value.strip() if isinstance(value, str) else value
    try:
        if isinstance(written, str) and written.endswith("%"):
            ratio = float(written[:-1]) / 100
        else:
            ratio = math.nan if isinstance(written, bool) else float(written)
    except (ValueError, TypeError, OverflowError):
        ratio = math.nan
    if not 0 <= ratio <= 1:
        raise ValueError(f"{shown(value)} is no part of a whole; write it like 0.9 or 90%")
    return ratio


def _parse_free_part(value: Any) -> float:
    ratio = parse_ratio(value)
    if ratio == 1:
        raise ValueError(f"{shown(value)} must be at least 0 and below 1")
    return ratio


def _parse_umask(value: Any) -> int:
    """A number may be 22 or 0o22, which TOML does not tell: it is believed where both are the same."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 8:
        raise ValueError(f'{value} may be meant as decimal or octal; write octal digits in quotes, such as "022"')
    written = value.strip() if isinstance(value, str) else ""
    if written.isascii() and written.isdigit() and len(written) < 8 and not set(written) & {"8", "9"}:
        value = int(written, 8)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o777:
        raise ValueError(f"{shown(value)} is not allowed; write up to three octal digits, 000 to 777, such as 022")
    return value


def _parse_duration(value: Any) -> float:
    return min(parse_duration(value), FOREVER_S)


def _parse_time_out(value: Any) -> float:
    seconds = _parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{shown(value)} must be more than 0")
    return seconds


def size(least: str = "0", *, unit: str = "_bytes", per: str = "") -> ValueKind:
    """Bytes, at least so many; ``per``: a second, say."""
    least_bytes = parse_size(least)

    def parse(value: Any) -> int:
        count = parse_size(value)
        if count < least_bytes:
            raise ValueError(f"{shown(value)} must be at least {least}{per}")
        return count

    return ValueKind("SIZE", parse, unit=unit)


def _parse_address(value: Any) -> str:
    parse_address(check_text(value))
    return str(value)


def _parse_own_address(value: Any) -> str:
    if is_wildcard(parse_address(check_text(value))[0]):
        raise ValueError(f"{shown(value)}: others cannot reach that; write an address of this machine")
    return str(value)


def _parse_page_address(value: Any) -> str:
    host, port = parse_address(check_text(value), -1)
    if port < 0:
        raise ValueError(f"{shown(value)}: a port is missing; write HOST:PORT, such as 127.0.0.1:9180")
    if not (is_loopback(host) or is_numeric(host)):
        raise ValueError(f"{shown(value)}: is a name; write the address of this machine, such as 127.0.0.1:{port}")
    return str(value)


def _parse_seeds(value: Any) -> tuple[str, ...]:
    return tuple(check_text(entry) for entry in parse_seeds(value))


def _parse_pairs(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError("must be a table of names and values")
    for item in value.values():
        if isinstance(item, (list, dict)):
            raise TypeError("must be a table of names and values, not of tables or lists")
    pairs = {check_text(name): str(item) for name, item in value.items()}
    for name, item in pairs.items():
        try:
            check_text(item)
        except ValueError:
            raise ValueError(f"{name}: its value is not UTF-8, or holds a NUL character") from None  # it may be secret
    return pairs


def _parse_prices(value: Any) -> Prices:
    try:
        prices = msgspec.convert(value, Prices, strict=False)
    except msgspec.ValidationError as exc:
        raise ValueError(f"{exc}; it may hold {', '.join(Prices.__struct_fields__)}") from None
    if not all(0 <= price < math.inf for price in msgspec.structs.astuple(prices) if isinstance(price, float)):
        raise ValueError("a price must be a number from 0 on")
    check_text(prices.currency)
    return prices


def short_text(metavar: str, most_bytes: int) -> ValueKind:
    """A text of some bytes, or none."""

    def parse(value: Any) -> str:
        if len(check_text(value).encode()) > most_bytes:
            raise ValueError(f"{shown(value)} must not be longer than {most_bytes} bytes")
        return str(value)

    return ValueKind(metavar, parse)


SOURCE = ValueKind("SOURCE", _parse_source)
MOUNTPOINT = ValueKind("MOUNTPOINT", _parse_mountpoint, path=True)
SWITCH = ValueKind("on|off", parse_switch, "switch")
DURATION = ValueKind("DURATION", _parse_duration, unit="_s")
TIME_OUT = ValueKind("DURATION", _parse_time_out, unit="_s")
RATIO = ValueKind("RATIO", _parse_free_part)
UMASK = ValueKind("OCTAL", _parse_umask)
IDENTITY = whole(0, 2**32 - 2)
"""A user or group: the kernel takes the last number for "none"."""
RATE = size("64KiB", unit="_bytes_s", per=" (a second)")
FILE = text("FILE", path=True)
LISTEN = ValueKind("HOST:PORT", _parse_address)
PAGE = ValueKind("HOST:PORT", _parse_page_address)
ADVERTISE = ValueKind("HOST[:PORT]", _parse_own_address)
SEEDS = ValueKind("HOST:PORT|file:PATH", _parse_seeds, "many")
OPTIONS = ValueKind("KEY=VALUE", _parse_pairs, "pairs")
PRICES = ValueKind("KIND=PRICE", _parse_prices, "pairs")
