"""A cache directory as users write it: ``DIR[,size=50GiB][,tier=ssd]``."""

from __future__ import annotations

from typing import Any

import msgspec

from luxfuse.core.units import parse_size, shown
from luxfuse.core.values import check_text, nearest, parse_ratio
from luxfuse.types import TIERS, Tier

MIB = 1 << 20
_RATIOS = ("free_space_ratio", "high_watermark", "low_watermark")


class CacheSetting(msgspec.Struct, frozen=True):
    """One cache directory. Bounded by ``size_bytes``, or by ``size_ratio`` of its file system, and by what is left free.

    When it is filled beyond ``high_watermark``, the coldest is moved away until ``low_watermark``, both parts of its size.
    """

    path: str
    size_bytes: int | None = None
    tier: Tier = "ssd"
    size_ratio: float | None = None
    free_space_ratio: float | None = None
    high_watermark: float = 0.99
    low_watermark: float = 0.98


def parse_cache_dirs(written: Any) -> tuple[CacheSetting, ...]:
    """Return the directories of one text, or of a list of them. Raises ValueError, and TypeError for what is neither."""
    texts = written if isinstance(written, (list, tuple)) else [written]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("must be text, or a list of texts: DIR,size=50GiB")
    if not texts:
        raise ValueError("the list is empty; leave it out, or write DIR,size=50GiB")
    return tuple(parse_cache_dir(text) for text in texts)


def parse_cache_dir(text: str) -> CacheSetting:
    """Return the directory of one text; its path may be relative. Raises ValueError with what is allowed."""
    path, *options = check_text(text).split(",")
    values: dict[str, Any] = {"path": path}
    if not path.strip():
        raise ValueError("the directory is empty; write DIR,size=50GiB")
    for option in options:
        name, _, value = option.partition("=")
        try:
            if name == "size" and value.strip().endswith("%"):
                values["size_ratio"] = parse_ratio(value)
            elif name == "size":
                values["size_bytes"] = parse_size(value)
            elif name in _RATIOS:
                values[name] = parse_ratio(value)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from None
        if name == "tier" and value in TIERS:
            values["tier"] = value
        elif name == "tier":
            raise ValueError(f"tier: {shown(value)} is not one of {', '.join(TIERS)}{nearest(value, TIERS)}")
        elif name != "size" and name not in _RATIOS:
            raise ValueError(
                f"{shown(option)} is not understood; write DIR,size=50GiB,tier=mem|ssd|hdd, and free_space_ratio, "
                "high_watermark and low_watermark between 0 and 1 or in percent"
            )
    directory = msgspec.convert(values, CacheSetting)
    if directory.low_watermark > directory.high_watermark:
        raise ValueError(f"{path}: low_watermark is above high_watermark; give a lower one")
    if directory.size_bytes is not None and directory.size_bytes < MIB:
        raise ValueError(f"{path}: its size must be at least 1MiB (one page)")
    return directory
