"""What one process knows of its files: what it was told is done, and what may be since a call failed. Pure.

An *alternative* is one thing that a name may show. A name has one of them while all that was done to it was
acknowledged; a call that failed leaves what was before and what it may have made, until the name is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Absent:
    """Nothing has the name."""

    def matches(self, found: bytes | None) -> bool:
        """Whether this is what was found, None for nothing."""
        return found is None

    def __str__(self) -> str:
        return "nothing"


@dataclass(frozen=True)
class Exactly:
    """A file with this content."""

    data: bytes

    def matches(self, found: bytes | None) -> bool:
        """Whether this is what was found."""
        return found == self.data

    def __str__(self) -> str:
        return f"{len(self.data)} bytes"


@dataclass(frozen=True)
class Beginning:
    """A file that was being written from its begin, or appended to: ``least`` bytes of it or more."""

    data: bytes
    least: int = 0

    def matches(self, found: bytes | None) -> bool:
        """Whether this is what was found."""
        return found is not None and len(found) >= self.least and self.data.startswith(found)

    def __str__(self) -> str:
        return f"{self.least} to {len(self.data)} bytes"


@dataclass(frozen=True)
class Changed:
    """A file a part of which was being overwritten with ``data``: each of its bytes is the old or the new one."""

    base: bytes
    offset: int
    data: bytes

    def matches(self, found: bytes | None) -> bool:
        """Whether this is what was found."""
        end = self.offset + len(self.data)
        if found is None or len(found) != len(self.base):
            return False
        if found[: self.offset] != self.base[: self.offset] or found[end:] != self.base[end:]:
            return False
        inside = zip(found[self.offset : end], self.base[self.offset : end], self.data, strict=True)
        return all(byte in (old, new) for byte, old, new in inside)

    def __str__(self) -> str:
        return f"{len(self.base)} bytes, {len(self.data)} of them at {self.offset} old or new"


Alternative = Absent | Exactly | Beginning | Changed
NOTHING = (Absent(),)


class Record:
    """The names of one directory that one process alone changes."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[Alternative, ...]] = {}
        self._debris: set[str] = set()

    def of(self, name: str) -> tuple[Alternative, ...]:
        """What a name may show."""
        return self._names.get(name, NOTHING)

    def content(self, name: str) -> bytes | None:
        """The content of a file of which all is known; None where it is not, or where there is none."""
        known = self.of(name)
        return known[0].data if len(known) == 1 and isinstance(known[0], Exactly) else None

    def known(self) -> list[str]:
        """Files of which all is known."""
        return sorted(name for name in self._names if self.content(name) is not None)

    def doubtful(self) -> list[str]:
        """Names of which something is not known."""
        return sorted(name for name, what in self._names.items() if len(what) > 1)

    @property
    def debris(self) -> list[str]:
        """Names of which nothing is said."""
        return sorted(self._debris)

    # -- what was acknowledged

    def wrote(self, name: str, data: bytes) -> None:
        """The file has this content: its close or fsync said so."""
        self._names[name] = (Exactly(data),)

    def removed(self, name: str) -> None:
        """The name is gone."""
        self._names.pop(name, None)

    def renamed(self, old: str, new: str) -> None:
        """What ``old`` was is now ``new``."""
        self._names[new] = self.of(old)
        self.removed(old)

    # -- what failed

    def may_be(self, name: str, *also: Alternative) -> None:
        """Something failed that may have made this of a name."""
        self._names[name] = tuple(dict.fromkeys((*self.of(name), *also)))

    def may_have_been_renamed(self, old: str, new: str) -> None:
        """A rename failed."""
        before = self.of(old)
        self.may_be(old, Absent())
        self.may_be(new, *before)

    def leave(self, *names: str) -> None:
        """Say nothing of these names any more."""
        for name in names:
            self.removed(name)
        self._debris.update(names)

    # -- what was found

    def judge(self, name: str, found: bytes | None) -> str | None:
        """Say what is wrong with what a name shows (None: it is not there), None if nothing is."""
        known = self.of(name)
        if name in self._debris or any(each.matches(found) for each in known):
            return None
        shown = "is not there" if found is None else f"has {len(found)} bytes{self._difference(known, found)}"
        return f"{name} {shown}, not {' or '.join(map(str, known))}"

    def judge_part(self, name: str, offset: int, size: int, found: bytes) -> str | None:
        """Say what is wrong with a part of a file all of which is known."""
        wanted = self.content(name)
        if wanted is None or wanted[offset : offset + size] == found:
            return None
        return f"{name} shows other bytes at {offset} ({len(found)} of {size})"

    def judge_listing(self, found: Iterable[str]) -> str | None:
        """Say what is wrong with a listing."""
        names = list(found)
        seen = set(names)
        if len(seen) != len(names):
            return f"listed more than once: {sorted(n for n in seen if names.count(n) > 1)}"
        missing = {n for n, what in self._names.items() if not any(isinstance(w, Absent) for w in what)} - seen
        strange = seen - self._names.keys() - self._debris
        said = [f"not listed: {sorted(missing)}"] if missing else []
        return "; ".join(said + ([f"listed and not there: {sorted(strange)}"] if strange else [])) or None

    def judge_failed_rename(
        self, before: Mapping[str, tuple[Alternative, ...]], found: Mapping[str, bytes | None], old: str, new: str
    ) -> str | None:
        """Say what is wrong with two names after a rename failed: it was made, or it was not."""
        undone = all(any(a.matches(found[name]) for a in before[name]) for name in (old, new))
        done = found[old] is None and any(a.matches(found[new]) for a in before[old])
        if undone or done:
            return None
        sizes = {name: None if data is None else len(data) for name, data in found.items()}
        return f"a rename of {old} to {new} that failed is neither made nor not made: {sizes}"

    @staticmethod
    def _difference(known: tuple[Alternative, ...], found: bytes) -> str:
        for each in known:
            wanted = each.data if isinstance(each, Exactly | Beginning) else b""
            at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
            if at is not None:
                return f" that differ at {at} (zeros there: {not any(found[at : at + 16])})"
        return ""
