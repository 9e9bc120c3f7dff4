"""Patterns on paths.

A pattern is matched with the whole path relative to the mount: ``*``, ``?`` and ``[...]`` stand for characters of one
name, ``**`` as a whole name for any number of directories, none included (at the end: for all that is below).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path (relative to the mount, without leading slash)."""
    return _expression(pattern).fullmatch(path) is not None


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with what is wrong, for a pattern that matches no path."""
    parts = pattern.split("/")
    if not pattern:
        raise ValueError("it is empty; write ** for everything")
    if pattern.startswith("/"):
        raise ValueError("it must be relative to the mount; leave out the leading slash")
    if not parts[-1]:
        raise ValueError("it ends with a slash; write /** for what is below a directory")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("a name in it is empty or consists of dots, which no path has")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError("** stands for whole names; write it between slashes")


def has_pattern(path: str) -> bool:
    """Whether a path may stand for others than itself."""
    return any(character in path for character in "*?[")


def literal_part(path: str) -> str:
    """Return the path without the part from the first pattern on: the directory of all that it may stand for."""
    parts = path.split("/")
    first = next((number for number, part in enumerate(parts) if has_pattern(part)), len(parts))
    return "/".join(parts[:first])


def covers(path: str) -> Callable[[str], bool]:
    """Return what tells whether something is at or below a path, or below what a pattern matches."""
    if not path:
        return lambda _other: True
    below = f"{path}/"
    if not has_pattern(path):
        return lambda other: other == path or other.startswith(below)
    expression = re.compile(f"(?:{_text(path)})(?:/.*)?", re.DOTALL)
    return lambda other: other == path or other.startswith(below) or expression.fullmatch(other) is not None


def name_matcher(glob: str) -> Callable[[bytes], bool]:
    """Return what tells whether a name of a directory matches one part of a pattern (not ``**``)."""
    expression = re.compile(_name(glob), re.DOTALL)
    return lambda name: expression.fullmatch(name.decode("utf-8", "surrogateescape")) is not None


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(_text(pattern), re.DOTALL)


def _text(pattern: str) -> str:
    *above, last = pattern.split("/")
    text = "".join("(?:[^/]+/)*" if part == "**" else _name(part) + "/" for part in above)
    return text + (".+" if last == "**" else _name(last))


def _name(glob: str) -> str:
    parts, at = [], 0
    while at < len(glob):
        character = glob[at]
        end = glob.find("]", at + 3 if glob.startswith("[!", at) else at + 2) if character == "[" else -1
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif end > 0:
            negated = glob[at + 1] == "!"
            parts.append(_characters(glob[at + 1 + negated : end], negated))
            at = end
        else:
            parts.append(re.escape(character))
        at += 1
    return "".join(parts)


def _characters(members: str, negated: bool) -> str:
    """Return the expression for one character of a set as the shell writes it."""
    parts, at = [], 0
    while at < len(members):
        first, last = members[at], members[at]
        if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
            last = members[at + 2]
            at += 2
        if first <= last:
            parts.append(f"{re.escape(first)}-{re.escape(last)}")
        at += 1
    if not parts:  # a range that runs backwards holds nothing
        return "[^/]" if negated else r"(?!)"
    return f"(?!/)[{'^' if negated else ''}{''.join(parts)}]"
