"""Times as stores and file systems tell them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any


def to_ns(moment: Any) -> int:
    """Return nanoseconds since 1970 of a time of any file system; 0 if it cannot be understood."""
    if isinstance(moment, int | float):
        # A float holds microseconds of today's time exactly enough, nanoseconds not.
        return round(moment * 10**6) * 1000 if moment < 10**12 else int(moment)
    if isinstance(moment, str):
        if moment[:14].isdigit():  # FTP: 20260131235959.123
            moment = f"{moment[:8]}T{moment[8:14]}"
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            try:
                moment = parsedate_to_datetime(moment)
            except ValueError:
                return 0
    if not isinstance(moment, datetime):
        return 0
    delta = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return ((delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds) * 1000
