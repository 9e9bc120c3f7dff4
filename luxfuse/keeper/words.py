"""The words of an estate (`luxfuse.estate.words`) that the keeper looks at."""

from __future__ import annotations

import os
import struct

SERVING = 1
STATE_AT, SERVING_SINCE_AT = 2 * 8, 13 * 8


def was_served(estate: int) -> bool:
    """Whether a daemon has served the mount."""
    return _word(estate, STATE_AT) == SERVING


def serving_since_ms(estate: int) -> int:
    """Return when the last daemon that served began to, by the monotonic clock."""
    return _word(estate, SERVING_SINCE_AT)


def _word(estate: int, at: int) -> int:
    found = os.pread(estate, 8, at)
    return int(struct.unpack("=q", found)[0]) if len(found) == 8 else 0
