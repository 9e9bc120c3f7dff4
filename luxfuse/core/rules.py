"""Rules for the parts of a mount: those of the configuration by pattern, and those of operators by path.

A rule says something about the paths that its pattern matches (see `paths`). Of each thing that can be said, the first
rule that says it about a path counts; where none does, the setting of the mount. A *mark* was made by a command (``luxfuse
pin``, ``luxfuse ttl``) and holds for a path and all below it; of several time limits that of the longest path counts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import msgspec

from luxfuse.core.paths import matches
from luxfuse.types import ReadMode, Tier, TtlAction, WriteMode

REMEMBERED = 8192
MARKS_BOUND = 10_000
RateName = Literal["bandwidth_limit_bytes_s", "upload_bandwidth_limit_bytes_s"]


class PathRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule for the paths that ``pattern`` matches; None: nothing is said of it.

    ``tier``: the highest one for what is cached. ``ttl_s``: when what is cached is dropped, in seconds after it came.
    ``max_cached_bytes``: how much may be cached of all that it matches together. The bandwidth limits, in bytes a second,
    are shared by all that it matches too.
    """

    pattern: str
    write_mode: WriteMode | None = None
    read_mode: ReadMode | None = None
    tier: Tier | None = None
    pin: bool | None = None
    ttl_s: float | None = msgspec.field(default=None, name="ttl")
    read_only: bool | None = None
    max_cached_bytes: int | None = msgspec.field(default=None, name="max_cached")
    bandwidth_limit_bytes_s: int | None = msgspec.field(default=None, name="bandwidth_limit")
    upload_bandwidth_limit_bytes_s: int | None = msgspec.field(default=None, name="upload_bandwidth_limit")

    @property
    def says_something(self) -> bool:
        """Whether it is of any use."""
        said = (
            self.write_mode, self.read_mode, self.tier, self.pin, self.ttl_s, self.read_only, self.max_cached_bytes,
            self.bandwidth_limit_bytes_s, self.upload_bandwidth_limit_bytes_s,
        )  # fmt: skip
        return any(value is not None for value in said)


class PathPolicy(msgspec.Struct, frozen=True):
    """All that holds for one path."""

    write_mode: WriteMode
    read_mode: ReadMode
    tier: Tier | None = None
    pin: bool = False
    ttl_s: float | None = None
    read_only: bool = False


class PathPolicies:
    """Finds what holds for paths relative to the mount, without leading slash. `replace` changes it for all callers."""

    def __init__(self, rules: Sequence[PathRule], default: PathPolicy) -> None:
        self.replace(rules, default)

    def replace(self, rules: Sequence[PathRule], default: PathPolicy) -> None:
        """From now on these rules hold."""
        self.rules = tuple(rules)
        self._default = default
        self.of = functools.lru_cache(REMEMBERED)(self._find) if rules else lambda _path: default

    def _find(self, path: str) -> PathPolicy:
        said: dict[str, object] = {}
        for rule in self.rules:
            if matches(rule.pattern, path):
                for name in PathPolicy.__struct_fields__:
                    if (value := getattr(rule, name)) is not None:
                        said.setdefault(name, value)
        return msgspec.structs.replace(self._default, **said) if said else self._default

    def limits(self) -> list[int]:
        """Return the bytes that may be cached, for each rule that limits that."""
        return [rule.max_cached_bytes for rule in self.rules if rule.max_cached_bytes is not None]

    def limit_of(self, path: str) -> int | None:
        """Return the number, in `limits`, of the one that a path counts for: that of the first rule that matches."""
        limiting = (rule for rule in self.rules if rule.max_cached_bytes is not None)
        return next((number for number, rule in enumerate(limiting) if matches(rule.pattern, path)), None)

    def rates(self, name: RateName) -> dict[str, int]:
        """Return the bytes a second that rules allow, by pattern."""
        limiting = [(rule.pattern, getattr(rule, name)) for rule in self.rules]
        return {pattern: rate for pattern, rate in reversed(limiting) if rate is not None}  # of two alike, the first

    def rate_of(self, name: RateName, path: str) -> str | None:
        """Return the pattern, in `rates`, whose limit a path shares: that of the first rule that matches."""
        limiting = (rule.pattern for rule in self.rules if getattr(rule, name) is not None)
        return next((pattern for pattern in limiting if matches(pattern, path)), None)

    @property
    def any_ttl(self) -> bool:
        """Whether some rule limits a time."""
        return any(rule.ttl_s is not None for rule in self.rules)


class TimeLimit(msgspec.Struct, frozen=True, array_like=True):
    """How long something is kept, and the action then."""

    seconds: float
    action: TtlAction


class Marks(msgspec.Struct):
    """The orders of operators, by path ("": everything). Kept across restarts in the encoded form of this class."""

    pins: set[str] = msgspec.field(default_factory=set)
    limits: dict[str, TimeLimit] = msgspec.field(default_factory=dict)

    def pinned(self, path: str) -> bool:
        """Whether a path, or a directory that it is in, is pinned."""
        return bool(self.pins) and any(above in self.pins for above in above_and_self(path))

    def limit(self, path: str) -> TimeLimit | None:
        """Return the time limit of a path."""
        if not self.limits:
            return None
        return next((self.limits[above] for above in above_and_self(path) if above in self.limits), None)

    @property
    def full(self) -> bool:
        """Whether there are as many as there can be."""
        return len(self.pins) + len(self.limits) >= MARKS_BOUND


def above_and_self(path: str) -> list[str]:
    """Return a path and the directories that it is in, the longest first; the last one is ""."""
    found = []
    while path:
        found.append(path)
        path = path.rpartition("/")[0]
    return [*found, ""]
