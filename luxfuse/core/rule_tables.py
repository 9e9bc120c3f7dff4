"""Rules for paths as users write them: tables ``[[path]]`` of a TOML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from luxfuse.core.paths import check_pattern
from luxfuse.core.rules import PathRule
from luxfuse.core.units import parse_size, shown
from luxfuse.core.values import DURATION, RATE, check_text

_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "ttl": DURATION.parse, "max_cached": parse_size, "bandwidth_limit": RATE.parse, "upload_bandwidth_limit": RATE.parse,
}  # fmt: skip


def parse_rules(tables: Any) -> tuple[PathRule, ...]:
    """Return the rules of a list of tables. Raises ValueError that begins with ``[[path]] number N``."""
    if not isinstance(tables, (list, tuple)):
        raise TypeError("write each rule as a table of its own, [[path]], with pattern and what holds there")
    rules = []
    for number, table in enumerate(tables, 1):
        try:
            rules.append(_parse_rule(table))
        except (ValueError, TypeError) as exc:
            raise ValueError(f"[[path]] number {number}: {exc}") from None
    return tuple(rules)


def _parse_rule(written: Any) -> PathRule:
    table = dict(written) if isinstance(written, Mapping) else written
    if isinstance(table, dict):
        for name, parse in _CONVERTED.items():
            if name in table:
                try:
                    table[name] = parse(table[name])
                except (ValueError, TypeError) as exc:
                    raise ValueError(f"{name}: {exc}") from None
    try:
        rule = msgspec.convert(table, PathRule)
    except (msgspec.ValidationError, UnicodeEncodeError) as exc:
        raise ValueError(f"{exc}; it needs a pattern, and what holds there, such as write_mode") from None
    try:
        check_pattern(check_text(rule.pattern))
    except ValueError as exc:
        raise ValueError(f"pattern {shown(rule.pattern)}: {exc}") from None
    if not rule.says_something:
        raise ValueError("it says nothing; write what holds there, such as write_mode")
    return rule
